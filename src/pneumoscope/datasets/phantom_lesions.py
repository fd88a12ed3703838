"""Infiltrates of the phantom: where they lie, how large they are, how dense, and where exactly they end.

A lesion is an ellipsoid flattened along the pleura, with a border made irregular by noise. The field says how many mm a
voxel lies inside; the infiltrate is where it is positive, and opacity rises over a few mm from there inward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom_anatomy import Shapes
from pneumoscope.datasets.phantom_lattice import Field, Lattice, Positions

NO_LESION = -60.0


@dataclass(frozen=True)
class LesionPlan:
    """How ill a patient is.

    Attributes:
        share: part of the lungs with infiltrate, 0 to 1, met to within one lesion.
        height: part of the lungs' height in which lesions may lie.
        radius_mm: smallest and largest lesion radius.
        consolidation: chance that a lesion has a dense core.
        dorsal: preference for the back; 0 for none.
    """

    share: float
    height: float
    radius_mm: tuple[float, float]
    consolidation: float
    dorsal: float


@dataclass(frozen=True, eq=False)
class Lesions:
    """Fields of one patient on the shapes' lattice.

    Attributes:
        lattice: of `depth` and `dense`.
        depth: mm inside the infiltrate, smooth (z, y, x); negative outside.
        dense: mm inside the consolidated cores, likewise.
        grade: 0 to 1, how opaque the ground glass of a place is.
        fine: finer lattice of the noise that makes borders irregular.
        fringe, meshwork: noise on `fine`: of the border, and of the pattern inside ground glass.
    """

    lattice: Lattice
    depth: Field
    dense: Field
    grade: Field
    fine: Lattice
    fringe: Field
    meshwork: Field

    def depth_at(self, where: Positions) -> tuple[Field, Field, Field]:
        """At voxel centres: mm inside the infiltrate, the same without fine irregularities, mm inside consolidation."""
        z = self.lattice.positions().z_mm
        near = (z > where.z_mm.min() - 15) & (z < where.z_mm.max() + 15)
        if not near.any() or self.depth[near].max() < -10:
            nothing = np.full(where.shape, NO_LESION, np.float32)
            return nothing, nothing, nothing
        fringe = self.fine.sample(self.fringe, where, smooth=True)
        smooth = self.lattice.sample(self.depth, where)
        depth = smooth + np.float32(1.9) * fringe
        dense = self.lattice.sample(self.dense, where) + np.float32(1.2) * fringe
        return depth, smooth, np.minimum(dense, depth - 1)


def place_lesions(
    shapes: Shapes, plan: LesionPlan, rng: np.random.Generator, noise_rng: np.random.Generator
) -> Lesions:
    """Put lesions into the lungs until the planned share is reached.

    Places near the pleura, at the back and at the base are preferred. `rng` decides the places and is used in
    the same order whatever the lattice; `noise_rng` the irregularities, on a lattice of their own.
    """
    lattice = shapes.lattice
    coarse, fine = _noise_lattice(lattice, 16.0), _noise_lattice(lattice, 4.5)
    wobble = lattice.positions()
    border = coarse.sample(coarse.noise(noise_rng), wobble, smooth=True)
    grade = coarse.sample(coarse.noise(noise_rng), wobble, smooth=True)
    inside = shapes.lungs < 0
    depth = np.full(lattice.shape, NO_LESION, np.float32)
    dense = depth.copy()
    if plan.share > 0 and inside.any():
        band = _band(shapes, plan, rng)
        _fill(shapes, plan, band, border, depth, dense, rng)
    return Lesions(
        lattice, depth, dense, np.clip(0.5 + 0.3 * grade, 0, 1), fine, fine.noise(noise_rng), fine.noise(noise_rng)
    )


def _noise_lattice(lattice: Lattice, step: float) -> Lattice:
    """A lattice over the same box whose points do not depend on how fine `lattice` is."""
    return Lattice((-220.0, -150.0, -190.0), step, tuple(int(n / step) for n in (400.0, 300.0, 380.0)))  # type: ignore[arg-type]


def _band(shapes: Shapes, plan: LesionPlan, rng: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest z that lesions may reach; lower parts of the lung are preferred."""
    z = shapes.lattice.positions().z_mm
    levels = z[(shapes.lungs < 0).any(axis=(1, 2))]
    low, high = float(levels[0]), float(levels[-1])
    height = float(np.clip(plan.height, 0.05, 0.95)) * (high - low)
    start = low + (high - low - height) * rng.beta(1.3, 2.2)
    return start, start + height


