from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from pneumoscope.inference import maps
from pneumoscope.inference.maps import smooth_across


def example():
    rng = np.random.default_rng(0)
    inside = rng.random((9, 40, 7)) < 0.7
    inside[:, :3] = False
    return np.where(inside, rng.integers(0, 256, inside.shape), 0).astype(np.uint8), inside


def test_it_is_the_mean_of_what_is_inside_whatever_the_slab(monkeypatch):
    values, inside = example()
    weight, total = (gaussian_filter1d(a.astype(float), 1.3, axis=0, mode="constant") for a in (inside, values))
    expected = np.where(inside, total / np.maximum(weight, 1e-9), 0)
    smooth_across(values, inside, 1.3)
    assert values == pytest.approx(expected, abs=0.51)
    again, _ = example()
    monkeypatch.setattr(maps, "SLAB", 5)
    smooth_across(again, inside, 1.3)
    assert np.array_equal(again, values)


def test_what_lasts_over_slices_stays_and_what_does_not_goes():
    inside = np.zeros((11, 6, 5), bool)
    inside[:, 1:5, 1:4] = True
    values = np.zeros(inside.shape, np.uint8)
    values[5, 2, 2] = 255  # in one slice
    values[:, 3, 3] = 255  # in all, up to both ends
    smooth_across(values, inside, 2.0)
    assert values[:, 3, 3].min() == 255
    assert 0 < values[:, 2, 2].max() < 60
    assert not values[~inside].any()


def test_thick_slices_are_left_as_they_are():
    values, inside = example()
    before = values.copy()
    smooth_across(values, inside, 0.19)
    assert np.array_equal(values, before)


def test_slices_that_do_not_count_take_the_values_of_their_neighbours():
    values, inside = example()
    inside[4, 20] = True  # nowhere else on this line
    inside[[0, 1, 2, 3, 5, 6, 7, 8], 20] = False
    sampled = np.array([0, 3, 6])
    rest = np.setdiff1d(np.arange(9), sampled)
    emptied = values.copy()
    emptied[rest] = 0
    smooth_across(values, inside, 1.0, sampled)
    smooth_across(emptied, inside, 1.0, sampled)
    assert np.array_equal(values, emptied)
    assert values[rest][inside[rest]].mean() > 60
    assert not values[4, 20].any()
    assert not values[~inside].any()
