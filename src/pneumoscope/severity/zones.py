"""Six zones: upper, middle and lower third of the height, right and left. They are zones, not lobes.

Rule: the height is measured along the patient's head-feet axis (world z) from the lowest to the highest voxel centre of
both lungs together, and cut into three equal parts; the planes are the same on both sides. Fissures run obliquely
through these planes, so a zone holds parts of several lobes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pneumoscope.geometry import Grid
from pneumoscope.severity.tally import Box, slabs

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
