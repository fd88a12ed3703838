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
    inside = np.zeros(shape, np.bool_)
    x0, y0 = vertices[:, 0] - centre, vertices[:, 1] - centre
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, rows).astype(np.intp)  # an edge crosses rows low <= row < high
    count = np.clip(np.ceil(np.maximum(y0, y1)), 0, rows).astype(np.intp) - first
    edge = np.repeat(np.arange(len(count)), count)
    if not len(edge):
        return inside
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    at = x0[edge] + (row - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    column = np.clip(np.ceil(at), 0, columns).astype(np.intp)
    top, left = int(row.min()), int(column.min())
    height, width = int(row.max()) + 1 - top, int(column.max()) + 1 - left
    crossings = np.bincount((row - top) * width + column - left, minlength=height * width).reshape(height, width)
    box = np.cumsum(crossings, axis=1) % 2 == 1
    inside[top : top + height, left : left + width] = box[:, : columns - left]
    return inside


def rectangle(x: float, y: float, width: float, height: float) -> NDArray[np.float64]:
    """The outline of a box, (4, 2)."""
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], np.float64)
