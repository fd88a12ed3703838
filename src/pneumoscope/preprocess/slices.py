"""A volume as a stack of axial pictures, pictures of another size, and both ways back.

The house picture of an axial slice is the radiological one, seen from the feet: rows run from the front of the chest
to the back, columns from the patient's right (left side of the picture) to the patient's left. Slice 0 is the lowest.

Resizing takes pixels as areas (the voxel-centre convention): output pixel `o` of `n_out` lies at
``(o + 1/2) * n_in / n_out`` in input pixels, counted from the outer edge, so that the field of view stays exactly the
same and nothing shifts. It is what `Grid.resize` does with the affine, what OpenCV calls ``INTER_NEAREST_EXACT`` and
what Pillow and scikit-image do; OpenCV's plain ``INTER_NEAREST`` leans towards the upper left corner instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError

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
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
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
