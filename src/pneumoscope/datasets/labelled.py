"""One case of NIfTI files to a labelled scan: the scan, its masks by the set's label map, headers put right.

Used by the readers of public sets. A mask is compared with its scan by shape first and by header second, because
published sets hold pairs that match voxel for voxel while one header says little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import CaseFiles, LabelledScan
from pneumoscope.errors import DatasetError, Finding, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.kinds import require_kind
from pneumoscope.io.masks import ROUNDING_TOLERANCE, fit_mask
from pneumoscope.io.read import read_stored, read_volume
from pneumoscope.io.stored import Stored, laid_out
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, RAS, Mask, Volume, present_labels

HALF_VOXEL = 0.5
"""Headers of scan and mask that differ by less than this everywhere are rounded differently, not placed differently."""


def load_case(case: str, files: CaseFiles) -> LabelledScan:
    """Read a scan in Hounsfield units and its masks.

    Raises:
        DatasetError: a mask with labels the set does not declare, of another shape, or on another place than its scan.
        ReadError: a file cannot be read, or the scan does not hold Hounsfield units.
    """
    return with_masks(read_volume(files.image, case=case), files)


def with_masks(volume: Volume, files: CaseFiles) -> LabelledScan:
    """Put the scan's header right where the set's headers are wrong, and read the masks onto it.

    Args:
        volume: the scan as `read_volume` gives it, on the grid of the header. Its array is taken over and may change.
        files: where the masks lie and what their labels mean.

    Returns:
        The scan on its true grid. `Volume.native` keeps the file's axis order, so that a mask written with it has the
        voxel order of the file; `write_as_filed` gives it the file's own header too.
    """
    header = volume.native
    volume = put_right(volume, files)
    lungs = drawn = None
    notes: tuple[Finding, ...] = ()
    if files.lungs is not None:
        lungs, notes = _mask(files.lungs, files.lung_labels, LUNG_LABELS, files, (volume, header))
    if files.infiltrate is not None:
        names = INFILTRATE_LABELS if 2 in files.infiltrate_labels.values() else INFILTRATE_LABEL
        drawn, more = _mask(files.infiltrate, files.infiltrate_labels, names, files, (volume, header))
        notes += more
    return LabelledScan(volume.with_findings(*dict.fromkeys(notes)), lungs, drawn)


def put_right(volume: Volume, files: CaseFiles) -> Volume:
    """The scan where it lies in truth (`CaseFiles.corrected_grid`), with a finding when that is elsewhere.

    The voxels of the file keep their order and values; what changes is where the header says they lie. The volume's
    array is taken over and turned in place.
    """
    native = files.corrected_grid(volume.native)
    if native == volume.native:
        return volume
    before, after = volume.native.reorientation(RAS)[1], native.reorientation(RAS)[1]
    turned = [new for new in range(3) if before[new] != after[new]]
    _flip(volume.hu, turned)
    ways = " and ".join(("left-right", "front-back", "head-foot")[axis] for axis in turned)
    note = Finding(
        "IN-SET-081",
        f"the header of this scan is known to be mirrored {ways}; it was put right, the voxels keep their order "
        f"({''.join(volume.native.axis_codes)} by the header, {''.join(native.axis_codes)} in truth)",
    )
    return replace(volume, native=native, grid=native.reorient(RAS), findings=(*volume.findings, note))


def filed_grid(files: CaseFiles) -> Grid:
    """The grid of the scan by its file's own header, right or wrong; of one slice where the case is a slice."""
    grid = read_stored(files.image, require_kind(files.image)).grid
    return grid if files.part is None else slice_of(grid, files.part)


def write_as_filed(mask: Mask, path: str | Path, native: Grid, files: CaseFiles) -> None:
    """Write a mask so that it lies on the scan's file in every program: its voxel order and its own header.

    Where the set's headers are right this is `write_mask`. Where they are wrong, a mask with the true header would
    be shown mirrored on a file that keeps the wrong one.

    Args:
        mask: on the case's grid.
        path: as for `write_mask`.
        native: `Volume.native` of the case.
        files: of the case.
    """
    from pneumoscope.io.write import write_mask

    header = filed_grid(files)
    write_mask(Mask.from_native(mask.to_native(native), header, mask.names), path, header)


def slice_of(grid: Grid, index: int) -> Grid:
    """One slice of a stored grid, as a grid of its own."""
    return grid.crop((0, 0, index), (*grid.shape[:2], 1))


def whole_labels(stored: Stored, path: Path) -> tuple[NDArray[np.uint8], tuple[Finding, ...]]:
    """Stored values as labels, rounded; 0 and 255 alone count as 0 and 1.

    Returns:
        Labels in stored order, and a finding when more than rounding noise was rounded away.

    Raises:
        DatasetError: NaN, infinite values, or values outside 0..255.
    """
    values = stored.values()
    labels = np.empty(values.shape, np.uint8)
    off, worst = 0, 0.0
    for k in range(values.shape[2]):  # slice by slice: no second float copy of the whole
        plane = values[:, :, k]
        if plane.dtype.kind == "f" and not np.isfinite(plane).all():
            raise DatasetError("holds NaN or infinite values, expected labels; fetch the mask again", path=path)
        whole = np.rint(plane)
        if whole.min() < 0 or whole.max() > 255:
            raise DatasetError(f"holds values {whole.min():.4g} to {whole.max():.4g}, expected labels", path=path)
        labels[:, :, k] = whole
        if plane.dtype.kind == "f":
            fraction = np.abs(plane - whole)
            off += int(np.count_nonzero(fraction > ROUNDING_TOLERANCE))
            worst = max(worst, float(fraction.max()))
    if present_labels(labels) == [255]:
        labels = (labels > 0).astype(np.uint8)
    if not off:
        return labels, ()
    text = f"{off} mask voxels held fractions (up to {worst:.2g} off a label) and were rounded to the nearest label"
    return labels, (Finding("IN-SET-083", text),)


