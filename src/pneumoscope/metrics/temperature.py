"""Probabilities of several classes that mean what they say: one temperature for all logits (Guo et al. 2017)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError

RANGE = (0.05, 20.0)
"""Between these a temperature is looked for."""

_GOLDEN = (math.sqrt(5) - 1) / 2


def softmax_at(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """(n, classes) probabilities of logits divided by a temperature; the order of the classes stays.

    Raises:
        InputError: a temperature that is not positive and finite, or logits that are not (n, classes).
    """
    values = np.asarray(logits, np.float64)
    if not (temperature > 0 and math.isfinite(temperature)) or values.ndim != 2:
        raise InputError(
            f"a softmax needs (n, classes) logits and a positive temperature, got {values.shape}, {temperature}"
        )
    scaled = values / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-math.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def nll(logits: NDArray[np.floating], labels: NDArray[np.integer], temperature: float = 1.0) -> float:
    """Mean of -log(probability of the true class), in nats; NaN of nothing."""
    if not len(logits):
        return math.nan
    scaled = np.asarray(logits, np.float64) / temperature
    top = scaled.max(axis=1, keepdims=True)
    whole = top[:, 0] + np.log(np.exp(scaled - top).sum(axis=1))
    return float(np.mean(whole - scaled[np.arange(len(labels)), labels]))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The temperature in `RANGE` with the smallest `nll`, by golden section over its logarithm; 1.0 of nothing.

    The loss has one minimum over 1 / temperature, hence over its logarithm too. Where every picture is told right
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
    said, right = probability.max(axis=1), probability.argmax(axis=1) == labels
    place = np.minimum((said * bins).astype(np.intp), bins - 1)
    gap = np.bincount(place, weights=said - right, minlength=bins)
    return float(np.abs(gap).sum() / len(said))
