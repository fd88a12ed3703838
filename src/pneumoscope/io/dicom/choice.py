"""Which CT series of a study is read: the rules, in words, for the reader and for the search alike.

Of the series of one study the first by these rules is the best; each rule counts only among series that are equal by
all rules before it. docs/how-to/segment-many.md repeats them for users.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope.errors import Finding, ReadError
from pneumoscope.io.dicom.header import Header, refused, text
from pneumoscope.io.dicom.series import Folder, Frame, frames_of, kernel

BEST, ALL = "best", "all"

RULES = (
    "not axial",
    "a reformat or projection",
    "another part of the body",
    "covers too little",
    "has gaps between its slices",
    "softer kernel",
    "thicker slices",
    "fewer slices",
    "derived images",
)
"""Why a series stands behind another, in the order of the rules."""

ENOUGH_MM = 120.0  # A series as long as this, or half as long as the longest, covers enough

_CHEST = re.compile(r"chest|thora|torax|lung|pulm|poumon|polmon|pecho|hrct", re.IGNORECASE)
_ELSEWHERE = re.compile(
    r"abdom|pelv|head|brain|skull|neck|liver|leber|spine|kidney|sinus|knee|hip|foot|cardi|heart|coron|calc|extrem",
    re.IGNORECASE,
)
_REFORMAT = re.compile(
    r"MPR|MIP|MINIP|PROJECTION|REFORMATTED|VOLUME_RENDER\w*|VRT|SSD|3D|SCREEN ?SAVE|CPR", re.IGNORECASE
)
_LUNG_KERNEL = re.compile(r"lung|^l$|^y[a-d]$|^fc5\d|^fc8\d|v?sharp", re.IGNORECASE)
_SHARP_KERNEL = re.compile(r"bone|edge|^[de][bc]?$|^fc3\d", re.IGNORECASE)
_NUMBERED_KERNEL = re.compile(r"^[a-z]{1,2}(\d\d)", re.IGNORECASE)
_LUNG_FROM = 50  # Siemens numbers kernels by sharpness; from B50 on they are meant for lung


@dataclass(frozen=True)
class Series:
    """One CT series in numbers, without its headers."""

    uid: str  # SeriesInstanceUID; never print it
    study: tuple[str, str]  # StudyInstanceUID and PatientID; likewise
    # as the header gives them; likewise
    patient: str
    study_date: str
    look: tuple[str, ...]  # what tells it from other series of its study, apart from UIDs
    folders: frozenset[Path]  # where its files lie
    first: str  # the place of its first file
    # slices, counting frames of multi-frame files, and their matrix
    images: int
    rows: int
    columns: int
    kernel: str  # a short plain word, "" when not given
    thickness_mm: float  # slice thickness, else the distance; 0 when neither is known
    length_mm: float  # from the first to the last slice, 0 when positions are missing
    order: tuple[float, ...]  # one number per rule of `RULES` except ``covers too little``, lower is better
    series_number: int  # the tie-break


def series_of(uid: str, headers: Sequence[Header]) -> Series:
    """The facts of a series; what the headers do not give counts as unknown."""
    first = headers[0]
    frames = [frame for header in headers for frame in _frames(header)]
    sample = frames[0] if frames else None
    normal = np.zeros(3) if sample is None else np.cross(*sample.directions)
    heights = np.unique([round(float(frame.position_mm @ normal), 2) for frame in frames])
    step = float(np.median(np.diff(heights))) if len(heights) > 1 else 0.0
    thickness = (sample.thickness_mm if sample else None) or step
    words = f"{first.text('SeriesDescription')} {first.text('ProtocolName')}"
    kinds = [kind.strip().upper() for kind in first.text("ImageType").split("\\")]
    short = sample.kernel if sample else kernel(first.tags)
    raw_kernel = short if short != "other" else text(first.tags, "ConvolutionKernel")
    images = sum(map(images_of, headers))
    order = (
        float(sample is None or abs(normal[2]) < np.cos(np.radians(35))),
        float(any(map(_REFORMAT.fullmatch, kinds)) or bool(_REFORMAT.search(first.text("SeriesDescription")))
              or kinds[:2] == ["DERIVED", "SECONDARY"]),
        _part(first, words),
        float(step > 1.5 * thickness),
        _softness(raw_kernel, words),
        round(thickness, 1) or 99.0,
        -images,
        float(kinds[:1] == ["DERIVED"]),
    )  # fmt: skip
    number = first.text("SeriesNumber")
    return Series(
        uid=uid,
        study=(first.text("StudyInstanceUID"), first.text("PatientID")),
        patient=first.text("PatientID"),
        study_date=first.text("StudyDate"),
        look=tuple(first.text(name) for name in _LOOK),
        folders=frozenset(header.found.path.parent for header in headers),
        first=first.name,
        images=images,
        rows=first.integer("Rows", 0),
        columns=first.integer("Columns", 0),
        kernel=short,
        thickness_mm=thickness,
        length_mm=float(np.ptp(heights)) + step if len(heights) else 0.0,
        order=order,
        series_number=int(number) if re.fullmatch(r"\d{1,9}", number) else 10**9,
    )


_LOOK = (
    "SeriesNumber", "AcquisitionNumber", "ConvolutionKernel", "SliceThickness", "SeriesDescription", "ImageType",
    "ImageOrientationPatient",
)  # fmt: skip


def images_of(header: Header) -> int:
    """Frames of a file."""
    frames = header.text("NumberOfFrames")
    return int(frames[:7]) if frames.isdecimal() else 1


def _frames(header: Header) -> list[Frame]:
    try:
        return frames_of(header)
    except ReadError:  # said when the series is read
        return []


def _part(header: Header, words: str) -> float:
    """0 the chest, 1 not said, 2 something else; a series' own words go before the part examined of the study."""
    for said in (words, header.text("BodyPartExamined")):
        if _CHEST.search(said):
            return 0.0
        if _ELSEWHERE.search(said):
            return 2.0
    return 1.0 if not header.text("BodyPartExamined") else 2.0


