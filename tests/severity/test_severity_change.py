"""Differences, noise floors and fates, against values worked out by hand."""

import numpy as np
import pytest

from pneumoscope.geometry import Grid
from pneumoscope.severity.change import (
    BORDER_MM,
    DENSITY_STEP_HU,
    LEAST_ML,
    fate_map,
    noise_ml,
    region_change,
    surface_mm2,
)


def test_surface_of_a_box_and_of_a_ball():
    grid = Grid.from_spacing((12, 12, 12), (1.0, 2.0, 3.0))
    box = np.zeros(grid.shape, bool)
    box[2:6, 3:6, 4:9] = True  # 4 x 6 x 15 mm
    assert surface_mm2(box, grid) == pytest.approx(2 / 3 * 2 * (4 * 6 + 4 * 15 + 6 * 15))
    at = np.stack(np.meshgrid(*[np.arange(41) - 20.0] * 3, indexing="ij"))
    ball = np.sqrt((at**2).sum(0)) <= 15
    upright = Grid.from_spacing(ball.shape, (1, 1, 1))
    assert surface_mm2(ball, upright) == pytest.approx(4 * np.pi * 15**2, rel=0.03)
    assert surface_mm2(np.zeros_like(ball), upright) == 0
    touching = np.ones((2, 2, 2), bool)
    assert surface_mm2(touching, Grid.from_spacing((2, 2, 2), (1, 1, 1))) == pytest.approx(2 / 3 * 24)


def test_the_floor_grows_with_surface_and_with_an_unsteady_map():
    assert noise_ml(30_000, 40_000) == pytest.approx(1.96 * 50 * BORDER_MM)
    assert noise_ml(30_000, 40_000, 1.0) == pytest.approx(1.96 * 50 * np.hypot(BORDER_MM, 1.0))
    assert noise_ml(0, 0) == LEAST_ML


@pytest.mark.parametrize(
    ("after", "lungs", "verdict"),
    [
        (60.0, (1000.0, 1000.0), "more"),
        (20.0, (1000.0, 1000.0), "less"),
        (45.0, (1000.0, 1000.0), "no measurable change"),
        (60.0, (1000.0, 1500.0), "no measurable change"),  # a deeper breath, the same share
        (60.0, (1000.0, 0.0), "not measurable"),
    ],
)
def test_verdicts_go_by_the_share(after, lungs, verdict):
    found = region_change((40.0, after), lungs, 10.0)
    assert found.verdict == verdict
    assert found.change_ml == after - 40
    if verdict == "not measurable":
        assert found.followup_percent is found.change_points is found.noise_points is None
    else:
        assert found.baseline_percent == 4
        assert found.noise_points == 1


def test_fates_divide_what_is_marked_on_either_date():
    baseline = np.array([1, 1, 1, 1, 0, 0], bool).reshape(6, 1, 1)
    followup = np.array([0, 1, 1, 1, 1, 0], bool).reshape(6, 1, 1)
    density = np.array([0, 0, 1, -1, 0, 1]).reshape(6, 1, 1).astype(np.float32) * (DENSITY_STEP_HU + 1)
    assert fate_map(baseline, followup, density).ravel().tolist() == [2, 3, 4, 5, 1, 0]
