"""Classifier scores against hand-computed cases and a slow second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.errors import InputError
from pneumoscope.metrics.classification import bootstrap_scores, confusion_matrix, score_confusion, score_decisions

CLASSES = ("normal", "bacterial", "covid19")


def test_by_hand():
    found = score_confusion(np.array([[8, 1, 1], [0, 5, 5], [0, 0, 10]]), CLASSES)
    assert found.accuracy == pytest.approx(23 / 30)
    assert found.per_class["normal"].precision == 1.0
    assert found.per_class["normal"].recall == pytest.approx(0.8)
    assert found.per_class["bacterial"].precision == pytest.approx(5 / 6)
    assert found.per_class["covid19"].precision == pytest.approx(10 / 16)
    assert found.per_class["covid19"].f1 == pytest.approx(20 / 26)
    assert found.recall == pytest.approx((0.8 + 0.5 + 1.0) / 3)
    assert found.f1 == pytest.approx((16 / 18 + 10 / 16 + 20 / 26) / 3)
    assert [c.support for c in found.per_class.values()] == [10, 10, 10]


def test_a_class_never_said_and_a_class_not_there():
    found = score_decisions(np.array([0, 0, 1]), np.array([0, 0, 0]), CLASSES)
    assert found.per_class["bacterial"].precision == 0.0
    assert np.isnan(found.per_class["covid19"].recall)
    assert found.recall == 0.5, "over the two classes that are there"
    assert np.isnan(score_decisions(np.array([], int), np.array([], int), CLASSES).accuracy)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_against_counting_one_by_one(pairs):
    truth, said = (np.array(v) for v in zip(*pairs, strict=True))
    found = score_decisions(truth, said, CLASSES)
    f1 = []
    for c in range(3):
        hit = sum(t == c and s == c for t, s in pairs)
        drawn, told = sum(t == c for t, _ in pairs), sum(s == c for _, s in pairs)
        if drawn:
            precision, recall = hit / told if told else 0.0, hit / drawn
            f1.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert found.f1 == pytest.approx(np.mean(f1))
    assert found.accuracy == pytest.approx(np.mean(truth == said))
    assert confusion_matrix(truth, said, 3).sum() == len(pairs)


def test_intervals_draw_patients_not_pictures():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    said = np.where(rng.random(300) < 0.8, truth, (truth + 1) % 3)
    many = bootstrap_scores(truth, said, [f"p{i}" for i in range(300)], CLASSES, n=500)
    few = bootstrap_scores(truth, np.where(np.arange(300) < 60, (truth + 1) % 3, truth),
                           [f"p{i // 30}" for i in range(300)], CLASSES, n=500)  # fmt: skip
    assert many["accuracy"].low < np.mean(truth == said) < many["accuracy"].high
    assert many["accuracy"].high - many["accuracy"].low < 0.12
    assert few["accuracy"].high - few["accuracy"].low > 0.3, "two of ten patients are all wrong"
    alone = bootstrap_scores(truth, said, ["p"] * 300, CLASSES)
    assert np.isnan(alone["f1"].low)
    assert alone["f1"].n_patients == 1


def test_wrong_calls():
    with pytest.raises(InputError, match="one length"):
        confusion_matrix(np.array([0]), np.array([0, 1]), 3)
    with pytest.raises(InputError, match="outside"):
        confusion_matrix(np.array([0]), np.array([3]), 3)
    with pytest.raises(InputError, match="differ in number"):
        bootstrap_scores(np.array([0]), np.array([0]), [], CLASSES)
