"""Where in the lungs the infiltrate lies: at the surface or inside, at the back or in front, above or below.

Each share is given beside what an even spread would give, because lungs have more volume near their surface.

- Peripheral: within `PERIPHERAL_MM` of the lung's surface, which includes the side towards heart and diaphragm, and the
  edge of the scan where the lung is cut off. The distance is that of a voxel centre to the nearest voxel centre outside
  the same lung, less half the smallest spacing.
- Dorsal: behind the coronal plane that halves the volume of that lung. Caudal: below the axial plane that does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.geometry import Grid
from pneumoscope.severity.tally import Box, box_of, slabs
from pneumoscope.severity.zones import world_coordinate

PERIPHERAL_MM = 10.0
"""Depth below the surface that counts as peripheral; our choice. Within 20 mm lie 80 % of an adult's lungs."""

FINEST_MM = 1.4
"""Distances are computed on every n-th voxel along an axis, n as large as this spacing allows."""


@dataclass(frozen=True)
class Distribution:
    """Shares of the infiltrate inside the lungs, in percent; None where there is none (or no lung).

    Attributes:
        peripheral_percent: within `peripheral_mm` of the surface.
        lung_peripheral_percent: the same share of the lungs' own volume: what an even spread would give.
        dorsal_percent: behind the middle of its lung; an even spread gives 50.
        caudal_percent: below the middle of its lung; an even spread gives 50.
        right_percent: in the right lung; None when sides are not known.
        peripheral_mm: the depth used.
    """

    peripheral_percent: float | None
    lung_peripheral_percent: float | None
    dorsal_percent: float | None
    caudal_percent: float | None
    right_percent: float | None
    peripheral_mm: float = PERIPHERAL_MM


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
    from scipy import ndimage

    inner = box_of(lung.view(np.uint8))
    strides = [max(1, int(FINEST_MM / step)) for step in grid.spacing_mm]
    coarse = np.pad(lung[inner][tuple(slice(None, None, n) for n in strides)], 1)
    spacing = np.asarray(grid.spacing_mm) * strides
    depth = ndimage.distance_transform_edt(coarse, sampling=spacing)[1:-1, 1:-1, 1:-1] - spacing.min() / 2
    near = depth <= depth_mm
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
