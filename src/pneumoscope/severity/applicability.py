"""Whether the numbers mean what they say: signs in the scan of what the infiltrate model was not made for.

Each sign is measured in Hounsfield units and masks alone, on voxels of about 3 mm, and is a state with its sentence in
`severity.states`. None changes a number. The limits are our choice; docs/concepts/severity.md says on which scans they
were set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

STEP_MM = 3.0

METAL_HU, METAL_ML = 2500.0, 1.0
"""Denser than any bone; fewer millilitres are clips and calcium."""

CONTRAST_HU = 100.0
"""Blood without contrast medium has 30 to 60 HU."""

DENSE_LUNG_HU = -720.0
"""Median of lung without its infiltrate; -850 to -880 in full inspiration."""

DIFFUSE_PERCENT = 50.0

MASS_RADIUS_MM, SOLID_HU, AERATED_HU, AERATED_RIM = 10.0, -150.0, -650.0, 0.6
"""A ball of at least this radius of solid tissue, most of whose surroundings in the lung are aerated."""

REGION_RADIUS_MM = 15.0
"""A solid ball of this radius is a state whatever lies around it."""


def applicability_states(
    hu: NDArray[np.float32], lung: NDArray[np.bool_], infiltrate: NDArray[np.bool_], spacing_mm: tuple[float, ...]
) -> list[str]:
    """Signs found in the box of the lungs, arrays (i, j, k), RAS+; none without lung."""
    if not lung.any():
        return []
    found = []
    if np.count_nonzero(hu >= METAL_HU) * float(np.prod(spacing_mm)) / 1000 >= METAL_ML:
        found.append("metal_or_undiluted_contrast")
    steps = [max(1, round(STEP_MM / spacing)) for spacing in spacing_mm]
    thin = tuple(slice(step // 2, None, step) for step in steps)
    coarse_mm = tuple(step * spacing for step, spacing in zip(steps, spacing_mm, strict=True))
    hu, lung, infiltrate = np.clip(hu[thin], -1024, 3071), lung[thin], infiltrate[thin]
    if not lung.any():
        return found
    smooth = ndimage.uniform_filter(hu, 3)
    blood = blood_hu(smooth, lung, coarse_mm)
    if blood is not None and blood >= CONTRAST_HU:
        found.append("contrast_medium")
    healthy = lung & ~infiltrate
    if healthy.any() and np.median(hu[healthy]) > DENSE_LUNG_HU:
        found.append("lung_dense_throughout")
    if 100 * np.mean(infiltrate[lung]) > DIFFUSE_PERCENT:
        found.append("infiltrate_diffuse")
    return found + solid_states(smooth, lung, coarse_mm)


def blood_hu(smooth: NDArray[np.float32], lung: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float | None:
    """Density of heart and great vessels: of the denser part of what lies between the lungs, before the spine.

    None where less than 20 ml of soft tissue lies between the lungs.
    """
    before = np.logical_or.accumulate(lung, axis=0)
    behind = np.logical_or.accumulate(lung[::-1], axis=0)[::-1]
    between = ndimage.binary_erosion(before & behind & ~lung, np.ones((5, 3, 1)))
    rows = np.flatnonzero(lung.any(axis=(0, 2)))
    depth = rows[-1] - rows[0]
    between[:, : rows[0] + round(0.42 * depth)] = False  # spine
    between[:, rows[0] + round(0.85 * depth) :] = False  # sternum
    soft = smooth[between & (smooth > 0) & (smooth < 700)]
    return float(np.percentile(soft, 80)) if soft.size * float(np.prod(spacing_mm)) > 20_000 else None


def solid_states(smooth: NDArray[np.float32], lung: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> list[str]:
    """``mass_in_lung`` for a solid ball that borders mostly on aerated lung, else ``solid_region`` for a large one.

    Consolidation of pneumonia lies in ground-glass mostly, but tumours do as well, with collapse behind them. The chest
    wall and the diaphragm are outside of the mask.
    """
    solid = lung & (smooth > SOLID_HU)
    depth = ndimage.distance_transform_edt(np.pad(solid, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    pieces, _ = ndimage.label(depth >= MASS_RADIUS_MM)
    margin = [int(np.ceil((MASS_RADIUS_MM + 12) / step)) for step in spacing_mm]
    for piece, core in enumerate(ndimage.find_objects(pieces), 1):
        box = tuple(slice(max(0, c.start - m), c.stop + m) for c, m in zip(core, margin, strict=True))
        away = ndimage.distance_transform_edt(pieces[box] != piece, sampling=spacing_mm)
        rim = lung[box] & (away > MASS_RADIUS_MM + 4) & (away < MASS_RADIUS_MM + 12)
        if rim.any() and np.mean(smooth[box][rim] < AERATED_HU) >= AERATED_RIM:
            return ["mass_in_lung"]
    return ["solid_region"] if depth.max(initial=0) >= REGION_RADIUS_MM else []
