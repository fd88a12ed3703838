"""The baseline: multinomial logistic regression on a few hundred numbers, in NumPy and SciPy.

A network that hardly beats it has not shown that it sees disease. The penalty is chosen by the validation loss; the
same picture rows, splits and classes are used as for the networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError

Numbers = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Logistic:
    """A fitted regression.

    Attributes:
        weights: (features, classes), of standardised features.
        bias: (classes,).
        mean, deviation: of the training features (features,).
        penalty: the L2 weight it was fitted with.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    penalty: float

    def probability(self, x: Numbers) -> NDArray[np.float64]:
        """(n, classes) of features (n, features)."""
        logits = (np.asarray(x, np.float64) - self.mean) / self.deviation @ self.weights + self.bias
        return np.exp(_log_softmax(logits))


def fit_logistic(x: Numbers, y: NDArray[np.int64], n_classes: int, penalty: float) -> Logistic:
    """Minimise the mean cross-entropy plus penalty / 2 times the squared weights (the bias is free).

    Args:
        x: (n, features); standardised within, features that never change are left at 0.
        y: (n,) class numbers from 0.
        n_classes: how many there are.
        penalty: at least 0.

    Raises:
        InputError: no rows, or numbers of rows and classes that do not fit.
    """
    from scipy.optimize import minimize

    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) != len(y) or not len(x) or y.min() < 0 or y.max() >= n_classes:
        raise InputError(f"a regression needs rows and their classes below {n_classes}, got {x.shape} and {len(y)}")
    mean, spread = x.mean(axis=0), x.std(axis=0)
    deviation = np.where(spread > 1e-9, spread, 1.0)
    standard = (x - mean) / deviation
    target = np.eye(n_classes)[y]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, bias = _unpack(flat, x.shape[1], n_classes)
        logp = _log_softmax(standard @ weights + bias)
        gap = (np.exp(logp) - target) / len(x)
        value = -float((target * logp).sum()) / len(x) + penalty / 2 * float((weights**2).sum())
        return value, np.concatenate([(standard.T @ gap + penalty * weights).ravel(), gap.sum(axis=0)])

    start = np.zeros((x.shape[1] + 1) * n_classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    weights, bias = _unpack(found.x, x.shape[1], n_classes)
    return Logistic(weights, bias, mean, deviation, penalty)


def choose_logistic(
    train: tuple[Numbers, NDArray[np.int64]],
    val: tuple[Numbers, NDArray[np.int64]],
    n_classes: int,
    penalties: Sequence[float],
) -> Logistic:
    """The fit on `train` with the lowest cross-entropy on `val`; the strongest penalty where `val` is empty."""
    if not penalties:
        raise InputError("give at least one penalty to choose from")
    if not len(val[1]):
        return fit_logistic(*train, n_classes, max(penalties))
    fits = [fit_logistic(*train, n_classes, penalty) for penalty in sorted(penalties, reverse=True)]
    losses = [_cross_entropy(fit.probability(val[0]), val[1]) for fit in fits]
    return fits[int(np.argmin(losses))]


def _cross_entropy(probability: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    return float(-np.log(np.maximum(probability[np.arange(len(y)), y], 1e-300)).mean())


def _unpack(
    flat: NDArray[np.float64], n_features: int, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cut = n_features * n_classes
    return flat[:cut].reshape(n_features, n_classes), flat[cut:]


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out
