"""Label names inside the files: JSON in a NIfTI header extension, or in a key of NRRD and MetaImage headers."""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError, ReadError
from pneumoscope.geometry import LPS_TO_RAS, Grid, cut
from pneumoscope.io.stored import MAX_VOXELS, Stored
from pneumoscope.volume import RAS, Mask, is_named

LABELS_ECODE = 6  # NIfTI extension code "comment": plain text

LABELS_KEY = "pneumoscope_labels"

LABEL_TABLE = re.compile(rb'<Label\s+Key="(\d{1,3})"[^>]*>\s*(?:<!\[CDATA\[)?([^<\]]{1,64})')
"""A label in the XML of a CaretExtension, which TotalSegmentator writes into its files of many labels."""


def labels_in_extensions(block: bytes, endianness: str) -> Mapping[int, str] | None:
    """Label names from our own header extension or a table of labels in XML.

    Other extensions, which may hold identities, are passed over.
    """
    at = 0
    while at + 8 <= len(block):
        size, code = struct.unpack(endianness + "ii", block[at : at + 8])
        if size < 16 or at + size > len(block):
            return None
        content = block[at + 8 : at + size]
        if code == LABELS_ECODE and (names := parse_labels(content)):
            return names
        if b"<LabelTable>" in content and (names := _labels_in_xml(content)):
            return names
        at += size
    return None


def _labels_in_xml(content: bytes) -> dict[int, str]:
    """Names of the labels 1 to 255; empty where a name is twice there or is no text."""
    pairs = [(int(key), name.decode("ascii", "replace").strip()) for key, name in LABEL_TABLE.findall(content)]
    names = {key: name for key, name in pairs if 0 < key < 256}
    return names if len({*names.values()}) == len(names) and all(map(str.isprintable, names.values())) else {}


def labels_text(names: Mapping[int, str]) -> str:
    """Label names as the JSON that our files carry."""
    return json.dumps({LABELS_KEY: {str(k): names[k] for k in sorted(names)}}, ensure_ascii=True, sort_keys=False)


