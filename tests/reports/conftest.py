from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def small_case(tilted, rng):
    """A 4 x 5 x 6 scan with two lungs, an infiltrate in slices 1 to 4, and a reader's mask that differs from it."""
    from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

    hu = rng.normal(-700, 150, tilted.shape).astype(np.float32)
    lungs = np.zeros(tilted.shape, np.uint8)
    lungs[1, 1:4, 1:5], lungs[2, 1:4, 1:5] = 2, 1
    spots = np.zeros_like(lungs)
    spots[2, 2:4, 1:5] = 1
    drawn = np.zeros_like(lungs)
    drawn[2, 1:3, 1:5] = 1
    return {
        "volume": Volume(hu, tilted, tilted, case="case-7", source={"format": "NIfTI"}),
        "lungs": Mask(lungs, tilted, LUNG_LABELS),
        "infiltrate": Mask(spots, tilted, INFILTRATE_LABEL),
        "truth": Mask(drawn, tilted, INFILTRATE_LABEL),
    }
