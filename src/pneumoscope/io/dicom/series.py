"""Which files are slices of which CT series.

Pictures of other kinds (scouts, secondary captures, segmentations, reports, other modalities) are skipped;
`pneumoscope.io.dicom.choice` says which of the series that are left is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ReadError
from pneumoscope.io.dicom.header import (
    DICOMDIR_CLASS,
    TAGS,
    BadValueError,
    Header,
    numbers,
    raw,
    read_header,
    refused,
    sequence,
    text,
)
from pneumoscope.io.dicom.pixels import PixelFormat, pixel_format
from pneumoscope.io.kinds import Found, slice_like

CT_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
"""CT, enhanced CT and legacy converted enhanced CT image storage."""

_OTHER_IMAGE_CLASSES = re.compile(
    r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(4|4\.[134]|128|128\.1|130|20|1|1\.1|1\.1\.1|481\.2)"
)
_STANDARD_CLASS = "1.2.840.10008."
SCOUT_THICKNESS_MM = 100.0
SMALLEST_BYTES = 132  # Preamble and mark: a shorter file was cut, a longer one without the mark never was a DICOM file


@dataclass(frozen=True)
class Broken:
    """A file that could not be read although it should be a slice."""

    found: Found
    row: int
    message: str
    series_uid: str = ""


@dataclass
class Folder:
    """What lies in the input, sorted out."""

    slices: dict[str, list[Header]] = field(default_factory=dict)  # CT images by series UID, in order of file name
    scouts: dict[str, list[Header]] = field(default_factory=dict)  # localisers by series UID
    broken: list[Broken] = field(default_factory=list)  # files that should be slices and are not readable
    other: Counter[str] = field(default_factory=Counter)  # how many DICOM files of each other kind
    junk: int = 0  # how many files that are no DICOM


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
                raise refused(
                    48,
                    "this DICOMDIR points outside its folder; remove it, or get the images from a trusted source",
                    header,
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


_LETTERS = re.compile(r"[^A-Z]+")
_HOUNSFIELD = re.compile(
    r"(CT)?(HU)*|HUMOD|HUUNITS?|UH|HNSFU|.*HOUND?SF.*|CTN(UMBERS?|OS?)?|US|UNSPECIFIED|UNKNOWN|NONE|NA|NULL"
)
"""RescaleType, letters only: the code HU (also HU_MOD, the French UH), UCUM's [hnsf'U], Hounsfield's name, CT number;
or words that name no unit, such as the code US for unspecified."""

DIRECTION_TOLERANCE = 1e-2  # How far direction cosines may be from unit length and a right angle


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice before its pixels are read."""

    header: Header  # its file
    layout: PixelFormat  # sizes and sample format of the file
    index: int  # which frame of the file
    position_mm: NDArray[np.float64]  # centre of the first pixel, LPS+, (3,)
    directions: NDArray[np.float64]  # unit vectors along a row and down a column, LPS+, (2, 3)
    spacing_mm: tuple[float, float]  # (between columns, between rows)
    # stored value to HU; None when the file gives none
    slope: float | None
    intercept: float | None
    # SliceThickness and SpacingBetweenSlices, None when missing or unusable
    thickness_mm: float | None
    gap_mm: float | None
    in_hu: bool  # RescaleType says Hounsfield units, in whatever spelling, or nothing of other units
    kernel: str  # convolution kernel, a short word

    @property
    def name(self) -> str:
        """File, and frame when it has several."""
        return f"{self.header.name} frame {self.index + 1}" if self.layout.frames > 1 else self.header.name


def frames_of(header: Header) -> list[Frame]:
    """All slices of one file; scout frames of enhanced files are left out.

    Raises:
        ReadError: rows 17, 18, 34, 36 and those of `pixel_format`.
    """
    layout = pixel_format(header)
    per_frame = sequence(header.tags, "PerFrameFunctionalGroupsSequence")
    shared = sequence(header.tags, "SharedFunctionalGroupsSequence")
    if not per_frame and not shared:
        if layout.frames > 1:
            raise refused(36, "a multi-frame image without a position for each frame; export the series again", header)
        return [_frame(header, layout, 0, [header.tags])]
    if len(per_frame) != layout.frames:
        raise refused(
            32, f"says {layout.frames} frames and describes {len(per_frame)}; export the series again", header
        )
    found = []
    for index, group in enumerate(per_frame):
        if "LOCALIZER" in _group_text([group, *shared], "CTImageFrameTypeSequence", "FrameType").upper():
            continue
        found.append(_frame(header, layout, index, [group, *shared, header.tags]))
    return found


