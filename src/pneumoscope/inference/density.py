"""What Hounsfield units forbid: infiltrate that is no denser than the patient's own aerated lung.

A network that learnt from equalised 8-bit slices sees contrast, not density, and can take the back of a healthy lung,
a little denser by its own weight, for ground-glass. Where Hounsfield units are at hand, they decide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMOOTH_MM = 5.0
"""Width of the in-plane mean over which density is judged; takes out noise and thin vessels."""

LOWEST_HU, HIGHEST_HU = -800.0, -650.0
"""The limit never leaves this range: ground-glass begins somewhere from -800 to -650 HU in published thresholds, and a
lung so ill that its commonest density is infiltrate must not hide it."""

_BIN_HU = 10.0


def typical_lung_hu(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> float | None:
    """The commonest density of lung voxels from -1000 to -300 HU (peak of a smoothed histogram); None without any."""
    edges = np.arange(-1000.0, -300.0 + _BIN_HU, _BIN_HU)
    counts, _ = np.histogram(hu[lungs], edges)
    if not counts.any():
        return None
    smooth = np.convolve(counts, np.ones(7) / 7, mode="same")
    return float(edges[int(np.argmax(smooth))] + _BIN_HU / 2)


def density_limit_hu(hu: NDArray[np.float32], lungs: NDArray[np.bool_], above_hu: float) -> float:
    """Density from which a voxel may be infiltrate: so much above the typical lung, within LOWEST_HU and HIGHEST_HU.

    Without aerated lung the limit is LOWEST_HU.
    """
    typical = typical_lung_hu(hu, lungs)
    return LOWEST_HU if typical is None else float(np.clip(typical + above_hu, LOWEST_HU, HIGHEST_HU))


def dense_enough(
    stack_hu: NDArray[np.float32], inside: NDArray[np.bool_], limit_hu: float, spacing_mm: tuple[float, float]
) -> NDArray[np.bool_]:
    """Lung voxels of slices (n, h, w) whose in-plane mean over SMOOTH_MM reaches the limit.

    The mean is over lung voxels only, so that the chest wall does not make a rim of the lung dense. `spacing_mm` is
    (i, j).
    """
    import cv2

    columns, rows = (2 * max(0, round((SMOOTH_MM / step - 1) / 2)) + 1 for step in spacing_mm)
    out = np.zeros(stack_hu.shape, bool)
    for k, (hu, lung) in enumerate(zip(stack_hu, inside, strict=True)):
        weight = lung.astype(np.float32)
        total = cv2.blur(np.where(lung, hu, np.float32(0)), (columns, rows))
        share = cv2.blur(weight, (columns, rows))
        out[k] = lung & (total >= limit_hu * share)
    return out