def _fill(
    shapes: Shapes,
    plan: LesionPlan,
    band: tuple[float, float],
    border: Field,
    depth: Field,
    dense: Field,
    rng: np.random.Generator,
) -> None:
    """Add lesions to `depth` and `dense` in place until the share is reached (at most 60)."""
    z, y, x = shapes.lattice.positions().open_grid()
    lungs = shapes.lungs < 0
    wanted = plan.share * np.count_nonzero(lungs)
    rim = np.minimum(z - band[0], band[1] - z)
    candidates = _candidates(shapes, plan, band)
    slope = np.gradient(shapes.lungs)
    draws = rng.random((60, 8))
    for draw in draws:
        if np.count_nonzero((depth > 0) & lungs) >= wanted:
            break
        at = candidates[0][min(int(np.searchsorted(candidates[1], draw[0])), len(candidates[0]) - 1)]
        centre = np.array([z[at[0], 0, 0], y[0, at[1], 0], x[0, 0, at[2]]])
        normal = np.array([axis[tuple(at)] for axis in slope])
        normal /= max(float(np.linalg.norm(normal)), 1e-6)
        radius = plan.radius_mm[0] + (plan.radius_mm[1] - plan.radius_mm[0]) * draw[1] ** 1.7
        flat = 0.5 + 0.3 * draw[2]
        box = _box(shapes.lattice, centre, radius + 8)
        offset = (z[box[0]] - centre[0], y[:, box[1]] - centre[1], x[:, :, box[2]] - centre[2])
        along = sum(o * np.float32(n) for o, n in zip(offset, normal, strict=True))
        across2 = np.maximum(sum(o * o for o in offset) - along**2, 0)
        inner = (1 - np.sqrt(across2 / radius**2 + along**2 / (flat * radius) ** 2)) * np.float32(flat * radius)
        value = np.minimum(inner + 3.6 * border[box], rim[box[0]])
        depth[box] = np.maximum(depth[box], value)
        if draw[3] < plan.consolidation:
            core = value - np.float32((0.25 + 0.4 * draw[4]) * flat * radius) + 2.5 * border[box][::-1]
            dense[box] = np.maximum(dense[box], core)


def _candidates(
    shapes: Shapes, plan: LesionPlan, band: tuple[float, float]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Lattice points in the lungs (n, 3) and the running sum of their preference (n,), ending at 1."""
    z, y, _ = shapes.lattice.positions().open_grid()
    weight = np.exp(shapes.lungs / 14) * (shapes.lungs < -1)
    weight = weight * ((z > band[0] + 4) & (z < band[1] - 4))
    weight = weight * (1 + plan.dorsal * np.clip(-y / 45, -0.5 / max(plan.dorsal, 0.5), 2))
    weight = weight * (1.6 - np.clip((z - band[0]) / max(band[1] - band[0], 1), 0, 1))
    if not weight.any():
        weight = (shapes.lungs < 0).astype(np.float32)
    points = np.argwhere(weight > 0)
    total = np.cumsum(weight[weight > 0], dtype=np.float64)
    return points, total / total[-1]


def _box(lattice: Lattice, centre: NDArray[np.float64], reach_mm: float) -> tuple[slice, slice, slice]:
    """The part of the lattice within `reach_mm` of a point, along each axis."""
    low = np.floor((centre - reach_mm - np.asarray(lattice.low_mm)) / lattice.spacing_mm).astype(int)
    high = np.ceil((centre + reach_mm - np.asarray(lattice.low_mm)) / lattice.spacing_mm).astype(int) + 1
    z, y, x = (slice(max(a, 0), min(b, n)) for a, b, n in zip(low, high, lattice.shape, strict=True))
    return z, y, x
