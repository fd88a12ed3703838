"""The page of an audit: every finding with its picture, grouped by kind, the gravest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.audit.rules import KINDS, AuditFinding, AuditRules
from pneumoscope.preprocess.slices import nearest_indices, to_slices
from pneumoscope.reports.figures import INFILTRATE, LEFT_LUNG, LUNG_WINDOW, RIGHT_LUNG, data_uri
from pneumoscope.reports.page import write_page
from pneumoscope.volume import Volume

SIDE_PX = 200  # Height and width of one of the two panels of a picture

CLOSE_UP_MM = 130.0
"""A finding smaller than this is shown with so much around it; more would make three voxels invisible."""

FOUND = "#ff2fd0"
"""Colour of the finding itself: to be seen on air, on tissue and on the other outlines."""

LEGEND = (
    ("right lung", RIGHT_LUNG), ("left lung", LEFT_LUNG), ("annotated infiltrate", INFILTRATE), ("the finding", FOUND),
)  # fmt: skip


def finding_picture(
    volume: Volume,
    finding: AuditFinding,
    lungs: NDArray[np.uint8] | None,
    infiltrate: NDArray[np.uint8] | None,
    *,
    hounsfield: bool = True,
) -> bytes:
    """The slice of a finding, plain and with masks, as JPEG; around a small finding a close-up.

    Args:
        finding: what is to be shown; without a place of its own the slice with most of the masks is taken.
        lungs: (i, j, k) labels, 1 right and 2 left, or None.
        infiltrate: (i, j, k) labels, or None.
        hounsfield: whether the lung window applies; else grey values are stretched.
    """
    k = _slice_of(volume, finding, lungs, infiltrate)
    window, step_mm = _window(volume, finding, k)
    grey = _grey(to_slices(volume.hu[:, :, k : k + 1])[0][window], hounsfield)
    plain = _fitted(grey, step_mm)
    marked = np.repeat(plain[..., None], 3, axis=2)
    spot = np.zeros(volume.grid.shape[:2], bool)
    if finding.where is not None:
        on = finding.where[finding.where[:, 2] == k]
        spot[tuple(on[:, :2].T)] = True
    for mask, colour in (
        (None if lungs is None else lungs[:, :, k] == 1, RIGHT_LUNG),
        (None if lungs is None else lungs[:, :, k] == 2, LEFT_LUNG),
        (None if infiltrate is None else infiltrate[:, :, k] > 0, INFILTRATE),
        (spot if finding.kind != "swapped-sides" else None, FOUND),
    ):
        if mask is not None and mask.any():
            flat = to_slices(mask[:, :, None])[0][window]
            shape = _fitted(flat.astype(np.uint8) * 255, step_mm) > 127
            if finding.mask == "lungs" and colour in (RIGHT_LUNG, LEFT_LUNG):
                marked[shape] = (0.6 * marked[shape] + 0.4 * np.array(_rgb(colour))).astype(np.uint8)
            _outline(marked, shape, colour, framed=colour == FOUND)
    return _jpeg(np.repeat(plain[..., None], 3, axis=2), marked)


def pair_picture(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bytes:
    """The middle slices of two scans beside each other, (h, w) grey values each, as JPEG."""
    return _jpeg(*(np.repeat(_fitted(p, (1.0, 1.0))[..., None], 3, axis=2) for p in (first, second)))


def write_audit_page(
    path: str | Path,
    *,
    title: str,
    findings: Sequence[AuditFinding],
    pictures: Mapping[int, bytes],
    summary: Mapping[str, Any],
    rules: AuditRules,
) -> None:
    """Write ``audit.html``.

    Args:
        title: heading.
        findings: ranked; the page keeps their order within a kind.
        pictures: JPEG per position in `findings`.
        summary: counts, what was not judged, what was repaired: what stands in ``audit.json``.
        rules: thresholds that were used.
    """
    kinds: dict[str, list[dict[str, Any]]] = {}
    cases: dict[str, dict[str, int]] = {}
    for number, finding in enumerate(findings):
        kinds.setdefault(finding.kind, []).append(
            {**finding.row(), "number": number + 1, "picture": data_uri(pictures.get(number, b""))}
        )
        if not finding.case:  # about the set
            continue
        counts = cases.setdefault(finding.case, {"error": 0, "warning": 0, "note": 0, "first": number + 1})
        counts[finding.severity] += 1
    ordered = sorted(cases.items(), key=lambda item: (-item[1]["error"], -item[1]["warning"], item[0]))
    context = {
        "title": title,
        "summary": summary,
        "groups": [(name, KINDS[name], kinds[name]) for name in KINDS if name in kinds],
        "cases": ordered,
        "legend": LEGEND,
        "rules": sorted(asdict(rules).items()),
        "levels": {"error": "error", "warning": "warning", "note": "info"},
    }
    write_page(path, "audit.html", context)


def _slice_of(
    volume: Volume, finding: AuditFinding, lungs: NDArray[np.uint8] | None, infiltrate: NDArray[np.uint8] | None
) -> int:
    if finding.slice is not None:
        return finding.slice
    mask = lungs if finding.mask == "lungs" or infiltrate is None else infiltrate
    if mask is None or not mask.any():
        return volume.grid.shape[2] // 2
    return int(np.count_nonzero(mask, axis=(0, 1)).argmax())


def _window(volume: Volume, finding: AuditFinding, k: int) -> tuple[tuple[slice, slice], tuple[float, float]]:
    """Rows and columns of the radiological picture to show, and the size of a pixel (row, column)."""
    x_mm, y_mm, _ = volume.spacing_mm
    size_i, size_j, _ = volume.grid.shape
    whole = (slice(None), slice(None)), (y_mm, x_mm)
    if finding.where is None:
        return whole
    on = finding.where[finding.where[:, 2] == k][:, :2]
    low, high = on.min(axis=0), on.max(axis=0)
    if max((high[0] - low[0]) * x_mm, (high[1] - low[1]) * y_mm) > CLOSE_UP_MM * 0.8:
        return whole
    middle = (low + high) / 2
    half = CLOSE_UP_MM / 2 / np.array([x_mm, y_mm])
    column, row = size_i - 1 - middle[0], size_j - 1 - middle[1]
    rows = slice(max(0, int(row - half[1])), min(size_j, int(row + half[1]) + 2))
    columns = slice(max(0, int(column - half[0])), min(size_i, int(column + half[0]) + 2))
    return (rows, columns), (y_mm, x_mm)


def _grey(picture: NDArray[np.floating[Any]], hounsfield: bool) -> NDArray[np.uint8]:
    if hounsfield:
        return np.asarray(LUNG_WINDOW.scale(picture) * 255, np.uint8)
    low, high = float(picture.min()), float(picture.max())
    return np.asarray((picture - low) / max(high - low, 1e-6) * 255, np.uint8)


def _fitted(picture: NDArray[np.uint8], step_mm: tuple[float, float]) -> NDArray[np.uint8]:
    """The picture in a square of `SIDE_PX`, its proportions in mm kept, black around it."""
    tall, wide = picture.shape[0] * step_mm[0], picture.shape[1] * step_mm[1]
    scale = SIDE_PX / max(tall, wide)
    size = max(1, round(tall * scale)), max(1, round(wide * scale))
    rows, columns = nearest_indices(picture.shape[0], size[0]), nearest_indices(picture.shape[1], size[1])
    out = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    top, left = (SIDE_PX - size[0]) // 2, (SIDE_PX - size[1]) // 2
    out[top : top + size[0], left : left + size[1]] = picture[rows[:, None], columns[None, :]]
    return out


def _outline(picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: str, *, framed: bool) -> None:
    """Draw the border of a mask one pixel outside it, in place, so that what is marked stays visible; `framed` adds
    a frame around it that is found at a glance.
    """
    from scipy.ndimage import binary_dilation

    rim = binary_dilation(mask) & ~mask
    if framed and mask.any():
        low = [max(1, int(np.flatnonzero(mask.any(axis=1 - axis))[0]) - 8) for axis in (0, 1)]
        high = [min(SIDE_PX - 2, int(np.flatnonzero(mask.any(axis=1 - axis))[-1]) + 8) for axis in (0, 1)]
        rim[low[0] : high[0] + 1, [low[1], high[1]]] = True
        rim[[low[0], high[0]], low[1] : high[1] + 1] = True
    picture[rim] = _rgb(colour)


def _rgb(colour: str) -> list[int]:
    return [int(colour[n : n + 2], 16) for n in (1, 3, 5)]


def _jpeg(*panels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    gap = np.full((SIDE_PX, 4, 3), 255, np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(np.concatenate([panels[0], gap, *panels[1:]], axis=1)))
    stream = BytesIO()
    picture.save(stream, format="JPEG", quality=85, subsampling=0)  # thin outlines keep their colour
    return stream.getvalue()
