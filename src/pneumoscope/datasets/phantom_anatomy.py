"""One synthetic patient's chest: sizes drawn from a seed, and the smooth shapes that follow from them.

Shapes are signed distances in mm (negative inside; close to exact near the surface) on a coarse lattice. The origin is
the middle of the chest at the height of the tracheal bifurcation; x grows to the patient's right, y to the
front, z to the head. Lengths are of an adult of middle size, before `Anatomy.scale`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom_lattice import Field, Lattice, smoothstep

APEX_Z_MM = 118.0
DEEPEST_Z_MM = -156.0
SPINE_Y_MM = -78.0
LATTICE_MM = 4.5


@dataclass(frozen=True)
class Anatomy:
    """The sizes that differ between patients.

    Attributes:
        scale: size of the whole chest along (x, y, z).
        half_width_mm, half_depth_mm: of the inside of the rib cage, before scaling.
        fat_mm: subcutaneous fat at the side; the front has less, the back more.
        muscle_mm: chest wall between ribs and fat.
        breast_mm: thickness of breast tissue, 0 for none.
        right_dome_z_mm, left_dome_z_mm: tops of the diaphragm.
        heart_turn_rad: how far the heart's axis points to the left front.
        heart_scale: size of the heart.
        spine_phase_mm: where the first vertebra starts.
    """

    scale: tuple[float, float, float]
    half_width_mm: float
    half_depth_mm: float
    fat_mm: float
    muscle_mm: float
    breast_mm: float
    right_dome_z_mm: float
    left_dome_z_mm: float
    heart_turn_rad: float
    heart_scale: float
    spine_phase_mm: float

    def half_width_at(self, z: NDArray[np.float64] | Field) -> Field:
        """Half width of the rib cage's inside at height z (unscaled), falling to nothing at the apex."""
        t = np.clip((APEX_Z_MM - np.asarray(z, np.float32)) / 250.0, 1e-4, 1.3)
        return np.float32(self.half_width_mm) * (1 - np.exp(-5.2 * t)) ** np.float32(0.6)

    def half_depth_at(self, z: NDArray[np.float64] | Field) -> Field:
        """Half depth at height z, likewise."""
        t = np.clip((APEX_Z_MM - np.asarray(z, np.float32)) / 250.0, 1e-4, 1.3)
        return np.float32(self.half_depth_mm) * (1 - np.exp(-7.5 * t)) ** np.float32(0.55)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Sizes of one patient."""
    whole = rng.uniform(0.95, 1.05)
    x, y, z = whole * rng.uniform((0.97, 0.96, 0.96), (1.03, 1.05, 1.05))
    female = rng.random() < 0.45
    right_dome = rng.uniform(-86, -70)
    return Anatomy(
        scale=(float(x), float(y), float(z)),
        half_width_mm=float(rng.uniform(124, 134)),
        half_depth_mm=float(rng.uniform(86, 96)),
        fat_mm=float(rng.uniform(6, 26) + 5 * female),
        muscle_mm=float(rng.uniform(13, 19)),
        breast_mm=float(rng.uniform(14, 34)) if female else 0.0,
        right_dome_z_mm=float(right_dome),
        left_dome_z_mm=float(right_dome - rng.uniform(6, 16)),
        heart_turn_rad=float(rng.uniform(0.45, 0.85)),
        heart_scale=float(rng.uniform(0.92, 1.1)),
        spine_phase_mm=float(rng.uniform(0, 25)),
    )


@dataclass(frozen=True, eq=False)
class Shapes:
    """Signed distances (mm, negative inside) on a lattice, each (z, y, x) float32.

    Attributes:
        lattice: where the values lie, in real (scaled) millimetres.
        body, muscle, cage: skin, outside of the muscles, inside of the rib cage.
        lungs: both lungs; `x` tells the sides apart.
        heart: heart with its great veins.
        abdomen: everything below the diaphragm.
        liver, spleen, stomach: organs under it.
    """

    lattice: Lattice
    body: Field
    muscle: Field
    cage: Field
    lungs: Field
    heart: Field
    abdomen: Field
    liver: Field
    spleen: Field
    stomach: Field


def build_shapes(anatomy: Anatomy, step_mm: float = LATTICE_MM) -> Shapes:
    """Evaluate every shape of a patient on a coarse lattice that covers any scan of the chest."""
    lattice = Lattice.covering((-215.0, -175.0, -245.0), (180.0, 165.0, 245.0), step_mm)
    z, y, x = lattice.positions().open_grid()
    x, y, z = x / anatomy.scale[0], y / anatomy.scale[1], z / anatomy.scale[2]
    cage = _cage(anatomy, x, y, z)
    muscle, body = _wall(anatomy, x, y, z)
    muscle = np.minimum(muscle, cage - np.float32(5))
    body = np.minimum(body, muscle - np.float32(2.5))
    heart = _heart(anatomy, x, y, z)
    abdomen = _below_diaphragm(anatomy, x, y, z)
    apex = z - (APEX_Z_MM - 15 * ((np.abs(x) - 48) / 34) ** 2 - 12 * ((y + 6) / 42) ** 2)
    cupola = _smooth_max(cage, np.where(z > 30, 0.75 * apex, np.float32(-90)), 12.0)
    lungs = _smooth_max(_smooth_max(cupola, -_mediastinum(x, y, z, heart), 5.0), abdomen * -1 + 2, 4.0)
    under = _smooth_max(abdomen + 3, cage + 2, 3.0)
    liver = np.maximum(under + 1, -28 - x + 0.15 * (y - 20))
    spleen = np.maximum(under + 2, _ellipsoid(x, y, z, (-92, -45, -150), (38, 45, 70)))
    stomach = np.maximum(under + 4, _ellipsoid(x, y, z, (-72, 30, -150), (48, 48, 62)))
    everything = (body, muscle, cage, lungs, heart, under, liver, spleen, stomach)
    return Shapes(lattice, *(np.ascontiguousarray(field, dtype=np.float32) for field in everything))


def _superellipse(x: Field, y: Field, a: Field, front: Field, back: Field, powers: tuple[float, float]) -> Field:
    """Distance along the ray from the centre to a superellipse with its own depth and squareness front and back."""
    ahead = y > 0
    u, v = np.abs(x) / a, np.abs(y) / np.where(ahead, front, back)
    n = np.where(ahead, np.float32(powers[0]), np.float32(powers[1]))
    radius = np.maximum((u**n + v**n) ** (1 / n), np.float32(1e-3))
    return np.sqrt(x * x + y * y) * (1 - 1 / radius)


def _ellipsoid(
    x: Field, y: Field, z: Field, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Field:
    """Approximate distance to an ellipsoid given as (x, y, z)."""
    u, v, w = ((p - c) / r for p, c, r in zip((x, y, z), centre, radii, strict=True))
    return (np.sqrt(u * u + v * v + w * w) - 1) * np.float32(min(radii))


def _smooth_max(a: Field, b: Field, width_mm: float) -> Field:
    """Maximum of two distances with the edge rounded over about `width_mm` (polynomial blend)."""
    h = np.maximum(np.float32(width_mm) - np.abs(a - b), 0) / np.float32(width_mm)
    return np.maximum(a, b) + h * h * np.float32(width_mm / 4)


def _smooth_min(a: Field, b: Field, width_mm: float) -> Field:
    return -_smooth_max(-a, -b, width_mm)


def _cage(anatomy: Anatomy, x: Field, y: Field, z: Field) -> Field:
    """Inside of the rib cage: rounded in front, square behind beside the spine."""
    a, b = anatomy.half_width_at(z), anatomy.half_depth_at(z)
    return np.maximum(_superellipse(x, y, a, b, 1.06 * b, (2.1, 2.45)), 0.7 * (z - np.float32(APEX_Z_MM)))


def _wall(anatomy: Anatomy, x: Field, y: Field, z: Field) -> tuple[Field, Field]:
    """Outside of the muscles and of the skin; broad shoulders above, a flat back on the table."""
    shoulder = smoothstep(z, 30, 120)
    a = anatomy.half_width_mm + anatomy.muscle_mm + 34 * shoulder - 6 * smoothstep(-z, 90, 170)
    front = anatomy.half_depth_mm + 0.6 * anatomy.muscle_mm - 22 * shoulder
    back = anatomy.half_depth_mm + 26 + 0.3 * anatomy.muscle_mm + 0 * shoulder
    muscle = _superellipse(x, y, a, front, back, (2.3, 2.6))
    fat = anatomy.fat_mm
    skin = _superellipse(x, y, a + fat, front + 0.55 * fat, back + 0.5 * fat, (2.3, 2.9))
    if anatomy.breast_mm > 0:
        for side in (-1, 1):
            centre = (side * 78.0, float(anatomy.half_depth_mm) + 2, -25.0)
            breast = _ellipsoid(x, y, z, centre, (66.0, 8.0 + 0.85 * anatomy.breast_mm, 62.0))
            skin = _smooth_min(skin, breast, 26.0)
    return muscle, skin


def _heart(anatomy: Anatomy, x: Field, y: Field, z: Field) -> Field:
    """Ventricles as a tilted ellipsoid pointing to the left front, the right atrium beside it, great vessels above."""
    turn, s = anatomy.heart_turn_rad, anatomy.heart_scale
    dx, dy, dz = x + 24, y - 24, z + 62
    along = -dx * np.cos(turn) + dy * np.sin(turn) - 0.35 * dz
    across = dx * np.sin(turn) + dy * np.cos(turn)
    up = dz + 0.25 * along
    ventricles = (np.sqrt((along / (62 * s)) ** 2 + (across / (44 * s)) ** 2 + (up / (50 * s)) ** 2) - 1) * 44
    atrium = _ellipsoid(x, y, z, (20, 14, -48), (28 * s, 34 * s, 44))
    base = _ellipsoid(x, y, z, (-4, 16, -14), (34, 34, 34))
    return _smooth_min(_smooth_min(ventricles, atrium, 14.0), base, 12.0)


def _mediastinum(x: Field, y: Field, z: Field, heart: Field) -> Field:
    """All between the lungs: a septum that is thin in front, the heart, aorta, spine and the hila."""
    middle = 22 + 9 * smoothstep(z, 15, 60) - 4 * smoothstep(z, 70, 115)
    half = 4 + (middle - 4) * np.exp(-(((y - 2) / 52) ** 4)) * (1 - 0.35 * smoothstep(-z, 20, 90))
    septum = np.abs(x + 4) - half
    spine = np.sqrt(x * x + (y - np.float32(SPINE_Y_MM)) ** 2) - 25 + 0 * z
    aorta = np.sqrt((x + 21) ** 2 + (y + 49) ** 2) - 16
    aorta = _smooth_max(aorta + 0 * z, z - 40 + 0 * x, 10.0)
    arch = _ellipsoid(x, y, z, (-14, -10, 38), (24, 46, 15))
    right_hilum = _ellipsoid(x, y, z, (33, -10, -14), (17, 19, 27))
    left_hilum = _ellipsoid(x, y, z, (-38, -12, -6), (16, 19, 25))
    whole = _smooth_min(septum, heart - 3, 8.0)
    for part in (spine, aorta, arch, right_hilum, left_hilum):
        whole = _smooth_min(whole, part, 6.0)
    return whole


def _below_diaphragm(anatomy: Anatomy, x: Field, y: Field, z: Field) -> Field:
    """Distance to the diaphragm, negative below it: two domes, the right one higher, deep behind."""
    behind = np.clip((-y - 15) / 75, 0, 1.2) ** 2 * 26
    right = anatomy.right_dome_z_mm - 56 * (((x - 66) / 72) ** 2 + ((y - 8) / 84) ** 2) - behind
    left = anatomy.left_dome_z_mm - 52 * (((x + 66) / 70) ** 2 + ((y - 8) / 84) ** 2) - behind
    middle = -104 - 14 * (x / 40) ** 2 - 30 * ((y - 10) / 80) ** 2
    surface = np.maximum(_smooth_max(_smooth_max(right, left, 12.0), middle, 16.0), np.float32(DEEPEST_Z_MM))
    across, ahead = 1.5 * (np.abs(x) - 66) / 72, 1.35 * (y - 8) / 84
    return (z - surface) / np.sqrt(1 + across * across + ahead * ahead)
