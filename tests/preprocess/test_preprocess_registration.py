"""Registration: the map's algebra on awkward grids, without the optimiser (that is tested with `compare`)."""

import numpy as np
import pytest

from grids import build_grid
from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.preprocess.registration import Registration, working_copy
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

WORKING = Grid.from_spacing((20, 18, 22), (3.0, 3.0, 3.0), (-30.0, -25.0, -40.0))

OUTER_MM, INNER_MM = (-28.0, -26.0, -24.0), (-20.0, -18.0, -15.0)


def places(grid):
    return grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))


def test_the_map_carries_labels_between_tilted_grids():
    """A shift by (4, -3, 5) mm: what lies at p in the baseline is found at p + shift in the follow-up."""
    shift = np.array([4.0, -3.0, 5.0])
    field = np.broadcast_to(shift, (*WORKING.shape, 3)).astype(np.float32)
    registration = Registration(WORKING, field, {})
    source = build_grid(
        shape=(30, 34, 16), spacing_mm=(1.9, 1.7, 3.3), tilt_degrees=(8, -5, 4), origin_mm=(-28, -26, -24)
    )
    target = build_grid(
        shape=(24, 20, 12), spacing_mm=(1.5, 2.0, 3.1), tilt_degrees=(-6, 3, 2), origin_mm=(-20, -18, -15)
    )
    centre = target.world((12, 10, 6))
    inside = np.linalg.norm(places(source) - (centre + shift), axis=-1) < 11
    found = registration.warp(inside.astype(np.float32), source, target, order=1) > 0.5
    expected = np.linalg.norm(places(target) - centre, axis=-1) < 11
    overlap = 2 * (found & expected).sum() / (found.sum() + expected.sum())
    assert overlap > 0.93
    assert registration.warp(inside, source, Grid.from_spacing((2, 2, 2), (1, 1, 1), (500, 0, 0))).sum() == 0


def test_the_jacobian_of_a_stretch_and_of_a_fold():
    at = places(WORKING)
    stretch = np.zeros((*WORKING.shape, 3), np.float32)
    stretch[..., 2] = 0.1 * at[..., 2]
    stretch[..., 0] = -0.05 * at[..., 0]
    assert Registration(WORKING, stretch, {}).jacobian() == pytest.approx(1.1 * 0.95, rel=1e-4)
    fold = np.zeros_like(stretch)
    fold[..., 1] = -2 * at[..., 1]
    assert (Registration(WORKING, fold, {}).jacobian() < 0).all()


def test_the_copy_is_upright_keeps_volumes_and_averages():
    grid = build_grid(shape=(60, 50, 20), spacing_mm=(1.0, 1.0, 3.0), tilt_degrees=(10, -6, 4))
    rng = np.random.default_rng(1)
    lungs = np.zeros(grid.shape, np.uint8)
    lungs[12:48, 10:40, 4:16] = 1
    hu = rng.normal(-800, 90, grid.shape).astype(np.float32)
    copy = working_copy(Volume(hu, grid, grid), Mask(lungs, grid, LUNG_LABELS), Mask.empty(grid, INFILTRATE_LABEL))
    assert copy.volume.grid.spacing_mm == (3, 3, 3)
    assert copy.lungs.sum() * 27 == pytest.approx(lungs.sum() * grid.voxel_volume_ml * 1000, rel=0.02)
    inner = copy.lungs > 0.99
    assert copy.volume.hu[inner].mean() == pytest.approx(-800, abs=5)
    assert copy.volume.hu[inner].std() < 45  # noise is averaged away
    assert copy.infiltrate.max() == 0
    with pytest.raises(InputError, match="shows no lung"):
        working_copy(Volume(hu, grid, grid), Mask.empty(grid, LUNG_LABELS), Mask.empty(grid, INFILTRATE_LABEL))
