"""One temperature for all classes of a classifier, fitted on validation logits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

RANGE = (0.05, 20.0)
"""Between these a temperature is searched."""

_GOLDEN = (math.sqrt(5) - 1) / 2


def nll(logits: NDArray[np.floating], labels: NDArray[np.integer], temperature: float = 1.0) -> float:
    """Mean of -log(probability of the true class), in nats; NaN of nothing."""
    if not len(logits):
        return math.nan
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(scaled - top).sum(axis=1))
    return float(np.mean(log_sum - scaled[np.arange(len(labels)), labels]))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature in `RANGE` with the smallest `nll`, by golden section over its logarithm; 1.0 of nothing.

    The loss has one minimum over 1 / temperature, hence over its logarithm too. Where every picture is classified
    without an error the best temperature is 0, and the lower end of `RANGE` comes back.
    """
    if not len(logits):
        return 1.0
    low, high = (math.log(v) for v in RANGE)
    for _ in range(60):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if nll(logits, labels, math.exp(left)) <= nll(logits, labels, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def expected_error(probability: NDArray[np.floating], labels: NDArray[np.integer], bins: int = 15) -> float:
    """Expected calibration error of the winning class over bins of equal width (Guo et al. 2017, equation 3).

    NaN of nothing.
    """
    if not len(probability):
        return math.nan
    highest, right = probability.max(axis=1), probability.argmax(axis=1) == labels
    bin_of = np.minimum((highest * bins).astype(np.intp), bins - 1)
    gap = np.bincount(bin_of, weights=highest - right, minlength=bins)
    return float(np.abs(gap).sum() / len(highest))
