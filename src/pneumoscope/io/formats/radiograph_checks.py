"""What no radiograph can be: sizes and content that are refused whatever the file's format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pneumoscope.io.stored import Place

MIN_SIDE = 64
"""Pixels; smaller pictures show no lung."""

MAX_PIXELS = 60_000_000
"""Twice the largest detectors (about 4300 x 3500 would be 15 million)."""


def require_size(place: Place, rows: int, columns: int) -> None:
    """Refuse what is smaller or larger than any radiograph: IN-XRY-083 and -084."""
    if min(rows, columns) < MIN_SIDE:
        raise place.error(83, f"has {rows} x {columns} pixels, expected at least {MIN_SIDE} along each side")
    if rows * columns > MAX_PIXELS:
        raise place.error(84, f"has {rows} x {columns} pixels, no radiograph has that many; make it smaller")


def require_content(place: Place, pixels: NDArray[np.float32]) -> None:
    """Refuse one grey level everywhere: IN-XRY-086."""
    if float(np.ptp(pixels)) < 2 / 255:
        raise place.error(86, "holds one grey level everywhere; it shows nothing")
