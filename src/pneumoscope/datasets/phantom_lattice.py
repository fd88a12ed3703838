"""Smooth fields kept on a coarse lattice and evaluated where a scan has voxels.

Inside the phantom arrays are (z, y, x) = (k, j, i): slices are contiguous. Positions are RAS+ millimetres.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
"""Float32 by convention; sums with plain numbers keep it."""


@dataclass(frozen=True)
class Positions:
    """Voxel centres of an upright box: x of the columns, y of the rows, z of the slices, each uniform, in mm."""

    x_mm: NDArray[np.float64]
    y_mm: NDArray[np.float64]
    z_mm: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        return len(self.z_mm), len(self.y_mm), len(self.x_mm)

    def open_grid(self) -> tuple[Field, Field, Field]:
        """z, y, x as float32 arrays that broadcast to `shape`."""
        z, y, x = (axis.astype(np.float32) for axis in (self.z_mm, self.y_mm, self.x_mm))
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def slices(self, part: slice) -> Positions:
        """Some of the slices."""
        return Positions(self.x_mm, self.y_mm, self.z_mm[part])


@dataclass(frozen=True)
class Lattice:
    """A coarse upright lattice of points.

    Attributes:
        low_mm: (z, y, x) of its first point.
        spacing_mm: the same along all axes.
        shape: points along (z, y, x).
    """

    low_mm: tuple[float, float, float]
    spacing_mm: float
    shape: tuple[int, int, int]

    @classmethod
    def covering(cls, low_mm: tuple[float, float, float], high_mm: tuple[float, float, float], step: float) -> Lattice:
        """The smallest lattice from `low_mm` that reaches `high_mm`, with two points to spare at either end."""
        low = tuple(value - 2 * step for value in low_mm)
        counts = [int(np.ceil((high - first) / step)) + 3 for first, high in zip(low, high_mm, strict=True)]
        return cls((low[0], low[1], low[2]), step, (counts[0], counts[1], counts[2]))

    def positions(self) -> Positions:
        """Where its points lie."""
        z, y, x = (
            low + self.spacing_mm * np.arange(n, dtype=np.float64)
            for low, n in zip(self.low_mm, self.shape, strict=True)
        )
        return Positions(x, y, z)

    def noise(self, rng: np.random.Generator) -> Field:
        """Independent normal values on the points, scaled so that `smooth` sampling has variance near one."""
        return rng.standard_normal(self.shape, dtype=np.float32) * np.float32(_SMOOTH_GAIN)

    def sample(self, field: Field, where: Positions, *, smooth: bool = False) -> Field:
        """Values of a lattice field at voxel centres, (z, y, x), by cubic interpolation.

        Args:
            field: (z, y, x) values on the lattice; outside it the edge values go on.
            where: voxel centres.
            smooth: approximating B-spline (for noise) instead of the interpolating Catmull-Rom spline (for shapes).
        """
        wz, wy, wx = (
            _weights((axis - low) / self.spacing_mm, n, smooth)
            for axis, low, n in zip((where.z_mm, where.y_mm, where.x_mm), self.low_mm, self.shape, strict=True)
        )
        planes = (wz @ field.reshape(self.shape[0], -1)).reshape(-1, *self.shape[1:])
        tall = np.empty((len(wz), len(wy), self.shape[2]), np.float32)
        for rows, used in _blocks(wy):
            np.matmul(wy[rows, used], planes[:, used], out=tall[:, rows])
        result = np.empty((len(wz), len(wy), len(wx)), np.float32)
        for columns, used in _blocks(wx):
            result[..., columns] = tall[..., used] @ wx[columns, used].T
        return result


_SMOOTH_GAIN = 0.479 ** (-3 / 2)
"""A cubic B-spline keeps on average 0.479 of the variance of independent values, per axis."""


def _weights(index: NDArray[np.float64], n: int, smooth: bool) -> Field:
    """Row r holds the cubic weights of the lattice points around fractional position index[r], (len(index), n)."""
    clipped = np.clip(index, 0, n - 1)
    base = np.floor(clipped).astype(np.intp)
    t = clipped - base
    if smooth:
        parts = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    else:
        parts = (
            (-(t**3) + 2 * t**2 - t) / 2,
            (3 * t**3 - 5 * t**2 + 2) / 2,
            (-3 * t**3 + 4 * t**2 + t) / 2,
            (t**3 - t**2) / 2,
        )
    weights = np.zeros((len(index), n), np.float32)
    rows = np.arange(len(index))
    for offset, part in zip((-1, 0, 1, 2), parts, strict=True):
        np.add.at(weights, (rows, np.clip(base + offset, 0, n - 1)), part)
    return weights


def _blocks(weights: Field, size: int = 64) -> Iterator[tuple[slice, slice]]:
    """Runs of output rows with the lattice points they need, which are few: (rows of `weights`, columns)."""
    for start in range(0, len(weights), size):
        rows = slice(start, min(start + size, len(weights)))
        used = np.flatnonzero(weights[rows].any(axis=0))
        yield rows, slice(int(used[0]), int(used[-1]) + 1)


def coverage(distance_mm: Field, soft_mm: float) -> Field:
    """How much of a voxel lies inside a shape, from the signed distance to its surface (negative inside)."""
    share = distance_mm * np.float32(-1 / soft_mm)
    share += np.float32(0.5)
    return np.clip(share, 0.0, 1.0, out=share)


def smoothstep(value: Field, low: float, high: float) -> Field:
    """0 below `low`, 1 above `high`, and a smooth cubic between."""
    t = value * np.float32(1 / (high - low))
    t -= np.float32(low / (high - low))
    np.clip(t, 0.0, 1.0, out=t)
    curve = t * np.float32(-2)
    curve += np.float32(3)
    curve *= t
    curve *= t
    return curve


def blend(under: Field, over: Field | float, share: Field) -> None:
    """Paint `over` on `under` in place, where `share` (0 to 1) says how much."""
    under += (np.asarray(over, np.float32) - under) * share