def _softness(name: str, words: str) -> float:
    """0 a lung kernel, 1 another sharp one, 2 the rest, softer numbers of one maker behind sharper ones."""
    plain = name.split("\\")[0].strip()
    numbered = _NUMBERED_KERNEL.match(plain)
    if numbered and not plain.lower().startswith("fc"):
        return 0.0 if int(numbered[1]) >= _LUNG_FROM else 2.0 + (_LUNG_FROM - int(numbered[1])) / 100
    if _LUNG_KERNEL.search(plain):
        return 0.0
    if _SHARP_KERNEL.search(plain):
        return 1.0
    return 0.5 if re.search(r"lung|pulm|poumon|hrct", words, re.IGNORECASE) and not plain else 2.3


def partition(members: Iterable[Series]) -> list[list[Series]]:
    """Series by study: same StudyInstanceUID and PatientID.

    Where series in different folders have one study UID and nothing else tells them apart, the UID was written over
    when the data were made anonymous, and each folder is a study of its own.
    """
    groups: list[list[Series]] = []
    for one in members:
        for group in groups:
            twins = (other for other in group if other.look == one.look and not other.folders & one.folders)
            if group[0].study == one.study and next(twins, None) is None:
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def ranked(group: Sequence[Series]) -> list[Series]:
    """The series of one study, the best first."""
    return sorted(group, key=lambda one: (*_places(one, group), one.series_number))


def _places(one: Series, group: Sequence[Series]) -> tuple[float, ...]:
    least = min(ENOUGH_MM, 0.5 * max(other.length_mm for other in group))
    return (*one.order[:3], float(one.length_mm < least), *one.order[3:])


def why_behind(other: Series, chosen: Series, group: Sequence[Series]) -> str:
    """The first rule by which `other` stands behind `chosen`; what there is to say when it does not."""
    theirs, ours = _places(other, group), _places(chosen, group)
    for reason, a, b in zip(RULES, theirs, ours, strict=True):
        if a != b:
            return reason if a > b else "not asked for"
    return "equal by all rules"


def left_out(chosen: Series, group: Sequence[Series], numbers: Sequence[str]) -> Finding | None:
    """What of a study was not read, and why; None when it has one series.

    Args:
        numbers: of the series in the order of `group`, as ``--series`` takes them.
    """
    others = [(n, one) for n, one in zip(numbers, group, strict=True) if one is not chosen]
    if not others:
        return None
    reasons = [why_behind(one, chosen, group) for _, one in others]
    listed = "; ".join(f"{describe(n, one)}: {why}" for (n, one), why in zip(others, reasons, strict=True))
    number = numbers[list(group).index(chosen)]
    message = f"read series {describe(number, chosen)}; left {len(others)} of the study: {listed}"
    return Finding("IN-DCM-013", message, "warning" if "equal by all rules" in reasons else "info")


def describe(number: str, one: Series) -> str:
    """One series in a few words, without anything that identifies the patient."""
    thick = f", {one.thickness_mm:g} mm" if one.thickness_mm else ""
    return f"{number}: {one.images} images of {one.rows} x {one.columns}{thick}, kernel {one.kernel or 'not given'}"