def _lookup(groups: list[Any], wrapper: str, keyword: str) -> Any:
    """The dataset that holds `keyword`: within `wrapper` of the first group that has it, or the group itself."""
    for group in groups:
        for holder in (*sequence(group, wrapper)[:1], group):
            if text(holder, keyword):
                return holder
    return None


def _group_text(groups: list[Any], wrapper: str, keyword: str) -> str:
    holder = _lookup(groups, wrapper, keyword)
    return "" if holder is None else text(holder, keyword)


def _group_numbers(groups: list[Any], wrapper: str, keyword: str, count: int) -> tuple[float, ...] | None:
    holder = _lookup(groups, wrapper, keyword)
    return None if holder is None else numbers(holder, keyword, count)


def _optional(groups: list[Any], wrapper: str, keyword: str) -> float | None:
    """One positive number that only helps; unusable ones count as missing."""
    try:
        value = _group_numbers(groups, wrapper, keyword, 1)
    except BadValueError:
        return None
    return value[0] if value and value[0] > 0 else None


def _frame(header: Header, layout: PixelFormat, index: int, groups: list[Any]) -> Frame:
    try:
        position = _group_numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
        orientation = _group_numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    except BadValueError as error:
        raise refused(36, f"{error} is not made of numbers; export the series again", header) from None
    if position is None or orientation is None:
        missing = "ImagePositionPatient" if position is None else "ImageOrientationPatient"
        raise refused(
            36, f"has no {missing}, so its place is unknown (file order is no place); export the series again", header
        )
    slope, intercept = _rescale(header, groups)
    units = _group_text(groups, "PixelValueTransformationSequence", "RescaleType")
    return Frame(
        header=header,
        layout=layout,
        index=index,
        position_mm=np.array(position),
        directions=_directions(header, orientation),
        spacing_mm=_spacing(header, groups),
        slope=slope,
        intercept=intercept,
        thickness_mm=_optional(groups, "PixelMeasuresSequence", "SliceThickness"),
        gap_mm=_optional(groups, "PixelMeasuresSequence", "SpacingBetweenSlices"),
        in_hu=_HOUNSFIELD.fullmatch(_LETTERS.sub("", units.upper())) is not None,
        kernel=kernel(_lookup(groups, "CTReconstructionSequence", "ConvolutionKernel") or header.tags),
    )


def _directions(header: Header, orientation: tuple[float, ...]) -> NDArray[np.float64]:
    pair = np.array(orientation).reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1)
    if np.abs(lengths - 1).max() > DIRECTION_TOLERANCE or abs(pair[0] @ pair[1]) > DIRECTION_TOLERANCE:
        raise refused(
            36, "ImageOrientationPatient is not two unit vectors at a right angle; export the series again", header
        )
    pair = pair / lengths[:, None]
    lean = pair[0] @ pair[1]
    if abs(lean) > 1e-6:  # digits lost in writing: keep the rows, turn the columns by the rest
        pair[1] -= lean * pair[0]
        pair[1] /= np.linalg.norm(pair[1])
    return pair


def _spacing(header: Header, groups: list[Any]) -> tuple[float, float]:
    """(between columns, between rows); DICOM writes them the other way round."""
    try:
        spacing = _group_numbers(groups, "PixelMeasuresSequence", "PixelSpacing", 2)
    except BadValueError:
        spacing = (0.0, 0.0)
    if spacing is None:
        raise refused(34, "has no PixelSpacing, so lengths are unknown; export the series again", header)
    if min(spacing) <= 0 or max(spacing) > 100:
        raise refused(
            34, "PixelSpacing must be two positive numbers of mm with a decimal point; export the series again", header
        )
    return spacing[1], spacing[0]


def _rescale(header: Header, groups: list[Any]) -> tuple[float | None, float | None]:
    wrapper = "PixelValueTransformationSequence"
    try:
        slope = _group_numbers(groups, wrapper, "RescaleSlope", 1)
        intercept = _group_numbers(groups, wrapper, "RescaleIntercept", 1)
    except BadValueError as error:
        raise refused(18, f"{error} is not a finite number; export the series again", header) from None
    if sequence(header.tags, "ModalityLUTSequence"):
        raise refused(17, "uses a modality lookup table instead of slope and intercept; export it as CT", header)
    if slope is not None and slope[0] <= 0:
        raise refused(18, f"RescaleSlope is {slope[0]:g}, it must be above 0; export the series again", header)
    return (slope[0] if slope else None), (intercept[0] if intercept else None)
