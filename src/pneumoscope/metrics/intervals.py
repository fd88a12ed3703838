"""How sure a mean or a difference is: bootstrap intervals that draw patients, and seeds, not slices.

Slices of one patient resemble each other; drawing them one by one would make intervals far too narrow. For the same
reason a difference between two models is drawn with both models on the same patients, and a mean over several trainings
draws the trainings too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pneumoscope.errors import InputError
from pneumoscope.metrics.overlap import Counts, SliceScores, dice, mean_over_infected

_BLOCK = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval."""

    mean: float  # mean of all values; NaN when there are none
    low: float  # lower end; NaN with fewer than two patients: one patient says nothing about others
    high: float  # upper end; NaN likewise
    n_patients: int  # patients that gave at least one value
    n_values: int  # values averaged


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
    _require_sense(n, level)
    return _over_patients(*_sums(values_by_patient), n, seed, level)


def paired_difference(
    after: Mapping[str, Sequence[float]],
    before: Mapping[str, Sequence[float]],
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of `after` minus mean of `before`, on the same patients and with as many values of each.

    Every round draws patients and takes both models' values of those drawn (paired bootstrap; Efron and Tibshirani
    1993, chapter 16), so what makes a patient hard for both cancels. An interval that leaves out 0 is a difference that
    other patients of the same kind would be expected to show again.

    Raises:
        InputError: as `bootstrap_interval`; patients, or numbers of values, that differ between the two.
    """
    _require_sense(n, level)
    if {p for p, v in after.items() if len(v)} != {p for p, v in before.items() if len(v)}:
        raise InputError("a paired difference needs the same patients on both sides")
    now, counts = _sums(after)
    then, other = _sums(before)
    if (counts != other).any():
        raise InputError("a paired difference needs as many values of each patient on both sides")
    return _over_patients(now - then, counts, n, seed, level)


def unpaired_difference(
    one: Mapping[str, Sequence[float]],
    other: Mapping[str, Sequence[float]],
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of `one` less mean of `other`, of different patients, with an interval that draws within each group.

    Each round draws as many patients of each group as it has, with replacement, each bringing all its values
    (stratified bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.2).

    Returns:
        The difference; NaN when a group is empty, ends NaN when a group has one patient. `n_patients` and `n_values`
        count both groups together.

    Raises:
        InputError: as `bootstrap_interval`; a patient in both groups.
    """
    _require_sense(n, level)
    both = {p for p, v in one.items() if len(v)} & {p for p, v in other.items() if len(v)}
    if both:
        raise InputError(f"groups that are compared unpaired must not share patients, {sorted(both)[0]!r} is in both")
    sides = [_sums(side) for side in (one, other)]
    patients, values = (sum(int(count) for count in counts) for counts in zip(
        *((len(sums), counts.sum()) for sums, counts in sides), strict=True
    ))  # fmt: skip
    if not all(len(sums) for sums, _ in sides):
        return Interval(math.nan, math.nan, math.nan, patients, values)
    first, second = (sums.sum() / counts.sum() for sums, counts in sides)
    if min(len(sums) for sums, _ in sides) == 1:
        return Interval(float(first - second), math.nan, math.nan, patients, values)
    rng = np.random.default_rng(seed)
    means = []
    for sums, counts in sides:
        weight = _weights(rng, len(sums), n)
        means.append((weight @ sums) / (weight @ counts))
    return Interval(float(first - second), *_ends(means[0] - means[1], level), patients, values)


PerPatient = Mapping[str, Sequence[float]]


