"""Every CT image of a folder by its UIDs and its place, without pixels: what annotations made elsewhere refer to.

The child process reads the headers (`index_of`), this one gets plain numbers and names (`list_images`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope.io.dicom import process
from pneumoscope.io.dicom.header import BadValueError, Header, numbers
from pneumoscope.io.dicom.process import ReadLimits, request_for

if TYPE_CHECKING:
    from pneumoscope.io.dicom.series import Folder

_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class ImageInfo:
    """One CT image of one frame.

    Attributes:
        file: where it lies.
        study_uid, series_uid, image_uid: identify it in the hospital: never print them.
        subject: PatientID where it is a subject number of the pattern asked for, else "".
        position_mm: centre of the first pixel, LPS+; None where the header gives none.
        normal: unit normal of the image plane, LPS+; None where the header gives none.
        rows, columns: size of the picture.
    """

    file: Path
    study_uid: str
    series_uid: str
    image_uid: str
    subject: str
    position_mm: tuple[float, float, float] | None
    normal: tuple[float, float, float] | None
    rows: int
    columns: int


@dataclass(frozen=True)
class Index:
    """What lies below a folder.

    Attributes:
        images: CT images of one frame, in order of file name.
        damaged: files that should be images and cannot be read.
        other: files that are DICOM of another kind, or none.
    """

    images: tuple[ImageInfo, ...]
    damaged: int
    other: int


def list_images(path: str | Path, *, subjects: str = "", limits: ReadLimits | None = None) -> Index:
    """All CT images at or below a folder; scouts and other modalities are only counted.

    Args:
        path: the folder.
        subjects: a regular expression; only a PatientID that it matches whole is returned.
        limits: time and memory of the reading process.

    Raises:
        ReadError: nothing there, more than 50 000 files, or a file that only an attacker writes.
    """
    request = request_for(path, "index", limits or ReadLimits(), False, str(path)) | {"subjects": subjects}
    reply = process.exchange(request)
    images = tuple(
        ImageInfo(
            file=Path(entry["file"]),
            study_uid=entry["study_uid"],
            series_uid=entry["series_uid"],
            image_uid=entry["image_uid"],
            subject=entry["subject"],
            position_mm=_triple(entry["position_mm"]),
            normal=_triple(entry["normal"]),
            rows=entry["rows"],
            columns=entry["columns"],
        )
        for entry in reply["images"]
    )
    return Index(images, reply["damaged"], reply["other"])


def index_of(folder: Folder, subjects: str) -> dict[str, Any]:
    """The answer to an ``index`` request: runs in the child process."""
    pattern = re.compile(subjects or r"(?!)")
    images = []
    for headers in folder.slices.values():
        for header in headers:
            frames = header.text("NumberOfFrames")
            if frames.isdecimal() and int(frames[:7]) > 1:
                continue
            subject = header.text("PatientID")
            position, normal = _place(header)
            images.append(
                {
                    "file": str(header.found.path),
                    "study_uid": _uid(header.text("StudyInstanceUID")),
                    "series_uid": _uid(header.text("SeriesInstanceUID")),
                    "image_uid": _uid(header.text("SOPInstanceUID")),
                    "subject": subject if pattern.fullmatch(subject) else "",
                    "position_mm": position,
                    "normal": normal,
                    "rows": header.integer("Rows", 0),
                    "columns": header.integer("Columns", 0),
                }
            )
    other = sum(folder.other.values()) + folder.junk + sum(map(len, folder.scouts.values()))
    return {"images": images, "damaged": len(folder.broken), "other": other}


def _place(header: Header) -> tuple[list[float] | None, list[float] | None]:
    """Position and normal, None for what the header does not give; reading the series says what is wrong."""
    try:
        position = numbers(header.tags, "ImagePositionPatient", 3)
        axes = numbers(header.tags, "ImageOrientationPatient", 6)
    except BadValueError:
        return None, None
    normal = None if axes is None else np.cross(axes[:3], axes[3:])
    length = 0.0 if normal is None else float(np.linalg.norm(normal))
    return (
        None if position is None else list(position),
        None if normal is None or length < 0.5 else (normal / length).tolist(),
    )


def _uid(value: str) -> str:
    """A UID as it is written in DICOM, "" for anything else."""
    return value if _UID.fullmatch(value) else ""


def _triple(values: Sequence[float] | None) -> tuple[float, float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]), float(values[2]))
