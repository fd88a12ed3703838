"""DICOM CT series in: one file or folder to a `Volume`, or an error that says what is wrong with which file.

All parsing and decoding happens in a process of its own (`pneumoscope.io.dicom.process`): a file that crashes, hangs or
swells a decoder ends as one `ReadError`. What is refused, repaired or accepted is listed row by row in
docs/reference/input-codes.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pneumoscope.errors import Finding, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.dicom import process
from pneumoscope.io.dicom.deidentify import case_name, has_lasting_salt
from pneumoscope.io.dicom.process import ReadLimits, request_for
from pneumoscope.io.kinds import is_dicom
from pneumoscope.io.stored import names_failures
from pneumoscope.volume import Volume

__all__ = ["ReadLimits", "SeriesInfo", "is_dicom", "list_series", "read_dicom"]

MIN_SLICES = 3
"""The fewest slices whose distances can be compared."""


@dataclass(frozen=True)
class SeriesInfo:
    """One CT series of a folder.

    Attributes:
        number: what `read_dicom(..., series=str(number))` takes.
        case: its name in outputs, a keyed hash.
        images: slices, counting the frames of multi-frame files.
        rows, columns: matrix of the first.
        kernel: convolution kernel, "" when not given.
        thickness_mm: of its slices, 0 when not known.
        first_file: the place of its first file, such as ``file 3 of 12``.
        series_uid: identifies the series in the hospital: never print it.
    """

    number: int
    case: str
    images: int
    rows: int
    columns: int
    kernel: str
    thickness_mm: float
    first_file: str
    series_uid: str


@names_failures
def read_dicom(
    path: str | Path,
    *,
    series: str | None = None,
    case: str | None = None,
    min_slices: int = MIN_SLICES,
    fill_gaps: bool = False,
    any_modality: bool = False,
    as_hu: bool = False,
    limits: ReadLimits | None = None,
) -> Volume:
    """Read one CT series.

    The native grid has columns, rows and slices as axes, slices in order of position along the normal of the image
    plane (as GDCM and SimpleITK order them), so that masks written on it fit the series in other programs. A tilted
    gantry gives a grid that is not orthogonal.

    Args:
        path: a folder (searched at any depth) or one file.
        series: number in `list_series`, or a SeriesInstanceUID; None or ``best`` takes the best of a study by the
            rules of `pneumoscope.io.dicom.choice` and says in a finding what was left.
        case: name for outputs; by default a keyed hash of the series UID.
        min_slices: fewer are refused as no volume.
        fill_gaps: take damaged files as missing slices, and interpolate single missing or uneven slices.
        any_modality: accept other images than CT (their values are then hardly HU).
        as_hu: take the values as HU where RescaleType or a missing rescale leave it open.
        limits: time, memory and size.

    Raises:
        ReadError: rows 1-50 of the catalogue, with a code ``IN-DCM-0NN``; 100-103 for missing paths, time and memory.
            It names the case and a file's place, never the path, which is in its attribute `file`.
    """
    allowed = limits or ReadLimits()
    request = request_for(path, "read", allowed, any_modality, case)
    request |= {"series": series, "min_slices": max(1, min_slices), "fill_gaps": fill_gaps, "as_hu": as_hu}
    with process.scratch() as (stream, name):
        reply = process.exchange({**request, "out": name}, stream)
        shape = tuple(reply["shape"])
        expected = int(np.prod(shape)) * np.dtype(reply["dtype"]).itemsize
        if os.fstat(stream.fileno()).st_size != expected:
            raise ReadError(
                "the reading process ended before all slices",
                code="IN-DCM-102",
                path=request["where"],
                file=request["path"],
            )
        voxels = np.memmap(stream, reply["dtype"], "r", shape=shape)  # (k, j, i)
        findings = tuple(Finding(**finding) for finding in reply["findings"])
        if case is None and not has_lasting_salt():
            note = "the secret for case names could not be stored: the name will differ next time; set PNEUMOSCOPE_SALT"
            findings += (Finding("IN-DCM-104", note, "info"),)
        return Volume.from_native(
            voxels.transpose(2, 1, 0),
            Grid(shape[::-1], reply["affine"]),
            case=case or case_name(reply["series_uid"]),
            findings=findings,
            source=reply["source"],
            series=reply["series"],
        )


@names_failures
def list_series(path: str | Path, *, any_modality: bool = False, limits: ReadLimits | None = None) -> list[SeriesInfo]:
    """The CT series below a folder, in the order of their first files; [] when there is none.

    Raises:
        ReadError: nothing there, or a file that only an attacker writes.
    """
    reply = process.exchange(request_for(path, "list", limits or ReadLimits(), any_modality))
    return [SeriesInfo(case=case_name(entry["series_uid"]), **entry) for entry in reply["series"]]
