"""Steps that move voxels, each moving the affine in the same function.

A step is a frozen description. `apply` takes a `Volume` or a `Mask` and gives the same kind; `move` takes an array with
the grid it lies on, in any orientation. Masks are always moved by nearest neighbour and filled with background,
whatever the step says for Hounsfield units, so one step serves a scan and its masks. The way back from every step is
`Resample` onto the grid before it; what a crop cut off comes back as air or background.

    step = Resample(scan.grid.respace((1, 1, 1)))
    fine = step.apply(scan)
    mask = step.inverse(scan.grid).apply(mask_on_fine)  # on the scan's grid again
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import Grid, box_of, whole_triple
from pneumoscope.volume import Mask, Volume

AIR_HU = -1024.0  # What lies outside of a scan: the lowest value common CT scanners store

EDGE_TOLERANCE_VOXELS = 1e-4
"""A place this little outside the outer voxel edge still counts as inside (rounding of stored affines)."""

_TIE_VOXELS = 1e-6

Triple = tuple[int, int, int]
Image = TypeVar("Image", Volume, Mask)


class Step(ABC):
    """Something that moves voxels and their affine together."""

    @abstractmethod
    def move(self, array: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], Grid]:
        """An array (i, j, k) on `grid`, of any orientation, to the new array and the grid it lies on.

        Raises:
            GeometryError: the array does not have the grid's shape, or the step does not fit the grid.
        """

    def for_labels(self) -> Step:
        """The same step as it is done to masks: nearest neighbour, filled with background."""
        return self

    def apply(self, image: Image) -> Image:
        """The step done to a scan or a mask; names, findings and axis order on disk (`native`) go along.

        Raises:
            GeometryError: as `move`, and when the result would not have RAS+ axes.
        """
        if isinstance(image, Mask):
            labels, grid = self.for_labels().move(image.labels, image.grid)
            return replace(image, labels=labels, grid=grid)
        hu, grid = self.move(image.hu, image.grid)
        return replace(image, hu=hu, grid=grid, native=grid.reorient(image.native.axis_codes))


@dataclass(frozen=True)
class Crop(Step):
    """Keep `shape` voxels from voxel `start` on; both must lie inside."""

    start: Triple
    shape: Triple

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", whole_triple(self.start, "the start of a crop", least=0))
        object.__setattr__(self, "shape", whole_triple(self.shape, "the shape of a crop", least=1))

    def move(self, array: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], Grid]:
        """See `Step.move`; a contiguous copy, so that the large array can be let go."""
        _require_on(array, grid)
        moved = grid.crop(self.start, self.shape)
        box = tuple(slice(begin, begin + size) for begin, size in zip(self.start, self.shape, strict=True))
        return array[box].copy(), moved


@dataclass(frozen=True)
class Resample(Step):
    """Values at the voxel centres of another grid, whatever its place, spacing, tilt or shear.

    A voxel is an area around its centre: up to half a voxel beyond the outermost centres the border value holds,
    further out it is `fill_hu` (0 in masks). This is what SimpleITK's ResampleImageFilter does. A place exactly between
    two voxels takes the one with the higher index (nearest).

    Nothing is smoothed first. On a target coarser than the source a voxel is one sample of its neighbourhood and no
    mean over it: noise stays as high as it was, structures thinner than the target spacing may be missed or come out
    dotted (aliasing), and small labels may vanish. Volumes in ml must therefore be counted on the scan's own grid.

    The inverse samples once more and is exact for the grid, but not for the values.
    """

    target: Grid  # the grid of the result
    # ``linear`` for floating values; ``nearest`` copies values, for labels
    method: Literal["linear", "nearest"] = "linear"
    fill_hu: float = AIR_HU  # what lies outside of the source

    def __post_init__(self) -> None:
        if self.method not in ("linear", "nearest"):
            raise InputError(f"unknown resampling {self.method!r}; choose linear or nearest")

    def move(self, array: NDArray[Any], grid: Grid) -> tuple[NDArray[Any], Grid]:
        """See `Step.move`; the type stays, and beside the result hardly any memory is taken.

        Raises:
            InputError: labels or other whole numbers with ``linear``.
        """
        _require_on(array, grid)
        if self.method == "linear" and not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"linear resampling mixes values and needs floats, got {array.dtype}; use nearest")
        _require_fits(self.fill_hu, array.dtype)
        steps, offset = _index_map(self.target, grid)
        result = np.empty(self.target.shape, array.dtype)
        nearest = self.method == "nearest"
        ndimage.affine_transform(
            array.view(np.uint8) if array.dtype == bool else array,
            np.diag(steps)
            if np.abs(steps - np.diag(np.diag(steps))).max() < 1e-12
            else steps,  # SciPy is faster for axes that run alike
            offset=offset + (_TIE_VOXELS if nearest else 0),
            output_shape=self.target.shape,
            output=result.view(np.uint8) if array.dtype == bool else result,
            order=0 if nearest else 1,
            mode="nearest",
            prefilter=False,
        )
        _fill_outside(result, steps, offset, grid.shape, self.fill_hu)
        return result, self.target

    def inverse(self, before: Grid) -> Resample:
        """The resampling onto `before`."""
        return replace(self, target=before)

    def for_labels(self) -> Resample:
        """See `Step.for_labels`."""
        return replace(self, method="nearest", fill_hu=0)


def crop_to(mask: Mask, margin_mm: float = 0.0) -> Crop:
    """The smallest crop that holds every label, with a margin measured along the voxel axes, cut at the grid's edge.

    Raises:
        GeometryError: the mask is empty (there is nothing to crop to), or the margin is negative.
    """
    if not (np.isfinite(margin_mm) and margin_mm >= 0):
        raise GeometryError(f"a margin must be 0 mm or more, got {margin_mm} mm")
    box = box_of(mask.labels)
    if not mask.labels[box].size:
        raise GeometryError("the mask is empty, so there is nothing to crop to; leave the scan whole")
    margins = [int(np.ceil(margin_mm / spacing - 1e-9)) for spacing in mask.grid.spacing_mm]
    i, j, k = (max(0, part.start - margin) for part, margin in zip(box, margins, strict=True))
    ends = [min(n, part.stop + margin) for n, part, margin in zip(mask.grid.shape, box, margins, strict=True)]
    return Crop((i, j, k), (ends[0] - i, ends[1] - j, ends[2] - k))


def _index_map(target: Grid, source: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The map from target index to source index: (3, 3) steps and (3,) offset."""
    inverse = np.linalg.inv(source.affine[:3, :3])
    steps = inverse @ target.affine[:3, :3]
    offset = inverse @ (target.affine[:3, 3] - source.affine[:3, 3])
    return steps, offset


