"""One temperature for all classes: against torch, against a known truth, and on nothing."""

import math

import numpy as np
import pytest
import torch

from pneumoscope.errors import InputError
from pneumoscope.metrics.classification import softmax_at
from temperature import RANGE, expected_error, fit_temperature, nll


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
