"""How far two masks agree: four counts first, then pure functions of the counts.

One rule covers every empty case. All scores here are ratios; where the denominator counts nothing, the score is

- 1.0 when the other mask is empty as well: both readers say "nothing here", and they agree;
- 0.0 when the other mask is not: what was found has no counterpart.

==========  =========  ====  ===  =========  ======  ===
prediction  reference  Dice  IoU  precision  recall  F1
==========  =========  ====  ===  =========  ======  ===
empty       empty      1.0   1.0  1.0        1.0     1.0
not empty   empty      0.0   0.0  0.0        0.0     0.0
empty       not empty  0.0   0.0  0.0        0.0     0.0
==========  =========  ====  ===  =========  ======  ===

No score is ever NaN. Agreement about nothing is cheap, so it is marked: `Counts.empty` names the case, and
tables carry it beside the score. Code in the manner of Keras, with a small constant added to the denominator, gives 0.0
for the precision of a slice without prediction, and so do we whenever the reference holds infiltrate, that is, on every
slice the papers average over; the two differ only on slices where both masks are empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError

Empty = Literal["", "both", "prediction", "reference"]
BoolArray = NDArray[np.bool_]
_BLOCK_SLICES = 64


@dataclass(frozen=True)
class Counts:
    """Voxels (or pixels) by prediction and reference. Counts add: ``sum(per_slice, Counts())`` is the volume's."""

    tp: int = 0  # in both masks
    fp: int = 0  # in the prediction only
    fn: int = 0  # in the reference only
    tn: int = 0  # in neither

    def __post_init__(self) -> None:
        if min(self.tp, self.fp, self.fn, self.tn) < 0:
            raise InputError(f"counts must not be negative, got {self}")

    def __add__(self, other: Counts) -> Counts:
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def total(self) -> int:
        """All voxels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def referenced(self) -> int:
        """Voxels of the reference."""
        return self.tp + self.fn

    @property
    def empty(self) -> Empty:
        """Which mask holds nothing: ``both``, ``prediction``, ``reference``, or ``""`` for neither."""
        if self.predicted == 0:
            return "both" if self.referenced == 0 else "prediction"
        return "reference" if self.referenced == 0 else ""


def count(pred: BoolArray, ref: BoolArray) -> Counts:
    """Counts over two boolean arrays of the same shape, any number of dimensions.

    Raises:
        InputError: for other types than bool (a label map would be combined bit by bit), shapes that differ, and
            arrays without a single voxel.
    """
    require_masks(pred, ref)
    if pred.size == 0:
        raise InputError(f"masks of shape {pred.shape} hold no voxels to compare")
    return _count(pred, ref)


def count_slices(pred: BoolArray, ref: BoolArray) -> list[Counts]:
    """One `Counts` per slice of two boolean stacks (n, h, w); an empty list for n = 0.

    Raises:
        InputError: as `count`, and for arrays that are not (n, h, w).
    """
    require_masks(pred, ref)
    if pred.ndim != 3:
        raise InputError(f"slices are scored on stacks (n, h, w), got shape {pred.shape}")
    if len(pred) and pred[0].size == 0:
        raise InputError(f"slices of shape {pred.shape[1:]} hold no pixels to compare")
    counts = []
    for start in range(0, len(pred), _BLOCK_SLICES):  # axial views of a volume are strided: copied, they count fast
        block = slice(start, start + _BLOCK_SLICES)
        pair = (np.ascontiguousarray(pred[block]), np.ascontiguousarray(ref[block]))
        counts += [_count(p, r) for p, r in zip(*pair, strict=True)]
    return counts


def accuracy(counts: Counts) -> float:
    """Share of voxels on which both masks agree, (tp + tn) / all, in [0, 1].

    Raises:
        InputError: when nothing was counted.
    """
    if counts.total == 0:
        raise InputError("accuracy needs at least one voxel, got counts of nothing")
    return (counts.tp + counts.tn) / counts.total


def precision(counts: Counts) -> float:
    """Share of the prediction that the reference confirms, tp / (tp + fp), in [0, 1].

    Without prediction: 0.0, or 1.0 when the reference is empty too.
    """
    return _ratio(counts.tp, counts.predicted, counts.referenced)


def recall(counts: Counts) -> float:
    """Share of the reference that the prediction found, tp / (tp + fn), in [0, 1]; also called sensitivity.

    Without reference: 0.0, or 1.0 when the prediction is empty too.
    """
    return _ratio(counts.tp, counts.referenced, counts.predicted)


def specificity(counts: Counts) -> float:
    """Share of the background that was left alone, tn / (tn + fp), in [0, 1]: the recall of the background.

    Without background in the reference: 0.0, or 1.0 when the prediction has none either.
    """
    return _ratio(counts.tn, counts.tn + counts.fp, counts.tn + counts.fn)


def dice(counts: Counts) -> float:
    """Dice overlap, 2 tp / (2 tp + fp + fn), in [0, 1]. Both masks empty: 1.0; one empty: 0.0."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn, 0)