def map_labels(
    labels: NDArray[np.uint8], known: Mapping[int, int], files: CaseFiles, path: Path
) -> tuple[NDArray[np.uint8], tuple[Finding, ...]]:
    """Labels on disk to labels here; ignored ones become background, with a finding that counts them.

    Raises:
        DatasetError: labels the set does not declare.
    """
    present = present_labels(labels)
    strange = [v for v in present if v not in known and v not in files.ignored_labels]
    if strange:
        declared = ", ".join(str(v) for v in sorted({*known, *files.ignored_labels}))
        raise DatasetError(f"holds the labels {strange[:8]}, this set has {declared}; is it another mask?", path=path)
    other_kind = set(chain(files.lung_labels, files.infiltrate_labels)) if files.lungs == files.infiltrate else set()
    left_out = [v for v in present if v not in known and v not in other_kind]
    lookup = np.zeros(256, np.uint8)
    for stored, ours in known.items():
        lookup[stored] = ours
    if not left_out:
        return lookup[labels], ()
    voxels = int(np.isin(labels, left_out).sum())
    text = f"{voxels} voxels of mask label {', '.join(map(str, left_out))} are neither lung nor infiltrate: left out"
    return lookup[labels], (Finding("IN-SET-087", text, "info"),)


def read_labels(
    path: Path, known: Mapping[int, int], files: CaseFiles, header: Grid
) -> tuple[NDArray[np.uint8], Grid | None, tuple[Finding, ...]]:
    """Labels of one mask file in stored order.

    Args:
        path: the mask.
        known: label on disk -> label here.
        files: of the case, for the labels it ignores.
        header: the scan's grid by its header.

    Returns:
        The labels, the grid of the mask's header (None: it lies on the scan voxel for voxel), and findings.

    Raises:
        DatasetError: unknown labels, another shape, or a header that places the mask elsewhere.
        ReadError: the file cannot be read.
    """
    stored = read_stored(path, require_kind(path), sparse=True)
    labels, rounded = whole_labels(stored, path)
    labels, ignored = map_labels(labels, known, files, path)
    notes = (*rounded, *ignored)
    if stored.grid.reorient(RAS).is_same_space(header.reorient(RAS)):
        return labels, stored.grid, notes
    return labels, None, (*notes, *_voxel_for_voxel(stored.grid, header, path))


def _mask(
    path: Path, known: Mapping[int, int], names: Mapping[int, str], files: CaseFiles, scan: tuple[Volume, Grid]
) -> tuple[Mask, tuple[Finding, ...]]:
    """One mask on the scan's true grid; `scan` is the corrected volume and the grid of its file's header."""
    volume, header = scan
    labels, own, notes = read_labels(path, known, files, header)
    native = volume.native if own is None else files.corrected_grid(own)
    mask = Mask.from_native(laid_out(labels, native, np.uint8), native, names)
    return Mask(mask.labels, volume.grid, names), notes


def _voxel_for_voxel(mask: Grid, scan: Grid, path: Path) -> tuple[Finding, ...]:
    """A finding when the mask may be laid on the scan voxel for voxel although its header differs.

    Raises:
        DatasetError: another shape; or a header that places it elsewhere.
    """
    if mask.shape != scan.shape:
        raise DatasetError(f"has {_sizes(mask)} voxels, its scan {_sizes(scan)}; is it the mask of another?", path=path)
    if np.array_equal(np.abs(mask.affine), np.eye(4)):
        text = "a mask's header says nothing of where it lies (unit matrix): laid on the scan voxel for voxel"
        return (Finding("IN-SET-084", text),)
    shift = np.abs(scan.index(mask.corners()) - scan.index(scan.corners())).max()
    if shift < HALF_VOXEL:
        text = f"headers of mask and scan differ by up to {shift:.2g} voxels: laid on each other voxel for voxel"
        return (Finding("IN-SET-084", text),)
    try:
        fit_mask(Mask.empty(mask.reorient(RAS), {}), scan.reorient(RAS), what="this mask", path=path)
    except ReadError as error:
        raise DatasetError(error.message, path=path) from None
    raise AssertionError("the mask lies on its scan after all")


def _sizes(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))


def _flip(array: NDArray[np.float32], axes: list[int]) -> None:
    """Flip axes in place, plane by plane: a scan of 600 MB is not copied."""
    if 0 in axes:
        last = array.shape[0] - 1
        for i in range((last + 1) // 2):
            array[[i, last - i]] = array[[last - i, i]]
    ways = tuple(slice(None, None, -1) if axis in axes else slice(None) for axis in (1, 2))
    if set(axes) - {0}:
        for plane in array:
            plane[...] = plane[ways].copy()
