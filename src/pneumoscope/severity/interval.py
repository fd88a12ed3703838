"""How sure the network itself is of the volume: the same scan cut at a stricter and at a looser probability.

It is: the volumes that the very same network gives when its probability is cut a quarter above and a quarter below the
model's threshold, with the same smallest piece, and the volume it expects (the sum of the probabilities).
It is not: a confidence interval. It knows nothing of errors of the lung mask, of scanners the network never saw, or
of how readers differ; a network that is sure and wrong gives a narrow interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope import components

STEP = 0.25  # How far the cut is moved up and down; our choice


@dataclass(frozen=True)
class Interval:
    """Infiltrate of both lungs at three cuts of the probability."""

    low_ml: float  # at the stricter cut; at most the reported volume
    high_ml: float  # at the looser cut; at least the reported volume
    expected_ml: float  # sum of the probabilities, times the volume of a voxel
    low_percent: float | None  # of the lungs; None when there is no lung
    high_percent: float | None  # likewise
    expected_percent: float | None  # likewise
    threshold: float  # the model's
    strict: float  # the stricter cut
    loose: float  # the looser cut


@dataclass(frozen=True, eq=False)
class ProbabilityMap:
    """What a network thinks of each voxel."""

    values: NDArray[np.uint8]  # (i, j, k) uint8, probability times 255
    threshold: float = 0.5  # from which the model marks infiltrate
    smallest_ml: float = 0.0  # smaller pieces are dropped


def volume_interval(
    probability: ProbabilityMap, lung: NDArray[np.bool_], values: NDArray[np.uint8], voxel_ml: float
) -> Interval:
    """The interval inside the lungs.

    Args:
        probability: threshold and smallest piece; its `values` are not used.
        lung: (i, j, k).
        values: (i, j, k) the probability times 255 of the same voxels.
        voxel_ml: volume of a voxel.
    """
    strict = min(probability.threshold + STEP, (1 + probability.threshold) / 2)
    loose = max(probability.threshold - STEP, probability.threshold / 2)
    inside = np.where(lung, values, np.uint8(0))
    low, high = (_volume(inside, cut, probability.smallest_ml, voxel_ml) for cut in (strict, loose))
    expected = float(inside.sum(dtype=np.int64)) / 255 * voxel_ml
    whole = np.count_nonzero(lung) * voxel_ml
    low_percent, high_percent, expected_percent = (100 * v / whole if whole else None for v in (low, high, expected))
    return Interval(
        low, high, expected, low_percent, high_percent, expected_percent, probability.threshold, strict, loose
    )


def _volume(values: NDArray[np.uint8], cut: float, smallest_ml: float, voxel_ml: float) -> float:
    found = components.without_small(values >= np.ceil(cut * 255), smallest_ml / voxel_ml)
    return float(np.count_nonzero(found)) * voxel_ml
