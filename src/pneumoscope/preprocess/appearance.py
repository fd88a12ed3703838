"""How a Hounsfield slice is made to look like the public 8-bit slice sets, so that one model can serve both.

The sets of 2D slices (Coronacases and Radiopaedia as PNG) were made by a cubic resize to 256 x 256, min-max scaling
per slice, rounding to 8 bit, and contrast-limited adaptive histogram equalisation (OpenCV's CLAHE, clip limit 7, 8 x 8
tiles). Hounsfield units cannot be had back from that; a Hounsfield slice can be taken the same way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError


@dataclass(frozen=True)
class Appearance:
    """The steps from Hounsfield units to an equalised 8-bit slice.

    Attributes:
        size: rows and columns after the resize.
        window_hu: values outside are clipped first; keeps metal and padding from setting the scale.
        clip_limit: of CLAHE; 0 leaves the equalisation out.
        tiles: CLAHE tiles along rows and columns.
    """

    size: int = 256
    window_hu: tuple[float, float] = (-1024.0, 2000.0)
    clip_limit: float = 7.0
    tiles: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "window_hu", tuple(float(v) for v in self.window_hu))
        if self.size < 16 or self.tiles < 1 or self.window_hu[0] >= self.window_hu[1]:
            raise InputError(f"appearance needs size >= 16, tiles >= 1 and a rising window, got {self}")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Appearance(**d)` gives the same steps."""
        return {**asdict(self), "window_hu": list(self.window_hu)}

    def of_hu(self, stack_hu: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Equalised slices (n, size, size) of Hounsfield slices (n, h, w)."""
        import cv2

        size = (self.size, self.size)
        shrink = min(stack_hu.shape[1:]) > self.size
        out = np.empty((len(stack_hu), *size), np.uint8)
        for i, plane in enumerate(stack_hu):
            clipped = np.clip(plane, *self.window_hu).astype(np.float32)
            resized = cv2.resize(clipped, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
            out[i] = self._equalise(_min_max_8bit(resized))
        return out

    def of_8bit(self, stack: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Equalised slices (n, size, size) of 8-bit slices (n, h, w) that were never equalised."""
        import cv2

        size = (self.size, self.size)
        resized = (cv2.resize(plane, size, interpolation=cv2.INTER_CUBIC) for plane in stack)
        planes = [self._equalise(_min_max_8bit(plane.astype(np.float32))) for plane in resized]
        return np.stack(planes) if planes else np.empty((0, *size), np.uint8)

    def _equalise(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        import cv2

        if not self.clip_limit:
            return plane
        clahe = cv2.createCLAHE(clipLimit=self.clip_limit, tileGridSize=(self.tiles, self.tiles))
        return np.asarray(clahe.apply(plane), np.uint8)


def _min_max_8bit(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The slice's own range on 0..255; a constant slice becomes 0."""
    low, high = float(plane.min()), float(plane.max())
    if high <= low:
        return np.zeros(plane.shape, np.uint8)
    return ((plane - low) * (255.0 / (high - low))).astype(np.uint8)
