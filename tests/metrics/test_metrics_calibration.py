import math

import numpy as np
import pytest
import torch

from pneumoscope.errors import InputError
from pneumoscope.metrics.classification import (
    auc_interval,
    empty_reliability,
    log_loss,
    logits,
    reliability,
    rescaled,
    roc,
    softmax_at,
)
from temperature import RANGE, expected_error, fit_temperature, nll


def test_ece_and_brier_by_hand():
    """Two bins. Low: 0.1, 0.3 with one true: mean 0.2, frequency 0.5. High: 0.9, 0.7, 0.8 with two true: 0.8, 2/3."""
    p = np.array([0.1, 0.3, 0.9, 0.7, 0.8])
    y = np.array([True, False, True, True, False])
    found = reliability(p, y, bins=2)
    assert found.count.tolist() == [2, 3]
    assert found.confidence == pytest.approx([0.2, 0.8])
    assert found.frequency == pytest.approx([0.5, 2 / 3])
    assert found.ece == pytest.approx((2 * 0.3 + 3 * (0.8 - 2 / 3)) / 5)
    assert found.brier == pytest.approx((0.81 + 0.09 + 0.01 + 0.09 + 0.64) / 5)
    assert found.overconfidence == pytest.approx((2.8 - 3) / 5)


def test_ece_equals_a_loop_over_bins():
    rng = np.random.default_rng(3)
    p = rng.random((7, 11))
    y = rng.random((7, 11)) < p**2
    total = 0.0
    for k in range(15):
        inside = (p >= k / 15) & ((p < (k + 1) / 15) | (k == 14))
        if inside.any():
            total += inside.sum() * abs(p[inside].mean() - y[inside].mean())
    found = reliability(p, y)
    assert found.ece == pytest.approx(total / p.size)
    assert found.brier == pytest.approx(np.mean((p - y) ** 2))


