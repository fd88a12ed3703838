"""One synthetic patient's chest: sizes drawn from a seed, and the smooth shapes that follow from them.

Shapes are signed distances in mm (negative inside; close to exact near the surface) on a coarse lattice. The origin is
the middle of the chest at the height of the tracheal bifurcation; x grows to the patient's right, y to the
front, z to the head. Lengths are of an adult of middle size, before `Anatomy.scale`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom.shapes import Field, Lattice, Points, Tubes, chain, joined, smoothstep

APEX_Z_MM = 118.0
DEEPEST_Z_MM = -156.0
SPINE_Y_MM = -78.0
LATTICE_MM = 4.5


@dataclass(frozen=True)
class Anatomy:
    """The sizes that differ between patients."""

    scale: tuple[float, float, float]  # size of the whole chest along (x, y, z)
    # of the inside of the rib cage, before scaling
    half_width_mm: float
    half_depth_mm: float
    fat_mm: float  # subcutaneous fat at the side; the front has less, the back more
    muscle_mm: float  # chest wall between ribs and fat
    breast_mm: float  # thickness of breast tissue, 0 for none
    # tops of the diaphragm
    right_dome_z_mm: float
    left_dome_z_mm: float
    heart_turn_rad: float  # how far the heart's axis points to the left front
    heart_scale: float  # size of the heart
    spine_phase_mm: float  # where the first vertebra starts

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
    """Signed distances (mm, negative inside) on a lattice, each (z, y, x) float32."""

    lattice: Lattice  # where the values lie, in real (scaled) millimetres
    # skin, outside of the muscles, inside of the rib cage
    body: Field
    muscle: Field
    cage: Field
    lungs: Field  # both lungs; `x` tells the sides apart
    heart: Field  # heart with its great veins
    abdomen: Field  # everything below the diaphragm
    # organs under it
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


RIB_RADIUS_MM = 4.2
RIB_FLATNESS = 0.52
RIB_STEP_MM = 22.5


def _zyx(*points: tuple[float, float, float]) -> Points:
    """Points written (x, y, z) to the (z, y, x) that arrays use."""
    return np.array([(z, y, x) for x, y, z in points], dtype=np.float64)


def ribs(anatomy: Anatomy) -> tuple[Tubes, Tubes]:
    """Twelve slanting pairs: (bone, the cartilage that goes on to the breastbone)."""
    bone, cartilage = [], []
    for number in range(1, 13):
        ends = 2.62 if number <= 7 else 2.2 if number <= 10 else 1.5
        for side in (-1, 1):
            bone.append(chain(_rib_points(anatomy, number, side, 0.16, ends), RIB_RADIUS_MM, RIB_FLATNESS))
            if number <= 7:
                points = _rib_points(anatomy, number, side, ends, 3.02)
                cartilage.append(chain(points, RIB_RADIUS_MM, RIB_FLATNESS))
    return joined(bone), joined(cartilage)


def _rib_points(anatomy: Anatomy, number: int, side: int, begin: float, end: float) -> Points:
    """Points along a rib from angle `begin` to `end`; 0 is straight behind, pi straight in front."""
    angle = np.linspace(begin, end, max(4, int((end - begin) * 11)))
    top = APEX_Z_MM - 2 - RIB_STEP_MM * (number - 1)
    drop = (38 + 7 * min(number, 7)) * (1 - np.cos(np.minimum(angle, 2.5))) / 1.8
    rise = 26 * np.clip(angle - 2.62, 0, None) / 0.4 * (number > 2)
    z = top - drop + rise
    level = np.clip(z, -170, APEX_Z_MM - 16)
    a, b = anatomy.half_width_at(level).astype(float), anatomy.half_depth_at(level).astype(float)
    b = np.where(np.cos(angle) > 0, 1.06 * b, b)
    power = np.where(np.cos(angle) > 0, 2.45, 2.1)
    u, v = np.abs(np.sin(angle)) / a, np.abs(np.cos(angle)) / b
    radius = (u**power + v**power) ** (-1 / power) + 5.5
    return np.stack([z, -np.cos(angle) * radius, side * np.sin(angle) * radius], axis=1)


def sternum(anatomy: Anatomy) -> Tubes:
    """Breastbone: manubrium wide above, body narrow below; built of flat cross bars."""
    bars = []
    for z in np.arange(-62.0, 86.0, 5.0):
        front = float(anatomy.half_depth_at(np.array(min(z, APEX_Z_MM - 30)))) + 8 - 0.10 * max(z, 0)
        half = 13 + 12 * float(np.clip((z - 40) / 30, 0, 1))
        bars.append(chain(_zyx((-half, front - 1, z), (0, front + 1, z), (half, front - 1, z)), 4.6))
    return joined(bars)


def shoulder_bones(anatomy: Anatomy) -> Tubes:
    """Shoulder blades (with the arms raised), collar bones and the heads of the upper arms."""
    wide, deep = anatomy.half_width_mm, anatomy.half_depth_mm
    parts = []
    for side in (-1, 1):
        for z in np.arange(-25.0, 118.0, 4.0):
            up = (z + 25) / 143
            inner = (side * (wide * (0.72 - 0.10 * up)), -deep - 17 - 2 * up, z)
            bend = (side * (wide * (0.86 + 0.05 * up)), -deep * (0.93 - 0.10 * up), z)
            outer = (side * (wide * (0.97 + 0.16 * up)), -deep * (0.68 - 0.28 * up), z)
            points = _zyx(inner, bend, outer) if up > 0.22 else _zyx(inner, bend)
            parts.append(chain(points, 2.1 + 1.8 * max(0.0, up - 0.6)))
        collar = _zyx(
            (side * 18, deep * 0.72, 82), (side * 60, deep * 0.62, 104), (side * 110, deep * 0.25, 118),
            (side * 150, -8, 126),
        )  # fmt: skip
        parts.append(chain(collar, 5.0))
        arm = _zyx((side * (wide * 1.22), -20, 118), (side * (wide * 1.30), -10, 150), (side * (wide * 1.3), 0, 200))
        parts.append(chain(arm, np.array([19.0, 13.0])))
    return joined(parts)


def vertebral_processes(anatomy: Anatomy) -> Tubes:
    """Transverse and spinous processes; bodies and canal are painted as shapes."""
    parts = []
    for z in vertebra_heights(anatomy):
        for side in (-1, 1):
            parts.append(chain(_zyx((side * 11, SPINE_Y_MM - 20, z), (side * 36, SPINE_Y_MM - 31, z + 4)), 4.8))
            parts.append(chain(_zyx((side * 10, SPINE_Y_MM - 25, z), (0, SPINE_Y_MM - 33, z - 4)), 3.6))
        parts.append(chain(_zyx((0, SPINE_Y_MM - 33, z - 4), (0, SPINE_Y_MM - 44, z - 18)), 3.4))
    return joined(parts)


def vertebra_heights(anatomy: Anatomy) -> list[float]:
    """Middles of the vertebrae, 25 mm apart."""
    return [float(z) for z in np.arange(-250 + anatomy.spine_phase_mm, 220, 25.0)]


def airways() -> Tubes:
    """Windpipe, main and lobar bronchi: the air inside."""
    trachea = _zyx((2, -6, 210), (2, -14, 110), (1, -20, 55), (0, -24, 8))
    right = _zyx((0, -24, 8), (17, -26, -4), (30, -25, -16), (37, -22, -38), (46, -24, -62))
    upper_right = _zyx((24, -26, -9), (40, -20, -4), (54, -14, 6))
    left = _zyx((0, -24, 8), (-19, -28, -5), (-36, -32, -16), (-44, -34, -34), (-54, -38, -60))
    upper_left = _zyx((-38, -32, -17), (-52, -22, -10), (-62, -8, 0))
    return joined([
        chain(trachea, 8.6),
        chain(right, np.array([6.8, 6.2, 4.6, 3.2])),
        chain(upper_right, np.array([4.2, 3.0])),
        chain(left, np.array([6.0, 5.6, 4.2, 3.0])),
        chain(upper_left, np.array([3.8, 2.8])),
    ])  # fmt: skip


def great_vessels() -> Tubes:
    """Aorta, its branches, the upper hollow vein, the lung arteries and veins up to the hila, and the gullet."""
    ascending = _zyx((6, 18, -20), (14, 24, 8), (12, 22, 30), (2, 10, 42), (-10, -14, 45), (-18, -36, 38))
    descending = _zyx((-18, -36, 38), (-21, -49, 22), (-20, -51, -60), (-13, -54, -130), (-5, -54, -215))
    branches = [
        chain(_zyx((6, 14, 46), (12, 10, 80), (22, 6, 130)), 5.6),
        chain(_zyx((-4, -2, 48), (-8, -6, 85), (-14, -6, 140)), 4.0),
        chain(_zyx((-12, -18, 48), (-22, -22, 85), (-44, -12, 125)), 4.6),
    ]
    vein = chain(_zyx((25, 12, -40), (25, 14, 10), (25, 16, 50), (26, 18, 78)), 8.6)
    brachiocephalic = chain(_zyx((26, 18, 76), (0, 28, 66), (-28, 18, 84), (-36, 10, 130)), 6.5)
    right_neck = chain(_zyx((26, 18, 76), (34, 10, 105), (36, 6, 140)), 7.0)
    trunk = chain(_zyx((-14, 32, -20), (-18, 16, 2), (-22, -6, 2), (-34, -16, -2), (-44, -24, -8)), 11.0)
    right_artery = chain(_zyx((-18, 8, 0), (4, -8, -6), (24, -10, -10), (40, -14, -18)), 9.5)
    veins = [chain(_zyx((side * 10, -14, -34), (side * 30, -12, -30), (side * 44, -14, -34)), 6.0) for side in (-1, 1)]
    gullet = chain(_zyx((-4, -34, 200), (-6, -36, 60), (-4, -44, 0), (-6, -44, -90), (-18, -30, -150)), 7.0)
    return joined(
        [chain(ascending, 14.5), chain(descending, 11.8), *branches, vein, brachiocephalic, right_neck, trunk,
         right_artery, *veins, gullet]
    )  # fmt: skip


HILA_MM = {1: (38.0, -14.0, -16.0), -1: (-42.0, -22.0, -8.0)}
"""Where the vessel trees of the right (1) and left (-1) lung begin, (x, y, z)."""
