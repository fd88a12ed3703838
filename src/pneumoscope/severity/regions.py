"""Parts of the lungs (lobes with their score, right and left, six zones), and lesions: how many, how large, and where.

Zones are no lobes: the height is measured along the patient's head-feet axis (world z) from the lowest to the highest
voxel centre of both lungs together, and cut into three equal parts; the planes are the same on both sides. Fissures run
obliquely through these planes, so a zone holds parts of several lobes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope import components
from pneumoscope.errors import InputError
from pneumoscope.geometry import Box, Grid, box_of
from pneumoscope.severity.tally import LungPart, slabs
from pneumoscope.volume import LUNG_LABELS, Mask, is_named

LOBES = ("right_upper_lobe", "right_middle_lobe", "right_lower_lobe", "left_upper_lobe", "left_lower_lobe")

LUNGMASK_ORDER: Mapping[int, str] = {
    1: "left_upper_lobe",
    2: "left_lower_lobe",
    3: "right_upper_lobe",
    4: "right_middle_lobe",
    5: "right_lower_lobe",
}
"""What 1 to 5 mean in a file without names: the order of lungmask's lobe model."""

TOTALSEGMENTATOR_ORDER: Mapping[int, str] = {
    10: "left_upper_lobe",
    11: "left_lower_lobe",
    12: "right_upper_lobe",
    13: "right_middle_lobe",
    14: "right_lower_lobe",
}
"""What 10 to 14 mean in a file without names: TotalSegmentator's class numbers."""


@dataclass(frozen=True)
class LobeScores:
    """The five lobes."""

    parts: Mapping[str, LungPart]  # per lobe, as for lungs; a lobe that is not in the mask has no share
    scores: Mapping[str, int | None]  # per lobe 0 to 5; None for a lobe that is not in the mask
    total: int | None  # 0 to 25; None unless all five lobes are there


def lobe_score(share_percent: float | None) -> int | None:
    """Score 0 to 5 of one lobe; None without a share. See the module for the limits and their source."""
    if share_percent is None:
        return None
    if share_percent <= 0:
        return 0
    above = (share_percent >= 5, share_percent > 25, share_percent >= 50, share_percent > 75)
    return 1 + sum(above)


def lobe_lookup(lobes: Mask) -> NDArray[np.uint8]:
    """For each of the 256 labels of a lobe mask the number of the lobe (1 to 5 in the order of `LOBES`), or 0.

    Names are distinguished by their words (``right upper lobe``, ``lung_upper_lobe_right``, ...). Without names, 1 to 5
    are taken in lungmask's order and 10 to 14 in TotalSegmentator's.

    Raises:
        InputError: no label is a lobe, or two labels are the same one.
    """
    meaning = {label: lobe_of(name) for label, name in lobes.names.items()}
    if not is_named(lobes.names):
        known = TOTALSEGMENTATOR_ORDER if set(lobes.names) & set(TOTALSEGMENTATOR_ORDER) else LUNGMASK_ORDER
        meaning = {label: known.get(label) for label in lobes.names}
    found = [name for name in meaning.values() if name]
    if not found or len(set(found)) < len(found):
        expected = "right/left, upper/middle/lower and lobe in each name, or 1 to 5 in lungmask's order"
        raise InputError(f"a lobe mask has the labels {dict(lobes.names)}, expected {expected}; name the labels so")
    lookup = np.zeros(256, np.uint8)
    for label, lobe in meaning.items():
        if lobe:
            lookup[label] = 1 + LOBES.index(lobe)
    return lookup


def lobe_of(name: str) -> str | None:
    """Which of `LOBES` a name is by its words, or None."""
    words = set(name.lower().replace("_", " ").replace("-", " ").split())
    side = [s for s in ("right", "left") if s in words]
    level = [v for v in ("upper", "middle", "lower") if v in words]
    lobe = f"{side[0]}_{level[0]}_lobe" if len(side) == 1 and len(level) == 1 else ""
    return lobe if lobe in LOBES else None


