"""Tubes: the straight pieces that airways, vessels, ribs and other bones of the phantom are painted with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom_lattice import Field, Lattice, Positions

Points = NDArray[np.float64]  # (n, 3), each (z, y, x) in mm


@dataclass(frozen=True, eq=False)
class Tubes:
    """Straight pieces with round ends.

    Attributes:
        start, end: (n, 3) as (z, y, x) in mm.
        radius_mm: (n,).
        flatness: how much distances along z shrink; below 1 the pieces are taller than wide, as ribs are.
    """

    start: Points
    end: Points
    radius_mm: NDArray[np.float64]
    flatness: float = 1.0

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


def paint(target: Field, where: Positions, tubes: Tubes, soft_mm: float, faintest: float = 0.12) -> None:
    """Raise `target` (z, y, x) to the share of each voxel that the tubes fill.

    Edges run over `soft_mm` (about a voxel). A tube thinner than that fills no voxel; its share falls with its width,
    and tubes below `faintest` are left out.
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
    for t in np.flatnonzero((low < high).all(axis=1) & (gain >= faintest)):
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
        lattice: of `inside`.
        rng: of the scatter.
        tips: number of points.
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
