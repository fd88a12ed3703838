"""Windows on the Hounsfield scale, and the channels a segmentation network is given and asked for.

The papers cut the scale into windows, one channel each, and add the lung mask as last channel. Which windows is a
number of the paper and stands in `pneumoscope.recipes`; here is only the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.preprocess.slices import Size, resize_nearest


@dataclass(frozen=True)
class HuWindow:
    """A part of the Hounsfield scale that is spread over [0, 1].

    Raises:
        InputError: a bound is not finite, or `low_hu` is not below `high_hu`.
    """

    low_hu: float  # becomes 0, and all below too
    high_hu: float  # becomes 1, and all above too

    def __post_init__(self) -> None:
        if not (isfinite(self.low_hu) and isfinite(self.high_hu) and self.low_hu < self.high_hu):
            raise InputError(
                f"a window needs two finite bounds, the lower one first, got [{self.low_hu}, {self.high_hu}] HU"
            )

    @property
    def width_hu(self) -> float:
        """Distance between the bounds."""
        return self.high_hu - self.low_hu

    def scale(self, hu: NDArray[Any]) -> NDArray[np.float32]:
        """``(hu - low) / (high - low)``, clipped to [0, 1]; any shape, float32; NaN stays NaN.

        Source: Maganaris et al. 2022b, section 3.1, equations 1 to 3 and the sentence after them.
        """
        scaled = np.array(hu, dtype=np.float32)  # a copy: the caller's array is never touched
        scaled -= np.float32(self.low_hu)
        scaled /= np.float32(self.width_hu)
        np.clip(scaled, 0.0, 1.0, out=scaled)
        return scaled


def window_channels(stack_hu: NDArray[Any], windows: Sequence[HuWindow]) -> NDArray[np.float32]:
    """One channel per window: (n, h, w) Hounsfield units to (n, c, h, w) float32 in [0, 1].

    Raises:
        InputError: no window is given, or the stack does not have three axes.
    """
    if not windows:
        raise InputError("at least one Hounsfield window is needed, got none")
    _require_stack(stack_hu, "the slices")
    n, height, width = stack_hu.shape
    channels = np.empty((n, len(windows), height, width), np.float32)
    for c, window in enumerate(windows):
        channels[:, c] = window.scale(stack_hu)
    return channels


def model_input(
    stack_hu: NDArray[Any], lungs: NDArray[Any], windows: Sequence[HuWindow], size: Size | None
) -> NDArray[np.float32]:
    """The papers' network input: the windows, then the lung mask as last channel.

    Three windows give the four channels of Maganaris 2022b (section 3.1), one gives the two channels of 2022a.
    Hounsfield units are resized first and windowed after (nearest neighbour: the order does not matter to the result).

    Args:
        stack_hu: (n, h, w) Hounsfield units.
        lungs: (n, h, w) bool or labels; every label above 0 is lung. Without lung the channel is all 0.
        windows: the c windows, in channel order.
        size: side, or (height, width), to resize to; None leaves the slices as they are.

    Returns:
        (n, c + 1, *size) float32 in [0, 1].

    Raises:
        InputError: shapes differ, no windows, or an unusable size.
    """
    _require_stack(stack_hu, "the slices")
    if lungs.shape != stack_hu.shape:
        raise InputError(f"the lung mask has shape {lungs.shape}, the slices {stack_hu.shape}; they must be the same")
    if not windows:
        raise InputError("at least one Hounsfield window is needed, got none")
    if size is not None:
        stack_hu, lungs = resize_nearest(stack_hu, size), resize_nearest(lungs, size)
    n, height, width = stack_hu.shape
    channels = np.empty((n, len(windows) + 1, height, width), np.float32)
    for c, window in enumerate(windows):
        channels[:, c] = window.scale(stack_hu)
    channels[:, -1] = lungs > 0
    return channels


def _require_stack(stack: NDArray[Any], what: str) -> None:
    if stack.ndim != 3:
        raise InputError(f"{what} must have shape (n, h, w), got {stack.shape}")


@dataclass(frozen=True)
class Appearance:
    """The steps from Hounsfield units to an equalised 8-bit slice."""

    size: int = 256  # rows and columns after the resize
    # values outside are clipped first; keeps metal and padding from setting the scale
    window_hu: tuple[float, float] = (-1024.0, 2000.0)
    clip_limit: float = 7.0  # of CLAHE; 0 leaves the equalisation out
    tiles: int = 8  # CLAHE tiles along rows and columns

    def __post_init__(self) -> None:
        object.__setattr__(self, "window_hu", tuple(float(v) for v in self.window_hu))
        if self.size < 16 or self.tiles < 1 or self.window_hu[0] >= self.window_hu[1]:
            raise InputError(f"appearance needs size >= 16, tiles >= 1 and a rising window, got {self}")

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
