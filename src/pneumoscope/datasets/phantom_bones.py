"""Bones, airways and great vessels of the phantom as tubes, in unscaled millimetres (see `phantom_anatomy`)."""

from __future__ import annotations

import numpy as np

from pneumoscope.datasets.phantom_anatomy import APEX_Z_MM, SPINE_Y_MM, Anatomy
from pneumoscope.datasets.phantom_tubes import Points, Tubes, chain, joined

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
