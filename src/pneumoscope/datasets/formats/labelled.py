"""One case of NIfTI files to a labelled scan: the scan, its masks by the set's label map, headers put right.

Used by the readers of public sets. A mask is compared with its scan by shape first and by header second, because
published sets hold pairs that match voxel for voxel while one header says little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from pneumoscope.io.write import write_mask
from pneumoscope.volume import (
    INFILTRATE_LABEL,
    INFILTRATE_LABELS,
    LUNG_LABELS,
    RAS,
    Mask,
    Volume,
    present_labels,
    relabelled,
)

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
    stored: StoredLabels | None = None
    if files.lungs is not None:
        stored = read_labels(files.lungs, header)
        lungs, notes = _mask(stored, files.lung_labels, LUNG_LABELS, files, volume)
    if files.infiltrate is not None:
        if stored is None or files.infiltrate != files.lungs:  # a mask of both is read once
            stored = read_labels(files.infiltrate, header)
        names = INFILTRATE_LABELS if 2 in files.infiltrate_labels.values() else INFILTRATE_LABEL
        drawn, more = _mask(stored, files.infiltrate_labels, names, files, volume)
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
        native: `Volume.native` of the case.
    """
    header = filed_grid(files)
    write_mask(Mask.from_native(mask.to_native(native), header, mask.names), path, header)


def slice_of(grid: Grid, index: int) -> Grid:
    """One slice of a stored grid, as a grid of its own."""
    return grid.crop((0, 0, index), (*grid.shape[:2], 1))


@dataclass(frozen=True, eq=False)
class StoredLabels:
    """A mask file's labels as they are stored."""

    path: Path  # the file
    labels: NDArray[np.uint8]  # (i, j, k) in the file's own axis order
    grid: Grid | None  # of the file's header; None where the mask is to be laid on its scan voxel for voxel
    findings: tuple[Finding, ...]  # what was odd and accepted


def read_labels(path: Path, header: Grid) -> StoredLabels:
    """Labels of one mask file, compared with its scan by shape and then by place.

    Args:
        header: the scan's grid by its header.

    Raises:
        DatasetError: values that are no labels, another shape, or a header that places the mask elsewhere.
        ReadError: the file cannot be read.
    """
    stored = read_stored(path, require_kind(path), sparse=True, scan=header)
    labels, notes = whole_labels(stored, path)
    if stored.grid.reorient(RAS).is_same_space(header.reorient(RAS)):
        return StoredLabels(path, labels, stored.grid, notes)
    return StoredLabels(path, labels, None, (*notes, _voxel_for_voxel(stored.grid, header, path)))


def whole_labels(stored: Stored, path: Path) -> tuple[NDArray[np.uint8], tuple[Finding, ...]]:
    """Stored values as labels, rounded; 0 and 255 alone count as 0 and 1.

    Returns:
        Labels in stored order, and a finding when more than rounding noise was rounded away.

    Raises:
        DatasetError: NaN, infinite values, or values outside 0..255.
    """
    values = stored.values()
    labels = np.empty(values.shape, np.uint8, order="F")
    off, worst = 0, 0.0
    for k in range(values.shape[2]):  # slice by slice: no second float copy of the whole
        plane = values[:, :, k]
        if plane.dtype.kind == "f":
            if not np.isfinite(plane).all():
                raise DatasetError("holds NaN or infinite values, expected labels; fetch the mask again", path=path)
            fraction = np.abs(plane - np.rint(plane))
            off += int(np.count_nonzero(fraction > ROUNDING_TOLERANCE))
            worst = max(worst, float(fraction.max()))
            plane = np.rint(plane)
        low, high = plane.min(), plane.max()
        if low < 0 or high > 255:
            raise DatasetError(f"holds values {low:.4g} to {high:.4g}, expected labels", path=path)
        labels[:, :, k] = plane
    if present_labels(labels) == [255]:
        labels //= 255
    if not off:
        return labels, ()
    text = f"{off} mask voxels held fractions (up to {worst:.2g} off a label) and were rounded to the nearest label"
    return labels, (Finding("IN-SET-083", text),)


def map_labels(
    stored: StoredLabels, known: Mapping[int, int], files: CaseFiles
) -> tuple[NDArray[np.uint8], tuple[Finding, ...]]:
    """Labels on disk to labels here; ignored ones become background, with a finding that counts them.

    Args:
        known: label on disk -> label here.

    Raises:
        DatasetError: labels the set does not declare.
    """
    present = present_labels(stored.labels)
    strange = [v for v in present if v not in known and v not in files.ignored_labels]
    if strange:
        declared = ", ".join(str(v) for v in sorted({*known, *files.ignored_labels}))
        raise DatasetError(
            f"holds the labels {strange[:8]}, this set has {declared}; is it another mask?", path=stored.path
        )
    other_kind = set(chain(files.lung_labels, files.infiltrate_labels)) if files.lungs == files.infiltrate else set()
    left_out = [v for v in present if v not in known and v not in other_kind]
    unchanged = all(known.get(v) == v for v in present)
    labels = stored.labels if unchanged else relabelled(stored.labels, known)
    if not left_out:
        return labels, ()
    voxels = sum(int(np.count_nonzero(stored.labels == v)) for v in left_out)
    text = f"{voxels} voxels of mask label {', '.join(map(str, left_out))} are neither lung nor infiltrate: left out"
    return labels, (Finding("IN-SET-087", text, "info"),)


def _mask(
    stored: StoredLabels, known: Mapping[int, int], names: Mapping[int, str], files: CaseFiles, volume: Volume
) -> tuple[Mask, tuple[Finding, ...]]:
    """One mask on the scan's true grid."""
    labels, ignored = map_labels(stored, known, files)
    native = volume.native if stored.grid is None else files.corrected_grid(stored.grid)
    mask = Mask.from_native(laid_out(labels, native, np.uint8), native, names)
    return Mask(mask.labels, volume.grid, names), (*stored.findings, *ignored)


def _voxel_for_voxel(mask: Grid, scan: Grid, path: Path) -> Finding:
    """A finding when the mask may be laid on the scan voxel for voxel although its header differs.

    Raises:
        DatasetError: another shape; or a header that places it elsewhere.
    """
    if mask.shape != scan.shape:
        raise DatasetError(f"has {_sizes(mask)} voxels, its scan {_sizes(scan)}; is it the mask of another?", path=path)
    if np.array_equal(np.abs(mask.affine), np.eye(4)):
        text = "a mask's header says nothing of where it lies (unit matrix): laid on the scan voxel for voxel"
        return Finding("IN-SET-084", text)
    shift = np.abs(scan.index(mask.corners()) - scan.index(scan.corners())).max()
    if shift < HALF_VOXEL:
        text = f"headers of mask and scan differ by up to {shift:.2g} voxels: laid on each other voxel for voxel"
        return Finding("IN-SET-084", text)
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
