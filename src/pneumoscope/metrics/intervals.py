"""How sure a mean is: bootstrap intervals that draw patients, not slices.

Slices of one patient resemble each other; drawing them one by one would make intervals far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pneumoscope.errors import InputError

_BLOCK = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval.

    Attributes:
        mean: mean of all values; NaN when there are none.
        low: lower end; NaN with fewer than two patients: one patient says nothing about others.
        high: upper end; NaN likewise.
        n_patients: patients that gave at least one value.
        n_values: values averaged.
    """

    mean: float
    low: float
    high: float
    n_patients: int
    n_values: int


def bootstrap_interval(
    values_by_patient: Mapping[str, Sequence[float]], *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile bootstrap over patients of the mean over all their values.

    Each of `n` rounds draws as many patients as there are, with replacement, and averages all values of those drawn
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; the cluster form: a drawn patient
    brings all of its values). With one value per patient this is the mean over patients; with one per slice it is
    the papers' mean over slices. The result depends on the seed and the values, not on the mapping's order.

    Args:
        values_by_patient: scores of each patient; patients without values are left out.
        n: rounds.
        seed: seed of the draws.
        level: coverage, between 0 and 1.

    Raises:
        InputError: a value that is not finite (NaN is never averaged away), n < 1, or a level outside (0, 1).
    """
    if n < 1 or not 0 < level < 1:
        raise InputError(f"a bootstrap needs n >= 1 and a level between 0 and 1, got n={n}, level={level}")
    sums, counts = _sums(values_by_patient)
    patients, values = len(sums), int(counts.sum())
    if patients == 0:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    mean = float(sums.sum() / values)
    if patients == 1:
        return Interval(mean, math.nan, math.nan, 1, values)
    rng = np.random.default_rng(seed)
    rounds = max(1, _BLOCK // patients)
    means = []
    for start in range(0, n, rounds):
        drawn = rng.integers(0, patients, size=(min(rounds, n - start), patients))  # (rounds, patients)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), patients, values)


def _sums(values_by_patient: Mapping[str, Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of values of each patient that has any, in the order of their names."""
    sums, counts = [], []
    for patient in sorted(values_by_patient):
        values = np.asarray(values_by_patient[patient], dtype=np.float64)
        if values.ndim != 1 or not np.isfinite(values).all():
            raise InputError(f"scores must be a flat list of finite numbers, patient {patient!r} has {values.tolist()}")
        if values.size:
            sums.append(values.sum())
            counts.append(values.size)
    return np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.int64)