def scores_of(parts: Mapping[str, LungPart]) -> LobeScores:
    """Scores of measured lobes."""
    scores = {name: lobe_score(part.share_percent) for name, part in parts.items()}
    known = [score for score in scores.values() if score is not None]
    return LobeScores(dict(parts), scores, sum(known) if len(known) == len(LOBES) else None)


EXCHANGED_SHARE = 0.05
"""More than this part of the lungs with right and left exchanged is a state; a lobe may reach behind the other lung."""


def sides_of(names: Mapping[int, str]) -> NDArray[np.uint8]:
    """For each of the 256 labels of a lung mask the side it belongs to: 0 none, 1 right (or any lung), 2 left.

    A name with ``lung`` or ``lobe`` in it and one of ``right`` and ``left`` has that side, as in
    ``lung_upper_lobe_left``. Without names, 10 to 14 are TotalSegmentator's lobes. Where no label has a side, every
    label is lung.
    """
    if not is_named(names) and set(names) <= set(TOTALSEGMENTATOR_ORDER):
        names = {label: TOTALSEGMENTATOR_ORDER[label] for label in names}
    sides = np.zeros(256, np.uint8)
    for label, name in names.items():
        words = set(name.casefold().replace("_", " ").replace("-", " ").split())
        if words & {"lung", "lobe"} and len(words & {"right", "left"}) == 1:
            sides[label] = 1 if "right" in words else 2
    if not sides.any():
        sides[1:] = 1
    return sides


def with_house_labels(lungs: Mask) -> Mask:
    """A mask with sides, in any labels, as 1 = right and 2 = left lung; another mask as it is."""
    sides = sides_of(lungs.names)
    if dict(lungs.names) == dict(LUNG_LABELS) or 2 not in sides:
        return lungs
    return Mask(sides[lungs.labels], lungs.grid, dict(LUNG_LABELS), lungs.native)


