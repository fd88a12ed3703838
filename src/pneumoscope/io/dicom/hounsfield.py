"""Stored values to Hounsfield units, slice by slice, and the proof that they are; of radiographs, to grey levels.

Photometric interpretation does not change values: MONOCHROME1 only asks a screen to show low values bright, so
such images are read like their MONOCHROME2 twins.

Radiographs (CR, DX, RG) become grey levels between 0 and 1 as they are meant to be displayed, in the order of PS3.3
C.11: stored value, modality rescale, VOI lookup table or window, presentation (MONOCHROME1 and INVERSE turn black and
white).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, ReadError
from pneumoscope.io.dicom.header import TAGS, BadValueError, Header, numbers, raw, refused, sequence, text
from pneumoscope.io.dicom.pixels import Stored, is_lossy, pixel_format, read_frame
from pneumoscope.io.dicom.series import Frame

AIR_HU = -1024  # The floor: padding and darker values become this, the HU of nothing
HIGHEST_HU = 20_000  # Metal on an extended scale stays below; more than a trace above means wrapped or unscaled values

THICK_SLICES_MM = 10.0
_CHEST = re.compile(r"CHEST|THORA|TORAX|LUNG|PULM|BODY|TRUNK|HEART|CARD|CORON|MEDIAST|AORT|ESOPH|BREAST|RIB|HILUM")
_SHARP_KERNEL = re.compile(r"BONE|EDGE|ULTRA|[BHUQ][a-z]?[789]\d[a-z]?\b|FC[38]\d", re.IGNORECASE)


class Hounsfield:
    """Turns the slices of one series into HU and remembers what was seen."""

    def __init__(self, frames: Sequence[Frame], where: str, *, any_values: bool = False, trusted: bool = False) -> None:
        """`any_values` are no HU and need not be; `trusted` ones are HU by the word of the user.

        Raises:
            ReadError: row 17, RescaleType names other units.
        """
        self._where = where
        self._any_values = any_values
        self._trusted = trusted
        self._foreign = [frame for frame in frames if not frame.in_hu]
        if self._foreign and not (trusted or any_values):
            raise refused(
                17,
                "RescaleType says that the values are not Hounsfield units; give the CT series, or "
                'intensity="hu" if these are HU after all',
                self._foreign[0].header,
            )
        self._frames = frames
        self._unscaled = [frame for frame in frames if frame.slope is None or frame.intercept is None]
        # int16 when it holds every possible value exactly, else float32
        self.dtype = np.dtype(np.int16 if all(map(_fits_int16, frames)) else np.float32)
        self._seen = 0
        self._counts = dict.fromkeys(("padded", "below", "far_below", "air", "body", "high", "top", "wrapped"), 0)
        self._low, self._high = np.inf, -np.inf
        self._sign_followed = False
        self._ignored_padding = False

    def slice(self, frame: Frame, stored: Stored) -> NDArray[np.generic]:
        """HU of one slice, (rows, columns), at least AIR_HU everywhere."""
        slope = 1.0 if frame.slope is None else frame.slope
        intercept = 0.0 if frame.intercept is None else frame.intercept
        hu = stored.values.astype(np.float32)
        if slope != 1.0:
            hu *= np.float32(slope)
        if intercept:
            hu += np.float32(intercept)
        padded = self._padding(frame, stored, slope, intercept)
        self._tally(frame, hu, stored.values, padded, slope)
        if padded is not None:
            hu[padded] = AIR_HU
        np.maximum(hu, AIR_HU, out=hu)
        self._sign_followed |= stored.sign_from_codestream
        return hu.astype(self.dtype, copy=False)

    def _padding(self, frame: Frame, stored: Stored, slope: float, intercept: float) -> NDArray[np.bool_] | None:
        """Where the slice holds its padding value; None when it names none, or one that means tissue."""
        first = frame.header.integer("PixelPaddingValue", -1)
        if first < 0:
            return None
        last = frame.header.integer("PixelPaddingRangeLimit", first)
        signed = first - 65536 if frame.layout.signed and first >= 32768 else first
        if -900 < signed * slope + intercept < HIGHEST_HU:
            self._ignored_padding = True
            return None
        low, high = min(first, last), max(first, last)
        words = stored.words if stored.words.dtype.itemsize <= 2 else stored.words & 0xFFFF
        mask = words == low if low == high else (words >= low) & (words <= high)
        if stored.words.dtype != stored.values.dtype and frame.layout.bits_stored < 16:  # sign bits not written out
            mask |= stored.values == signed
        return mask

    def _tally(
        self,
        frame: Frame,
        hu: NDArray[np.float32],
        values: NDArray[np.integer],
        padded: NDArray[np.bool_] | None,
        slope: float,
    ) -> None:
        """Count what distinguishes HU from other values; a quarter of the voxels of large slices is enough."""
        step = 2 if hu.size >= 1 << 14 else 1
        some, values = hu[::step, ::step], values[::step, ::step]
        if padded is not None:
            self._counts["padded"] += int(np.count_nonzero(padded))
            inside = ~padded[::step, ::step]
            some, values = some[inside], values[inside]
        self._counts["below"] += int(np.count_nonzero(hu < AIR_HU))
        if not some.size:
            return
        self._seen += some.size
        self._low, self._high = min(self._low, float(some.min())), max(self._high, float(some.max()))
        self._counts["far_below"] += int(np.count_nonzero(some < -1500))
        self._counts["air"] += int(np.count_nonzero((some >= -1100) & (some <= -900)))
        self._counts["body"] += int(np.count_nonzero((some >= -300) & (some <= 300)))
        self._counts["high"] += int(np.count_nonzero(some > HIGHEST_HU))
        if values.dtype.kind == "u":
            bits = frame.layout.bits_stored
            top = some[(values >= 1 << (bits - 1)) & (some > 2000)] - np.float32(slope * 2.0**bits)
            self._counts["top"] += top.size
            self._counts["wrapped"] += int(np.count_nonzero((top >= -1124) & (top < 0)))

    def _share(self, what: str) -> float:
        return self._counts[what] / max(1, self._seen)

    def conclude(self) -> list[Finding]:
        """Findings about the values, once all slices are through; nothing is asked of them with `any_values`.

        Raises:
            ReadError: row 17 (no proof of HU), row 22 (sign lost).
        """
        if self._any_values:
            return self._quality()
        top = self._counts["top"]
        if self._share("high") > 1e-3 or (self._share("top") > 0.01 and self._counts["wrapped"] > 0.9 * top):
            raise refused(
                22,
                f"values reach {self._high:.0f} HU: signed samples that are marked unsigned; export the series again",
                self._where,
            )
        if self._share("far_below") > 0.05 and self._share("body") < 0.005 and not self._trusted:
            raise refused(
                17,
                f"values begin at {self._low:.0f} HU and hold no tissue: the intercept was applied twice; export again",
                self._where,
            )
        findings = []
        if self._foreign:
            note = (
                f"RescaleType of {len(self._foreign)} slice(s) names other units; taken as HU because the call says so"
            )
            findings.append(Finding("IN-DCM-017", note))
        if self._unscaled and self._trusted:
            note = f"{len(self._unscaled)} slice(s) without rescale; taken as HU because the call says so"
            findings.append(Finding("IN-DCM-017", note))
        elif self._unscaled:
            if self._share("air") < 0.005 or self._low < -1500 or self._high > 4095:
                raise refused(
                    17,
                    f"RescaleSlope or RescaleIntercept is missing (in {self._unscaled[0].name}) and stored values "
                    f"from {self._low:.0f} to {self._high:.0f} are not HU; export the series again",
                    self._where,
                )
            note = f"{len(self._unscaled)} slice(s) without rescale; their values prove to be HU (air near -1000)"
            findings.append(Finding("IN-DCM-017", note))
        return findings + self._padding_findings() + self._scene() + self._quality()

    def _padding_findings(self) -> list[Finding]:
        findings = []
        padded, below = self._counts["padded"], self._counts["below"]
        if padded or below:
            row = 21 if below and is_lossy(self._frames[0].header) else 20
            note = f"{max(padded, below)} voxels of padding or below {AIR_HU} HU set to {AIR_HU} HU"
            findings.append(Finding(f"IN-DCM-{row:03d}", note, "info"))
        if self._ignored_padding:
            note = "PixelPaddingValue names a value that tissue has too; it was not treated as padding"
            findings.append(Finding("IN-DCM-020", note))
        if self._sign_followed:
            note = "the JPEG 2000 pictures say another sign of samples than the header; the codestream was followed"
            findings.append(Finding("IN-DCM-024", note))
        return findings

    def _scene(self) -> list[Finding]:
        part = self._frames[0].header.text("BodyPartExamined").upper()
        if part and not _CHEST.search(part):
            return [Finding("IN-DCM-049", "BodyPartExamined does not name the chest: outside the intended use")]
        return []

    def _quality(self) -> list[Finding]:
        findings = []
        first = self._frames[0]
        if any(is_lossy(frame.header) for frame in self._frames):
            findings.append(Finding("IN-DCM-050", "lossy compression: densities may be off"))
        if _SHARP_KERNEL.match(first.kernel):
            findings.append(Finding("IN-DCM-050", f"sharp kernel {first.kernel}: noise widens the densities", "info"))
        if (first.thickness_mm or 0) >= THICK_SLICES_MM:
            findings.append(Finding("IN-DCM-050", f"slices of {first.thickness_mm:g} mm: small lesions are blurred"))
        if any(f.header.text("PhotometricInterpretation") == "MONOCHROME1" for f in self._frames):
            note = "MONOCHROME1 only asks for an inverted display; values were read as they are"
            findings.append(Finding("IN-DCM-039", note, "info"))
        return findings


def _fits_int16(frame: Frame) -> bool:
    slope, intercept, layout = frame.slope or 1.0, frame.intercept or 0.0, frame.layout
    most = 2 ** (layout.bits_stored - (1 if layout.signed else 0)) - 1
    return slope.is_integer() and intercept.is_integer() and slope * most + intercept <= 32767


MODALITIES = ("CR", "DX", "RG", "XA", "")
"""Computed and digital radiography, film, and files that do not say; anything else is another kind of picture."""

_TAILS = (0.5, 99.5)  # Percentiles shown as black and white where the file names no window
_ENOUGH = 500_000  # Pixels that they are taken from, evenly spread, where there are more


def radiograph_of(header: Header, out: BinaryIO, least_side: int | None = None) -> dict[str, Any]:
    """Write the picture as float32 and answer with its size and what there is to say about it.

    Raises:
        ReadError: IN-XRY-088 for another modality or a colour picture, IN-XRY-089 without pixels; and those of
            `pixel_format` and `read_frame`.
    """
    modality = header.text("Modality")
    if modality not in MODALITIES:
        raise _refused(88, f"is a DICOM of modality {modality[:4]}, expected a radiograph (CR or DX)", header)
    if header.pixels is None:
        raise _refused(89, "is a DICOM without a picture; export the image itself", header)
    if header.integer("SamplesPerPixel", 1) != 1:
        raise _refused(88, "is a colour picture in DICOM, expected a radiograph (CR or DX)", header)
    layout = pixel_format(header, grey_levels=True)
    values = read_frame(header, layout, 0).values.astype(np.float32)
    findings = []
    if layout.frames > 1:
        findings.append(Finding("IN-XRY-087", f"holds {layout.frames} frames; the first was taken", "warning"))
    values, shown = _windowed(_rescaled(values, header), header)
    if _is_inverted(header):
        values = 1.0 - values
        findings.append(Finding("IN-XRY-091", "is stored with bone dark; black and white were turned", "info"))
    view = header.text("ViewPosition").upper()[:4]
    if view in ("LL", "RL", "LLD", "RLD", "LLO", "RLO"):
        findings.append(
            Finding("IN-XRY-090", "is a lateral view by its header; models here read frontal ones", "warning")
        )
    factor = max(1, min(values.shape) // least_side) if least_side else 1
    values, spacing = _shrunk(values, factor), _spacing(header)
    out.write(np.ascontiguousarray(values, "<f4").tobytes())
    out.flush()
    return {
        "shape": list(values.shape),
        "stored_shape": list(layout.shape),
        "spacing_mm": None if spacing is None else [factor * mm for mm in spacing],
        "findings": [finding.as_dict() for finding in findings],
        "source": {
            "format": "DICOM",
            "modality": modality,
            "view": view if view.isalpha() else "",
            "window": shown,
            "lossy": "yes" if is_lossy(header) else "no",
        },
    }


def _shrunk(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Means of boxes of factor x factor pixels; the rest at the lower and right edge is left out."""
    if factor == 1:
        return values
    rows, columns = (side // factor for side in values.shape)
    boxes = values[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    return np.asarray(boxes.mean(axis=(1, 3), dtype=np.float32))


def _rescaled(values: NDArray[np.float32], header: Header) -> NDArray[np.float32]:
    try:
        slope, intercept = (numbers(header.tags, name, 1) for name in ("RescaleSlope", "RescaleIntercept"))
    except BadValueError:
        return values
    if slope is None or intercept is None or slope[0] == 0:
        return values
    return values * np.float32(slope[0]) + np.float32(intercept[0])


def _windowed(values: NDArray[np.float32], header: Header) -> tuple[NDArray[np.float32], str]:
    """Grey levels in [0, 1] and how they were found: ``table``, ``window`` or ``percentiles``."""
    table = _voi_table(header)
    if table is not None:
        first, levels = table
        index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(levels) - 1)
        return _unit(levels[index], float(levels.min()), float(levels.max())), "table"
    window = _window(header)
    if window is not None:
        centre, width, function = window
        if function == "SIGMOID":
            with np.errstate(over="ignore"):
                return (1.0 / (1.0 + np.exp(-4.0 * (values - centre) / width))).astype(np.float32), "window"
        if function == "LINEAR_EXACT":
            return _unit(values, centre - width / 2, centre + width / 2), "window"
        low = centre - 0.5 - (width - 1) / 2  # PS3.3 C.11.2.1.2.1
        return _unit(values, low, low + max(width - 1, 1e-6)), "window"
    step = max(1, math.isqrt(values.size // _ENOUGH))
    low, high = (float(v) for v in np.percentile(values[::step, ::step], _TAILS))
    return _unit(values, low, high), "percentiles"


def _window(header: Header) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window; None where there is no usable one."""
    parts = [raw(header.tags, name).split(b"\\")[0].strip(b" \0") for name in ("WindowCenter", "WindowWidth")]
    try:
        centre, width = (float(part) for part in parts)
    except ValueError:
        return None
    if not (math.isfinite(centre) and math.isfinite(width)) or width <= 0:
        return None
    return centre, width, text(header.tags, "VOILUTFunction").upper() or "LINEAR"


def _voi_table(header: Header) -> tuple[int, NDArray[np.float32]] | None:
    """First value mapped and the levels of the first VOI lookup table; None where there is no usable one."""
    for item in sequence(header.tags, "VOILUTSequence")[:1]:
        try:
            descriptor = [int(v) for v in item["LUTDescriptor"].value]
            data = item["LUTData"].value
        except (KeyError, TypeError, ValueError):
            return None
        levels = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
        count = descriptor[0] or 65536
        if len(descriptor) != 3 or len(levels) < count or count < 2 or not np.ptp(levels[:count]):
            return None
        first = (
            descriptor[1] - 65536
            if header.integer("PixelRepresentation", 0) and descriptor[1] > 32767
            else descriptor[1]
        )
        return first, levels[:count].astype(np.float32)
    return None


def _unit(values: NDArray[np.floating[Any]], low: float, high: float) -> NDArray[np.float32]:
    if high <= low:
        return np.zeros(values.shape, np.float32)
    levels = np.subtract(values, np.float32(low), dtype=np.float32)
    levels *= np.float32(1 / (high - low))
    return np.clip(levels, 0.0, 1.0, out=levels)


def _is_inverted(header: Header) -> bool:
    """Whether low values are meant to be bright; PresentationLUTShape says it last and for all."""
    shape = header.text("PresentationLUTShape").upper()
    if shape in ("INVERSE", "IDENTITY"):
        return shape == "INVERSE"
    return header.text("PhotometricInterpretation") == "MONOCHROME1"


def _spacing(header: Header) -> list[float] | None:
    """Between rows and columns, at the patient or at the detector; None where the file does not say."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            found = numbers(header.tags, name, 2) if TAGS[name] in header.tags else None
        except BadValueError:
            found = None
        if found and min(found) > 0:
            return list(found)
    return None


def _refused(row: int, message: str, header: Header) -> ReadError:
    return refused(row, message, header, family="IN-XRY")
