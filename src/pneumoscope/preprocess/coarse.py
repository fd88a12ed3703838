"""Arrays on coarse grids and back along their own axes, by one small matrix per axis.

Unlike `spatial.Resample`, which samples, a coarser voxel is a mean over what it covers (a triangle of twice its width),
so that noise and thin slices do not alias; on a finer grid values are interpolated linearly. Both grids have the same
outer edges up to half a voxel; tilt and shear of the scan stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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
