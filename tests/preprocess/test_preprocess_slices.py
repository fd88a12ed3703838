import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.preprocess.slices import (
    HuWindow,
    from_slices,
    model_input,
    nearest_indices,
    resize_linear,
    resize_nearest,
    to_slices,
    window_channels,
)

sizes = st.integers(1, 90)


def test_a_slice_is_seen_from_the_feet():
    array = np.zeros((4, 5, 6), np.float32)
    array[3, 4, 0] = 1  # rightmost, most anterior, lowest
    array[0, 0, 5] = 2  # leftmost, most posterior, highest
    stack = to_slices(array)
    assert stack.shape == (6, 5, 4)
    assert stack[0, 0, 0] == 1, "patient's right and front is the upper left corner of the picture"
    assert stack[5, 4, 3] == 2


def test_to_slices_is_a_view_and_from_slices_is_contiguous():
    array = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    assert np.shares_memory(to_slices(array), array)
    assert from_slices(to_slices(array)).flags.c_contiguous


@given(st.tuples(*[st.integers(1, 7)] * 3), st.sampled_from([np.uint8, np.int16, np.float32, bool]))
def test_slices_and_back_is_exact(shape, kind):
    array = np.random.default_rng(1).integers(0, 2, shape).astype(kind)
    back = from_slices(to_slices(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("turn", [to_slices, from_slices])
def test_a_single_picture_is_refused(turn):
    with pytest.raises(InputError, match=r"needs 3 axes, got shape \(4, 5\)"):
        turn(np.zeros((4, 5)))


@pytest.mark.parametrize(
    ("n_in", "n_out", "expected"),
    [
        (4, 2, [1, 3]),  # places 1.0 and 3.0: borders, the second pixel
        (3, 2, [0, 2]),  # places 0.75 and 2.25
        (2, 5, [0, 0, 1, 1, 1]),  # places 0.2, 0.6, 1.0, 1.4, 1.8
        (5, 3, [0, 2, 4]),  # places 0.83, 2.5, 4.17
        (6, 1, [3]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_nearest_pixels_by_hand(n_in, n_out, expected):
    np.testing.assert_array_equal(nearest_indices(n_in, n_out), expected)


@given(sizes, sizes)
def test_nearest_pixels_are_nearest(n_in, n_out):
    taken = nearest_indices(n_in, n_out)
    wanted = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    assert taken.min() >= 0
    assert taken.max() < n_in
    assert (np.abs(taken - wanted) <= 0.5 + 1e-9).all()
    assert (np.diff(taken) >= 0).all()


def _off_border(n_in, n_out):
    """Output pixels whose place is not exactly on the border between two input pixels (there roundings differ)."""
    return ((2 * np.arange(n_out) + 1) * n_in) % (2 * n_out) != 0


@pytest.mark.parametrize("shape", [(630, 401), (512, 512), (630, 630), (37, 320), (1, 7), (2, 2)])
@pytest.mark.parametrize("size", [(320, 320), (256, 256), (33, 501)])
def test_nearest_agrees_with_opencv_and_pillow(shape, size):
    picture = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    ours = resize_nearest(picture, size)
    sure = np.ix_(_off_border(shape[0], size[0]), _off_border(shape[1], size[1]))
    opencv = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    pillow = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(ours[sure], opencv[sure])
    np.testing.assert_array_equal(ours[sure], pillow[sure])


@given(st.tuples(sizes, sizes), st.tuples(sizes, sizes))
@settings(deadline=None)
def test_resizing_never_invents_a_label(shape, size):
    labels = np.random.default_rng(3).choice(np.array([0, 1, 2, 7], np.uint8), (2, *shape))
    resized = resize_nearest(labels, size)
    assert resized.dtype == np.uint8
    assert resized.shape == (2, *size)
    assert set(np.unique(resized)) <= set(np.unique(labels))


@given(st.tuples(sizes, sizes), st.tuples(st.integers(0, 70), st.integers(0, 70)))
@settings(deadline=None)
def test_what_was_enlarged_comes_back_exactly(shape, extra):
    stack = np.random.default_rng(4).integers(-1000, 1000, (2, *shape)).astype(np.int16)
    larger = resize_nearest(stack, (shape[0] + extra[0], shape[1] + extra[1]))
    np.testing.assert_array_equal(resize_nearest(larger, shape), stack)


def test_resizing_keeps_the_field_of_view_of_the_grid():
    grid = Grid.from_spacing((401, 630, 2), (0.7, 0.6, 5), (-3, 8, 1))
    small = grid.resize((320, 320, 2))
    for axis, n_in in ((0, 401), (1, 630)):
        at = np.zeros((320, 3))
        at[:, axis] = np.arange(320)
        place = grid.index(small.world(at))[:, axis]
        assert np.abs(place - nearest_indices(n_in, 320)).max() <= 0.5 + 1e-9


def test_resizing_takes_leading_axes_as_they_come():
    channels = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert resize_nearest(channels, 2).shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(resize_nearest(channels, (2, 3))[1, 2], resize_nearest(channels[1, 2], (2, 3)))
    assert resize_nearest(np.zeros((0, 4, 5)), 3).shape == (0, 3, 3)
    assert resize_linear(np.zeros((0, 4, 5)), 3).shape == (0, 3, 3)


def test_resizing_gives_a_copy_even_at_the_same_size():
    stack = np.zeros((1, 4, 5), np.float32)
    assert not np.shares_memory(resize_nearest(stack, (4, 5)), stack)


def test_linear_by_hand():
    row = np.array([[[0.0, 1.0]]], np.float32)
    np.testing.assert_allclose(resize_linear(row, (1, 4))[0, 0], [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(resize_linear(np.array([[[0.0, 1, 2, 4]]]), (1, 2))[0, 0], [0.5, 3])


@pytest.mark.parametrize(("shape", "size"), [((21, 34), (50, 17)), ((64, 64), (101, 80)), ((1, 9), (4, 4))])
def test_linear_agrees_with_opencv(shape, size):
    stack = np.random.default_rng(5).random((2, *shape), dtype=np.float32)
    ours = resize_linear(stack, size)
    assert ours.dtype == np.float32
    for picture, resized in zip(stack, ours, strict=True):
        opencv = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(resized, opencv, atol=1e-4)


def test_linear_refuses_labels():
    with pytest.raises(InputError, match="needs floats, got uint8"):
        resize_linear(np.zeros((1, 2, 2), np.uint8), (3, 3))


@pytest.mark.parametrize("size", [0, -1, (3, 0), (3,), (3, 4, 5), (2.5, 3)])
@pytest.mark.parametrize("resize", [resize_nearest, resize_linear])
def test_an_unusable_size_is_refused(resize, size):
    with pytest.raises(InputError, match="a slice size is one whole number or two"):
        resize(np.zeros((1, 4, 5), np.float32), size)


@pytest.mark.parametrize("shape", [(4,), (2, 0, 5), (2, 5, 0)])
def test_slices_without_pixels_are_refused(shape):
    with pytest.raises(InputError, match="height and a width of at least 1"):
        resize_nearest(np.zeros(shape), 3)


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
