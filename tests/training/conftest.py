"""A toy problem a two-level U-Net learns in a second: mark the bright blob."""

import numpy as np
import pytest

from pneumoscope.training.data import ArraySource


def blobs(n: int, seed: int, augment=None) -> ArraySource:
    rng = np.random.default_rng(seed)
    images = (rng.random((n, 2, 16, 24)) * 80).astype(np.uint8)
    targets = np.zeros((n, 2, 16, 24), np.uint8)
    for i in range(n):
        top, left = rng.integers(0, 10), rng.integers(0, 18)
        images[i, 0, top : top + 5, left : left + 5] += 150
        targets[i, 0, top : top + 5, left : left + 5] = 1
    images[:, 1] = 255
    targets[:, 1] = 1 - targets[:, 0]
    return ArraySource(images, targets, [f"case{i:02d}/0" for i in range(n)], augment)


@pytest.fixture
def toy():
    return blobs(18, 0), blobs(7, 1)
