"""Scores of decisions (confusion, accuracy, precision, recall, F1, intervals) and of probabilities (calibration, ROC).

Rows of a confusion matrix are the truth, columns what was said. "Macro" is the plain mean over classes (Katsamenis et
al. 2020 do not say which mean they print; on nearly balanced classes they hardly differ). A class without a single
picture is left out of macro means; a class never said has precision 0.

A network that says 0.8 of many voxels is calibrated when 8 of 10 of them are infiltrate. All of that is computed from
sums per bin, and sums add up over slices and patients: a patient is drawn again by adding its sums again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.metrics.intervals import Interval

IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class ClassScores:
    """One class against the others."""

    # precision, recall, f1: NaN when the class has no picture (precision and F1: and was never said)
    precision: float
    recall: float
    f1: float
    support: int  # pictures of the class


@dataclass(frozen=True)
class Classification:
    """Scores of a list of decisions.

    Attributes:
        accuracy: share of right decisions; NaN without pictures.
        precision, recall, f1: macro means over classes that have pictures; recall is the balanced accuracy.
        per_class: by class name.
        confusion: rows truth, columns decision, in the order of `classes`.
        classes: their names.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    per_class: Mapping[str, ClassScores]
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]


def confusion_matrix(truth: IntArray, said: IntArray, n_classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts; rows truth, columns decision.

    Raises:
        InputError: lists of different length, or a class outside 0 .. n_classes - 1.
    """
    truth, said = np.asarray(truth), np.asarray(said)
    if truth.shape != said.shape or truth.ndim != 1:
        raise InputError(f"truth and decisions must be lists of one length, got {truth.shape} and {said.shape}")
    for what, values in (("truth", truth), ("decisions", said)):
        if values.size and (values.min() < 0 or values.max() >= n_classes):
            raise InputError(f"{what} hold classes outside 0 to {n_classes - 1}")
    flat = np.bincount(truth.astype(np.int64) * n_classes + said.astype(np.int64), minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes)


def score_confusion(confusion: NDArray[np.int64], classes: Sequence[str]) -> Classification:
    """Scores of a confusion matrix."""
    right = np.diag(confusion).astype(float)
    drawn, said = confusion.sum(axis=1), confusion.sum(axis=0)
    recall = _ratio(right, drawn)
    precision = np.where(said > 0, _ratio(right, said), np.where(drawn > 0, 0.0, np.nan))
    f1 = np.where(drawn + said > 0, _ratio(2 * right, drawn + said), np.nan)
    there = drawn > 0
    per_class = {
        name: ClassScores(float(precision[i]), float(recall[i]), float(f1[i]), int(drawn[i]))
        for i, name in enumerate(classes)
    }
    total = int(confusion.sum())

    def macro(values: NDArray[np.float64]) -> float:
        return float(np.mean(values[there])) if there.any() else float("nan")

    return Classification(
        accuracy=float(right.sum() / total) if total else float("nan"),
        precision=macro(precision),
        recall=macro(recall),
        f1=macro(f1),
        per_class=per_class,
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
        classes=tuple(classes),
    )


def score_decisions(truth: IntArray, said: IntArray, classes: Sequence[str]) -> Classification:
    """Scores of decisions (n,) against the truth (n,), both as places in `classes`."""
    return score_confusion(confusion_matrix(truth, said, len(classes)), classes)


def bootstrap_scores(
    truth: IntArray,
    said: IntArray,
    patients: Sequence[str],
    classes: Sequence[str],
    *,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals of accuracy and macro scores by drawing patients with all of their pictures.

    Raises:
        InputError: lists of different length.
    """
    truth, said = np.asarray(truth), np.asarray(said)
    if not len(truth) == len(said) == len(patients):
        raise InputError("truth, decisions and patients differ in number")
    names = ("accuracy", "precision", "recall", "f1")
    whole = score_decisions(truth, said, classes)
    who, place = np.unique(np.asarray(patients, str), return_inverse=True)
    size = len(classes)
    by_patient = np.zeros((len(who), size * size), np.int64)
    np.add.at(by_patient, (place, truth.astype(np.int64) * size + said.astype(np.int64)), 1)
    if len(who) < 2:
        nan = float("nan")
        return {k: Interval(getattr(whole, k), nan, nan, len(who), len(truth)) for k in names}
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(who), np.full(len(who), 1 / len(who)), size=n)
    drawn = [score_confusion(c.reshape(size, size), classes) for c in weights @ by_patient]
    tail = 50 * (1 - level)
    found = {}
    for name in names:
        low, high = np.nanpercentile([getattr(d, name) for d in drawn], (tail, 100 - tail))
        found[name] = Interval(getattr(whole, name), float(low), float(high), len(who), len(truth))
    return found


