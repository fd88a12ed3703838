"""Masks and measurements of a DICOM series as DICOM: a segmentation and a structured report that refer to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.geometry import contiguous
from pneumoscope.io.dicom import read
from pneumoscope.io.dicom.deidentify import uid_key
from pneumoscope.io.dicom.read import ReadLimits, request_for
from pneumoscope.io.files import atomic_path
from pneumoscope.volume import Mask, Volume, present_labels

MOST_BYTES = 4 * 2**30
"""Address space of the process that writes; a SEG of 300 slices of 512 x 512 with four segments takes under 2 GiB."""


def write_dicom_results(
    volume: Volume,
    masks: Sequence[Mask],
    folder: str | Path,
    *,
    measured: Mapping[str, Mapping[str, float]],
    states: Sequence[str] = (),
    models: str = "",
    deidentify: bool = False,
) -> tuple[Path, ...]:
    """Write `seg.dcm` (lungs), `seg-infiltrate.dcm` and `report.dcm` into a folder.

    A SEG has one binary segment per named label that has voxels, on the series' own planes, and refers to the images
    it was made from; without such a label the SEG is not written. The SR (TID 1500, Comprehensive 3D) refers to the
    segments. All carry the patient of the source series, as DICOM wants it, unless `deidentify`.

    Args:
        volume: the scan, read from DICOM; its native grid is that of the series.
        masks: on the grid of `volume`; label names as in `pneumoscope.volume` (others are left out).
        measured: label name -> ``volume_ml``, ``share_percent``, ``mean_hu`` -> value.
        states: of the severity report.
        models: names of the models; empty for masks made elsewhere.
        deidentify: keep nothing that says who the patient is; UIDs become keyed hashes.

    Returns:
        The files; () when no mask has a voxel, because a segmentation without segments is no segmentation.

    Raises:
        InputError: the scan was read from another format.
        ReadError: IN-DCM-101 to -103, headers that cannot be used.
        GeometryError: a mask lies on another grid.
    """
    from pneumoscope._version import __version__
    from pneumoscope.io.dicom.objects import REPORT_FILE

    with ExitStack() as stack:
        stream, name = stack.enter_context(read.scratch())
        found: dict[str, list[str]] = {}
        for file, names, segments in _segments(volume, masks):
            stream.write(segments.data)
            found[file] = names
        if not found:
            return ()
        stream.flush()
        stream.seek(0)
        limits = ReadLimits(memory_mib=MOST_BYTES >> 20)
        targets = [Path(folder) / file for file in (*found, REPORT_FILE)]
        *segmentations, report = (str(stack.enter_context(atomic_path(path)).absolute()) for path in targets)
        request = request_for(folder, "derive", limits, False, volume.case)
        request |= {
            "out": name,
            "series": volume.series,
            "shape": list(volume.native.shape[::-1]),
            "structures": found,
            "measured": {k: {q: float(v) for q, v in values.items()} for k, values in measured.items()},
            "states": list(states),
            "models": models,
            "version": __version__,
            "key": uid_key().hex(),
            "deidentify": deidentify,
            "case": volume.case,
            "segmentations": segmentations,
            "report": report,
        }
        read.exchange(request, stream)
    return tuple(targets)


def _segments(volume: Volume, masks: Sequence[Mask]) -> Iterator[tuple[str, list[str], NDArray[np.uint8]]]:
    """For each mask with coded labels that have voxels: the SEG's file, the names of its segments, and their numbers.

    The numbers, from 1 in the order of the names, are (k, rows, columns) in the series' own order.
    """
    from pneumoscope.io.dicom.objects import STRUCTURES

    if volume.series is None:
        raise InputError("only a DICOM scan can have DICOM results; it was read from another format")
    for mask in masks:
        labels = [label for label in present_labels(mask.labels) if mask.names[label] in STRUCTURES]
        if labels:
            names = [mask.names[label] for label in labels]
            (file,) = {STRUCTURES[name].file for name in names}
            numbers = np.zeros(256, np.uint8)
            numbers[labels] = np.arange(1, len(labels) + 1)
            yield file, names, contiguous(numbers[mask.to_native(volume.native)].transpose(2, 1, 0))