def choose(folder: Folder, series: str | None, min_slices: int, where: str) -> tuple[str, list[Finding]]:
    """The UID of the series to read, and findings about what was skipped.

    Args:
        series: a number from the list of series (1 is the first), a SeriesInstanceUID, or ``best``, which None means.
        min_slices: series with fewer images are skipped.

    Raises:
        ReadError: rows 13, 15, 16, 40, 41, and 2 or 3 when nothing but damaged files is there.
    """
    if not folder.slices:
        raise _nothing(folder, where)
    listed = [series_of(uid, headers) for uid, headers in folder.slices.items()]
    numbers = {one.uid: str(n) for n, one in enumerate(listed, start=1)}
    enough = [one for one in listed if one.images >= min_slices]
    if series not in (None, BEST):
        chosen = _named(listed, str(series), where)
    else:
        chosen = _best(folder, enough, listed, min_slices, where)
    group = next((group for group in partition(enough) if chosen in group), [chosen])
    left = left_out(chosen, group, [numbers[one.uid] for one in group])
    small = len(listed) - len(enough) - (chosen not in enough)
    return chosen.uid, [*([left] if left else []), *_set_aside(folder, small, min_slices)]


def _best(folder: Folder, enough: list[Series], listed: list[Series], min_slices: int, where: str) -> Series:
    if not enough and folder.broken:
        lost = folder.broken[0]
        raise refused(lost.row, lost.message, lost.found)
    if not enough:
        counts = ", ".join(str(one.images) for one in listed)
        raise refused(
            16,
            f"is not a volume: {len(listed)} series with {counts} image(s), at least {min_slices} are needed; "
            "give the folder that holds all slices of the series",
            where,
        )
    studies = partition(enough)
    if len(studies) > 1:
        listing = "; ".join(describe(str(n), one) for n, one in enumerate(listed, start=1))
        raise refused(
            13,
            f"holds {len(studies)} studies with the CT series {listing}; give the folder of one, or choose a series "
            "by its number with --series N (in Python series='N')",
            where,
        )
    return ranked(enough)[0]


def _named(listed: list[Series], series: str, where: str) -> Series:
    for number, one in enumerate(listed, start=1):
        if series in (one.uid, str(number)):
            return one
    listing = "; ".join(describe(str(n), one) for n, one in enumerate(listed, start=1))
    raise refused(13, f"has no series {series[:64]!r}; there are {listing}", where)


def _nothing(folder: Folder, where: str) -> ReadError:
    if folder.broken:
        lost = folder.broken[0]
        return refused(lost.row, lost.message, lost.found)
    if folder.scouts:
        return refused(15, "holds only scout images; give the folder of the axial series", where)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(folder.other.items()))
    others = set(folder.other) - {"DICOMDIR"}
    if others and others <= {"MR", "PT", "NM", "CR", "DX", "US", "MG", "XA", "RF", "OT", "SC"}:
        xray = "; for radiographs use `pneumoscope xray predict`" if others & {"CR", "DX"} else ""
        message = f"holds no CT image ({kinds}); give a CT series{xray}"
        return refused(41, message, where)
    found = f"{kinds}; " if kinds else ""
    return refused(
        40,
        f"holds no CT image series ({found}{folder.junk} files that are no DICOM); give the folder of a chest CT",
        where,
    )


def _set_aside(folder: Folder, small: int, min_slices: int) -> list[Finding]:
    findings = []
    if folder.scouts:
        count = sum(map(len, folder.scouts.values()))
        findings.append(Finding("IN-DCM-015", f"{count} scout image(s) skipped", "info"))
    if small:
        findings.append(
            Finding("IN-DCM-013", f"{small} other CT series with fewer than {min_slices} images skipped", "info")
        )
    ignored = [f"{count} {kind}" for kind, count in sorted(folder.other.items())]
    ignored += [f"{folder.junk} not DICOM"] if folder.junk else []
    if ignored:
        findings.append(Finding("IN-DCM-044", f"other files ignored: {', '.join(ignored)}", "info"))
    return findings


def listing(folder: Folder) -> list[dict[str, Any]]:
    """The answer to a ``list`` request: what `io.dicom.read.SeriesInfo` holds, apart from the case's name."""
    same = ("images", "rows", "columns", "kernel", "thickness_mm")
    found = [series_of(*item) for item in folder.slices.items()]
    return [
        {"number": n, **{name: getattr(one, name) for name in same}, "first_file": one.first, "series_uid": one.uid}
        for n, one in enumerate(found, start=1)
    ]
