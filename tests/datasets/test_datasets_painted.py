import numpy as np
import pytest

from painted_lesions import paint_lesions
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.datasets.phantom.patient import LesionPlan
from pneumoscope.errors import DatasetError
from pneumoscope.volume import Mask, Volume

PLAN = LesionPlan(0.12, height=0.7, radius_mm=(11.0, 38.0), consolidation=0.4, dorsal=1.0)


@pytest.fixture(scope="module")
def healthy():
    """A scan and its exact lungs; what the phantom has painted itself is no part of the mask."""
    made = scan_patient("B", 1, size="tiny")
    return made.scan.volume, made.lungs


def test_lesions_lie_in_the_lungs_and_nothing_else_changes(healthy):
    volume, lungs = healthy
    scan = paint_lesions(volume, lungs, PLAN, seed=4)
    drawn = scan.infiltrate.any
    assert not (drawn & ~lungs.any).any()
    assert 0.05 < drawn.sum() / lungs.any.sum() < 0.3
    assert np.array_equal(scan.volume.hu[~lungs.any], volume.hu[~lungs.any])
    rise = scan.volume.hu - volume.hu
    assert (rise >= 0).all()
    aerated = volume.hu < -600
    assert np.median(rise[drawn & aerated]) > 100
    assert np.median(rise[lungs.any & ~drawn]) == 0
    assert scan.volume.hu[drawn].max() <= max(60, volume.hu[drawn].max())


def test_the_seed_decides(healthy):
    volume, lungs = healthy
    first, again, other = (paint_lesions(volume, lungs, PLAN, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first.volume.hu, again.volume.hu)
    assert not np.array_equal(first.infiltrate.any, other.infiltrate.any)


def test_a_larger_share_paints_more(healthy):
    volume, lungs = healthy
    little, much = (
        paint_lesions(volume, lungs, LesionPlan(share, 0.9, (11.0, 38.0), 0.4, 1.0), seed=1).infiltrate.any.sum()
        for share in (0.03, 0.3)
    )
    assert much > 3 * little


def test_refusals(healthy, tilted_grid):
    volume, lungs = healthy
    empty = Mask(np.zeros_like(lungs.labels), lungs.grid, lungs.names)
    with pytest.raises(DatasetError, match="no lung"):
        paint_lesions(volume, empty, PLAN, seed=0)
    hu = np.zeros(tilted_grid.shape, np.float32)
    tilted = Volume(hu, tilted_grid, tilted_grid, "t")
    with pytest.raises(DatasetError, match="tilted"):
        paint_lesions(tilted, Mask(np.ones(hu.shape, np.uint8), tilted_grid, {1: "lung"}), PLAN, seed=0)