def _fill_outside(
    result: NDArray[Any], steps: NDArray[np.float64], offset: NDArray[np.float64], shape: Triple, fill: float
) -> None:
    """Write `fill` where a target voxel's centre lies beyond the outer voxel edges of the source, in place.

    One plane of i at a time: the whole map of places would take several times the memory of the scan.
    """
    low = -0.5 - EDGE_TOLERANCE_VOXELS
    high = np.asarray(shape) - 0.5 + EDGE_TOLERANCE_VOXELS
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in result.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    places = corners @ steps.T + offset
    if (places >= low).all() and (places <= high).all():
        return  # the source is convex: with the corners everything lies inside
    j, k = np.arange(result.shape[1])[:, None], np.arange(result.shape[2])[None, :]
    for i in range(result.shape[0]):
        outside = np.zeros(result.shape[1:], bool)
        for axis in range(3):
            place = (steps[axis, 0] * i + offset[axis]) + steps[axis, 1] * j + steps[axis, 2] * k
            outside |= (place < low) | (place > high[axis])
        result[i][outside] = fill


def _require_on(array: NDArray[Any], grid: Grid) -> None:
    if array.shape != grid.shape:
        raise GeometryError(f"the array has shape {array.shape}, its grid {grid.shape}")


def _require_fits(value: float, dtype: np.dtype[Any]) -> None:
    """A fill value that the type cannot hold would wrap round to something plausible."""
    if not np.isfinite(value) or (dtype.kind in "iub" and np.array(value).astype(dtype) != value):
        raise InputError(f"fill value {value} cannot be held by {dtype}; give another (masks: 0)")


def coarse_size(size: int, spacing_mm: float, target_mm: float) -> int:
    """Voxels of the target spacing that `size` voxels are, at least 1."""
    return max(1, round(size * spacing_mm / target_mm))


def axis_weights(size: int, spacing_mm: float, out_size: int, out_spacing_mm: float) -> NDArray[np.float32]:
    """(out_size, size) weights, rows adding up to 1; both axes have the same middle, the border value holds outside."""
    at = ((np.arange(out_size) + 0.5 - out_size / 2) * out_spacing_mm / spacing_mm) + size / 2 - 0.5
    reach = max(1.0, out_spacing_mm / spacing_mm)
    distance = np.abs(np.arange(size) - np.clip(at, 0, size - 1)[:, None])
    weights = np.maximum(0, 1 - distance / reach)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def resample_axes(
    array: NDArray[np.float32], spacing_mm: Sequence[float], shape: Sequence[int], out_spacing_mm: Sequence[float]
) -> NDArray[np.float32]:
    """An array (d, h, w) on another number of voxels along each of its axes, about the same middle."""
    along_d, along_h, along_w = (
        axis_weights(n, float(step), int(out), float(out_step))
        for n, step, out, out_step in zip(array.shape, spacing_mm, shape, out_spacing_mm, strict=True)
    )
    planes = np.stack([along_h @ plane @ along_w.T for plane in array])  # (d, out_h, out_w)
    return np.asarray(np.tensordot(along_d, planes, axes=1), np.float32)
