"""Closed outlines in pixel coordinates to masks.

Convention: x counts columns and y counts rows from the outer corner of the first pixel, as web viewers do (pixel (0, 0)
covers [0, 1) x [0, 1), its centre lies at (0.5, 0.5)). A pixel belongs to an outline when its centre does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PIXEL_CENTRE = 0.5
"""Where the centre of pixel 0 lies. Programs that count from the centre of the first pixel would say 0."""


def vertices_of(value: Any) -> NDArray[np.float64] | None:
    """(n, 2) columns x and y of a list of pairs or of a flat list ``x, y, x, y, ...``; None for anything else.

    None too when a number is missing, not finite, or beyond a million pixels.
    """
    try:
        points = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if points.ndim == 1 and points.size % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not (np.abs(points) < 1e6).all():
        return None
    return points


def rasterise(
    vertices: NDArray[np.float64], shape: tuple[int, int], *, centre: float = PIXEL_CENTRE
) -> NDArray[np.bool_]:
    """The pixels whose centres lie inside a closed outline.

    Inside is counted by crossings (even-odd): where an outline overlaps itself, the overlap is outside, as in OpenCV's
    fillPoly and matplotlib. An edge that runs exactly through a centre gives the pixel to one side only, so that two
    outlines that share an edge never share a pixel and never leave one out.

    Args:
        vertices: (n, 2) x and y; the last is joined to the first. Fewer than three give an empty mask.
        shape: (rows, columns); parts of the outline beyond it are cut off.
        centre: where the centre of pixel 0 lies.

    Returns:
        (rows, columns).
    """
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), np.int32)
    x, y = vertices[:, 0] - centre, vertices[:, 1] - centre
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        low, high = min(y0, y1), max(y0, y1)
        lines = np.arange(max(0, int(np.ceil(low))), min(rows, int(np.ceil(high))))  # low <= row < high
        if len(lines):
            at = x0 + (lines - y0) * ((x1 - x0) / (y1 - y0))
            np.add.at(crossings, (lines, np.clip(np.ceil(at), 0, columns).astype(np.intp)), 1)
    inside: NDArray[np.bool_] = np.cumsum(crossings[:, :columns], axis=1) % 2 == 1
    return inside


def rectangle(x: float, y: float, width: float, height: float) -> NDArray[np.float64]:
    """The outline of a box, (4, 2)."""
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)
