"""The place and the rescale of every slice: classic files have one, enhanced files many."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ReadError
from pneumoscope.io.dicom.header import BadValueError, Header, numbers, sequence, text
from pneumoscope.io.dicom.pixels import PixelFormat, pixel_format
from pneumoscope.io.dicom.series import kernel

_LETTERS = re.compile(r"[^A-Z]+")
_HOUNSFIELD = re.compile(
    r"(CT)?(HU)*|HUMOD|HUUNITS?|UH|HNSFU|.*HOUND?SF.*|CTN(UMBERS?|OS?)?|US|UNSPECIFIED|UNKNOWN|NONE|NA|NULL"
)
"""RescaleType, letters only: the code HU (also HU_MOD, the French UH), UCUM's [hnsf'U], Hounsfield's name, CT number;
or words that name no unit, such as the code US for unspecified."""

DIRECTION_TOLERANCE = 1e-2
"""How far direction cosines may be from unit length and a right angle."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice before its pixels are read.

    Attributes:
        header: its file.
        layout: sizes and sample format of the file.
        index: which frame of the file.
        position_mm: centre of the first pixel, LPS+, (3,).
        directions: unit vectors along a row and down a column, LPS+, (2, 3).
        spacing_mm: (between columns, between rows).
        slope, intercept: stored value to HU; None when the file gives none.
        thickness_mm, gap_mm: SliceThickness and SpacingBetweenSlices, None when missing or unusable.
        in_hu: RescaleType says Hounsfield units, in whatever spelling, or nothing of other units.
        kernel: convolution kernel, a short word.
    """

    header: Header
    layout: PixelFormat
    index: int
    position_mm: NDArray[np.float64]
    directions: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    slope: float | None
    intercept: float | None
    thickness_mm: float | None
    gap_mm: float | None
    in_hu: bool
    kernel: str

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
            raise _refused(36, "a multi-frame image without a position for each frame; export the series again", header)
        return [_frame(header, layout, 0, [header.tags])]
    if len(per_frame) != layout.frames:
        raise _refused(
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
        raise _refused(36, f"{error} is not made of numbers; export the series again", header) from None
    if position is None or orientation is None:
        missing = "ImagePositionPatient" if position is None else "ImageOrientationPatient"
        raise _refused(
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
        raise _refused(
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
        raise _refused(34, "has no PixelSpacing, so lengths are unknown; export the series again", header)
    if min(spacing) <= 0 or max(spacing) > 100:
        raise _refused(
            34, "PixelSpacing must be two positive numbers of mm with a decimal point; export the series again", header
        )
    return spacing[1], spacing[0]


def _rescale(header: Header, groups: list[Any]) -> tuple[float | None, float | None]:
    wrapper = "PixelValueTransformationSequence"
    try:
        slope = _group_numbers(groups, wrapper, "RescaleSlope", 1)
        intercept = _group_numbers(groups, wrapper, "RescaleIntercept", 1)
    except BadValueError as error:
        raise _refused(18, f"{error} is not a finite number; export the series again", header) from None
    if sequence(header.tags, "ModalityLUTSequence"):
        raise _refused(17, "uses a modality lookup table instead of slope and intercept; export it as CT", header)
    if slope is not None and slope[0] <= 0:
        raise _refused(18, f"RescaleSlope is {slope[0]:g}, it must be above 0; export the series again", header)
    return (slope[0] if slope else None), (intercept[0] if intercept else None)


def _refused(row: int, message: str, header: Header) -> ReadError:
    return ReadError(message, code=f"IN-DCM-{row:03d}", path=header.name)
