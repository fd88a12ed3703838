"""One synthetic patient: everything about the body that does not depend on how it is scanned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom import anatomy as bones
from pneumoscope.datasets.phantom.anatomy import LATTICE_MM, Anatomy, Shapes, build_shapes, draw_anatomy
from pneumoscope.datasets.phantom.shapes import Field, Lattice, Positions, Tubes, grow_tree, joined
from pneumoscope.datasets.phantom.sites import PhantomSite

NO_LESION = -60.0
PLACING_STEP_MM = 9.0


@dataclass(frozen=True)
class LesionPlan:
    """How much infiltrate a patient has."""

    share: float  # part of the lungs with infiltrate, 0 to 1, met to within one lesion
    height: float  # part of the lungs' height in which lesions may lie
    radius_mm: tuple[float, float]  # smallest and largest lesion radius
    consolidation: float  # chance that a lesion has a dense core
    dorsal: float  # preference for the back; 0 for none


@dataclass(frozen=True, eq=False)
class Lesions:
    """Fields of one patient on the shapes' lattice."""

    lattice: Lattice  # of `depth` and `dense`
    depth: Field  # mm inside the infiltrate, smooth (z, y, x); negative outside
    dense: Field  # mm inside the consolidated cores, likewise
    grade: Field  # 0 to 1, how opaque the ground glass of a place is
    fine: Lattice  # finer lattice of the noise that makes borders irregular
    # noise on `fine`: of the border, and of the pattern inside ground glass
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


@dataclass(frozen=True, eq=False)
class Room:
    """Where lesions find room."""

    lattice: Lattice  # where the values lie
    lungs: Field  # signed distance to the lungs' surface in mm, negative inside, (z, y, x)


@dataclass(frozen=True, eq=False)
class Lesion:
    """One ellipsoid, flattened along `normal`."""

    # (3,) as (z, y, x); mm, and unit length
    centre: NDArray[np.float64]
    normal: NDArray[np.float64]
    # half axes along and across the pleura
    radius_mm: float
    thickness_mm: float
    core_mm: float | None  # depth at which consolidation begins, None without


def place_lesions(
    anatomy: Anatomy, shapes: Shapes, plan: LesionPlan, rng: np.random.Generator, noise_rng: np.random.Generator
) -> Lesions:
    """Put lesions into the lungs until the planned share is reached.

    Places near the pleura, at the back and at the base are preferred. They are found on one coarse lattice whatever
    that of `shapes`, so that they do not depend on how finely the body is kept.
    """
    rough = build_shapes(anatomy, PLACING_STEP_MM)
    return place_in(Room(rough.lattice, rough.lungs), shapes.lattice, plan, rng, noise_rng)


def place_in(
    rough: Room, lattice: Lattice, plan: LesionPlan, rng: np.random.Generator, noise_rng: np.random.Generator
) -> Lesions:
    """Lesions in any lungs, kept on `lattice`; arguments as `place_lesions`. Lungs lie about the origin."""
    wobble = _noise_lattice(16.0)
    border, grade = wobble.noise(noise_rng), wobble.noise(noise_rng)
    where = lattice.positions()
    depth = np.full(lattice.shape, NO_LESION, np.float32)
    dense = depth.copy()
    band = _band(rough, plan, rng)
    own_border = wobble.sample(border, where, smooth=True)
    for lesion in _choose(rough, plan, band, wobble.sample(border, rough.lattice.positions(), smooth=True), rng):
        _add(lesion, lattice, band, own_border, depth, dense)
    fine = _noise_lattice(4.5)
    opacity = np.clip(0.5 + 0.3 * wobble.sample(grade, where, smooth=True), 0, 1)
    return Lesions(lattice, depth, dense, opacity, fine, fine.noise(noise_rng), fine.noise(noise_rng))


def _noise_lattice(step: float) -> Lattice:
    """A lattice over the whole chest."""
    z, y, x = (int(size / step) for size in (400.0, 300.0, 380.0))
    return Lattice((-220.0, -150.0, -190.0), step, (z, y, x))


