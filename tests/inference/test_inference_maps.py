from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from pneumoscope.inference import maps
from pneumoscope.inference.maps import (
    HIGHEST_HU,
    LOWEST_HU,
    dense_enough,
    density_limit_hu,
    smooth_across,
    typical_lung_hu,
)


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


RNG = np.random.default_rng(0)


def lung(mean: float, noise: float = 60, shape=(4, 30, 40)) -> np.ndarray:
    return RNG.normal(mean, noise, shape).astype(np.float32)


def test_the_typical_density_is_the_commonest_not_the_mean():
    hu = lung(-860)
    hu[:, :12] = lung(-100, 40, (4, 12, 40))  # 40 % consolidated
    assert typical_lung_hu(hu, np.ones(hu.shape, bool)) == pytest.approx(-860, abs=15)


def test_the_limit_lies_above_the_typical_lung_and_in_its_range():
    everywhere = np.ones((4, 30, 40), bool)
    assert density_limit_hu(lung(-860), everywhere, 120) == pytest.approx(-740, abs=15)
    assert density_limit_hu(lung(-960, 10), everywhere, 120) == LOWEST_HU
    assert density_limit_hu(lung(-450), everywhere, 120) == HIGHEST_HU


def test_without_aerated_lung_the_limit_is_the_lowest():
    assert typical_lung_hu(lung(40, 10), np.ones((4, 30, 40), bool)) is None
    assert density_limit_hu(lung(-860), np.zeros((4, 30, 40), bool), 120) == LOWEST_HU


def test_noise_does_not_decide_and_a_lesion_keeps_its_size():
    hu = lung(-860, 100)
    hu[:, 8:20, 10:25] = lung(-550, 100, (4, 12, 15))
    found = dense_enough(hu, np.ones(hu.shape, bool), -740, (0.8, 0.8))
    lesion = np.zeros(hu.shape, bool)
    lesion[:, 8:20, 10:25] = True
    assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.9
    assert found[~lesion].mean() < 0.06


def test_coarse_voxels_are_taken_as_they_are():
    hu = np.full((1, 6, 6), -860, np.float32)
    hu[0, 3, 3] = -500
    assert dense_enough(hu, np.ones(hu.shape, bool), -740, (6.0, 6.0)).sum() == 1


def test_the_chest_wall_does_not_make_the_rim_dense():
    hu = np.full((1, 20, 20), 40, np.float32)
    inside = np.zeros(hu.shape, bool)
    inside[0, 5:15, 5:15] = True
    hu[inside] = -860
    assert not dense_enough(hu, inside, -740, (0.7, 0.7)).any()
