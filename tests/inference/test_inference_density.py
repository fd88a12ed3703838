import numpy as np
import pytest

from pneumoscope.inference.maps import HIGHEST_HU, LOWEST_HU, dense_enough, density_limit_hu, typical_lung_hu

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
