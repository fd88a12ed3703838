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
