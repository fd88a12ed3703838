"""A volume as a stack of axial pictures, pictures of another size, both ways back, and windows: a network's channels.

The house picture of an axial slice is the radiological one, seen from the feet: rows run from the front of the chest
to the back, columns from the patient's right (left side of the picture) to the patient's left. Slice 0 is the lowest.

Resizing takes pixels as areas (the voxel-centre convention): output pixel `o` of `n_out` lies at
``(o + 1/2) * n_in / n_out`` in input pixels, counted from the outer edge, so that the field of view stays exactly the
same and nothing shifts. It is what `Grid.resize` does with the affine, what OpenCV calls ``INTER_NEAREST_EXACT`` and
what Pillow and scikit-image do; OpenCV's plain ``INTER_NEAREST`` leans towards the upper left corner instead.

The papers cut the Hounsfield scale into windows, one channel each, and add the lung mask as last channel. Which windows
is a number of the paper and stands in `pneumoscope.recipes`; here is only the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.processes import processors

Size = int | Sequence[int]  # Height and width in pixels, or one number for a square


def to_slices(array_ijk: NDArray[Any]) -> NDArray[Any]:
    """A RAS+ array (i, j, k) as radiological axial slices (k, h, w); a view, no copy.

    The view shares memory and has negative strides, which torch refuses: the resizing functions below and
    `np.ascontiguousarray` give a copy.
    """
    _require_axes(array_ijk, 3, "a volume")
    return array_ijk[::-1, ::-1, :].transpose(2, 1, 0)


def from_slices(stack: NDArray[Any]) -> NDArray[Any]:
    """Radiological axial slices (k, h, w) as a RAS+ array (i, j, k), contiguous; the exact way back of `to_slices`."""
    _require_axes(stack, 3, "a stack of slices")
    turned = stack.transpose(2, 1, 0)[::-1, ::-1, :]
    out = np.empty(turned.shape, turned.dtype)

    def copy(start: int) -> None:  # strips that a cache holds: twice as fast as one copy
        out[:, start : start + 8] = turned[:, start : start + 8]

    each_in_threads(copy, range(0, turned.shape[1], 8))
    return out


def each_in_threads(do: Callable[[int], None], numbers: Iterable[int]) -> None:
    """Call `do` for every number, side by side: NumPy and OpenCV let other threads run."""
    with ThreadPoolExecutor(min(4, processors())) as pool:
        for _ in pool.map(do, numbers):
            pass


def nearest_indices(n_in: int, n_out: int) -> NDArray[np.intp]:
    """Which input pixel each of `n_out` output pixels takes, (n_out,), never decreasing.

    Whole-number arithmetic. Where the wanted place lies exactly on the border of two pixels (as everywhere when an even
    size is halved), the second one is taken; there, and only there, other libraries' rounding may take the first.
    """
    return ((2 * np.arange(n_out) + 1) * n_in) // (2 * n_out)


def resize_nearest(stack: NDArray[Any], size: Size) -> NDArray[Any]:
    """Nearest-neighbour resize of the last two axes, any type; values are copied, never mixed.

    The papers resize to 320 x 320 this way (Maganaris 2022b, section 3.1) without naming the convention; the one
    at the top of this module is our choice.

    Args:
        stack: (..., h, w), most often (n, h, w).
        size: wanted (h, w), or one number for a square.

    Returns:
        (..., *size), contiguous, a copy even when the size stays. An empty stack (n = 0) gives an empty one.

    Raises:
        InputError: a size below 1, or slices without pixels.
    """
    height, width = _size(stack, size)
    rows = nearest_indices(stack.shape[-2], height)
    columns = nearest_indices(stack.shape[-1], width)
    return np.ascontiguousarray(stack[..., rows[:, None], columns[None, :]])


def resize_linear(stack: NDArray[np.floating[Any]], size: Size) -> NDArray[np.float32]:
    """Bilinear resize of the last two axes of floating values, with the same convention; float32.

    Beyond the outermost pixel centres the border value is held. There is no smoothing before shrinking: detail finer
    than the new pixel aliases. Shapes and errors as `resize_nearest`; labels are refused, for they cannot be mixed.
    """
    if not np.issubdtype(stack.dtype, np.floating):
        raise InputError(f"linear resizing mixes values and needs floats, got {stack.dtype}; use resize_nearest")
    height, width = _size(stack, size)
    top, bottom, down = _neighbours(stack.shape[-2], height)
    left, right, across = _neighbours(stack.shape[-1], width)
    result = np.empty((*stack.shape[:-2], height, width), np.float32)
    pictures, results = stack.reshape(-1, *stack.shape[-2:]), result.reshape(-1, height, width)

    def resize(at: int) -> None:  # one slice at a time keeps the temporaries small
        picture = np.asarray(pictures[at], dtype=np.float32)
        tall = picture[top] * (1 - down)[:, None] + picture[bottom] * down[:, None]
        results[at] = tall[:, left] * (1 - across) + tall[:, right] * across

    each_in_threads(resize, range(len(pictures)))
    return result


def _neighbours(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Lower and upper input pixel of each output pixel and the weight of the upper one, (n_out,) each."""
    place = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    place = np.clip(place, 0, n_in - 1)
    lower = np.floor(place).astype(np.intp)
    return lower, np.minimum(lower + 1, n_in - 1), (place - lower).astype(np.float32)