def _ratio(part: NDArray[np.floating[Any]], whole: NDArray[Any]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


FloatArray = NDArray[np.floating]

SMALLEST = 1e-6  # Probabilities are kept this far from 0 and 1 before a logarithm is taken of them


@dataclass(frozen=True, eq=False)
class Reliability:
    """What was said and what was true, by bins of equal width of the probability. Add them with ``+``."""

    count: NDArray[np.int64]  # (bins,) voxels whose probability lies in the bin
    said: NDArray[np.float64]  # (bins,) sum of their probabilities
    true: NDArray[np.int64]  # (bins,) how many of them are infiltrate
    squared: float  # sum over all voxels of (probability - truth) squared

    def __add__(self, other: Reliability) -> Reliability:
        if len(self.count) != len(other.count):
            raise InputError(f"reliabilities of {len(self.count)} and {len(other.count)} bins cannot be added")
        return Reliability(
            self.count + other.count, self.said + other.said, self.true + other.true, self.squared + other.squared
        )

    @property
    def n(self) -> int:
        """Voxels counted."""
        return int(self.count.sum())

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(bins,) mean probability per bin; NaN in empty bins."""
        return _divided(self.said, self.count)

    @property
    def frequency(self) -> NDArray[np.float64]:
        """(bins,) share of infiltrate per bin; NaN in empty bins."""
        return _divided(self.true, self.count)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over voxels of the gap between bin mean and bin frequency, in [0, 1].

        Naeini et al. 2015 (AAAI), in the binary form of Guo et al. 2017 (ICML), equation 3, with the probability of
        infiltrate in place of the confidence of the winning class. NaN without voxels.
        """
        return float(np.abs(self.said - self.true).sum() / self.n) if self.n else math.nan

    @property
    def brier(self) -> float:
        """Brier score: mean squared gap between probability and truth, in [0, 1]; NaN without voxels."""
        return self.squared / self.n if self.n else math.nan

    @property
    def overconfidence(self) -> float:
        """Mean probability minus share of infiltrate: above 0 the network says more infiltrate than there is."""
        return float((self.said.sum() - self.true.sum()) / self.n) if self.n else math.nan


def empty_reliability(bins: int) -> Reliability:
    """A `Reliability` of no voxels, to add to."""
    return Reliability(np.zeros(bins, np.int64), np.zeros(bins), np.zeros(bins, np.int64), 0.0)


def reliability(probability: FloatArray, truth: NDArray[np.bool_], bins: int = 15) -> Reliability:
    """Sums per bin for flat or shaped arrays of one shape; bin k holds [k / bins, (k + 1) / bins), the last one 1 too.

    Empty arrays give zeros.

    Raises:
        InputError: shapes that differ, probabilities outside [0, 1] or not finite, or fewer than 2 bins.
    """
    if bins < 2:
        raise InputError(f"a reliability needs at least 2 bins, got {bins}")
    p, y = _checked(probability, truth)
    place = np.minimum((p * bins).astype(np.intp), bins - 1)
    return Reliability(
        np.bincount(place, minlength=bins).astype(np.int64),
        np.bincount(place, weights=p, minlength=bins).astype(np.float64),
        np.bincount(place[y], minlength=bins).astype(np.int64),
        float(((p - y) ** 2).sum()),
    )


def rescaled(probability: FloatArray, temperature: float) -> NDArray[np.float64]:
    """Probabilities after dividing their logits by `temperature` (Guo et al. 2017, section 4.2).

    Above 1 they move towards 0.5, below 1 away from it; what is above 0.5 stays above, so a mask cut at 0.5 is
    unchanged.

    Raises:
        InputError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise InputError(f"a temperature must be positive, got {temperature}")
    return 1 / (1 + np.exp(-logits(probability) / temperature))


def logits(probability: FloatArray) -> NDArray[np.float64]:
    """log(p / (1 - p)), with p kept `SMALLEST` away from 0 and 1."""
    p = np.clip(np.asarray(probability, np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(p / (1 - p))


def log_loss(probability: FloatArray, truth: NDArray[np.bool_], weight: FloatArray | None = None) -> float:
    """Mean of -log(probability of what is true), in nats; weighted where weights are given. NaN of nothing."""
    p, y = _checked(probability, truth)
    if not p.size:
        return math.nan
    p = np.clip(p, SMALLEST, 1 - SMALLEST)
    return float(np.average(-np.log(np.where(y, p, 1 - p)), weights=None if weight is None else np.ravel(weight)))


@dataclass(frozen=True, eq=False)
class Roc:
    """How well a score tells the marked from the others."""

    auc: float  # chance that a marked one scores higher than another (ties count half); NaN when a group is empty
    low: float  # lower end of its interval, see `auc_interval`; NaN when a group is empty
    high: float  # upper end
    false_positive: NDArray[np.float64]  # share of the others above each threshold, from 0 to 1
    true_positive: NDArray[np.float64]  # share of the marked above it
    n_marked: int  # how many are marked
    n_others: int  # how many are not


def roc(scores: FloatArray, marked: NDArray[np.bool_], *, level: float = 0.95) -> Roc:
    """The ROC curve of a score, its area, and an interval of the area.

    The area is the Mann-Whitney statistic (Hanley and McNeil 1982, Radiology 143, 29), the interval that of Newcombe
    2006 (Statistics in Medicine 25, 559, method 5), which stays wide where few scans are separated without a mistake:
    a bootstrap would call that certain. One score per independent thing: a scan or a patient, never a slice.

    Raises:
        InputError: arrays that are not flat and of one length, scores that are not finite, or a level outside (0, 1).
    """
    values, flags = np.asarray(scores, np.float64), np.asarray(marked, bool)
    if values.ndim != 1 or values.shape != flags.shape or not np.isfinite(values).all():
        raise InputError("a ROC curve needs one finite score and one mark for each scan")
    inside, outside = values[flags], values[~flags]
    if not inside.size or not outside.size:
        nothing = np.array([0.0, 1.0])
        return Roc(math.nan, math.nan, math.nan, nothing, nothing, inside.size, outside.size)
    steps = np.concatenate([[np.inf], np.unique(values)[::-1]])
    auc = float(_wins(inside, outside).mean())
    low, high = auc_interval(auc, inside.size, outside.size, level=level)
    return Roc(
        auc,
        low,
        high,
        np.array([(outside >= step).mean() for step in steps]),
        np.array([(inside >= step).mean() for step in steps]),
        inside.size,
        outside.size,
    )


def auc_interval(auc: float, n_marked: int, n_others: int, *, level: float = 0.95) -> tuple[float, float]:
    """Newcombe's method 5: the areas whose own standard error reaches to the one found.

    The variance is Hanley and McNeil's, with the mean of both group sizes in place of each.

    Raises:
        InputError: an area outside [0, 1], an empty group, or a level outside (0, 1).
    """
    if not 0 <= auc <= 1 or min(n_marked, n_others) < 1 or not 0 < level < 1:
        raise InputError(f"no interval for an area of {auc} over {n_marked} and {n_others} scans at level {level}")
    z, middle = NormalDist().inv_cdf((1 + level) / 2), (n_marked + n_others) / 2 - 1

    def reach(area: float) -> float:
        spread = 1 + middle * ((1 - area) / (2 - area) + area / (1 + area))
        return z * math.sqrt(area * (1 - area) * spread / (n_marked * n_others))

    def end(wrong: float) -> float:
        """Between the area found (inside) and `wrong` (0 or 1, outside) by halving."""
        inside, outside = auc, wrong
        for _ in range(60):
            half = (inside + outside) / 2
            inside, outside = (half, outside) if abs(auc - half) <= reach(half) else (inside, half)
        return inside

    return end(0.0), end(1.0)


def _wins(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> NDArray[np.float64]:
    """(marked, others): 1 where the marked one scores higher, 0.5 where both score alike."""
    return (inside[:, None] > outside).astype(np.float64) + 0.5 * (inside[:, None] == outside)


def _divided(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _checked(probability: FloatArray, truth: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    p, y = np.asarray(probability), np.asarray(truth)
    if p.shape != y.shape or y.dtype != np.bool_:
        raise InputError(
            f"probabilities {p.shape} and a truth {y.shape} of type {y.dtype} do not fit: one boolean for each"
        )
    flat = p.ravel().astype(np.float64)
    if flat.size and not (flat.min() >= 0 and flat.max() <= 1):  # NaN fails as well
        raise InputError("probabilities must lie in [0, 1]")
    return flat, y.ravel()


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
