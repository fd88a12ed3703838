import numpy as np
import pytest
from scipy import ndimage

from pneumoscope.preprocess.spatial import axis_weights, coarse_size, resample_axes


def test_rows_of_weights_add_up_to_one():
    for size, step, out, out_step in ((12, 1.0, 4, 3.0), (5, 8.0, 9, 4.5), (1, 2.0, 3, 1.0), (7, 1.3, 1, 9.0)):
        weights = axis_weights(size, step, out, out_step)
        assert weights.shape == (out, size)
        assert np.allclose(weights.sum(axis=1), 1)


def test_a_ramp_stays_a_ramp_both_ways():
    """Values that rise by 3 a millimetre do so on every grid, but where the border value is held."""
    fine = np.broadcast_to((3 * np.arange(60) * 0.7)[:, None, None], (60, 2, 3)).astype(np.float32)
    coarse = resample_axes(fine, (0.7, 1, 1), (14, 2, 3), (3.0, 1, 1))
    assert np.allclose(np.diff(coarse[1:-1, 0, 0]), 9, rtol=0.02)
    back = resample_axes(coarse, (3.0, 1, 1), (60, 2, 3), (0.7, 1, 1))
    assert np.allclose(back[8:-8], fine[8:-8], atol=0.3)


def test_finer_grids_agree_with_linear_interpolation():
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    doubled = resample_axes(values, (2, 2, 2), (8, 10, 12), (1, 1, 1))
    at = np.meshgrid(*((np.arange(2 * n) + 0.5) / 2 - 0.5 for n in values.shape), indexing="ij")
    assert np.allclose(doubled, ndimage.map_coordinates(values, at, order=1, mode="nearest"), atol=1e-5)


def test_noise_is_averaged_and_not_sampled():
    noise = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    assert resample_axes(noise, (1, 1, 1), (10, 10, 10), (4, 4, 4)).std() < 0.1


@pytest.mark.parametrize(("size", "step", "target", "expected"), [(134, 3.0, 5.5, 73), (1, 1.0, 5.5, 1)])
def test_sizes(size, step, target, expected):
    assert coarse_size(size, step, target) == expected