def _size(stack: NDArray[Any], size: Size) -> tuple[int, int]:
    if stack.ndim < 2 or min(stack.shape[-2:]) < 1:
        raise InputError(f"slices need a height and a width of at least 1, got shape {stack.shape}")
    wanted = (size, size) if isinstance(size, (int, np.integer)) else tuple(size)
    if len(wanted) != 2 or min(wanted) < 1 or any(int(n) != n for n in wanted):
        raise InputError(f"a slice size is one whole number or two (height, width) of at least 1, got {size}")
    return int(wanted[0]), int(wanted[1])


def _require_axes(array: NDArray[Any], count: int, what: str) -> None:
    if array.ndim != count:
        raise InputError(f"{what} needs {count} axes, got shape {array.shape}")


@dataclass(frozen=True)
class LungCrop:
    """A box of a slice stack and the frame it is scaled into, proportions kept, centred."""

    box: tuple[int, int, int, int]  # (top, bottom, left, right), bottom and right exclusive; may reach beyond the slice
    frame: tuple[int, int]  # (rows, columns) of the result
    full: tuple[int, int]  # (rows, columns) of the slices the box was taken on

    @classmethod
    def around(cls, lungs: NDArray[np.bool_], frame: tuple[int, int], margin: float = 0.03) -> LungCrop:
        """The crop around all lungs of a stack (n, h, w), with a margin as a share of the box.

        Without any lung the whole slice is taken.
        """
        if lungs.ndim != 3:
            raise InputError(f"lungs must be a stack (n, h, w), got shape {lungs.shape}")
        full = (lungs.shape[1], lungs.shape[2])
        seen = np.any(lungs, axis=0)
        if not seen.any():
            return cls((0, full[0], 0, full[1]), frame, full)
        rows, columns = np.flatnonzero(np.any(seen, axis=1)), np.flatnonzero(np.any(seen, axis=0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        down, across = round((bottom - top) * margin) + 1, round((right - left) * margin) + 1
        return cls((int(top - down), int(bottom + down), int(left - across), int(right + across)), frame, full)

    @property
    def scale(self) -> float:
        """Frame pixels per slice pixel."""
        top, bottom, left, right = self.box
        return min(self.frame[0] / (bottom - top), self.frame[1] / (right - left))

    def _to_frame(self) -> NDArray[np.float64]:
        """(2, 3) matrix taking slice (x, y) to frame (x, y), pixel centres at whole numbers."""
        top, bottom, left, right = self.box
        centre = np.array([(left + right - 1) / 2, (top + bottom - 1) / 2])
        middle = np.array([(self.frame[1] - 1) / 2, (self.frame[0] - 1) / 2])
        return np.array([[self.scale, 0, 0], [0, self.scale, 0]]) + np.column_stack(
            (np.zeros((2, 2)), middle - self.scale * centre)
        )

    def cut(self, stack: NDArray[np.generic], *, nearest: bool = False) -> NDArray[np.generic]:
        """Slices (n, h, w) cut to (n, *frame). Outside the slice is 0; `nearest` for masks."""
        import cv2

        return self._warp(stack, self._to_frame(), self.frame, cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR)

    def paste(self, stack: NDArray[np.floating]) -> NDArray[np.float32]:
        """Frames (n, *frame) back on (n, *full), linear; 0 where the crop did not look."""
        import cv2

        back = np.asarray(cv2.invertAffineTransform(self._to_frame()), np.float64)
        pasted = self._warp(stack.astype(np.float32), back, self.full, cv2.INTER_LINEAR)
        return pasted.astype(np.float32, copy=False)

    def _warp(
        self, stack: NDArray[np.generic], matrix: NDArray[np.float64], size: tuple[int, int], way: int
    ) -> NDArray[np.generic]:
        import cv2

        data = stack.astype(np.uint8) if stack.dtype == bool else stack
        out = np.empty((len(data), *size), data.dtype)
        for i, plane in enumerate(data):
            out[i] = cv2.warpAffine(plane, matrix, (size[1], size[0]), flags=way, borderMode=cv2.BORDER_CONSTANT)
        return out


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
