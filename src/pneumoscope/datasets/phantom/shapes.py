"""Smooth fields kept on a coarse lattice and evaluated where a scan has voxels.

Inside the phantom arrays are (z, y, x) = (k, j, i): slices are contiguous. Positions are RAS+ millimetres.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]  # Float32 by convention; sums with plain numbers keep it


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
    """A coarse upright lattice of points."""

    low_mm: tuple[float, float, float]  # (z, y, x) of its first point
    spacing_mm: float  # the same along all axes
    shape: tuple[int, int, int]  # points along (z, y, x)

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


Points = NDArray[np.float64]  # (n, 3), each (z, y, x) in mm


@dataclass(frozen=True, eq=False)
class Tubes:
    """Straight pieces with round ends."""

    # (n, 3) as (z, y, x) in mm
    start: Points
    end: Points
    radius_mm: NDArray[np.float64]  # (n,)
    flatness: float = 1.0  # how much distances along z shrink; below 1 the pieces are taller than wide, as ribs are

    def __len__(self) -> int:
        return len(self.radius_mm)

    def where(self, keep: NDArray[np.bool_]) -> Tubes:
        """Some of the pieces."""
        return Tubes(self.start[keep], self.end[keep], self.radius_mm[keep], self.flatness)

    def grown(self, extra_mm: float | NDArray[np.float64]) -> Tubes:
        """The same pieces with another radius (at least 0.1 mm)."""
        return Tubes(self.start, self.end, np.maximum(self.radius_mm + extra_mm, 0.1), self.flatness)

    def scaled(self, factors: tuple[float, float, float]) -> Tubes:
        """Positions multiplied by (x, y, z) factors."""
        zyx = np.asarray(factors[::-1])
        return Tubes(self.start * zyx, self.end * zyx, self.radius_mm, self.flatness)


def chain(points: Points, radius_mm: float | NDArray[np.float64], flatness: float = 1.0) -> Tubes:
    """A bent tube through (n, 3) points; the radius is one number or one per piece (n - 1)."""
    radius = np.broadcast_to(np.asarray(radius_mm, dtype=np.float64), len(points) - 1).copy()
    return Tubes(points[:-1], points[1:], radius, flatness)


def joined(parts: Iterable[Tubes]) -> Tubes:
    """All pieces of several sets, which must share their flatness."""
    sets = list(parts)
    if not sets:
        return Tubes(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
    return Tubes(
        np.concatenate([t.start for t in sets]),
        np.concatenate([t.end for t in sets]),
        np.concatenate([t.radius_mm for t in sets]),
        sets[0].flatness,
    )


FAINTEST = 0.12  # Tubes that fill a smaller share of a voxel are left out


def paint(target: Field, where: Positions, tubes: Tubes, soft_mm: float) -> None:
    """Raise `target` (z, y, x) to the share of each voxel that the tubes fill.

    Edges run over `soft_mm` (about a voxel). A tube thinner than that fills no voxel; its share falls with its width.
    """
    steps = [axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in (where.z_mm, where.y_mm, where.x_mm)]
    first = np.array([axis[0] for axis in (where.z_mm, where.y_mm, where.x_mm)])
    gain = np.minimum(1.0, 2.2 * tubes.radius_mm / soft_mm)
    reach = tubes.radius_mm[:, None] + soft_mm / 2
    reach = reach * np.array([1 / tubes.flatness, 1.0, 1.0])
    low = np.ceil((np.minimum(tubes.start, tubes.end) - reach - first) / steps).astype(int)
    high = np.floor((np.maximum(tubes.start, tubes.end) + reach - first) / steps).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, target.shape)
    z, y, x = where.open_grid()
    along = tubes.end - tubes.start
    squash = np.array([tubes.flatness, 1.0, 1.0])
    for t in np.flatnonzero((low < high).all(axis=1) & (gain >= FAINTEST)):
        box = tuple(slice(a, b) for a, b in zip(low[t], high[t], strict=True))
        distance = _distance(z[box[0]], y[:, box[1]], x[:, :, box[2]], tubes.start[t], along[t], squash)
        share = (np.float32(0.5 + tubes.radius_mm[t] / soft_mm) - distance * np.float32(1 / soft_mm)).clip(0, 1)
        if gain[t] < 1:
            share *= np.float32(gain[t])
        patch = target[box]
        np.maximum(patch, share, out=patch)


def _distance(z: Field, y: Field, x: Field, start: Points, along: Points, squash: Points) -> Field:
    """Distance of voxels to one piece, with the z axis squashed."""
    step = (along * squash).astype(np.float32)
    dz = (z - np.float32(start[0])) * np.float32(squash[0])
    dy, dx = y - np.float32(start[1]), x - np.float32(start[2])
    length2 = max(float(step @ step), 1e-6)
    t = (dz * step[0] + dy * step[1] + dx * step[2]) * np.float32(1 / length2)
    t = t.clip(0, 1)
    return np.sqrt((dz - t * step[0]) ** 2 + (dy - t * step[1]) ** 2 + (dx - t * step[2]) ** 2)


def grow_tree(
    root: Points, inside: Field, lattice: Lattice, rng: np.random.Generator, *, tips: int, thinnest_mm: float
) -> Tubes:
    """A branching vessel that reaches into a shape.

    Points are scattered in the shape and joined, nearest to the root first, to the place on the tree that costs
    least: the length of the new piece plus a part of the way from there to the root. That balance gives trunks
    that run outward and short side branches (the rule of Cuntz et al. 2010, PLoS Comput Biol 6(8), the TREES
    toolbox). Radii follow Murray: the parent's power is the sum of the children's, with exponent 2.7; each
    point feeds one more twig of the thinnest kind, too thin to be drawn.

    Args:
        root: (3,) where the vessel enters.
        inside: signed distance of the shape on `lattice`; points keep 4 mm away from its surface.
        thinnest_mm: radius of the last branches.
    """
    nodes = _scatter(root, inside, lattice, rng, tips)
    parent, path = np.zeros(len(nodes), int), np.zeros(len(nodes))
    flat = nodes.astype(np.float32)
    for n in range(1, len(nodes)):
        gap = flat[:n] - flat[n]
        step = np.sqrt(np.einsum("ij,ij->i", gap, gap))
        parent[n] = int(np.argmin(step + 0.38 * path[:n]))
        path[n] = path[parent[n]] + step[parent[n]]
    power = np.zeros(len(nodes))
    for n in range(len(nodes) - 1, 0, -1):
        power[n] += thinnest_mm**2.7
        power[parent[n]] += power[n]
    return Tubes(nodes[parent[1:]], nodes[1:], power[1:] ** (1 / 2.7))


def _scatter(root: Points, inside: Field, lattice: Lattice, rng: np.random.Generator, tips: int) -> Points:
    """The root, then points in the shape ordered by their distance from it; denser near the root."""
    z, y, x = np.nonzero(inside < -4)
    if len(z) == 0:
        return root[None, :]
    cells = np.stack([z, y, x], axis=1)
    middle = np.asarray(lattice.low_mm) + cells * lattice.spacing_mm
    far = np.linalg.norm(middle - root, axis=1)
    weight = 1 / (far + 25)
    picked = rng.choice(len(cells), size=min(tips, len(cells)), replace=False, p=weight / weight.sum())
    points = middle[picked] + rng.uniform(-0.5, 0.5, (len(picked), 3)) * lattice.spacing_mm
    order = np.argsort(np.linalg.norm(points - root, axis=1), kind="stable")
    return np.concatenate([root[None, :], points[order]])