def parse_labels(text: bytes | str) -> dict[int, str] | None:
    """Label names from `labels_text`; None for anything else. Names are cut to 64 printable characters."""
    try:
        raw = text.decode("ascii") if isinstance(text, bytes) else text
        table = json.loads(raw.rstrip("\0 \n"))[LABELS_KEY]
        names = {int(k): "".join(c for c in str(v)[:64] if c.isprintable()) for k, v in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return names if names and all(0 < k < 256 for k in names) else None


def labels_extension(names: Mapping[int, str]) -> bytes:
    """One little-endian NIfTI extension with the names, padded to a multiple of 16 bytes."""
    text = labels_text(names).encode("ascii")
    size = -(-(len(text) + 8) // 16) * 16
    return struct.pack("<ii", size, LABELS_ECODE) + text.ljust(size - 8, b"\0")


CODE = "IN-MSK-069"

ROUNDING_TOLERANCE = 0.01  # Values this near to a whole number are taken as it: float masks store 0.9999 for 1


def require_threshold(threshold: float | None) -> None:
    """Refuse a threshold for masks that lies outside [0, 255) (InputError)."""
    if threshold is not None and not 0 <= threshold < 255:
        raise InputError(f"a threshold for masks lies from 0 to below 255 (0.5 for probabilities), got {threshold}")


def labels_of(stored: Stored, threshold: float | None, names: Mapping[int, str], path: Path) -> NDArray[np.uint8]:
    """Stored values as labels by the rules of `read_mask`, stored order.

    Raises:
        ReadError: IN-MSK-069.
    """
    values: NDArray[Any] = stored.values()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ReadError("holds NaN or infinite values, expected labels; export the mask again", code=CODE, path=path)
    if threshold is not None:
        return (values > threshold).astype(np.uint8)
    whole = np.rint(values) if values.dtype.kind == "f" else values
    if values.dtype.kind == "f":
        off = np.abs(values - whole)
        if off.max() > ROUNDING_TOLERANCE:
            share = float(np.count_nonzero(off > ROUNDING_TOLERANCE)) / off.size
            raise ReadError(
                f"holds fractions ({share:.1%} of voxels; {values.min():.4g} to {values.max():.4g}), expected whole "
                "labels; cut it at 0.5 (127 for a mask made from 0/255): segment, quantify and evaluate do so with "
                "--threshold, their Python calls and read_mask with threshold=",
                code=CODE,
                path=path,
            )
    if whole.min() < 0 or whole.max() > 255:
        raise ReadError(
            f"holds values {whole.min():.4g} to {whole.max():.4g}, expected labels 0 to 255", code=CODE, path=path
        )
    labels: NDArray[np.uint8] = whole.astype(np.uint8, copy=False)
    if 255 not in names and labels.max() == 255 and not np.any((labels > 0) & (labels < 255)):
        labels = (labels > 0).astype(np.uint8)
    return labels


def in_house_order(mask: Mask, several: Mapping[int, str], single: Mapping[int, str]) -> Mask:
    """The mask with names where its file has none: that of `single` for a label alone, else `several`."""
    names = several if len(mask.names) > 1 else dict.fromkeys(mask.names, single[1])
    if is_named(mask.names) or not set(mask.names) <= set(several):
        return mask
    return Mask(mask.labels, mask.grid, dict(names), mask.native)


LATTICE_TOLERANCE = 0.02  # Voxels that a crop's lattice may lie beside the scan's


def pasted(mask: Mask, scan: Grid) -> Mask | None:
    """A mask on a part of the scan's own lattice, on the whole scan; None where it lies on another one or beyond it.

    Voxels outside the scan may only be background.
    """
    step = np.abs(mask.grid.affine[:3, :3] - scan.affine[:3, :3]) * max(mask.grid.shape)
    start = scan.index(mask.grid.world((0, 0, 0)))
    first = np.rint(start).astype(int)
    if step.max() > LATTICE_TOLERANCE * min(scan.spacing_mm) or np.abs(start - first).max() > LATTICE_TOLERANCE:
        return None
    if (first + mask.grid.shape <= 0).any() or (first >= scan.shape).any():
        return None
    labels = cut(mask.labels, (-first).tolist(), scan.shape, 0)
    return Mask(labels, scan, mask.names) if np.count_nonzero(labels) == np.count_nonzero(mask.labels) else None


def place_mask(mask: Mask, grid: Grid, *, what: str = "the mask", path: str | Path | None = None) -> Mask:
    """`fit_mask` for masks of other programs: a crop of the scan's own lattice is pasted onto the whole scan.

    Raises:
        ReadError: IN-MSK-069; the message names both grids.
    """
    if mask.grid.is_same_space(grid):
        return Mask(mask.labels, grid, mask.names)
    whole = pasted(mask, grid)
    if whole is not None:
        return whole
    raise ReadError(
        f"{what} does not lie on its scan: {_difference(mask.grid, grid)}; the mask is {_where(mask.grid)}, the scan "
        f"{_where(grid)}; redraw or resample it onto the scan",
        code=CODE,
        path=path,
    )


def _where(grid: Grid) -> str:
    return f"{grid} from {np.round(grid.world((0, 0, 0)), 2).tolist()} mm"


def fit_mask(mask: Mask, grid: Grid, *, what: str = "the mask", path: str | Path | None = None) -> Mask:
    """The mask on exactly `grid`, when it lies there within tolerance; otherwise a refusal that says how it is off.

    Args:
        grid: the scan's `Volume.grid`.

    Raises:
        ReadError: IN-MSK-069: another shape, mirrored, shifted (half a voxel is named), or another spacing.
    """
    if mask.grid.is_same_space(grid):
        return Mask(mask.labels, grid, mask.names, mask.native)
    raise ReadError(
        f"{what} does not lie on its scan: {_difference(mask.grid, grid)}; redraw or resample it onto the scan",
        code=CODE,
        path=path,
    )


def _difference(mask: Grid, scan: Grid) -> str:
    if mask.shape != scan.shape:
        return f"it has {_sizes(mask.shape)} voxels, the scan {_sizes(scan.shape)}"
    for signs in product((1.0, -1.0), repeat=3):
        mirrored = Grid(mask.shape, np.diag([*signs, 1.0]) @ mask.affine).reorient(RAS)
        if signs != (1.0, 1.0, 1.0) and mirrored.is_same_space(scan):
            axes = [
                name for name, sign in zip(("left-right", "front-back", "head-foot"), signs, strict=True) if sign < 0
            ]
            return f"it is mirrored {' and '.join(axes)}"
    step = np.abs(mask.affine[:3, :3] - scan.affine[:3, :3]).max()
    if step > 1e-3 * min(scan.spacing_mm):
        return f"it has the spacing or direction of {mask}, the scan {scan}"
    shift = mask.world((0, 0, 0)) - scan.world((0, 0, 0))
    voxels = scan.index(mask.world((0, 0, 0)))
    half = " (half a voxel)" if abs(np.abs(voxels).max() - 0.5) < 0.02 else ""
    return f"it is shifted by {np.round(shift, 3).tolist()} mm{half}"


def _sizes(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


OFF_PLANE = 0.25  # Largest distance of a contour from its slice, in slices
ON_CONTOUR = 1e-3  # Voxels nearer to a contour than this part of a voxel lie on it


def read_dicom_mask(path: str | Path, scan: Grid, threshold: float | None = None) -> Mask:
    """The labels of a SEG or RTSTRUCT with the names of its segments or regions.

    A SEG comes on its own planes, which may be a part of the scan; overlapping segments take the higher number.
    Contours are filled on the scan's slices, a contour inside another cuts a hole. Of a SEG of fractions the
    most likely segment counts where it lies above the threshold.

    Args:
        scan: grid of the scan it was drawn on.
        threshold: for fractions, which are refused without one.

    Raises:
        ReadError: IN-MSK-069: neither of the two, compressed, or its planes or contours do not lie on the scan.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            modality = str(header.get("Modality", ""))
            if modality == "RTSTRUCT":
                return _read_contours(header, scan, path)
            if modality == "SEG":
                return _read_segments(path, header, threshold)
        except (
            InvalidDicomError,
            AttributeError,
            KeyError,
            IndexError,
            ValueError,
            TypeError,
            RuntimeError,
        ) as problem:
            reason = " ".join(str(problem).split())[:160]
            raise ReadError(
                f"cannot be read as a DICOM mask ({reason}); export it again", code=CODE, path=path
            ) from None
    raise ReadError(
        f"is a DICOM file of modality {modality or 'none'}, expected SEG or RTSTRUCT for a mask", code=CODE, path=path
    )


def series_of_mask(path: str | Path) -> set[str]:
    """SeriesInstanceUIDs that a SEG or RTSTRUCT refers to; empty for any other file."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:  # anything may lie in a folder
            return set()
    if header.get("Modality") not in ("SEG", "RTSTRUCT"):
        return set()
    return {str(item.value) for item in header.iterall() if item.keyword == "SeriesInstanceUID"} - {
        str(header.get("SeriesInstanceUID"))
    }


def _read_segments(path: str | Path, header: Any, threshold: float | None) -> Mask:
    import highdicom

    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        raise ReadError("holds compressed segments, expected plain ones; save it uncompressed", code=CODE, path=path)
    if int(header.Rows) * int(header.Columns) * int(header.NumberOfFrames) > MAX_VOXELS:
        raise ReadError("holds more voxels than a chest CT; export it again", code=CODE, path=path)
    seg = highdicom.seg.segread(path)
    numbers = [int(n) for n in seg.segment_numbers if n]
    names = {n: str(seg.get_segment_description(n).segment_label) for n in numbers}
    if str(header.SegmentationType) != "FRACTIONAL":
        made = seg.get_volume(segment_numbers=numbers, combine_segments=True, skip_overlap_checks=True)
        labels = np.asarray(made.array)
    else:
        made = seg.get_volume(segment_numbers=numbers)  # (..., segments), 0 to 1
        values = np.asarray(made.array, np.float32)
        if threshold is None and np.any((values > 0) & (values < 1)):
            raise ReadError("holds fractions, expected whole segments; cut it with --threshold", code=CODE, path=path)
        above = values.max(axis=-1) > (threshold or 0)
        labels = np.where(above, np.array(numbers, np.uint8)[values.argmax(axis=-1)], np.uint8(0))
    return Mask.from_native(labels, Grid(made.spatial_shape, LPS_TO_RAS @ made.affine), names)


def _read_contours(header: Any, scan: Grid, path: str | Path) -> Mask:
    named = {int(item.ROINumber): str(item.ROIName) for item in header.StructureSetROISequence}
    labels = np.zeros(scan.shape, np.uint8)
    names: dict[int, str] = {}
    for label, (number, planes) in enumerate(_contours(header), start=1):
        region = np.zeros(scan.shape, bool)
        for points in planes:
            index = scan.index(points * [-1, -1, 1])
            level = float(index[:, 2].mean())
            if np.abs(index[:, 2] - round(level)).max() > OFF_PLANE or not 0 <= round(level) < scan.shape[2]:
                raise ReadError(
                    f"has a contour of {named.get(number, number)!r} that lies between or beside the slices of the "
                    f"scan ({scan}); draw it on this scan",
                    code=CODE,
                    path=path,
                )
            _toggle(region[:, :, round(level)], index[:, :2])
        labels[region] = label
        names[label] = named.get(number, f"region {number}")
    return Mask(labels, scan, names)


def _toggle(region: NDArray[np.bool_], contour: NDArray[np.float64]) -> None:
    """Fill a contour (n, 2), or cut it out where it lies in a region (i, j) that is filled already.

    Many programs draw through the middle of the outermost voxels: voxels on a contour belong to what is around them,
    so a contour takes them along, and a hole leaves them.
    """
    from skimage.draw import polygon2mask

    low = np.maximum(np.floor(contour.min(axis=0)).astype(int) - 1, 0)
    high = np.maximum(np.ceil(contour.max(axis=0)).astype(int) + 2, 0)
    box = region[low[0] : high[0], low[1] : high[1]]
    moved = [polygon2mask(box.shape, contour - low + shift) for shift in product((-ON_CONTOUR, ON_CONTOUR), repeat=2)]
    strict = np.logical_and.reduce(moved)
    if strict.any() and box[strict].mean() > 0.5:
        box[strict] = False
    else:
        box |= np.logical_or.reduce(moved)


def _contours(header: Any) -> Iterator[tuple[int, list[NDArray[np.float64]]]]:
    """Number of each region, and its closed contours (n, 3) in LPS millimetres, a hole behind what it lies in."""
    for region in header.get("ROIContourSequence") or ():
        planes = [
            np.asarray(item.ContourData, np.float64).reshape(-1, 3)
            for item in region.get("ContourSequence") or ()
            if item.get("ContourGeometricType") == "CLOSED_PLANAR"
        ]
        yield int(region.ReferencedROINumber), sorted(planes, key=lambda points: -np.ptp(points, axis=0).sum())
