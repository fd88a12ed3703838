"""The whole lung by classes of density, whatever the infiltrate mask says.

Normal below -700 HU, ground-glass from there to -300 HU, consolidation from -300 HU on. The upper limit is that of
`measure`; the lower one is our choice. Vessels and the walls of bronchi are dense too, so a healthy lung has some ml in
every class: compare classes with an earlier scan, not with zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.severity.tally import slabs

GROUND_GLASS_FROM_HU = -700.0
"""Lung below counts as normal; our choice."""


@dataclass(frozen=True)
class DensityClasses:
    """A part of the lungs by density.

    Attributes:
        normal_ml: below `GROUND_GLASS_FROM_HU`.
        ground_glass_ml: from there to the limit of consolidation.
        consolidation_ml: at or above it.
        normal_percent: of the part; None when there is no lung.
        ground_glass_percent: likewise.
        consolidation_percent: likewise.
    """

    normal_ml: float
    ground_glass_ml: float
    consolidation_ml: float
    normal_percent: float | None
    ground_glass_percent: float | None
    consolidation_percent: float | None


@dataclass(frozen=True)
class Densities:
    """Classes of both lungs and of each.

    Attributes:
        total: both lungs.
        right: the right lung; None when sides are not known.
        left: the left lung; likewise.
        ground_glass_from_hu: lower limit used.
        consolidation_from_hu: upper limit used.
    """

    total: DensityClasses
    right: DensityClasses | None
    left: DensityClasses | None
    ground_glass_from_hu: float
    consolidation_from_hu: float


def density_classes(
    hu: NDArray[np.float32], side: NDArray[np.uint8], voxel_ml: float, *, sided: bool, consolidation_from_hu: float
) -> Densities:
    """Count classes in arrays (i, j, k).

    Args:
        hu: densities.
        side: 1 right (or any lung), 2 left, 0 none.
        voxel_ml: volume of a voxel.
        sided: whether `side` tells right from left.
        consolidation_from_hu: limit of consolidation.
    """
    limits = np.asarray([GROUND_GLASS_FROM_HU, consolidation_from_hu])
    counts = np.zeros((3, 3), np.int64)  # (side, class)
    for slab in slabs(side):
        chosen = np.flatnonzero(side[slab])
        classes = np.searchsorted(limits, hu[slab].ravel()[chosen], side="right")
        code = side[slab].ravel()[chosen].astype(np.intp) * 3 + classes
        counts += np.bincount(code, minlength=9).reshape(3, 3)
    return Densities(
        total=_classes(counts[1:].sum(axis=0), voxel_ml),
        right=_classes(counts[1], voxel_ml) if sided else None,
        left=_classes(counts[2], voxel_ml) if sided else None,
        ground_glass_from_hu=GROUND_GLASS_FROM_HU,
        consolidation_from_hu=consolidation_from_hu,
    )


def _classes(counts: NDArray[np.int64], voxel_ml: float) -> DensityClasses:
    ml = [float(n * voxel_ml) for n in counts]
    whole = int(counts.sum())
    percent = [100.0 * int(n) / whole if whole else None for n in counts]
    return DensityClasses(*ml, *percent)
