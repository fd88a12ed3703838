"""Scores of a classifier: confusion, accuracy, precision, recall, F1 per class and averaged, intervals over patients.

Rows of a confusion matrix are the truth, columns what was said. "Macro" is the plain mean over classes (Katsamenis et
al. 2020 do not say which mean they print; on nearly balanced classes they hardly differ). A class without a single
picture is left out of macro means; a class never said has precision 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        precision, recall, f1: macro means over classes that have pictures.
        balanced_accuracy: the same as macro recall, under the name many use.
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

    @property
    def balanced_accuracy(self) -> float:
        """Macro recall."""
        return self.recall


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
