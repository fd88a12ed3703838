"""One DICOM radiograph (CR, DX, RG) as grey levels between 0 and 1, as it is meant to be displayed.

Runs in the reading process of `pneumoscope.io.dicom.worker`. The order is that of PS3.3 C.11: stored value, modality
rescale, VOI lookup table or window, presentation (MONOCHROME1 and INVERSE turn black and white).
"""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, ReadError
from pneumoscope.io.dicom.header import TAGS, BadValueError, Header, numbers, raw, refused, sequence, text
from pneumoscope.io.dicom.pixels import is_lossy, pixel_format, read_frame

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
