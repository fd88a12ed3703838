"""Which files are slices of which CT series.

Pictures of other kinds (scouts, secondary captures, segmentations, reports, other modalities) are skipped;
`pneumoscope.io.dicom.choice` says which of the series that are left is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pneumoscope.errors import ReadError
from pneumoscope.io.dicom.header import DICOMDIR_CLASS, TAGS, Header, raw, read_header, sequence, text
from pneumoscope.io.kinds import Found, slice_like

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
            place(header, folder, any_modality=any_modality)
        except ReadError as error:
            if error.code != "IN-DCM-002":
                raise
            if found.kind == "bare":  # begins a little like DICOM, is not
                rest.append(replace(found, kind="other"))
            else:
                folder.broken.append(Broken(found, 2, error.message))
    _place_rest(rest, folder)
    return folder


def place(header: Header, folder: Folder, *, any_modality: bool) -> None:
    """Put a file where it belongs.

    Raises:
        ReadError: a directory file that points outside (48).
    """
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
    slices = [header.found for headers in folder.slices.values() for header in headers]
    lost = {found.path for found in slice_like(slices, rest)}
    for found in rest:
        if found.path not in lost:
            folder.junk += 1
        elif found.kind == "empty":
            message = "has no bytes or cannot be opened; copy or export the file again"
            folder.broken.append(Broken(found, 3, message))
        else:
            message = "is named like a slice but is no DICOM; copy or export the file again"
            folder.broken.append(Broken(found, 2 if found.size < SMALLEST_BYTES else 4, message))


def kernel(tags: object) -> str:
    """The convolution kernel as a short plain word; anything longer or stranger is not printed."""
    words = text(tags, "ConvolutionKernel")
    return words if re.fullmatch(r"[A-Za-z0-9_.+\-\\/ ]{0,16}", words) else "other"
