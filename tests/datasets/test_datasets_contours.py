from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from skimage.draw import polygon2mask
from skimage.measure import find_contours

from pneumoscope.datasets.formats.mdai import rasterise, rectangle, vertices_of


def star(seed: int, points: int = 40, size: float = 24.0) -> np.ndarray:
    """An outline of random radius around (20.3, 17.9), (n, 2)."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = size / 2 * rng.uniform(0.3, 1, points)
    return np.stack([20.3 + radius * np.cos(angle), 17.9 + radius * np.sin(angle)], axis=1)


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_a_point_in_polygon_test_at_every_pixel_centre(seed):
    points, shape = star(seed), (37, 43)
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    expected = Outline(points).contains_points(np.stack([columns.ravel(), rows.ravel()], axis=1)).reshape(shape)
    np.testing.assert_array_equal(rasterise(points, shape), expected)


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_scikit_image_when_pixels_are_counted_from_their_centres(seed):
    points, shape = star(seed), (37, 43)
    np.testing.assert_array_equal(rasterise(points, shape, centre=0.0), polygon2mask(shape, points[:, ::-1]))


def test_within_the_rim_that_opencv_adds():
    """fillPoly cuts vertices to whole pixels and paints the border: it holds ours, and half a pixel more around."""
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    points = np.stack([20.3 + 11.2 * np.cos(angle), 17.9 + 7.7 * np.sin(angle)], axis=1)
    filled = cv2.fillPoly(np.zeros((37, 43), np.uint8), [points.astype(np.int32)], 1) > 0
    ours = rasterise(points, filled.shape)
    assert not (ours & ~filled).any()
    assert 2 * ours.sum() / (ours.sum() + filled.sum()) > 0.94


def test_a_box_on_whole_pixels_holds_exactly_them():
    mask = rasterise(rectangle(2, 1, 3, 2), (5, 7))
    expected = np.zeros((5, 7), bool)
    expected[1:3, 2:5] = True
    np.testing.assert_array_equal(mask, expected)


def test_neighbours_that_share_an_edge_through_centres_share_no_pixel():
    left, right = rasterise(rectangle(0, 0, 2.5, 4), (4, 6)), rasterise(rectangle(2.5, 0, 3.5, 4), (4, 6))
    assert not (left & right).any()
    assert (left | right).all()


def test_outlines_beyond_the_picture_are_cut_and_empty_ones_are_empty():
    assert rasterise(rectangle(-10, -10, 100, 100), (4, 5)).all()
    assert not rasterise(rectangle(10, 10, 5, 5), (4, 5)).any()
    assert not rasterise(rectangle(-9, 1, 5, 2), (4, 5)).any()
    assert not rasterise(np.array([[1.0, 1.0], [3.0, 3.0]]), (4, 5)).any()
    assert not rasterise(rectangle(1.6, 1.6, 0.3, 0.3), (4, 5)).any()  # holds no centre


def test_what_overlaps_itself_is_counted_by_crossings():
    twice = np.concatenate([rectangle(0, 0, 4, 4), rectangle(0, 0, 4, 4)])
    assert not rasterise(twice, (4, 4)).any()


@given(st.integers(0, 10_000))
def test_contours_of_a_mask_give_the_mask_back(seed):
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.random((21, 17)).astype(np.float32), (7, 7), 0) > 0.5
    back = np.zeros_like(mask)
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        back ^= rasterise(contour[:, ::-1] - 1 + 0.5, mask.shape)
    np.testing.assert_array_equal(back, mask)


def test_vertices_come_as_pairs_or_flat():
    np.testing.assert_array_equal(vertices_of([[1, 2], [3, 4.5]]), [[1, 2], [3, 4.5]])
    np.testing.assert_array_equal(vertices_of([1, 2, 3, 4.5]), [[1, 2], [3, 4.5]])
    for bad in (None, [], [1, 2, 3], [[1, 2], [3]], [[1, None]], "no", [[1, "x"]], [[1, float("nan")]], [[1, 1e30]], 7):
        assert vertices_of(bad) is None
