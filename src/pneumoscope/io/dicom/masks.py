"""Masks as DICOM writes them: segmentations (SEG) and the contours of structure sets (RTSTRUCT)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ReadError
from pneumoscope.geometry import LPS_TO_RAS, Grid
from pneumoscope.io.masks import CODE
from pneumoscope.io.stored import MAX_VOXELS
from pneumoscope.volume import Mask

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