def seeds_and_patients(values: Sequence[PerPatient], *, n: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """`over_seeds_and_sets` for one set: per training the values of each patient."""
    return over_seeds_and_sets([[one] for one in values], n=n, seed=seed, level=level)


def over_seeds_and_sets(
    values: Sequence[Sequence[PerPatient]], *, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean over trainings of the mean over sets of the mean over values, drawing trainings and patients.

    Each round draws trainings, and within each set its patients: with the same patients in every training once for all
    of them (crossed; the pigeonhole bootstrap, Owen 2007, The Annals of Applied Statistics 1, 386), with other
    patients in each again for each training (nested). Sets count alike and are not drawn: they are not a sample of
    hospitals. One training of one set gives the interval of `bootstrap_interval`, up to the draws.

    Args:
        values: per training, per set, the values of each patient; sets without values in any training are left out, as
            are trainings without values.
        n: rounds.
        level: coverage.

    Returns:
        `Interval` with the number of different patients, those of different sets being different, and of all values.

    Raises:
        InputError: as `bootstrap_interval`; trainings that differ in the number of sets.
    """
    _require_sense(n, level)
    if len({len(sets) for sets in values}) > 1:
        raise InputError("every training needs a value list for each set")
    trainings = [[{p: v for p, v in one.items() if len(v)} for one in sets] for sets in values]
    used = [j for j in range(len(trainings[0]) if trainings else 0) if all(sets[j] for sets in trainings if any(sets))]
    trainings = [[sets[j] for j in used] for sets in trainings if any(sets)]
    if not used or not trainings:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    rng = np.random.default_rng(seed)
    means, drawn = np.empty((len(trainings), len(used))), np.empty((len(trainings), len(used), n))
    for j in range(len(used)):
        column = [sets[j] for sets in trainings]
        crossed = all(set(one) == set(column[0]) for one in column)
        weight = _weights(rng, len(column[0]), n)
        for k, one in enumerate(column):
            sums, counts = _sums(one)
            weight = weight if crossed else _weights(rng, len(sums), n)
            means[k, j] = sums.sum() / counts.sum()
            drawn[k, j] = (weight @ sums) / (weight @ counts)
    patients = sum(len({p for sets in trainings for p in sets[j]}) for j in range(len(used)))
    total = sum(len(v) for sets in trainings for one in sets for v in one.values())
    if patients <= len(used) and len(trainings) == 1:
        return Interval(float(means.mean()), math.nan, math.nan, patients, total)
    chosen = _weights(rng, len(trainings), n) / len(trainings)  # (n, trainings)
    rounds = (chosen.T * drawn.mean(axis=1)).sum(axis=0)
    return Interval(float(means.mean()), *_ends(rounds, level), patients, total)


def _weights(rng: np.random.Generator, things: int, n: int) -> np.ndarray:
    """(n, things) how often each thing is drawn in each round of as many draws as there are things."""
    return rng.multinomial(things, np.full(things, 1 / things), size=n).astype(np.float64)


def _require_sense(n: int, level: float) -> None:
    if n < 1 or not 0 < level < 1:
        raise InputError(f"a bootstrap needs n >= 1 and a level between 0 and 1, got n={n}, level={level}")


def _over_patients(sums: np.ndarray, counts: np.ndarray, n: int, seed: int, level: float) -> Interval:
    """Mean of all values, given by their sum and number per patient, with a percentile interval over patients."""
    patients, values = len(sums), int(counts.sum())
    if patients == 0:
        return Interval(math.nan, math.nan, math.nan, 0, 0)
    if patients == 1:
        return Interval(float(sums.sum() / values), math.nan, math.nan, 1, values)
    rng, rounds, means = np.random.default_rng(seed), max(1, _BLOCK // patients), []
    for start in range(0, n, rounds):
        drawn = rng.integers(0, patients, size=(min(rounds, n - start), patients))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return Interval(float(sums.sum() / values), *_ends(np.concatenate(means), level), patients, values)


def _ends(rounds: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(rounds, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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


def summarise(
    label: str, rows: Sequence[Mapping[str, Any]], slices: Mapping[str, Sequence[SliceScores]]
) -> dict[str, Any]:
    """Means over cases and over slices of one label. Intervals take a case for a patient."""
    own = [row for row in rows if row["label"] == label]
    counts = sum((Counts(row["tp"], row["fp"], row["fn"], row["tn"]) for row in own), Counts())
    per_case = {
        name: asdict(bootstrap_interval({row["case"]: [row[name]] for row in own}))
        for name in ("dice", "iou", "precision", "recall")
    }
    infected = {case: [s.f1 for s in scores if s.infected] for case, scores in slices.items()}
    f1 = bootstrap_interval(infected)
    every = mean_over_infected([s for scores in slices.values() for s in scores])
    return {
        "cases": len(own),
        "n_both_empty": sum(row["empty"] == "both" for row in own),
        "n_missed": sum(row["empty"] == "prediction" for row in own),
        "n_false_alarms": sum(row["empty"] == "reference" for row in own),
        **{name: {key: value for key, value in mean.items() if key in _KEPT} for name, mean in per_case.items()},
        **_summarise_surfaces(own),
        "dice_median": float(np.median([row["dice"] for row in own])),
        "dice_pooled": dice(counts),
        "slice_mean": {**asdict(every), "f1_interval": [f1.low, f1.high]},
    }


def _summarise_surfaces(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of NSD and distances over cases with a surface, finite distances only; medians over all such cases."""
    scored = [row for row in rows if not math.isnan(row["nsd"])]
    tolerances = {row["surface_tolerance_mm"] for row in rows}
    summary: dict[str, Any] = {
        "surface_tolerance_mm": tolerances.pop() if len(tolerances) == 1 else None,
        "n_infinite": sum(math.isinf(row["hd95"]) for row in scored),
    }
    for name in ("nsd", "hd95", "msd"):
        values = {row["case"]: [row[name]] for row in scored if math.isfinite(row[name])}
        mean = asdict(bootstrap_interval(values))
        median = float(np.median([row[name] for row in scored])) if scored else math.nan
        summary[name] = {**{key: mean[key] for key in _KEPT}, "median": median}
    return summary


_KEPT = ("mean", "low", "high")
