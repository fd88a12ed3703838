"""How unsure a segmentation is, voxel by voxel, from class probabilities and from how far votes lie apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def entropy(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shannon entropy of class probabilities (classes, ...), divided by its largest value: 0 sure, 1 a coin toss.

    Zero probabilities count 0 (the limit of p log p). Of a single class the entropy is 0.
    """
    classes = probability.shape[0]
    out = np.zeros(probability.shape[1:], np.float32)
    if classes < 2:
        return out
    for p in probability:
        out -= p * np.log(np.maximum(p, np.float32(1e-12)))
    out /= np.float32(np.log(classes))
    return np.clip(out, 0, 1, out=out)


def variance(votes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Spread of votes (votes, classes, ...): mean squared distance to their mean, summed over classes; in [0, 1].

    One vote has none. Two votes for different classes with certainty have 0.5, as many as classes 1 - 1/classes.
    """
    mean = votes.mean(axis=0)
    spread: NDArray[np.float32] = np.square(votes - mean).mean(axis=0).sum(axis=0)
    return spread


def to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] as 0 to 255, rounded; for maps that are written beside a mask."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