def test_edges_of_bins():
    found = reliability(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    assert found.count.tolist() == [1, 2]


def test_a_perfect_and_a_wrong_forecast():
    y = np.array([True, False, False, True])
    assert reliability(y.astype(float), y).ece == 0
    wrong = reliability(1.0 - y, y)
    assert (wrong.ece, wrong.brier) == (1.0, 1.0)


def test_sums_add_over_patients():
    rng = np.random.default_rng(0)
    p, y = rng.random(50), rng.random(50) < 0.4
    parts = reliability(p[:20], y[:20]) + reliability(p[20:], y[20:]) + empty_reliability(15)
    whole = reliability(p, y)
    assert parts.ece == pytest.approx(whole.ece)
    assert parts.brier == pytest.approx(whole.brier)
    assert parts.n == 50


def test_nothing_has_no_calibration():
    none = reliability(np.zeros(0), np.zeros(0, bool))
    assert none.n == 0
    assert all(math.isnan(v) for v in (none.ece, none.brier, none.overconfidence))
    assert math.isnan(log_loss(np.zeros(0), np.zeros(0, bool)))


@pytest.mark.parametrize(
    ("p", "y", "bins"),
    [
        (np.array([0.5]), np.array([True, False]), 15),
        (np.array([0.5]), np.array([1]), 15),
        (np.array([1.5]), np.array([True]), 15),
        (np.array([math.nan]), np.array([True]), 15),
        (np.array([0.5]), np.array([True]), 1),
    ],
)
def test_what_does_not_fit_is_refused(p, y, bins):
    with pytest.raises(InputError):
        reliability(p, y, bins)
    with pytest.raises(InputError, match="bins cannot be added"):
        empty_reliability(3) + empty_reliability(4)


def test_a_temperature_keeps_the_mask_and_its_inverse_undoes_it():
    p = np.array([0.01, 0.3, 0.5, 0.9])
    soft = rescaled(p, 2.0)
    assert ((soft >= 0.5) == (p >= 0.5)).all()
    assert abs(soft - 0.5).max() < abs(p - 0.5).max()
    assert rescaled(soft, 0.5) == pytest.approx(p)
    assert rescaled(p, 1.0) == pytest.approx(p)
    assert logits(np.array([0.5, 0.0]))[0] == 0
    assert np.isfinite(logits(np.array([0.0, 1.0]))).all()
    with pytest.raises(InputError, match="positive"):
        rescaled(p, 0.0)


def test_log_loss_by_hand():
    found = log_loss(np.array([0.8, 0.4]), np.array([True, False]))
    assert found == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    weighted = log_loss(np.array([0.8, 0.4]), np.array([True, False]), np.array([3.0, 1.0]))
    assert weighted == pytest.approx(-(3 * math.log(0.8) + math.log(0.6)) / 4)


def test_auc_by_hand_and_by_counting_pairs():
    """Marked 3, 1; others 2, 1, 0: wins 3 of 3 and 1.5 of 3."""
    found = roc(np.array([3.0, 1, 2, 1, 0]), np.array([True, True, False, False, False]))
    assert found.auc == pytest.approx(4.5 / 6)
    assert found.low <= found.auc <= found.high
    rng = np.random.default_rng(1)
    scores, marked = rng.integers(0, 9, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[marked] for b in scores[~marked]]
    got = roc(scores, marked)
    assert got.auc == pytest.approx(np.mean(pairs))
    area = np.trapezoid(got.true_positive, got.false_positive)
    assert area == pytest.approx(got.auc)
    assert (got.false_positive[0], got.true_positive[-1]) == (0, 1)


def test_a_perfect_auc_of_few_scans_is_not_certain():
    few, many = auc_interval(1.0, 2, 11), auc_interval(1.0, 60, 60)
    assert few[1] == many[1] == 1.0
    assert few[0] < 0.8 < 0.95 < many[0]
    low, high = auc_interval(0.5, 20, 20)
    assert low == pytest.approx(1 - high)
    assert auc_interval(0.9, 20, 20)[0] == pytest.approx(1 - auc_interval(0.1, 20, 20)[1])
    for area, marked in ((1.2, 3), (0.5, 0)):
        with pytest.raises(InputError, match="no interval"):
            auc_interval(area, marked, 3)


def test_the_interval_covers_the_true_auc_about_as_often_as_it_says():
    """Two normal groups of 12, their means 1.5 apart: the true area is Phi(1.5 / sqrt(2)) = 0.8556."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        scores = np.concatenate([rng.normal(1.5, 1, 12), rng.normal(0, 1, 12)])
        found = roc(scores, np.arange(24) < 12)
        covered += found.low <= 0.8556 <= found.high
    assert 0.92 <= covered / 400 <= 0.99


def test_auc_of_one_group_is_not_known():
    none = roc(np.array([1.0, 2.0]), np.array([True, True]))
    assert math.isnan(none.auc)
    assert (none.n_marked, none.n_others) == (2, 0)
    with pytest.raises(InputError, match="finite"):
        roc(np.array([math.nan, 1.0]), np.array([True, False]))


def test_softmax_and_loss_are_torchs(rng):
    logits, labels = rng.normal(0, 5, (30, 4)), rng.integers(0, 4, 30)
    t = torch.from_numpy(logits)
    np.testing.assert_allclose(softmax_at(logits, 2.5), torch.softmax(t / 2.5, dim=1).numpy(), rtol=1e-10)
    loss = torch.nn.functional.cross_entropy(t / 2.5, torch.from_numpy(labels))
    assert nll(logits, labels, 2.5) == pytest.approx(float(loss))
    assert softmax_at(np.array([[1e4, 0.0]]), 0.1)[0].tolist() == [1.0, 0.0]


def test_the_temperature_that_made_the_labels_is_found(rng):
    honest = rng.normal(0, 2, (20000, 3))
    chance = softmax_at(honest)
    labels = (chance.cumsum(axis=1) < rng.random((20000, 1))).sum(axis=1)
    assert fit_temperature(3 * honest, labels) == pytest.approx(3, rel=0.05)
    assert expected_error(softmax_at(3 * honest), labels) > 4 * expected_error(softmax_at(3 * honest, 3.0), labels)
    grid = np.exp(np.linspace(-1, 2, 200))
    best = grid[np.argmin([nll(3 * honest, labels, t) for t in grid])]
    assert fit_temperature(3 * honest, labels) == pytest.approx(best, rel=0.02)


def test_nothing_and_certainty():
    empty, none = np.zeros((0, 3)), np.zeros(0, int)
    assert fit_temperature(empty, none) == 1.0
    assert math.isnan(nll(empty, none))
    assert math.isnan(expected_error(empty, none))
    assert softmax_at(empty).shape == (0, 3)
    assert fit_temperature(np.array([[5.0, 0.0], [0.0, 5.0]]), np.array([0, 1])) == pytest.approx(RANGE[0], rel=1e-3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_are_none(temperature):
    with pytest.raises(InputError, match="positive temperature"):
        softmax_at(np.zeros((1, 2)), temperature)
