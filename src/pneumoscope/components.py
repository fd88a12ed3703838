"""Connected components of masks: numbered, counted, and those below a size taken out.

Neighbours are named by `connectivity`: 6, 18 or 26 in three dimensions, 4 or 8 in two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Connectivity = Literal[4, 6, 8, 18, 26]
_RANK = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}

SMALL = 2**16
"""SciPy numbers smaller arrays, and those one voxel thick: cc3d 4.1 raises on some of them that are full of single
voxels, and joins pixels wrongly over corners."""


def label(mask: NDArray[np.bool_], connectivity: Connectivity = 26) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Number the components of a mask of two or three dimensions.

    Returns:
        The number of each voxel's component from 1 on, 0 outside; and the voxels of each number, 0 for number 0.
    """
    import cc3d
    from scipy import ndimage

    if not mask.any():
        return np.zeros(mask.shape, np.uint16), np.zeros(1, np.int64)
    if 1 in mask.shape or mask.size < SMALL or connectivity == 8:
        labels = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, _RANK[connectivity]))[0]
        sizes = np.bincount(labels.ravel())
    else:
        labels = cc3d.connected_components(mask, connectivity=connectivity)
        counted = cc3d.statistics(labels, no_slice_conversion=True)  # bincount would copy the volume
        sizes = counted["voxel_counts"].astype(np.int64)
    sizes[0] = 0
    return labels, sizes


def without_small(mask: NDArray[np.bool_], least: float, connectivity: Connectivity = 26) -> NDArray[np.bool_]:
    """The mask without components of fewer than `least` voxels."""
    from scipy import ndimage

    if least <= 1 or not mask.any():
        return mask
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    labels, sizes = label(mask[box], connectivity)
    out = np.zeros_like(mask)
    out[box] = (sizes >= least)[labels]
    return out


def each(mask: NDArray[np.bool_], least: float = 1, connectivity: Connectivity = 26) -> Iterator[NDArray[np.integer]]:
    """Voxel indices (n, 3) of every component of at least so many voxels; none of an empty mask, or one of no size."""
    from scipy import ndimage

    if not mask.any():
        return
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    labels, sizes = label(mask[box], connectivity)
    for number, region in enumerate(ndimage.find_objects(labels), start=1):
        if sizes[number] >= least:
            yield np.argwhere(labels[region] == number) + [a.start + b.start for a, b in zip(region, box, strict=True)]
