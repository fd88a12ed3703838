"""A follow-up that was laid over its baseline: numbers, masks and what a picture needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.preprocess.registration import WorkingCopy
from pneumoscope.severity.change import Change
from pneumoscope.volume import Mask


@dataclass(frozen=True, eq=False)
class Aligned:
    """A follow-up laid over its baseline.

    Attributes:
        change: the numbers.
        fates: labels of `FATES` on the baseline's grid.
        infiltrate: the follow-up's infiltrate on the baseline's grid.
        baseline: the baseline's working copy, for pictures.
        followup_hu: (i, j, k) the follow-up on the grid of that copy.
    """

    change: Change
    fates: Mask
    infiltrate: Mask
    baseline: WorkingCopy
    followup_hu: NDArray[np.float32]
