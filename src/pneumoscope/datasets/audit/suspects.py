"""Reader against model: regions that a model is sure of and nobody drew, and drawn lesions it sees nothing of.

Arrays in, findings out; the model itself is run elsewhere. A finding here says that two opinions differ, not who
is right (Maganaris 2022a, section on faults and figure 7: only a second radiologist can tell).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.datasets.audit.rules import AuditFinding, AuditRules, spotted
from pneumoscope.geometry import Grid


def differences(
    case: str,
    drawn: NDArray[np.bool_],
    found: NDArray[np.bool_],
    probability: NDArray[np.uint8],
    lung: NDArray[np.bool_],
    grid: Grid,
    rules: AuditRules,
) -> Iterator[AuditFinding]:
    """Differences between reader and model, the surest first after ranking.

    Args:
        case: its name.
        drawn: (i, j, k) what the reader drew.
        found: (i, j, k) what the model found.
        probability: (i, j, k) the model's probability times 255, 0 outside the lungs.
        lung: (i, j, k) where the model was asked; what was drawn elsewhere is not compared.
        grid: of the scan.
        rules: thresholds.
    """
    voxel_ml = grid.voxel_volume_ml
    near = drawn
    for axis, step in enumerate(grid.spacing_mm):
        width = 2 * max(1, round(rules.crumb_mm / step)) + 1
        near = ndimage.maximum_filter1d(near.view(np.uint8), width, axis=axis, mode="constant").view(bool)
    for where in _pieces(found, rules.region_ml / voxel_ml):
        if near[tuple(where.T)].any():
            continue
        sure = float(probability[tuple(where.T)].mean()) / 255
        if sure >= rules.sure and _depth_mm(where, grid) >= rules.region_depth_mm:
            ml = len(where) * voxel_ml
            nothing = f"nothing is drawn within {rules.crumb_mm:.0f} mm"
            detail = f"the model is {sure:.0%} sure of {ml:.1f} ml of infiltrate, {nothing}"
            yield spotted(case, "missing-annotation", "warning", detail, where, grid, confidence=sure)
    for where in _pieces(drawn, rules.region_ml / voxel_ml):
        asked = lung[tuple(where.T)]
        highest = float(probability[tuple(where.T)].max()) / 255
        if highest < rules.unseen and asked.mean() > 0.5:
            ml = len(where) * voxel_ml
            detail = f"a drawn lesion of {ml:.1f} ml in which the model's probability stays below {highest:.0%}"
            yield spotted(case, "unseen-lesion", "note", detail, where, grid, confidence=1 - highest)


def _depth_mm(where: NDArray[np.integer], grid: Grid) -> float:
    """How far the innermost voxel of a region lies from its outline, within its slice."""
    low = where.min(axis=0) - 1
    block = np.zeros(where.max(axis=0) - low + 2, bool)
    block[tuple((where - low).T)] = True
    x_mm, y_mm, _ = grid.spacing_mm
    flat = (ndimage.distance_transform_edt(block[:, :, k], (x_mm, y_mm)).max() for k in range(block.shape[2]))
    return float(max(flat))


def _pieces(mask: NDArray[np.bool_], least: float) -> Iterator[NDArray[np.integer]]:
    """Voxel indices of the connected pieces (26 neighbours) of at least so many voxels."""
    if not mask.any():
        return
    import cc3d

    numbered = cc3d.connected_components(mask, connectivity=26)
    sizes = np.bincount(numbered.ravel())
    for label, region in enumerate(ndimage.find_objects(numbered), start=1):
        if region is not None and sizes[label] >= least:
            yield np.argwhere(numbered[region] == label) + [axis.start for axis in region]