def exchanged_slices(labels: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Slices (k,) on which right (1) lies on the patient's left of left (2), and slices that show both.

    `labels` are (i, j, k) RAS+: i grows towards the patient's right.
    """
    right, left = (_middle(labels == side) for side in (1, 2))
    both = np.isfinite(right) & np.isfinite(left)
    with np.errstate(invalid="ignore"):
        return both & (right < left), both


def are_exchanged(labels: NDArray[np.uint8]) -> bool:
    """Whether right and left are exchanged on slices that hold more than `EXCHANGED_SHARE` of the lungs they show."""
    wrong, both = exchanged_slices(labels)
    voxels = np.count_nonzero((labels == 1) | (labels == 2), axis=(0, 1))
    return bool(voxels[wrong].sum() > EXCHANGED_SHARE * voxels[both].sum())


def are_lobes_exchanged(lobes: NDArray[np.uint8]) -> bool:
    """Whether right and left lobes, or upper and lower ones, lie where the others should.

    Args:
        lobes: (i, j, k) RAS+, numbers in the order of `LOBES`.
    """
    counts = np.stack([np.count_nonzero(lobes == number, axis=(0, 1)) for number in range(1, len(LOBES) + 1)])
    with np.errstate(invalid="ignore"):  # NaN for a lobe that is not there
        upper_right, _, lower_right, upper_left, lower_left = counts @ np.arange(lobes.shape[2]) / counts.sum(axis=1)
    sides = np.array([0, 1, 1, 1, 2, 2], np.uint8)[lobes]
    return are_exchanged(sides) or bool(upper_right < lower_right or upper_left < lower_left)


def _middle(side: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean index i of a side per slice (k,), NaN where the slice does not show it."""
    per_column = side.sum(axis=1)  # (i, k)
    total = per_column.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((np.arange(side.shape[0])[:, None] * per_column).sum(axis=0) / np.where(total, total, np.nan))


LEVELS = ("upper", "middle", "lower")

ZONES = tuple(f"{side}_{level}" for side in ("right", "left") for level in LEVELS)
"""Names in the order of the numbers that `zone_map` gives, beginning with 1."""


def zone_map(side: NDArray[np.uint8], grid: Grid, box: Box) -> NDArray[np.uint8]:
    """The zone of each voxel, 1 to 6 in the order of `ZONES`, 0 outside the lungs.

    Lungs that do not tell sides get 1 to 3.

    Args:
        side: (i, j, k) inside `box`: 1 right (or any lung), 2 left, 0 none.
        grid: of the whole scan.
        box: where `side` lies in it.
    """
    zone = np.zeros(side.shape, np.uint8)
    if not side.any():
        return zone
    low, high = np.inf, -np.inf
    for slab in slabs(side):
        z = world_coordinate(grid, box, slab, side.shape, 2)[side[slab] != 0]
        if z.size:
            low, high = min(low, float(z.min())), max(high, float(z.max()))
    third = (high - low) / 3
    for slab in slabs(side):
        z = world_coordinate(grid, box, slab, side.shape, 2)
        level = (z < high - third).astype(np.uint8) + (z < low + third)  # 0 upper, 1 middle, 2 lower
        zone[slab] = np.where(side[slab] == 0, 0, 3 * (side[slab] - np.uint8(1)) + level + np.uint8(1))
    return zone


def world_coordinate(grid: Grid, box: Box, slab: slice, shape: tuple[int, ...], axis: int) -> NDArray[np.floating]:  # type: ignore[type-arg]
    """One world coordinate (0 right, 1 anterior, 2 superior) in mm of the voxels in a slab of a box, (i, j, k)."""
    row = grid.affine[axis]
    start = [part.start or 0 for part in box]
    i = np.arange(shape[0])[slab] + start[0]
    j, k = np.arange(shape[1]) + start[1], np.arange(shape[2]) + start[2]
    plane = row[1] * j[:, None] + row[2] * k[None, :] + row[3]
    return (row[0] * i[:, None, None] + plane[None]).astype(np.float32)


SMALLEST_ML = 0.1  # Smaller pieces are counted apart as specks; the shipped infiltrate model drops them. Our choice.

LISTED = 10


@dataclass(frozen=True)
class Lesions:
    """Connected components of infiltrate inside the lungs, over faces, edges and corners (26 neighbours).

    Lesions that touch are one, so a count falls when disease grows together; read it beside the volume.
    """

    count: int  # pieces of at least `smallest_ml`
    specks: int  # smaller pieces
    specks_ml: float  # their volume
    largest_ml: float | None  # the largest piece; None when there is none
    median_ml: float | None  # of the pieces counted; None when there is none
    volumes_ml: tuple[float, ...]  # of the ten largest, largest first
    smallest_ml: float = SMALLEST_ML  # the limit used
    connectivity: int = 26  # neighbours a voxel has


def count_lesions(marked: NDArray[np.bool_], voxel_ml: float, smallest_ml: float = SMALLEST_ML) -> Lesions:
    """Pieces of a mask (i, j, k); all zero and None for an empty one."""
    volumes = np.sort(components.label(marked)[1][1:] * voxel_ml)[::-1]
    counted = volumes[volumes >= smallest_ml]
    specks = volumes[volumes < smallest_ml]
    return Lesions(
        count=len(counted),
        specks=len(specks),
        specks_ml=float(specks.sum()),
        largest_ml=float(counted[0]) if len(counted) else None,
        median_ml=float(np.median(counted)) if len(counted) else None,
        volumes_ml=tuple(float(v) for v in counted[:LISTED]),
        smallest_ml=smallest_ml,
    )


PERIPHERAL_MM = 10.0
"""Depth below the surface that counts as peripheral; our choice. Within 20 mm lie 80 % of an adult's lungs."""

FINEST_MM = 1.4  # Distances are computed on every n-th voxel along an axis, n as large as this spacing allows


@dataclass(frozen=True)
class Distribution:
    """Shares of the infiltrate inside the lungs, in percent; None where there is none (or no lung)."""

    peripheral_percent: float | None  # within `peripheral_mm` of the surface
    lung_peripheral_percent: float | None  # the same share of the lungs' own volume: what an even spread would give
    dorsal_percent: float | None  # behind the middle of its lung; an even spread gives 50
    caudal_percent: float | None  # below the middle of its lung; an even spread gives 50
    right_percent: float | None  # in the right lung; None when sides are not known
    peripheral_mm: float = PERIPHERAL_MM  # the depth used


def distribution_of(
    side: NDArray[np.uint8],
    marked: NDArray[np.bool_],
    grid: Grid,
    box: Box,
    *,
    sided: bool,
    peripheral_mm: float = PERIPHERAL_MM,
) -> Distribution:
    """Shares for arrays (i, j, k) that lie in `box` of `grid`.

    Args:
        side: 1 right (or any lung), 2 left, 0 none.
        marked: infiltrate; what lies outside the lungs is passed over.
        grid: of the whole scan.
        box: where the arrays lie in it.
        sided: whether `side` tells right from left.
        peripheral_mm: depth that counts as peripheral.
    """
    spots = peripheral = lung_peripheral = lungs = dorsal = caudal = right = 0.0
    for label in (1, 2):
        lung = side == label
        if not lung.any():
            continue
        inside = marked & lung
        near = _near_surface(lung, grid, peripheral_mm)
        own = int(np.count_nonzero(inside))
        spots, lungs = spots + own, lungs + int(np.count_nonzero(lung))
        peripheral += int(np.count_nonzero(near & inside))
        lung_peripheral += int(np.count_nonzero(near & lung))
        dorsal += _beyond_middle(lung, inside, grid, box, 1)
        caudal += _beyond_middle(lung, inside, grid, box, 2)
        right += own if label == 1 else 0
    return Distribution(
        peripheral_percent=_percent(peripheral, spots),
        lung_peripheral_percent=_percent(lung_peripheral, lungs),
        dorsal_percent=_percent(dorsal, spots),
        caudal_percent=_percent(caudal, spots),
        right_percent=_percent(right, spots) if sided else None,
        peripheral_mm=peripheral_mm,
    )


def _percent(part: float, whole: float) -> float | None:
    return 100.0 * part / whole if whole else None


def _near_surface(lung: NDArray[np.bool_], grid: Grid, depth_mm: float) -> NDArray[np.bool_]:
    """Voxels whose centre lies within `depth_mm` of the lung's surface; also true outside the lung."""
    import SimpleITK as sitk  # noqa: N813  # Maurer's distance on all threads: a third of SciPy's time

    inner = box_of(lung.view(np.uint8))
    strides = [max(1, int(FINEST_MM / step)) for step in grid.spacing_mm]
    coarse = np.pad(lung[inner][tuple(slice(None, None, n) for n in strides)], 1)
    spacing = np.asarray(grid.spacing_mm) * strides
    image = sitk.GetImageFromArray((~coarse).view(np.uint8))
    image.SetSpacing(spacing[::-1].tolist())
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    near = sitk.GetArrayViewFromImage(distance)[1:-1, 1:-1, 1:-1] <= depth_mm + spacing.min() / 2
    for axis, n in enumerate(strides):
        near = np.repeat(near, n, axis=axis)
    result = np.ones(lung.shape, bool)
    result[inner] = near[tuple(slice(0, part.stop - part.start) for part in inner)]
    return result


def _beyond_middle(lung: NDArray[np.bool_], inside: NDArray[np.bool_], grid: Grid, box: Box, axis: int) -> float:
    """Voxels of `inside` on the low side (back, feet) of the plane that halves the lung; on the plane counts half."""
    parts = slabs(lung)
    coordinates = [world_coordinate(grid, box, slab, lung.shape, axis) for slab in parts]
    middle = np.median(np.concatenate([c[lung[slab]] for c, slab in zip(coordinates, parts, strict=True)]))
    marked = np.concatenate([c[inside[slab]] for c, slab in zip(coordinates, parts, strict=True)])
    return float(np.count_nonzero(marked < middle) + 0.5 * np.count_nonzero(marked == middle))
