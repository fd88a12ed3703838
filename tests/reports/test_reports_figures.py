from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.reports import figures
from pneumoscope.reports.figures import SliceView, case_views, choose_slices, data_uri, montage_png
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume


def overlay(*arrays, **options):
    return montage_png([SliceView(*arrays, **options)], plain=False)


def pixels(picture):
    image = Image.open(BytesIO(picture))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(float) / 255


def near(image, colour, tolerance=0.12):
    return np.abs(image - to_rgb(colour)).max(axis=-1) < tolerance


def centre(where):
    """Middle of the box around what is coloured: an outline may be drawn fainter on one side."""
    at = np.argwhere(where)
    return (at.min(axis=0) + at.max(axis=0)) / 2


@pytest.fixture
def chest():
    """100 x 120 pixels: the patient's right lung on the left side of the picture, infiltrate at the back right."""
    hu = np.full((100, 120), -1000.0)
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[20:80, 10:50], lungs[20:80, 70:110] = 1, 2
    infiltrate = np.zeros_like(lungs)
    infiltrate[60:75, 15:30] = 1
    return hu, lungs, infiltrate


def test_overlay_puts_each_mask_where_it_is(chest):
    image = pixels(overlay(*chest))
    height, width = image.shape[:2]
    right, left = centre(near(image, figures.RIGHT_LUNG)), centre(near(image, figures.LEFT_LUNG))
    spot = centre(near(image, figures.INFILTRATE))
    assert right[1] == pytest.approx(width * 30 / 120, abs=width * 0.03)
    assert left[1] == pytest.approx(width * 90 / 120, abs=width * 0.03)
    assert spot[1] < right[1]
    assert spot[0] > right[0] > height * 0.4


def test_the_reference_has_its_own_colour(chest):
    hu, lungs, infiltrate = chest
    assert not near(pixels(overlay(hu, lungs, infiltrate)), figures.TRUTH).any()
    assert near(pixels(overlay(hu, lungs, infiltrate, np.roll(infiltrate, -10, 0))), figures.TRUTH).any()


def test_slices_are_drawn_in_millimetres(chest):
    square = pixels(overlay(*chest)).shape
    flat = pixels(overlay(*chest, spacing_mm=(0.5, 1.0))).shape
    assert flat[1] == square[1]
    assert flat[0] < 0.65 * square[0]


def test_upper_row_of_a_montage_has_no_masks(chest):
    image = pixels(montage_png([SliceView(*chest)] * 3))
    coloured = near(image, figures.RIGHT_LUNG) | near(image, figures.INFILTRATE)
    assert not coloured[: image.shape[0] // 2].any()
    assert coloured[image.shape[0] // 2 :].any()


def test_same_input_same_bytes_and_nothing_global(chest):
    import sys

    had = "matplotlib.pyplot" in sys.modules
    assert overlay(*chest) == overlay(*chest)
    assert ("matplotlib.pyplot" in sys.modules) == had


def test_full_and_single_pixel_masks_are_drawn(chest):
    hu, lungs, _ = chest
    one = np.zeros_like(lungs)
    one[50, 30] = 1
    assert near(pixels(overlay(hu, np.ones_like(lungs), one)), figures.INFILTRATE, 0.3).any()


def test_a_slice_alone_is_a_picture(chest):
    assert pixels(overlay(chest[0])).max() > 0.9  # the side marks


def test_wrong_shapes_are_refused(chest):
    hu, lungs, infiltrate = chest
    with pytest.raises(InputError, match=r"the mask infiltrate has shape \(99, 120\)"):
        overlay(hu, lungs, infiltrate[1:])
    with pytest.raises(InputError, match=r"\(h, w\) pixels"):
        overlay(hu[None])
    with pytest.raises(InputError, match="at least one slice"):
        montage_png([])


def stack(areas):
    """One line of voxels per slice, as many marked as `areas` says."""
    array = np.zeros((1, 10, len(areas)), np.uint8)
    for k, area in enumerate(areas):
        array[0, :area, k] = 1
    return array


@pytest.mark.parametrize(
    ("lung", "infiltrate", "expected"),
    [
        ([9] * 9, [0, 1, 2, 1, 5, 4, 9, 8, 0], [2, 4, 6]), ([9] * 9, [0, 0, 0, 0, 3, 0, 0, 0, 0], [2, 4, 6]),
        ([0, 0, 9, 9, 9, 9, 9, 0, 0], [0] * 9, [3, 4, 5]), ([0] * 9, [0] * 9, [2, 4, 6]), ([9, 9], [0, 1], [0, 1]),
        ([9], [0], [0]),
    ],
    ids=["worst of each third", "one infected", "no infiltrate", "nothing", "two slices", "one slice"],
)  # fmt: skip
def test_choice_of_slices(lung, infiltrate, expected):
    assert choose_slices(stack(lung), stack(infiltrate)) == expected


def test_the_worst_slice_is_always_chosen(rng):
    for _ in range(30):
        areas = rng.integers(0, 10, 17)
        chosen = choose_slices(stack([9] * 17), stack(areas))
        assert len(chosen) == len(set(chosen)) == 3
        assert areas.max() == areas[chosen].max()


def test_asking_for_no_slice_is_refused():
    with pytest.raises(InputError, match="at least one slice"):
        choose_slices(stack([1]), stack([1]), 0)


def test_case_views_are_radiological_and_highest_first(small_case):
    views = case_views(**small_case)
    assert [v.title.split(",")[0] for v in views] == ["slice 5 of 6", "slice 4 of 6", "slice 2 of 6"]
    first = views[0]
    labels = small_case["lungs"].labels[:, :, 4]
    np.testing.assert_array_equal(first.lungs, labels[::-1, ::-1].T)
    assert np.argwhere(first.lungs == 1)[:, 1].max() < np.argwhere(first.lungs == 2)[:, 1].min()
    assert first.spacing_mm == pytest.approx((0.8, 0.5))
    assert first.truth is not None
    assert montage_png(views)


def test_case_views_are_cut_to_what_is_marked():
    grid = Grid.from_spacing((100, 90, 3), (1.0, 2.0, 5.0))
    lungs = np.zeros(grid.shape, np.uint8)
    lungs[40:60, 30:50] = 3
    volume = Volume(np.zeros(grid.shape, np.float32), grid, grid)
    names = {3: "left lung"}
    views = case_views(volume, Mask(lungs, grid, names), Mask.empty(grid, INFILTRATE_LABEL))
    assert {v.hu.shape for v in views} == {(20 + 2 * 6, 20 + 2 * 12)}
    assert set(np.unique(views[0].lungs)) == {0, 2}
    bare = case_views(volume, Mask.empty(grid, LUNG_LABELS), Mask.empty(grid, INFILTRATE_LABEL))
    assert bare[0].hu.shape == (90, 100)


def test_masks_on_another_grid_are_refused(small_case):
    elsewhere = Mask.empty(Grid.from_spacing((4, 5, 6), (1, 1, 1)), INFILTRATE_LABEL)
    with pytest.raises(GeometryError, match="another grid"):
        case_views(small_case["volume"], small_case["lungs"], elsewhere)


def test_data_uri():
    assert data_uri(b"abc") == "data:image/png;base64,YWJj"
