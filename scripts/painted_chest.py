"""Disease, treatment and acquisition painted into real chests whose anatomy is known voxel by voxel.

Each condition takes a `Chest` and gives another one: Hounsfield units and classes change together, so the reference
stays exact. Arrays are in the house view (d, h, w): slices from the feet up, rows from the front to the back, columns
from the patient's right to the left. Sizes are in millimetres, so a condition looks alike on every grid.

What counts as lung: everything inside the visceral pleura, however dense (consolidation, mass) or thin (emphysema,
bulla). Fluid and air in the pleural space, and after pneumonectomy, are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.preprocess.spatial import coarse_size, resample_axes

CLASSES = ("background", "right lung", "left lung", "airway", "gas", "pleural fluid")
"""Names of the classes. Airway is trachea and bronchi; gas is any other air inside the body; -1 is not stated."""

RIGHT, LEFT, AIRWAY, GAS, FLUID = range(1, 6)

Field = NDArray[np.float32]
Region = NDArray[np.bool_]
Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Chest:
    """A chest whose classes are known.

    Attributes:
        hu: (d, h, w) float32.
        classes: (d, h, w) int8, see `CLASSES`; -1 where nobody says.
        spacing_mm: (d, h, w).
    """

    hu: Field
    classes: NDArray[np.int8]
    spacing_mm: Triple

    def lung(self, side: int | None = None) -> Region:
        """Voxels of one lung, or of both."""
        if side is not None:
            return self.classes == side
        return (self.classes == RIGHT) | (self.classes == LEFT)

    def axes_mm(self) -> tuple[Field, Field, Field]:
        """Open grids of the voxel centres along (d, h, w)."""
        steps = [np.float32(step) * np.arange(n, dtype=np.float32) for n, step in _along(self)]
        return steps[0][:, None, None], steps[1][:, None], steps[2]


def _along(chest: Chest) -> list[tuple[int, float]]:
    """Voxels and spacing of each axis."""
    return list(zip(chest.hu.shape, chest.spacing_mm, strict=True))


Condition = Callable[[Chest, np.random.Generator], Chest]


# -- shared parts ---------------------------------------------------------------------------------------------


def _field(chest: Chest, scale_mm: float, rng: np.random.Generator) -> Field:
    """Smooth noise, about normal, that varies over `scale_mm`."""
    small = [coarse_size(n, step, scale_mm) + 2 for n, step in _along(chest)]
    values = rng.standard_normal(small, dtype=np.float32) * np.float32(1.6)
    return resample_axes(values, (scale_mm,) * 3, chest.hu.shape, chest.spacing_mm)


def _side(chest: Chest, rng: np.random.Generator) -> int:
    """A lung that is there, at random."""
    present = [side for side in (RIGHT, LEFT) if chest.lung(side).any()]
    return int(rng.choice(present)) if present else RIGHT


def _box(region: Region) -> tuple[tuple[int, int], ...]:
    """First and last index along each axis; the whole array where there is nothing."""
    found = [np.flatnonzero(region.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple((int(f[0]), int(f[-1])) if f.size else (0, n - 1) for f, n in zip(found, region.shape, strict=True))


def _relative(region: Region) -> tuple[Field, Field, Field]:
    """Open grids of the place inside the box of a region, 0 to 1: from below, from the front, from the right."""
    up, back, left = (
        (np.arange(n, dtype=np.float32) - np.float32(low)) / np.float32(max(1, high - low))
        for n, (low, high) in zip(region.shape, _box(region), strict=True)
    )
    return up[:, None, None], back[:, None], left


def _tissue(chest: Chest, hu: float, rng: np.random.Generator, noise: float = 12.0) -> Field:
    return (hu + noise * rng.standard_normal(chest.hu.shape, dtype=np.float32)).astype(np.float32)


def _filled(chest: Chest, where: Region, hu: float, rng: np.random.Generator, *, vessels: bool = True) -> Field:
    """The picture with tissue of `hu` in a region; what is denser stays with `vessels`.

    Voxels at the region's border that were air in part become tissue too, where they are no lung themselves.
    """
    fill = _tissue(chest, hu, rng)
    shown = chest.hu.copy()
    shown[where] = np.maximum(chest.hu, fill)[where] if vessels else fill[where]
    rim = ndimage.binary_dilation(where) & (chest.classes <= 0) & (chest.hu < hu)
    shown[rim] = fill[rim]
    return shown


def _quantile_region(region: Region, score: Field, share: float) -> Region:
    """The `share` of a region with the highest score."""
    if not region.any():
        return region.copy()
    inside = np.broadcast_to(score, region.shape)[region]
    return region & (score >= np.quantile(inside, 1 - share))


# -- dense lung -----------------------------------------------------------------------------------------------


def white_lung(chest: Chest, rng: np.random.Generator) -> Chest:
    """One lung consolidated as a whole."""
    where = chest.lung(_side(chest, rng))
    if rng.random() < 0.3:  # some aerated rest
        where &= _field(chest, 40, rng) > -1.6
    return replace(chest, hu=_filled(chest, where, rng.uniform(20, 75), rng))


def white_lobe(chest: Chest, rng: np.random.Generator) -> Chest:
    """An upper, middle or lower part of a lung consolidated up to an oblique fissure."""
    lung = chest.lung(_side(chest, rng))
    up, back, _ = _relative(lung)
    fissure = up - rng.uniform(0.65, 0.95) * back + rng.uniform(0.0, 0.25) + 0.03 * _field(chest, 45, rng)
    which = rng.random()
    part = fissure < 0 if which < 0.55 else (fissure >= 0) & ((up > 0.45) if which < 0.85 else (up <= 0.5))
    return replace(chest, hu=_filled(chest, lung & part, rng.uniform(20, 75), rng))


def pneumonia(chest: Chest, rng: np.random.Generator) -> Chest:
    """Patches of ground glass and consolidation in both lungs, mostly low and behind."""
    lung = chest.lung()
    up, back, _ = _relative(lung)
    score = _field(chest, rng.uniform(14, 40), rng) + rng.uniform(0, 2) * back - rng.uniform(0, 2) * up
    glass = _quantile_region(lung, score, rng.uniform(0.05, 0.6))
    dense = _quantile_region(lung, score, rng.uniform(0.0, 0.3))
    hu = chest.hu + np.where(glass, np.float32(rng.uniform(100, 450)), 0)
    return replace(chest, hu=_filled(replace(chest, hu=np.minimum(hu, np.maximum(chest.hu, 60))), dense, 30, rng))


def mass(chest: Chest, rng: np.random.Generator) -> Chest:
    """One to three lobulated masses."""
    lung, hu = chest.lung(), chest.hu
    for _ in range(int(rng.integers(1, 4))):
        where = _blob(chest, lung, rng.uniform(8, 45), rng)
        hu = _filled(replace(chest, hu=hu), where, rng.uniform(15, 70), rng)
    return replace(chest, hu=hu)


def _blob(chest: Chest, inside: Region, radius_mm: float, rng: np.random.Generator) -> Region:
    """An irregular ellipsoid about a random voxel of a region, cut to it."""
    places = np.flatnonzero(inside)
    if not places.size:
        return inside.copy()
    middle = np.unravel_index(int(rng.choice(places)), inside.shape)
    distance = sum(
        ((axis - middle[n] * chest.spacing_mm[n]) / (radius_mm * rng.uniform(0.7, 1.3))) ** 2
        for n, axis in enumerate(chest.axes_mm())
    )
    rough = 1 + 0.25 * _field(chest, max(6.0, radius_mm / 2), rng)
    return inside & (np.sqrt(distance) < rough)


# -- thin lung ------------------------------------------------------------------------------------------------


def emphysema(chest: Chest, rng: np.random.Generator) -> Chest:
    """Both lungs thinned to -920 to -1000 HU, everywhere or in patches."""
    level, patchy = rng.uniform(-1000, -920), rng.random() < 0.4
    lung = chest.lung() & (chest.hu < -600)
    if patchy:
        lung &= _field(chest, rng.uniform(15, 50), rng) > -0.3
    thin = level + 0.25 * (chest.hu + 860)
    return replace(chest, hu=np.where(lung, np.minimum(chest.hu, thin), chest.hu).astype(np.float32))


def bulla(chest: Chest, rng: np.random.Generator) -> Chest:
    """One to three bullae of air, mostly high, up to a third of a lung."""
    lung = chest.lung(_side(chest, rng))
    up, _, _ = _relative(lung)
    high = lung & (up > rng.uniform(0.0, 0.6))
    hu = chest.hu.copy()
    for _ in range(int(rng.integers(1, 4))):
        where = _blob(chest, high, rng.uniform(15, 60), rng)
        hu[where] = _tissue(chest, -990, rng)[where]
    return replace(chest, hu=hu)


# -- the pleural space ----------------------------------------------------------------------------------------


def effusion(chest: Chest, rng: np.random.Generator) -> Chest:
    """Fluid behind and below one lung with a meniscus, the lung beside it collapsed."""
    side = _side(chest, rng)
    lung = chest.lung(side)
    up, back, _ = _relative(lung)
    wall = ndimage.distance_transform_edt(lung, sampling=chest.spacing_mm).astype(np.float32)
    share = rng.uniform(0.05, 0.55)
    score = back - rng.uniform(0.1, 0.5) * up + 0.25 * np.exp(-wall / 12) + 0.02 * _field(chest, 40, rng)
    fluid = _quantile_region(lung, score, share)
    beside = lung & ~fluid & (ndimage.distance_transform_edt(~fluid, sampling=chest.spacing_mm) < rng.uniform(0, 22))
    shown = _filled(chest, beside, rng.uniform(30, 80), rng)
    shown = _filled(replace(chest, hu=shown), fluid, rng.uniform(-5, 22), rng, vessels=False)
    classes = chest.classes.copy()
    classes[fluid] = FLUID
    return Chest(shown, classes, chest.spacing_mm)


def pneumothorax(chest: Chest, rng: np.random.Generator) -> Chest:
    """Air in front of, above or all round one lung, which is smaller and denser."""
    side = _side(chest, rng)
    lung = chest.lung(side)
    up, back, across = _relative(lung)
    if rng.random() < 0.5:
        score, share = 0.5 * up - back + 0.02 * _field(chest, 50, rng), rng.uniform(0.05, 0.4)
    else:  # collapsed to the hilum
        hilum = 1.0 if side == RIGHT else 0.0
        score = np.sqrt((up - 0.5) ** 2 + (back - 0.55) ** 2 + (across - hilum) ** 2) + 0.03 * _field(chest, 40, rng)
        share = rng.uniform(0.3, 0.85)
    air = _quantile_region(lung, score, share)
    rest = lung & ~air
    shown = chest.hu.copy()
    shown[rest] = np.minimum(chest.hu + np.float32(900 * 0.5 * share), np.maximum(chest.hu, 40))[rest]
    shown[air] = _tissue(chest, -1000, rng)[air]
    pleura = rest & ndimage.binary_dilation(air)
    shown[pleura] = np.maximum(shown[pleura], -500)
    classes = chest.classes.copy()
    classes[air] = GAS
    return Chest(shown, classes, chest.spacing_mm)


def pneumonectomy(chest: Chest, rng: np.random.Generator) -> Chest:
    """One side shrunk and filled with fluid, the mediastinum drawn over and the other lung grown into the room."""
    side = _side(chest, rng)
    (low, _), (_, high) = (_box(chest.lung(one))[2] for one in (RIGHT, LEFT))
    inner = _box(chest.lung(RIGHT))[2][1], _box(chest.lung(LEFT))[2][0]
    middle = float(np.clip(sum(inner) / 2, low + 2, high - 2))
    shrunk = rng.uniform(0.3, 0.85)
    moved = low + (middle - low) * shrunk if side == RIGHT else high - (high - middle) * shrunk
    last = chest.hu.shape[2] - 1
    here, there = (np.array([-1, low, at, high, last + 1], float) for at in (moved, middle))
    source = np.clip(np.interp(np.arange(last + 1), here, there), 0, last)
    first = np.minimum(source.astype(int), max(0, last - 1))
    part = (source - first).astype(np.float32)
    hu = chest.hu[..., first] * (1 - part) + chest.hu[..., np.minimum(first + 1, last)] * part
    warped = Chest(hu.astype(np.float32), chest.classes[..., np.rint(source).astype(int)], chest.spacing_mm)
    where = warped.lung(side)
    classes = warped.classes.copy()
    classes[where] = FLUID
    return Chest(_filled(warped, where, rng.uniform(-5, 35), rng, vessels=False), classes, chest.spacing_mm)


# -- around the lungs -----------------------------------------------------------------------------------------


def bowel_gas(chest: Chest, rng: np.random.Generator) -> Chest:
    """Gas of stomach and bowel close below the diaphragm."""
    lung = chest.lung()
    (low, _), (front, back), (right, left) = _box(lung)
    below = np.zeros(chest.hu.shape, bool)
    reach = int(90 / chest.spacing_mm[0])
    below[
        max(0, low - reach // 3) : low + reach, front + (back - front) // 8 : back - (back - front) // 4, right:left
    ] = 1
    under = np.cumsum(lung[::-1], axis=0)[::-1] > 0  # lung somewhere above
    organ = below & under & (chest.classes == 0) & (chest.hu > -150)
    organ = ndimage.binary_erosion(organ, iterations=max(1, round(4 / max(chest.spacing_mm))))
    hu, classes = chest.hu.copy(), chest.classes.copy()
    for _ in range(int(rng.integers(1, 4))):
        where = _blob(chest, organ, rng.uniform(10, 50), rng)
        hu[where] = _tissue(chest, -1000, rng)[where]
        classes[where] = GAS
    return Chest(hu, classes, chest.spacing_mm)


def raised_diaphragm(chest: Chest, rng: np.random.Generator) -> Chest:
    """One half of the diaphragm and what lies below it higher by up to two fifths of the lung."""
    lung = chest.lung(_side(chest, rng))
    (low, high), _, (first, last) = _box(lung)
    columns = np.arange(chest.hu.shape[2], dtype=np.float32)
    middle, half = (first + last) / 2, max(1.0, (last - first) / 2)
    lift = (rng.uniform(0.1, 0.4) * (high - low) * np.exp(-(((columns - middle) / half) ** 4))).astype(np.float32)
    d = np.arange(chest.hu.shape[0], dtype=np.float32)[:, None]
    squeezed = low + (d - low - lift) * (high - low) / np.maximum(high - low - lift, 1)
    source = np.where(d <= low + lift, d - lift, np.where(d < high, squeezed, d)).clip(0, len(d) - 1)
    below = np.minimum(source.astype(int), max(0, len(d) - 2))
    part = (source - below).astype(np.float32)[:, None]
    whole = np.broadcast_to(below[:, None], chest.hu.shape)
    hu = np.take_along_axis(chest.hu, whole, axis=0) * (1 - part)
    hu += np.take_along_axis(chest.hu, np.minimum(whole + 1, len(d) - 1), axis=0) * part
    nearest = np.broadcast_to(np.rint(source).astype(int)[:, None], chest.hu.shape)
    return Chest(hu.astype(np.float32), np.take_along_axis(chest.classes, nearest, axis=0), chest.spacing_mm)


def contrast(chest: Chest, rng: np.random.Generator) -> Chest:
    """Heart and vessels brighter by 50 to 250 HU, up to 400 in the veins."""
    lung = chest.lung()
    (low, high), (front, back), (right, left) = _box(lung)
    between = np.zeros(lung.shape, bool)
    width = (left - right) // 4
    between[low:high, front + 2 : back - (back - front) // 3, right + width : left - width // 2] = True
    blood = between & ~lung & (chest.hu > 0) & (chest.hu < 120)
    blood = ndimage.binary_opening(blood) | (lung & (chest.hu > -200))
    rise = np.float32(rng.uniform(50, 250)) * (1 + 0.15 * _field(chest, 50, rng))
    return replace(chest, hu=np.where(blood, chest.hu + rise, chest.hu).astype(np.float32))


def metal(chest: Chest, rng: np.random.Generator) -> Chest:
    """A few implants with streaks across their slices."""
    hu = chest.hu.copy()
    _, h, w = chest.axes_mm()
    for _ in range(int(rng.integers(1, 4))):
        k, row, column = (int(rng.integers(n // 5, n - n // 5)) for n in hu.shape)
        slices = slice(k, k + max(1, round(rng.uniform(3, 25) / chest.spacing_mm[0])))
        y, x = h - row * chest.spacing_mm[1], w - column * chest.spacing_mm[2]
        distance, angle = np.hypot(y, x) + 3, np.arctan2(y, x)
        waves = np.sin(rng.integers(4, 14) * angle + rng.uniform(0, 6)) * np.sin(rng.integers(2, 9) * angle)
        hu[slices] += (rng.uniform(200, 900) * waves * np.exp(-distance / rng.uniform(25, 90))).astype(np.float32)
        hu[slices, distance < 3 + rng.uniform(2, 8)] = 3000
    return replace(chest, hu=hu)


# -- acquisition ----------------------------------------------------------------------------------------------


def noise(chest: Chest, rng: np.random.Generator) -> Chest:
    """Noise of 30 to 120 HU, white (a sharp kernel) or smooth."""
    grain = rng.standard_normal(chest.hu.shape, dtype=np.float32)
    if rng.random() < 0.5:
        grain = ndimage.gaussian_filter(grain, (0, 0.7, 0.7))
        grain /= grain.std()
    level = np.float32(rng.uniform(30, 120))
    return replace(chest, hu=np.clip(chest.hu + level * grain, -1024, None).astype(np.float32))


def thick_slices(chest: Chest, rng: np.random.Generator) -> Chest:
    """Slices of 6 to 10 mm; classes are those of most of the thick slice."""
    thick = float(rng.uniform(6, 10))
    shape = (coarse_size(chest.hu.shape[0], chest.spacing_mm[0], thick), *chest.hu.shape[1:])
    spacing = (thick, *chest.spacing_mm[1:])
    return on_grid(chest, shape, (spacing[0], spacing[1], spacing[2]))


def wide_field(chest: Chest, rng: np.random.Generator) -> Chest:
    """A field of view of up to 700 mm: air and a table around the picture."""
    field = rng.uniform(550, 700)
    margin = [max(0, int((field - n * step) / 2 / step)) for n, step in _along(chest)]
    widths = ((0, 0), (margin[1],) * 2, (margin[2],) * 2)
    air = float(rng.choice([-1000, -1024]))
    hu = np.pad(chest.hu, widths, constant_values=air)
    if margin[1] > 8:
        table = slice(-margin[1] + 2, -margin[1] + 2 + max(1, round(8 / chest.spacing_mm[1])))
        hu[:, table] = rng.uniform(-850, -100)
    hu += np.where(hu == air, 8 * rng.standard_normal(hu.shape, dtype=np.float32), 0)
    return Chest(hu.astype(np.float32), np.pad(chest.classes, widths), chest.spacing_mm)


def cut_field(chest: Chest, rng: np.random.Generator) -> Chest:
    """Sides, top or bottom of the chest outside of the picture."""
    box = _box(chest.lung())
    cut = []
    for axis, (low, high) in enumerate(box):
        size, span = chest.hu.shape[axis], high - low
        first = max(0, low + int(span * rng.uniform(-0.15, 0.2))) if rng.random() < 0.5 else 0
        last = min(size, high + 1 - int(span * rng.uniform(-0.15, 0.2))) if rng.random() < 0.5 else size
        cut.append(slice(first, max(last, first + 2)))
    where = tuple(cut)
    return Chest(chest.hu[where].copy(), chest.classes[where].copy(), chest.spacing_mm)


def shifted_air(chest: Chest, rng: np.random.Generator) -> Chest:
    """Values that passed through grey levels: air at -900 to -980 HU, tissue a little off."""
    factor, offset = rng.uniform(0.9, 1.03), rng.uniform(-30, 60)
    return replace(chest, hu=(chest.hu * np.float32(factor) + np.float32(offset)).astype(np.float32))


DISEASES: Mapping[str, Condition] = {
    f.__name__: f
    for f in (white_lung, white_lobe, pneumonia, mass, emphysema, bulla, effusion, pneumothorax, pneumonectomy)
}
SURROUNDINGS: Mapping[str, Condition] = {f.__name__: f for f in (bowel_gas, raised_diaphragm, contrast, metal)}
ACQUISITIONS: Mapping[str, Condition] = {
    f.__name__: f for f in (noise, thick_slices, wide_field, cut_field, shifted_air)
}
CONDITIONS: Mapping[str, Condition] = {**DISEASES, **SURROUNDINGS, **ACQUISITIONS}


def on_grid(chest: Chest, shape: tuple[int, ...], spacing_mm: Triple) -> Chest:
    """The chest on another grid about the same middle: HU by area, classes by the largest share of a voxel."""
    hu = resample_axes(chest.hu, chest.spacing_mm, shape, spacing_mm)
    best, classes = np.zeros(shape, np.float32), np.zeros(shape, np.int8)
    for value in np.unique(chest.classes):
        share = resample_axes((chest.classes == value).astype(np.float32), chest.spacing_mm, shape, spacing_mm)
        larger = share > best
        best[larger], classes[larger] = share[larger], value
    return Chest(hu, classes, spacing_mm)
