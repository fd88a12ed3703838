"""Disease painted into a small made chest: classes stay exact, and what a condition promises holds."""

import numpy as np
import pytest

from painted_chest import CLASSES, CONDITIONS, FLUID, GAS, LEFT, RIGHT, Chest, on_grid

SPACING = (5.0, 4.0, 3.5)


@pytest.fixture(scope="module")
def chest():
    """A body with two lungs of different size, a trachea, on an anisotropic grid."""
    shape = (40, 50, 72)
    d, h, w = (np.arange(n) * step for n, step in zip(shape, SPACING, strict=True))
    d, h, w = np.meshgrid(d - d[-1] / 2, h - h[-1] / 2, w - w[-1] / 2, indexing="ij")
    hu = np.full(shape, -1000, np.float32)
    hu[((w / 118) ** 2 + (h / 92) ** 2 < 1)] = 40
    classes = np.zeros(shape, np.int8)
    for side, middle, width in ((RIGHT, -55, 42), (LEFT, 58, 36)):
        lung = ((w - middle) / width) ** 2 + (h / 62) ** 2 + ((d - 10) / 72) ** 2 < 1
        classes[lung], hu[lung] = side, -850
    tube = (np.hypot(w, h) < 8) & (d > 20)
    classes[tube], hu[tube] = 3, -990
    noise = np.random.default_rng(1).normal(0, 12, shape)
    return Chest((hu + noise).astype(np.float32), classes, SPACING)


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_changes_the_scan_and_keeps_it_a_chest(chest, name):
    painted = CONDITIONS[name](chest, np.random.default_rng(4))
    assert painted.hu.shape == painted.classes.shape
    assert painted.hu.dtype == np.float32
    assert painted.classes.dtype == np.int8
    assert np.isfinite(painted.hu).all()
    assert set(np.unique(painted.classes)) <= set(range(-1, len(CLASSES)))
    assert painted.lung().any()
    assert painted.hu.shape != chest.hu.shape or not np.array_equal(painted.hu, chest.hu)
    again = CONDITIONS[name](chest, np.random.default_rng(4))
    assert np.array_equal(painted.hu, again.hu)
    assert np.array_equal(painted.classes, again.classes)


@pytest.mark.parametrize("seed", range(4))
def test_dense_and_thin_lung_stays_lung_and_what_leaves_the_pleura_is_none(chest, seed):
    for name in ("white_lung", "white_lobe", "pneumonia", "mass", "emphysema", "bulla"):
        painted = CONDITIONS[name](chest, np.random.default_rng(seed))
        assert np.array_equal(painted.classes, chest.classes)
    for name, what in (("effusion", FLUID), ("pneumothorax", GAS)):
        painted = CONDITIONS[name](chest, np.random.default_rng(seed))
        moved = painted.classes == what
        assert moved.any()
        assert (chest.lung()[moved]).all()
        assert np.array_equal(painted.lung(), chest.lung() & ~moved)
    fluid = CONDITIONS["effusion"](chest, np.random.default_rng(seed))
    assert abs(np.median(fluid.hu[fluid.classes == FLUID]) - 8) < 20
    assert np.nonzero(fluid.classes == FLUID)[1].mean() > np.nonzero(fluid.lung())[1].mean()  # behind the lung


def test_after_a_pneumonectomy_one_lung_is_left_and_has_grown(chest):
    painted = CONDITIONS["pneumonectomy"](chest, np.random.default_rng(2))
    sides = [np.count_nonzero(painted.lung(side)) for side in (RIGHT, LEFT)]
    assert min(sides) == 0
    assert max(sides) > np.count_nonzero(chest.lung(RIGHT if sides[0] else LEFT))
    assert np.median(painted.hu[painted.classes == FLUID]) > -20


def test_another_grid_keeps_volumes_and_unstated_voxels(chest):
    unstated = Chest(chest.hu, np.where(chest.classes == 3, np.int8(-1), chest.classes), SPACING)
    coarse = on_grid(unstated, (25, 33, 42), (8.0, 6.06, 6.0))
    for value in (RIGHT, LEFT, -1):
        before = np.count_nonzero(unstated.classes == value) * np.prod(SPACING)
        after = np.count_nonzero(coarse.classes == value) * np.prod(coarse.spacing_mm)
        assert after == pytest.approx(before, rel=0.15)
    assert coarse.hu[coarse.classes == RIGHT].mean() == pytest.approx(-840, abs=40)
