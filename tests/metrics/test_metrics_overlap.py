from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.errors import InputError
from pneumoscope.metrics.overlap import (
    Counts,
    accuracy,
    count,
    count_slices,
    dice,
    f1,
    iou,
    mean_over_infected,
    precision,
    recall,
    score,
    slice_scores,
    specificity,
)

# prediction   reference
#   . # # .      . . # #
#   . # # .      . . # #
#   . . . .      . . . .
PRED = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=bool)
REF = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=bool)
NOTHING = np.zeros_like(PRED)


def test_counts_and_scores_by_hand():
    counts = count(PRED, REF)
    assert counts == Counts(tp=2, fp=2, fn=2, tn=6)
    assert accuracy(counts) == 8 / 12
    assert precision(counts) == recall(counts) == f1(counts) == dice(counts) == 0.5
    assert iou(counts) == 2 / 6
    assert specificity(counts) == 6 / 8
    assert counts.empty == ""


@pytest.mark.parametrize(
    ("pred", "ref", "value", "empty", "accurate"),
    [
        (NOTHING, NOTHING, 1.0, "both", 1.0),
        (PRED, NOTHING, 0.0, "reference", 8 / 12),
        (NOTHING, REF, 0.0, "prediction", 8 / 12),
    ],
    ids=["both empty", "reference empty", "prediction empty"],
)
def test_empty_masks(pred, ref, value, empty, accurate):
    scores = score(count(pred, ref))
    assert {scores.dice, scores.f1, scores.iou, scores.precision, scores.recall} == {value}
    assert scores.empty == empty
    assert scores.accuracy == accurate


def test_specificity_without_background():
    full = ~NOTHING
    assert specificity(count(full, full)) == 1.0
    assert specificity(count(PRED, full)) == 0.0


def test_counts_add_up_to_the_volume(rng):
    pred, ref = rng.random((2, 7, 5, 6)) < 0.4
    assert sum(count_slices(pred, ref), Counts()) == count(pred, ref)


counts_of_anything = st.builds(Counts, *[st.integers(0, 3)] * 4).filter(lambda c: c.total > 0)


@given(counts_of_anything)
def test_every_score_lies_between_zero_and_one(counts):
    scores = score(counts).as_dict()
    for name in ("accuracy", "precision", "recall", "specificity", "f1", "dice", "iou"):
        assert 0.0 <= scores[name] <= 1.0, name


@given(counts_of_anything)
def test_f1_is_the_harmonic_mean_and_iou_follows_from_dice(counts):
    p, r = precision(counts), recall(counts)
    assert f1(counts) == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)
    assert iou(counts) == pytest.approx(dice(counts) / (2 - dice(counts)))


def test_mean_uses_only_slices_with_reference():
    pred = np.stack([PRED, PRED, NOTHING, NOTHING])
    ref = np.stack([REF, NOTHING, REF, NOTHING])
    scores = slice_scores(pred, ref)
    assert [s.index for s in scores] == [0, 1, 2, 3]
    assert [s.empty for s in scores] == ["", "reference", "prediction", "both"]
    mean = mean_over_infected(scores)
    assert (mean.n_slices, mean.n_skipped, mean.n_missed) == (2, 2, 1)
    assert mean.f1 == mean.precision == mean.recall == 0.25
    assert mean.accuracy == 8 / 12


def test_mean_without_infected_slices_is_nan_and_says_so():
    mean = mean_over_infected(slice_scores(np.stack([PRED]), np.stack([NOTHING])))
    assert mean.n_slices == 0
    assert mean.n_skipped == 1
    assert np.isnan([mean.accuracy, mean.precision, mean.recall, mean.f1]).all()


def test_no_slices_no_scores():
    none = np.zeros((0, 3, 4), bool)
    assert slice_scores(none, none) == []


def test_mean_of_f1_is_not_f1_of_means():
    # first slice: precision 4/6, recall 1, F1 0.8; second: precision 1, recall 1/2, F1 2/3
    mean = mean_over_infected(slice_scores(np.stack([REF | PRED, REF & PRED]), np.stack([REF, REF])))
    assert mean.f1 == pytest.approx((0.8 + 2 / 3) / 2)
    of_means = 2 * mean.precision * mean.recall / (mean.precision + mean.recall)
    assert mean.f1 != pytest.approx(of_means)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: count(PRED.astype(np.uint8), REF), "prediction must be boolean, got uint8"),
        (lambda: count(PRED, REF.astype(float)), "reference must be boolean, got float64"),
        (lambda: count(PRED, REF[:2]), r"one shape, got \(3, 4\) and \(2, 4\)"),
        (lambda: count(np.zeros((0, 3), bool), np.zeros((0, 3), bool)), "no voxels"),
        (lambda: slice_scores(PRED, REF), r"\(n, h, w\)"),
        (lambda: slice_scores(np.zeros((2, 0, 3), bool), np.zeros((2, 0, 3), bool)), "no pixels"),
        (lambda: accuracy(Counts()), "at least one voxel"),
        (lambda: Counts(-1, 0, 0, 0), "negative"),
    ],
)
def test_unusable_masks_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_against_monai(rng):
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_confusion_matrix_metric, compute_dice, compute_iou, get_confusion_matrix

    for p, r in itertools.product((0.05, 0.5, 0.9), repeat=2):
        pred, ref = rng.random((4, 5, 6)) < p, rng.random((4, 5, 6)) < r
        y_pred, y = torch.tensor(pred)[None, None].float(), torch.tensor(ref)[None, None].float()
        scores = score(count(pred, ref))
        matrix = get_confusion_matrix(y_pred, y)
        tp, fp, tn, fn = matrix[0, 0].tolist()
        assert scores.counts == Counts(int(tp), int(fp), int(fn), int(tn))
        assert scores.dice == pytest.approx(compute_dice(y_pred, y).item())
        assert scores.iou == pytest.approx(compute_iou(y_pred, y).item())
        for name in ("accuracy", "precision", "recall", "specificity", "f1 score"):
            theirs = compute_confusion_matrix_metric(name, matrix).item()
            assert getattr(scores, name.split()[0]) == pytest.approx(theirs), name


def test_monai_agrees_on_empty_masks_when_asked_not_to_ignore_them():
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_dice

    for pred, ref in itertools.product((NOTHING, PRED), (NOTHING, REF)):
        y_pred, y = torch.tensor(pred)[None, None].float(), torch.tensor(ref)[None, None].float()
        theirs = compute_dice(y_pred, y, ignore_empty=False).item()
        assert dice(count(pred, ref)) == pytest.approx(theirs)


@pytest.mark.slow
def test_a_test_set_of_slices_is_scored_in_seconds(rng):
    pred, ref = rng.random((2, 1700, 320, 320), dtype=np.float32) < 0.1
    start = time.process_time()
    slice_scores(pred, ref)
    assert time.process_time() - start < 10  # below 1 s on an idle machine