def _band(shapes: Room, plan: LesionPlan, rng: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest z that lesions may reach; lower parts of the lung are preferred."""
    z = shapes.lattice.positions().z_mm
    levels = z[(shapes.lungs < 0).any(axis=(1, 2))]
    low, high = float(levels[0]), float(levels[-1])
    height = float(np.clip(plan.height, 0.05, 0.95)) * (high - low)
    start = low + (high - low - height) * rng.beta(1.3, 2.2)
    return start, start + height


def _choose(
    shapes: Room, plan: LesionPlan, band: tuple[float, float], border: Field, rng: np.random.Generator
) -> list[Lesion]:
    """Lesions, one after the other until the share is reached; at most 60."""
    lungs = shapes.lungs < 0
    wanted = plan.share * np.count_nonzero(lungs)
    points, preference = _candidates(shapes, plan, band)
    slopes = [np.asarray(slope) for slope in np.gradient(shapes.lungs)]
    low = np.asarray(shapes.lattice.low_mm)
    depth = np.full(shapes.lattice.shape, NO_LESION, np.float32)
    dense = depth.copy()
    chosen: list[Lesion] = []
    for draw in rng.random((60, 8)):
        if np.count_nonzero((depth > 0) & lungs) >= wanted:
            break
        at = points[min(int(np.searchsorted(preference, draw[0])), len(points) - 1)]
        normal = np.array([float(slope[tuple(at)]) for slope in slopes])
        radius = plan.radius_mm[0] + (plan.radius_mm[1] - plan.radius_mm[0]) * draw[1] ** 1.7
        thickness = (0.5 + 0.3 * draw[2]) * radius
        core = (0.25 + 0.4 * draw[4]) * thickness if draw[3] < plan.consolidation else None
        centre = low + (at + draw[5:8] - 0.5) * shapes.lattice.spacing_mm
        unit = normal / max(float(np.linalg.norm(normal)), 1e-6)
        chosen.append(Lesion(centre, unit, float(radius), float(thickness), core))
        _add(chosen[-1], shapes.lattice, band, border, depth, dense)
    return chosen


def _add(
    lesion: Lesion, lattice: Lattice, band: tuple[float, float], border: Field, depth: Field, dense: Field
) -> None:
    """Raise `depth` and `dense` in place where the lesion lies, within the band of z."""
    z, y, x = lattice.positions().open_grid()
    box = _box(lattice, lesion.centre, lesion.radius_mm + 8)
    dz, dy, dx = (
        axis - np.float32(c) for axis, c in zip((z[box[0]], y[:, box[1]], x[:, :, box[2]]), lesion.centre, strict=True)
    )
    normal = lesion.normal.astype(np.float32)
    across = dz * normal[0] + dy * normal[1] + dx * normal[2]
    along2 = np.maximum(dz * dz + dy * dy + dx * dx - across * across, 0)
    inner = (1 - np.sqrt(along2 / lesion.radius_mm**2 + (across / lesion.thickness_mm) ** 2)) * lesion.thickness_mm
    rim = np.minimum(z[box[0]] - band[0], band[1] - z[box[0]])
    value = np.minimum(inner + 3.6 * border[box], rim + 9 * border[box])
    depth[box] = np.maximum(depth[box], value)
    if lesion.core_mm is not None:
        dense[box] = np.maximum(dense[box], value - lesion.core_mm - 2.0 * border[box])


def _candidates(
    shapes: Room, plan: LesionPlan, band: tuple[float, float]
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


THINNEST_MM = 0.5
"""Radius of the last branches of a tree of 700; a tree of fewer has thicker ones, so that trunks stay the same."""


@dataclass(frozen=True, eq=False)
class Texture:
    """Irregularity of tissues: noise on lattices of two sizes, (z, y, x) each."""

    coarse: Lattice
    clouds: Field
    fine: Lattice
    grain: Field


@dataclass(frozen=True, eq=False)
class Patient:
    """A body, ready to be scanned."""

    # see their classes
    anatomy: Anatomy
    shapes: Shapes
    lesions: Lesions
    texture: Texture
    vessels: Tubes  # lung arteries and veins, thick to thin
    bronchi: Tubes  # small airways beside the arteries, the air in them
    # see `phantom_bones`, scaled
    airways: Tubes
    great_vessels: Tubes
    ribs: Tubes
    cartilage: Tubes
    sternum: Tubes
    shoulders: Tubes
    processes: Tubes
    ground_glass_hu: tuple[float, float]  # faintest and densest ground glass of this patient
    # healthy parenchyma in the middle, and how much denser the back is than the front
    lung_hu: float
    dependent_hu: float
    meshwork_hu: float  # how much the pattern inside ground glass stands out


def draw_patient(
    site: PhantomSite, rng: np.random.Generator, *, step_mm: float = LATTICE_MM, branches: int = 700
) -> Patient:
    """A patient of a site. The same generator state gives the same body; `step_mm` is only how finely it is kept.

    `branches` counts the branching points of each of the four vessel trees.
    """
    of_body, of_lesions, of_noise, of_vessels, of_values = rng.spawn(5)
    anatomy = draw_anatomy(of_body)
    shapes = build_shapes(anatomy, step_mm)
    plan = _plan(site, of_values)
    faintest, densest = site.patients.ground_glass_hu
    shift = of_values.uniform(-0.12, 0.12) * (densest - faintest)
    rib, cartilage = bones.ribs(anatomy)
    vessels, bronchi = _vessels(shapes, anatomy, of_vessels, branches)
    scale = anatomy.scale
    return Patient(
        anatomy,
        shapes,
        place_lesions(anatomy, shapes, plan, of_lesions, of_noise.spawn(1)[0]),
        _texture(shapes, of_noise),
        vessels,
        bronchi,
        bones.airways().scaled(scale),
        bones.great_vessels().scaled(scale),
        rib.scaled(scale),
        cartilage.scaled(scale),
        bones.sternum(anatomy).scaled(scale),
        bones.shoulder_bones(anatomy).scaled(scale),
        bones.vertebral_processes(anatomy).scaled(scale),
        ground_glass_hu=(faintest + shift, densest + shift),
        lung_hu=site.patients.lung_hu + of_values.uniform(-18, 18),
        dependent_hu=site.patients.dependent_hu * of_values.uniform(0.6, 1.4),
        meshwork_hu=float(of_values.uniform(0, 110)),
    )


def _plan(site: PhantomSite, rng: np.random.Generator) -> LesionPlan:
    kind = site.patients
    share = kind.severe_share if rng.random() < kind.severe else kind.mild_share
    return LesionPlan(
        share=float(np.exp(rng.uniform(np.log(share[0]), np.log(share[1])))),
        height=float(rng.uniform(*kind.height)),
        radius_mm=kind.radius_mm,
        consolidation=kind.consolidation,
        dorsal=float(rng.uniform(0.4, 2.5)),
    )


def _texture(shapes: Shapes, rng: np.random.Generator) -> Texture:
    low = (-220.0, -170.0, -240.0)
    coarse = Lattice(low, 11.0, (38, 32, 44))
    fine = Lattice(low, 4.0, (104, 86, 121))
    return Texture(coarse, coarse.noise(rng), fine, fine.noise(rng))


def _vessels(shapes: Shapes, anatomy: Anatomy, rng: np.random.Generator, branches: int) -> tuple[Tubes, Tubes]:
    """Arteries and veins of both lungs, and bronchi beside the thicker arteries."""
    x = shapes.lattice.positions().open_grid()[2]
    thinnest = THINNEST_MM * (700 / branches) ** (1 / 2.7)
    trees, bronchi = [], []
    for side, hilum in bones.HILA_MM.items():
        lung = np.where(x * side > 0, shapes.lungs, np.float32(50))
        for vein in (False, True):
            root = np.array(hilum[::-1]) * anatomy.scale[::-1] + (np.array([-14.0, 6.0, 0.0]) if vein else 0.0)
            tree = grow_tree(root, lung, shapes.lattice, rng, tips=branches, thinnest_mm=thinnest)
            tree = replace(tree, radius_mm=np.minimum(tree.radius_mm, 5.5))
            trees.append(tree)
            if not vein:
                bronchi.append(_beside(tree.where(tree.radius_mm > 1.15)))
    return joined(trees), joined(bronchi)


def _beside(arteries: Tubes) -> Tubes:
    """Airways that run along arteries, shifted by about the two radii, a little narrower."""
    shift = np.zeros_like(arteries.start)
    shift[:, 1] = 0.8 * (2 * arteries.radius_mm + 0.8)
    shift[:, 0] = 0.5 * (2 * arteries.radius_mm + 0.8)
    return Tubes(arteries.start + shift, arteries.end + shift, 0.8 * arteries.radius_mm)
