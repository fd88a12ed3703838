"""The DICOM studies of folders, and of each the series that are cases; headers only, pixels are not touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import ReadError
from pneumoscope.io.contents import DicomPlace
from pneumoscope.io.dicom.choice import ALL, BEST, Series, left_out, partition, ranked, series_of
from pneumoscope.io.dicom.deidentify import case_name
from pneumoscope.io.dicom.header import DEFLATED, Header, read_header, transfer_syntax
from pneumoscope.io.dicom.read import MIN_SLICES
from pneumoscope.io.dicom.series import Folder, place
from pneumoscope.io.kinds import Found, look
from pneumoscope.io.scan_ref import Identity, ScanRef

NO_SCANS = frozenset(
    {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "SR", "PR", "KO", "DOC", "REG", "FID", "DICOMDIR",
     "encapsulated document"}
)  # fmt: skip
"""Kinds of DICOM objects that are never a scan: a folder of them alone is passed over, not refused."""


@dataclass(frozen=True)
class _Survey:
    """A place in numbers.

    Attributes:
        where: the place.
        series: its CT series, in the order of their first files.
        studies: StudyInstanceUID and PatientID of whatever could be read.
        only_others: nothing but kinds in `NO_SCANS`.
    """

    where: DicomPlace
    series: tuple[Series, ...]
    studies: frozenset[tuple[str, str]]
    only_others: bool

    @property
    def usable(self) -> list[Series]:
        return [one for one in self.series if one.images >= MIN_SLICES]


def studies_of(places: Sequence[DicomPlace], series: str) -> tuple[dict[Path, list[ScanRef]], Counter[str]]:
    """The cases of places with DICOM, by place, and what was passed over.

    Damaged, deflated and hostile files are left to the reading process; a place where nothing is known is a case
    all the same, so that it is refused by name and not lost.

    Args:
        places: of one input; the series of one study may lie in several.
        series: as for `list_scans`.
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
            passed["DICOM files that are no CT volume"] += len(survey.where.files)
        else:
            asked = None if series in (BEST, ALL) else series
            name = survey.series[0].uid if survey.series else survey.where.path.name
            cases[survey.where.path].append(ScanRef(case_name(name), survey.where.path, series=asked))
    return cases, passed


def single(path: Path, series: str | None) -> ScanRef:
    """One DICOM file as a case."""
    header = _header(look([path])[0])
    identity = Identity() if header is None else _identity(series_of(header.text("SeriesInstanceUID"), [header]))
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
        identity=_identity(one),
        findings=(left,) if left else (),
    )


def _identity(one: Series) -> Identity:
    return Identity(one.uid, one.patient, one.study_date)


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
