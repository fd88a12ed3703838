"""Which files are slices of which CT series, and which one is meant.

The rule, which is also written into the findings: pictures of other kinds (scouts, secondary captures, segmentations,
reports, other modalities) and series with fewer than the least number of slices are set aside; when exactly one CT
series is left it is read, otherwise the caller must choose.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pneumoscope.errors import Finding, ReadError
from pneumoscope.io.dicom_files import Found, slice_like
from pneumoscope.io.dicom_header import DICOMDIR_CLASS, TAGS, Header, raw, read_header, sequence, text

CT_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
"""CT, enhanced CT and legacy converted enhanced CT image storage."""

_OTHER_IMAGE_CLASSES = re.compile(
    r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(4|4\.[134]|128|128\.1|130|20|1|1\.1|1\.1\.1|481\.2)"
)
_STANDARD_CLASS = "1.2.840.10008."
SCOUT_THICKNESS_MM = 100.0
SMALLEST_BYTES = 132
"""Preamble and mark: a shorter file was cut, a longer one without the mark never was a DICOM file."""


@dataclass(frozen=True)
class Broken:
    """A file that could not be read although it should be a slice."""

    found: Found
    row: int
    message: str
    series_uid: str = ""


@dataclass
class Folder:
    """What lies in the input, sorted out.

    Attributes:
        slices: CT images by series UID, in order of file name.
        scouts: localisers by series UID.
        broken: files that should be slices and are not readable.
        other: how many DICOM files of each other kind.
        junk: how many files that are no DICOM.
    """

    slices: dict[str, list[Header]] = field(default_factory=dict)
    scouts: dict[str, list[Header]] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    junk: int = 0


def sort_out(files: Iterable[Found], *, any_modality: bool = False) -> Folder:
    """Read all headers and put each file where it belongs.

    Raises:
        ReadError: a file nested too deeply (42), a directory file that points outside (48).
    """
    folder = Folder()
    rest: list[Found] = []
    for found in files:
        if found.kind in ("empty", "other"):
            rest.append(found)
            continue
        try:
            header = read_header(found)
            _place(header, folder, any_modality)
        except ReadError as error:
            if error.code != "IN-DCM-002":
                raise
            if found.kind == "bare":  # begins a little like DICOM, is not
                rest.append(replace(found, kind="other"))
            else:
                folder.broken.append(Broken(found, 2, error.message))
    _place_rest(rest, folder)
    return folder


def _place(header: Header, folder: Folder, any_modality: bool) -> None:
    sop_class, modality = header.text("SOPClassUID"), header.text("Modality")
    if sop_class == DICOMDIR_CLASS or TAGS["DirectoryRecordSequence"] in header.tags:
        _check_directory(header)
        folder.other["DICOMDIR"] += 1
        return
    uid = header.text("SeriesInstanceUID")
    why = _why_not_ct(header, sop_class, modality, any_modality)
    if why == "":
        where = folder.scouts if _is_scout(header) else folder.slices
        where.setdefault(uid, []).append(header)
    elif why == "broken":
        message = "the header or the pixels are missing; copy or export the file again"
        folder.broken.append(Broken(header.found, 2, message, uid))
    else:
        folder.other[why] += 1


def _why_not_ct(header: Header, sop_class: str, modality: str, any_modality: bool) -> str:
    """ "" for a CT slice, "broken" for what is left of one, else the kind of thing it is."""
    known = sop_class in CT_CLASSES
    private = not sop_class.startswith(_STANDARD_CLASS)
    if not sop_class and header.pixels is None and header.found.kind == "dicom" and not modality:
        return "broken"
    if not known and not private and not (any_modality and _OTHER_IMAGE_CLASSES.fullmatch(sop_class)):
        return _kind(modality, sop_class)
    if not any_modality and modality not in ("CT", ""):
        return _kind(modality, sop_class)
    if header.pixels is None:
        return "broken" if known else _kind(modality, sop_class)
    if header.integer("SamplesPerPixel", 1) != 1 or header.text("PhotometricInterpretation") not in (
        "MONOCHROME1", "MONOCHROME2", "",
    ):  # fmt: skip
        return "colour picture"
    if private and not known and not raw(header.tags, "ImagePositionPatient"):
        return _kind(modality, sop_class)
    return ""


def _kind(modality: str, sop_class: str) -> str:
    """A short name of the kind of object; modality codes are at most four letters, else they are not printed."""
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1.7"):
        return "secondary capture"
    if sop_class.startswith("1.2.840.10008.5.1.4.1.1.104"):
        return "encapsulated document"
    return modality if re.fullmatch(r"[A-Z]{2,10}", modality) and modality != "CT" else "other DICOM"


def _is_scout(header: Header) -> bool:
    values = header.text("ImageType").upper().split("\\")
    if "LOCALIZER" in [value.strip() for value in values]:
        return True
    thickness = header.text("SliceThickness")
    return bool(re.fullmatch(r"\d+(\.\d*)?", thickness)) and float(thickness) >= SCOUT_THICKNESS_MM


def _check_directory(header: Header) -> None:
    """A DICOMDIR is never followed; one that points out of its folder is an attack, and nothing there is trusted."""
    for record in sequence(header.tags, "DirectoryRecordSequence"):
        item = record.get_item(TAGS["ReferencedFileID"])
        value = getattr(item, "value", None) or b""
        parts = value.split(b"\\") if isinstance(value, bytes) else [str(p).encode() for p in value]
        for part in (piece.strip(b" \0") for piece in parts):
            if part == b".." or b"/.." in part or b"../" in part or part.startswith(b"/") or b":" in part:
                raise ReadError(
                    "this DICOMDIR points outside its folder; remove it, or get the images from a trusted source",
                    code="IN-DCM-048",
                    path=header.name,
                )


def _place_rest(rest: list[Found], folder: Folder) -> None:
    names = [header.name for headers in folder.slices.values() for header in headers]
    lost = set(slice_like(names, [found.name for found in rest]))
    for found in rest:
        if found.name in lost and found.kind == "empty":
            message = "has no bytes or cannot be opened; copy or export the file again"
            folder.broken.append(Broken(found, 3, message))
        elif found.name in lost:
            message = "is named like a slice but is no DICOM; copy or export the file again"
            folder.broken.append(Broken(found, 2 if found.size < SMALLEST_BYTES else 4, message))
        else:
            folder.junk += 1


def choose(folder: Folder, series: str | None, min_slices: int, where: str) -> tuple[str, list[Finding]]:
    """The UID of the series to read, and findings about what was set aside.

    Args:
        folder: from `sort_out`.
        series: a number from the list of series (1 is the first) or a SeriesInstanceUID; None to let the rule decide.
        min_slices: series with fewer images are set aside.
        where: the input, for messages.

    Raises:
        ReadError: rows 13, 15, 16, 40, 41, and 2 or 3 when nothing but damaged files is there.
    """
    if not folder.slices:
        raise _nothing(folder, where)
    if series is not None:
        return _named(folder, series, where), _set_aside(folder, [])
    enough = [uid for uid in folder.slices if _count(folder.slices[uid]) >= min_slices]
    if len(enough) == 1:
        small = [uid for uid in folder.slices if uid != enough[0]]
        return enough[0], _set_aside(folder, small, min_slices)
    if not enough and folder.broken:
        lost = folder.broken[0]
        raise ReadError(lost.message, code=f"IN-DCM-{lost.row:03d}", path=lost.found.name)
    if not enough:
        counts = ", ".join(str(_count(headers)) for headers in folder.slices.values())
        raise ReadError(
            f"is not a volume: {len(folder.slices)} series with {counts} image(s), at least {min_slices} are needed; "
            "give the folder that holds all slices of the series",
            code="IN-DCM-016",
            path=where,
        )
    listing = "; ".join(describe(folder, uid) for uid in folder.slices)
    raise ReadError(
        f"holds {len(folder.slices)} CT series: {listing}; choose one with --series N", code="IN-DCM-013", path=where
    )


def describe(folder: Folder, uid: str) -> str:
    """One series in a few words, without anything that tells who the patient is."""
    headers = folder.slices[uid]
    number = list(folder.slices).index(uid) + 1
    first = headers[0]
    size = f"{first.integer('Rows', 0)} x {first.integer('Columns', 0)}"
    return (
        f"{number}: {_count(headers)} images of {size}, kernel {kernel(first.tags) or 'not given'}, from {first.name}"
    )


def kernel(tags: object) -> str:
    """The convolution kernel as a short plain word; anything longer or stranger is not printed."""
    words = text(tags, "ConvolutionKernel")
    return words if re.fullmatch(r"[A-Za-z0-9_.+\-\\/ ]{0,16}", words) else "other"


def _count(headers: list[Header]) -> int:
    total = 0
    for header in headers:
        frames = header.text("NumberOfFrames")
        total += int(frames[:7]) if frames.isdecimal() else 1
    return total


def _named(folder: Folder, series: str, where: str) -> str:
    uids = list(folder.slices)
    if series in folder.slices:
        return series
    if series.isdecimal() and 1 <= int(series[:9]) <= len(uids):
        return uids[int(series) - 1]
    listing = "; ".join(describe(folder, uid) for uid in uids)
    raise ReadError(f"has no series {series[:64]!r}; there are {listing}", code="IN-DCM-013", path=where)


def _nothing(folder: Folder, where: str) -> ReadError:
    if folder.broken:
        lost = folder.broken[0]
        return ReadError(lost.message, code=f"IN-DCM-{lost.row:03d}", path=lost.found.name)
    if folder.scouts:
        return ReadError("holds only scout images; give the folder of the axial series", code="IN-DCM-015", path=where)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(folder.other.items()))
    others = set(folder.other) - {"DICOMDIR"}
    if others and others <= {"MR", "PT", "NM", "CR", "DX", "US", "MG", "XA", "RF", "OT", "SC"}:
        message = f"holds no CT image ({kinds}); give a CT series"
        return ReadError(message, code="IN-DCM-041", path=where)
    found = f"{kinds}; " if kinds else ""
    return ReadError(
        f"holds no CT image series ({found}{folder.junk} files that are no DICOM); give the folder of a chest CT",
        code="IN-DCM-040",
        path=where,
    )


def _set_aside(folder: Folder, small: list[str], min_slices: int = 0) -> list[Finding]:
    findings = []
    if folder.scouts:
        count = sum(map(len, folder.scouts.values()))
        findings.append(Finding("IN-DCM-015", f"{count} scout image(s) set aside", "info"))
    if small:
        findings.append(
            Finding("IN-DCM-013", f"{len(small)} other CT series with fewer than {min_slices} images set aside", "info")
        )
    ignored = [f"{count} {kind}" for kind, count in sorted(folder.other.items())]
    ignored += [f"{folder.junk} not DICOM"] if folder.junk else []
    if ignored:
        findings.append(Finding("IN-DCM-044", f"other files ignored: {', '.join(ignored)}", "info"))
    return findings
