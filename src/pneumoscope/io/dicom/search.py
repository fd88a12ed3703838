"""The DICOM studies of folders, and of each the series that are cases; headers only, pixels are not touched.

Also every CT image of a folder by its UIDs and place, which annotations made elsewhere refer to: the child process
reads the headers (`index_of`), this one gets plain numbers and names (`list_images`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.errors import ReadError
from pneumoscope.io.contents import DicomPlace, Identity, ScanRef
from pneumoscope.io.dicom import read
from pneumoscope.io.dicom.choice import ALL, BEST, Series, images_of, left_out, partition, ranked, series_of
from pneumoscope.io.dicom.deidentify import case_name
from pneumoscope.io.dicom.header import DEFLATED, BadValueError, Header, numbers, read_header, transfer_syntax
from pneumoscope.io.dicom.read import MIN_SLICES, ReadLimits, request_for
from pneumoscope.io.dicom.series import Folder, place
from pneumoscope.io.kinds import Found, look

NO_SCANS = frozenset(
    {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "SR", "PR", "KO", "DOC", "REG", "FID", "DICOMDIR",
     "encapsulated document"}
)  # fmt: skip
"""Kinds of DICOM objects that are never a scan: a folder of them alone is passed over, not refused."""


@dataclass(frozen=True)
class _Survey:
    """A place in numbers."""

    where: DicomPlace  # the place
    series: tuple[Series, ...]  # its CT series, in the order of their first files
    studies: frozenset[tuple[str, str]]  # StudyInstanceUID and PatientID of whatever could be read
    only_others: bool  # nothing but kinds in `NO_SCANS`

    @property
    def usable(self) -> list[Series]:
        return [one for one in self.series if one.images >= MIN_SLICES]


def studies_of(places: Sequence[DicomPlace], series: str) -> tuple[dict[Path, list[ScanRef]], Counter[str]]:
    """The cases of places with DICOM, by place, and what was passed over.

    Damaged, deflated and hostile files are left to the reading process; a place where nothing is known is a case
    all the same, so that it is refused by name and not lost.

    Args:
        places: of one input; the series of one study may lie in several.
    """
    surveys = [_survey(where) for where in places]
    usable = [(survey, one) for survey in surveys for one in survey.usable]
    homes = {id(one): survey for survey, one in usable}
    cases: dict[Path, list[ScanRef]] = {survey.where.path: [] for survey in surveys}
    passed: Counter[str] = Counter()
    for group in partition([one for _, one in usable]):
        chosen, asked = _wanted(group, series)
        passed["other DICOM series of their studies"] += len(group) - len(chosen)
        for one in chosen:
            cases[homes[id(one)].where.path].append(_case(one, group, homes))
        if asked is not None:
            home = homes[id(group[0])].where.path
            cases[home].append(ScanRef(case_name(group[0].uid), home, series=asked))
    known = {one.study for _, one in usable}
    for survey in surveys:
        if survey.usable:
            continue
        if survey.only_others or (known and survey.studies and survey.studies <= known):
            passed["DICOM files without a CT volume"] += len(survey.where.files)
        else:
            asked = None if series in (BEST, ALL) else series
            name = survey.series[0].uid if survey.series else survey.where.path.name
            cases[survey.where.path].append(ScanRef(case_name(name), survey.where.path, series=asked))
    return cases, passed


def single(path: Path, series: str | None) -> ScanRef:
    """One DICOM file as a case."""
    header = _header(look([path])[0])
    names = ("SeriesInstanceUID", "PatientID", "StudyDate")
    identity = Identity() if header is None else Identity(*map(header.text, names))
    return ScanRef(case_name(identity.series_uid or path.name), path, series=series, identity=identity)


def _header(found: Found) -> Header | None:
    """A file's header; None for one that is damaged, hostile or deflated, which could inflate without bound."""
    try:
        deflated = found.kind not in ("dicom", "bare") or transfer_syntax(found) == DEFLATED
        return None if deflated else read_header(found)
    except (ReadError, MemoryError, OSError):
        return None


def _wanted(group: Sequence[Series], series: str) -> tuple[list[Series], str | None]:
    """The series of a study that are cases, or what the reader shall refuse because the study has no such series."""
    if series == ALL:
        return list(group), None
    if series == BEST:
        return ranked(group)[:1], None
    by_name = {str(number): one for number, one in enumerate(group, start=1)} | {one.uid: one for one in group}
    if series in by_name:
        return [by_name[series]], None
    return [], series if series.isdecimal() else None


def _case(one: Series, group: Sequence[Series], homes: dict[int, _Survey]) -> ScanRef:
    home = homes[id(one)]
    elsewhere = [other for other in group if homes[id(other)] is not home]
    compared = [other for other in group if other is one or other in elsewhere]
    numbers = [str(group.index(other) + 1) for other in compared]
    left = left_out(one, compared, numbers)
    return ScanRef(
        case_name(one.uid or home.where.path.name),
        home.where.path,
        series=one.uid or None,
        identity=Identity(one.uid, one.patient, one.study_date),
        findings=(left,) if left else (),
    )


def _survey(where: DicomPlace) -> _Survey:
    folder = Folder()
    studies: set[tuple[str, str]] = set()
    unread = 0
    for found in where.files:
        header = _header(found)
        try:
            if header is not None:
                place(header, folder, any_modality=False)
                studies.add((header.text("StudyInstanceUID"), header.text("PatientID")))
        except ReadError:  # a directory file that points outside
            header = None
        unread += header is None
    series = tuple(series_of(uid, headers) for uid, headers in folder.slices.items())
    only_others = not (series or folder.scouts or folder.broken or unread) and set(folder.other) <= NO_SCANS
    return _Survey(where, series, frozenset(studies), only_others)


_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class ImageInfo:
    """One CT image of one frame."""

    file: Path  # where it lies
    # identify it in the hospital: never print them
    study_uid: str
    series_uid: str
    image_uid: str
    subject: str  # PatientID where it is a subject number of the pattern asked for, else ""
    position_mm: tuple[float, float, float] | None  # centre of the first pixel, LPS+; None where the header gives none
    normal: tuple[float, float, float] | None  # unit normal of the image plane, LPS+; None where the header gives none
    # size of the picture
    rows: int
    columns: int


@dataclass(frozen=True)
class Index:
    """What lies below a folder."""

    images: tuple[ImageInfo, ...]  # CT images of one frame, in order of file name
    damaged: int  # files that should be images and cannot be read
    other: int  # files that are DICOM of another kind, or none


def list_images(path: str | Path, *, subjects: str = "", limits: ReadLimits | None = None) -> Index:
    """All CT images at or below a folder; scouts and other modalities are only counted.

    Args:
        subjects: a regular expression; only a PatientID that it matches whole is returned.

    Raises:
        ReadError: nothing there, more than 50 000 files, or a file that only an attacker writes.
    """
    request = request_for(path, "index", limits or ReadLimits(), False, str(path)) | {"subjects": subjects}
    reply = read.exchange(request)
    images = []
    for row in reply["images"]:
        places = {name: row[name] and tuple(row[name]) for name in ("position_mm", "normal")}
        images.append(ImageInfo(**{**row, **places, "file": Path(row["file"])}))
    return Index(tuple(images), reply["damaged"], reply["other"])


def index_of(folder: Folder, subjects: str) -> dict[str, Any]:
    """The answer to an ``index`` request: runs in the child process."""
    pattern = re.compile(subjects or r"(?!)")
    images = []
    for headers in folder.slices.values():
        for header in headers:
            if images_of(header) > 1:
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
