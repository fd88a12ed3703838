"""Lesions: how many there are, how large, and where they lie.

A lesion is connected over faces, edges and corners (26 neighbours). Lesions that touch are one, so a count falls when
disease grows together; read it beside the volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope import components
from pneumoscope.geometry import Grid
from pneumoscope.severity.regions import world_coordinate
from pneumoscope.severity.tally import Box, box_of, slabs

SMALLEST_ML = 0.1  # Smaller pieces are counted apart as specks; the shipped infiltrate model drops them. Our choice.

LISTED = 10


@dataclass(frozen=True)
class Lesions:
    """Connected components of infiltrate inside the lungs."""

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
