import numpy as np
import pytest

from pneumoscope.errors import InputError
from pneumoscope.preprocess.slices import HuWindow, model_input, resize_nearest, window_channels

LUNG, MIDDLE, DENSE = HuWindow(-970, -150), HuWindow(-700, -450), HuWindow(-450, -150)


@pytest.mark.parametrize(
    ("window", "hu", "expected"),
    [
        (LUNG, -970, 0.0),
        (LUNG, -560, 0.5),  # (-560 + 970) / 820
        (LUNG, -150, 1.0),
        (LUNG, -1024, 0.0),
        (LUNG, 3000, 1.0),
        (MIDDLE, -600, 0.4),  # (-600 + 700) / 250
        (MIDDLE, -700.5, 0.0),
        (DENSE, -375, 0.25),  # (-375 + 450) / 300
        (DENSE, -451, 0.0),
    ],
)
def test_the_papers_equations_by_hand(window, hu, expected):
    assert window.scale(np.array([hu]))[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
def test_scale_gives_float32_within_bounds_and_leaves_the_input_alone(kind):
    hu = np.array([[-2000, -900, -300, 4000]], dtype=kind)
    before = hu.copy()
    scaled = LUNG.scale(hu)
    assert scaled.dtype == np.float32
    assert scaled.shape == (1, 4)
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    np.testing.assert_array_equal(hu, before)


def test_a_view_of_a_volume_is_scaled_without_touching_it():
    hu = np.full((2, 3), -560, np.float32)
    LUNG.scale(hu[::-1])
    assert (hu == -560).all()


def test_nan_stays_nan():
    assert np.isnan(LUNG.scale(np.array([np.nan]))[0])


@pytest.mark.parametrize(
    "bounds", [(-150, -970), (-150, -150), (float("nan"), 0), (0, float("nan")), (float("-inf"), 0), (0, float("inf"))]
)
def test_an_impossible_window_is_refused(bounds):
    with pytest.raises(InputError, match="two finite bounds, the lower one first"):
        HuWindow(*bounds)


def test_width():
    assert LUNG.width_hu == 820


def test_channels_stand_in_the_order_given():
    stack = np.full((2, 3, 4), -575, np.float32)
    channels = window_channels(stack, [LUNG, MIDDLE, DENSE])
    assert channels.shape == (2, 3, 3, 4)
    assert channels.dtype == np.float32
    np.testing.assert_allclose(channels[:, 0], 395 / 820, rtol=1e-6)
    np.testing.assert_allclose(channels[:, 1], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(channels[:, 2], 0)


def test_no_slices_give_no_channels():
    assert window_channels(np.zeros((0, 3, 4)), [LUNG]).shape == (0, 1, 3, 4)
    assert model_input(np.zeros((0, 3, 4)), np.zeros((0, 3, 4)), [LUNG], 8).shape == (0, 2, 8, 8)


@pytest.mark.parametrize("windows", [[LUNG], [LUNG, MIDDLE, DENSE]])
def test_model_input_ends_with_the_lungs(windows):
    stack = np.random.default_rng(0).integers(-1000, 100, (2, 9, 7)).astype(np.int16)
    lungs = np.zeros((2, 9, 7), np.uint8)
    lungs[0, 2:5, 1:3] = 1
    lungs[0, 2:5, 4:6] = 2  # left lung: still 1 in the channel
    given = model_input(stack, lungs, windows, None)
    assert given.shape == (2, len(windows) + 1, 9, 7)
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given[:, -1], (lungs > 0).astype(np.float32))
    np.testing.assert_array_equal(given[:, :-1], window_channels(stack, windows))
    assert (given[1, -1] == 0).all()


def test_model_input_resizes_image_and_lungs_together():
    stack = np.full((1, 4, 6), -970.0)
    stack[0, 1, 5] = -150.0
    lungs = stack == -150.0
    given = model_input(stack, lungs, [LUNG], (8, 12))
    assert given.shape == (1, 2, 8, 12)
    np.testing.assert_array_equal(given[:, 0], given[:, 1])
    assert np.argwhere(given[0, 1]).tolist() == [[2, 10], [2, 11], [3, 10], [3, 11]]


def test_windowing_and_resizing_commute():
    stack = np.random.default_rng(1).integers(-1000, 100, (1, 13, 11)).astype(np.float32)
    first = model_input(stack, stack < -500, [MIDDLE], 8)
    np.testing.assert_array_equal(first[:, :1], resize_nearest(window_channels(stack, [MIDDLE]), 8))


def test_guards_name_the_shapes():
    stack = np.zeros((2, 3, 4))
    with pytest.raises(InputError, match="at least one Hounsfield window"):
        window_channels(stack, [])
    with pytest.raises(InputError, match="at least one Hounsfield window"):
        model_input(stack, stack, [], None)
    with pytest.raises(InputError, match=r"must have shape \(n, h, w\), got \(3, 4\)"):
        window_channels(stack[0], [LUNG])
    with pytest.raises(InputError, match=r"lung mask has shape \(2, 3, 3\)"):
        model_input(stack, stack[..., 1:], [LUNG], None)
