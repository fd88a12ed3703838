from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.geometry import Grid


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def tilted():
    """4 x 5 x 6 voxels of 0.5 x 0.8 x 1.2 mm, turned by 10 degrees about two axes, RAS+ still nearest."""
    c, s = np.cos(0.17), np.sin(0.17)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.5, 0.8, 1.2])
    affine[:3, 3] = (-12.3456, 200.0, -98.7)
    return Grid((4, 5, 6), affine)


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
