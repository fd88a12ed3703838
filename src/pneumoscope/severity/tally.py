"""Counting a part of the lungs: voxels, sums of Hounsfield units and dense voxels, slab by slab."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLAB_VOXELS = 1 << 21  # Voxels counted together; keeps the temporaries small


@dataclass(frozen=True)
class LungPart:
    """A part of the lungs: one lung, both together, a zone or a lobe."""

    lung_ml: float  # volume of the part, infiltrate included
    infiltrate_ml: float  # volume of the infiltrate inside it
    share_percent: float | None  # infiltrate in percent of the part; None when there is no lung in it
    ground_glass_ml: float  # infiltrate below the density limit
    consolidation_ml: float  # infiltrate at or above it
    lung_mean_hu: float | None  # mean density of the part, infiltrate included; None when there is no lung in it
    infiltrate_mean_hu: float | None  # mean density of the infiltrate; None when there is none


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts per (region, infiltrate label); region 0 is outside, label 0 is lung without infiltrate."""

    voxels: NDArray[np.int64]  # (regions, 256)
    hu_sums: NDArray[np.float64]  # (regions, 256)
    dense: NDArray[np.int64]  # (regions, 256), voxels at or above the density limit

    def part(self, regions: slice | int, voxel_ml: float) -> LungPart:
        """The numbers of some regions together."""
        rows = slice(regions, regions + 1) if isinstance(regions, int) else regions
        voxels, sums, dense = self.voxels[rows], self.hu_sums[rows], self.dense[rows]
        lung, spot = int(voxels.sum()), int(voxels[:, 1:].sum())
        consolidation = int(dense[:, 1:].sum())
        return LungPart(
            lung_ml=lung * voxel_ml,
            infiltrate_ml=spot * voxel_ml,
            share_percent=100.0 * spot / lung if lung else None,
            ground_glass_ml=(spot - consolidation) * voxel_ml,
            consolidation_ml=consolidation * voxel_ml,
            lung_mean_hu=float(sums.sum() / lung) if lung else None,
            infiltrate_mean_hu=float(sums[:, 1:].sum() / spot) if spot else None,
        )


def tally(
    hu: NDArray[np.float32], region: NDArray[np.uint8], spot: NDArray[np.uint8], count: int, limit_hu: float
) -> Tally:
    """Count `count` regions (numbers 0 to count - 1) in arrays (i, j, k) of one shape.

    Args:
        hu: densities.
        region: which region a voxel belongs to; 0 for none.
        spot: infiltrate labels, 0 for none.
        count: regions, the outside included.
        limit_hu: density from which a voxel counts as dense.
    """
    shape = (count, 256)
    voxels, sums, dense = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.int64)
    for slab in slabs(region):
        where, marks = region[slab], spot[slab]
        chosen = np.flatnonzero((where != 0) | (marks != 0))
        code = where.ravel()[chosen].astype(np.intp) * 256 + marks.ravel()[chosen]
        values = hu[slab].ravel()[chosen]
        voxels += np.bincount(code, minlength=count * 256).reshape(shape)
        sums += np.bincount(code, weights=values, minlength=count * 256).reshape(shape)
        dense += np.bincount(code[values >= limit_hu], minlength=count * 256).reshape(shape)
    return Tally(voxels, sums, dense)


def slabs(array: NDArray[np.generic]) -> list[slice]:
    """Runs of planes of i with about `SLAB_VOXELS` voxels each."""
    step = max(1, SLAB_VOXELS // max(1, array[0].size if len(array) else 1))
    return [slice(start, start + step) for start in range(0, len(array), step)]


GROUND_GLASS_FROM_HU = -700.0  # Lung below counts as normal; our choice


@dataclass(frozen=True)
class DensityClasses:
    """A part of the lungs by density."""

    normal_ml: float  # below `GROUND_GLASS_FROM_HU`
    ground_glass_ml: float  # from there to the limit of consolidation
    consolidation_ml: float  # at or above it
    normal_percent: float | None  # of the part; None when there is no lung
    ground_glass_percent: float | None  # likewise
    consolidation_percent: float | None  # likewise


@dataclass(frozen=True)
class Densities:
    """Classes of both lungs and of each."""

    total: DensityClasses  # both lungs
    right: DensityClasses | None  # the right lung; None when sides are not known
    left: DensityClasses | None  # the left lung; likewise
    ground_glass_from_hu: float  # lower limit used
    consolidation_from_hu: float  # upper limit used


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