def f1(counts: Counts) -> float:
    """Harmonic mean of precision and recall, in [0, 1]: the same number as `dice`, by the name the papers use."""
    return dice(counts)


def iou(counts: Counts) -> float:
    """Intersection over union (Jaccard), tp / (tp + fp + fn), in [0, 1]. Both masks empty: 1.0; one empty: 0.0."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn, 0)


@dataclass(frozen=True)
class Scores:
    """Every overlap score of one pair of masks, with the counts it comes from. No field is ever NaN."""

    counts: Counts
    accuracy: float
    precision: float
    recall: float
    specificity: float
    f1: float
    dice: float
    iou: float

    @property
    def empty(self) -> Empty:
        """Which mask holds nothing; see `Counts.empty`."""
        return self.counts.empty

    def as_dict(self) -> dict[str, float | int | str]:
        """Flat columns for a table: the scores, ``empty``, then the counts."""
        flat = asdict(self)
        counts = flat.pop("counts")
        return {**flat, "empty": self.empty, **counts}


@dataclass(frozen=True)
class SliceScores(Scores):
    """The scores of one slice."""

    index: int = 0  # position in the stack, from 0

    @property
    def infected(self) -> bool:
        """Whether the reference marks infiltrate in this slice."""
        return self.counts.referenced > 0


@dataclass(frozen=True)
class MeanScores:
    """Means over slices as the papers print them."""

    n_slices: int  # slices averaged over
    n_skipped: int  # slices left out because the reference holds no infiltrate
    n_missed: int  # averaged slices in which nothing was predicted (they count with precision, recall, F1 of 0.0)
    accuracy: float  # mean accuracy; NaN when `n_slices` is 0, as are the next three
    precision: float  # mean precision
    recall: float  # mean recall
    f1: float  # mean F1. It is the mean of the slices' F1, not the F1 of mean precision and recall.


def score(counts: Counts) -> Scores:
    """All scores of one pair of masks.

    Raises:
        InputError: when nothing was counted.
    """
    return Scores(counts, **_scores(counts))


def slice_scores(pred: BoolArray, ref: BoolArray) -> list[SliceScores]:
    """The scores of each slice of two boolean stacks (n, h, w), in order; an empty list for n = 0.

    Raises:
        InputError: as `count_slices`.
    """
    return scores_of(count_slices(pred, ref))


def scores_of(counts: Iterable[Counts]) -> list[SliceScores]:
    """The scores of slices that were counted."""
    return [SliceScores(c, **_scores(c), index=n) for n, c in enumerate(counts)]


def mean_over_infected(scores: Iterable[SliceScores]) -> MeanScores:
    """Averages over the slices whose reference marks infiltrate, and no others.

    This is how Maganaris et al. (2022b, section 3.2, last paragraph) averaged: per slice, slices with marked areas
    only, all slices alike whatever patient they come from. With no such slice the means are NaN and `n_slices` says 0.
    """
    every = list(scores)
    used = [s for s in every if s.infected]
    mean = {
        name: float(np.mean([getattr(s, name) for s in used])) if used else float("nan")
        for name in ("accuracy", "precision", "recall", "f1")
    }
    missed = sum(s.empty == "prediction" for s in used)
    return MeanScores(len(used), len(every) - len(used), missed, **mean)


def _scores(counts: Counts) -> dict[str, float]:
    functions = (accuracy, precision, recall, specificity, f1, dice, iou)
    return {function.__name__: function(counts) for function in functions}


def _ratio(part: int, whole: int, other: int) -> float:
    """`part` / `whole`; of nothing: 1.0 when the other mask holds nothing either, else 0.0."""
    return part / whole if whole else float(other == 0)


def require_masks(pred: BoolArray, ref: BoolArray) -> None:
    """Refuse masks that are not boolean, or of different shapes."""
    for name, mask in (("prediction", pred), ("reference", ref)):
        if mask.dtype != np.bool_:
            raise InputError(f"the {name} must be boolean, got {mask.dtype}; compare one label: labels == 1")
    if pred.shape != ref.shape:
        raise InputError(f"prediction and reference must have one shape, got {pred.shape} and {ref.shape}")


def _count(pred: BoolArray, ref: BoolArray) -> Counts:
    predicted, referenced = np.count_nonzero(pred), np.count_nonzero(ref)
    tp = int(np.count_nonzero(pred & ref)) if predicted and referenced else 0
    return Counts(tp, int(predicted) - tp, int(referenced) - tp, pred.size - int(predicted) - int(referenced) + tp)
