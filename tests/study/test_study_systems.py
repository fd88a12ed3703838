"""Stages of every system: what they see, that patients stay apart, and that what they say lands on the right pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_systems import VOLUMES, only, three_sites, tiny

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.tensors import SliceRecipe, slices_of
from pneumoscope.preprocess.slices import HuWindow
from pneumoscope.recipes.papers.transfer import transfer_systems_small
from pneumoscope.recipes.stages import volume_system
from pneumoscope.study.data import StudyDataset, build_set
from pneumoscope.study.folder import Meter, note_cost, read_cost
from pneumoscope.study.forecast import count_steps, forecast, leader, needs
from pneumoscope.study.learners.base import StudyContext, scan_of
from pneumoscope.study.learners.slices import Neighbours
from pneumoscope.study.learners.volumes import VolumeStage
from pneumoscope.study.transfer import StageMaker
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

pytestmark = pytest.mark.timeout(1200)  # long on a busy machine


@pytest.fixture
def sets(find_all_lungs, tmp_path):
    plan, cases = tiny(), three_sites()
    return {n: build_set(plan, plan.site(n), cases[n], tmp_path, lungs_for=find_all_lungs) for n in (1, 2, 3)}


# -- geometry -----------------------------------------------------------------------------------------------------


def awkward_set(grid):
    """A set of one scan on a tilted grid; one bright voxel stands in every slice, somewhere else in each."""
    hu, lungs = np.full(grid.shape, -900, np.float32), np.ones(grid.shape, np.uint8)
    spot = np.zeros(grid.shape, np.uint8)
    for k in range(grid.shape[2]):
        spot[k % grid.shape[0], (2 * k + 1) % grid.shape[1], k] = 1
    hu[spot > 0] = 300
    masks = (Mask(lungs, grid, dict(LUNG_LABELS)), Mask(spot, grid, dict(INFILTRATE_LABEL)))
    scan = LabelledScan(Volume(hu, grid, grid, "a"), *masks)
    case = Case("toy", "a", "p", "", "", "", lambda: scan)
    slices = slices_of(case, scan, SliceRecipe((HuWindow(-1000, 400),), size=(10, 8)))
    split = slices.table[["case", "slice", "patient"]].assign(part="test")
    return StudyDataset(transfer_systems_small().site(1), slices, split, (), "toy", 0, {"a": case})


class Bright:
    """Stands in for a network on volumes: bright is infection. Boxes (n, 1, d, h, w) in, two classes out.

    Scans are shown twice as fine: of a bright voxel the eight parts are at 0.75^3 of its height, all others lower.
    """

    def __init__(self):
        self.seen = []

    def __call__(self, boxes):
        self.seen.append(boxes.shape)
        ill = (boxes > 0.6).astype(np.float32)
        return np.concatenate([1 - ill, ill], axis=1)


@pytest.mark.parametrize("backwards", [False, True])
def test_what_a_volume_stage_says_lands_on_the_slice_and_the_right_way_round(tilted_grid, monkeypatch, backwards):
    """A perfect predictor in 3D must score perfectly in 2D: any flip, shift or swapped slice would break it."""
    system = volume_system("bressem-2021-small")
    shape = tilted_grid.shape
    phase = replace(system.phases[-1], size=tuple(2 * n for n in shape))
    recipe = replace(system.experiment(), phases=(phase,))
    trained = type("Trained", (), {"model": None, "phase": phase})()
    fake = Bright()
    monkeypatch.setattr("pneumoscope.study.learners.volumes.predictor", lambda *args: fake)
    stage = VolumeStage("Tr1", None, "", True, recipe, trained)
    study_set = awkward_set(tilted_grid)
    rows = np.arange(len(study_set.slices))[:: -1 if backwards else 1]
    found, _ = stage.predict_scan(stage.inputs(study_set, rows), site=1, device="cpu", precision="fp32")
    assert np.array_equal(found >= 0.5, study_set.slices.target[rows] > 0)
    assert (study_set.slices.target[rows] > 0).any(axis=(1, 2)).all()
    i, j, k = phase.size
    assert fake.seen[0][2:] == (k, j, i)


def test_a_subset_of_slices_is_cut_by_their_numbers(tilted_grid):
    study_set = awkward_set(tilted_grid)
    rows = np.array([4, 1])
    asked = scan_of(study_set, rows)
    assert asked.slices.tolist() == study_set.slices.table["slice"].iloc[rows].tolist()
    truth = study_set.scans["a"].load().infiltrate.labels
    assert np.array_equal(asked.cut(truth), study_set.slices.target[rows] > 0)


# -- neighbours ---------------------------------------------------------------------------------------------------


def test_neighbours_never_cross_scans_and_repeat_at_the_edge(sets):
    study_set = sets[1]
    table = study_set.slices.table
    rows = np.sort(np.concatenate([study_set.rows(part) for part in ("train", "val", "test")]))
    near = Neighbours(3, 2)
    seen = near.rows(study_set, rows)
    assert seen.shape == (len(rows), 5)
    assert np.array_equal(seen[:, 0], rows)
    case, number = table["case"].to_numpy(str), table["slice"].to_numpy(int)
    for row in seen:
        assert len(set(case[row])) == 1
        own = number[row[0]]
        there = set(number[np.intersect1d(rows, np.flatnonzero(case == case[row[0]]))])
        for place, step in ((1, -1), (2, 1), (3, -2), (4, 2)):
            wanted = max(min(own + step, max(there)), min(there))
            assert number[row[place]] == wanted
    part = study_set.split.set_index(["case", "slice"])["part"]
    assert all(len({part[case[r], number[r]] for r in row}) == 1 for row in seen)


def test_channels_are_the_slice_its_neighbours_and_its_own_lung(sets):
    study_set = sets[1]
    rows = study_set.rows("train")[3:5]
    near = Neighbours(3, 1)
    shown, stored = near.images(study_set, rows), study_set.slices.images
    assert shown.shape[1] == near.image_channels + 1 == 10
    for n, (own, below, above) in enumerate(near.rows(study_set, rows)):
        assert np.array_equal(shown[n, :3], stored[own, :3])
        assert np.array_equal(shown[n, 3:6], stored[below, :3])
        assert np.array_equal(shown[n, 6:9], stored[above, :3])
        assert np.array_equal(shown[n, 9], stored[own, 3])


# -- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["plain", "joint"])
def test_training_scans_of_a_volume_stage_hold_no_test_patient(sets, strategy):
    name = "Tr1_R_2_R_3-mueller"
    plan = tiny(f"stages.chain.{name}.strategy={strategy}")
    stage = plan.stage(name)
    study = StudyContext(plan, sets, Path())
    seen = {part: study.scans(stage, part) for part in ("train", "val")}
    assert {number for number, _ in seen["train"]} == ({3} if strategy == "plain" else {1, 2, 3})
    assert not set(seen["train"]) & set(seen["val"])
    for number, study_set in sets.items():
        split = study_set.split
        patient = split.drop_duplicates("case").set_index("case")["patient"]
        tested = set(split.loc[split["part"] == "test", "patient"])
        assert tested
        for part in seen.values():
            assert not tested & {patient[case] for n, case in part if n == number}


def test_lungs_are_supplied_where_the_classes_need_them_and_never_cached(sets, find_all_lungs):
    from pneumoscope.study.learners.volumes import _case

    find_all_lungs.asked.clear()
    mueller, bressem = (volume_system(name).experiment() for name in VOLUMES)
    name = next(iter(sets[3].scans))
    assert sets[3].scans[name].load().lungs is None
    assert _case(sets[3], name, bressem).load().lungs is None
    assert find_all_lungs.asked == []
    case = _case(sets[3], name, mueller)
    assert case.load().lungs is not None
    assert case.files is None
    assert find_all_lungs.asked == [name]


# -- plan and cost ------------------------------------------------------------------------------------------------


def test_systems_share_no_training_and_wait_for_their_own_only():
    plan = tiny()
    assert [leader(plan, s.name) for s in plan.stages.chain] == [s.name for s in plan.stages.chain]
    assert needs(plan, "Tr1_R_2_R_3-mueller") == ["Tr1-mueller", "Tr1_R_2-mueller"]
    lengths = {1: 8, 2: 8, 3: 8}
    assert count_steps(plan, lengths) == count_steps(only(plan, "slices", "slices-2.5d"), lengths) == 12


def test_a_forecast_says_what_it_leaves_out(sets):
    expected = forecast(only(tiny(), "slices", "threshold"), sets, device="cpu")
    assert expected.not_counted == 3
    assert "3 stages on volumes are not counted" in expected.sentence()
    alone = forecast(only(tiny(), "threshold"), sets, device="cpu")
    assert (alone.steps, alone.seconds_per_step) == (0, 0.0)


def test_a_meter_sees_memory_that_is_given_back(tmp_path):
    with Meter() as meter:
        block = np.ones(40_000_000, np.float64)
        block += 1
        total = sum(block[::1000])
        del block
    assert total > 0
    assert meter.peak_gigabytes - meter.held_gigabytes > 0.25
    assert meter.seconds > 0
    note_cost(tmp_path, "prediction", {"1": {"scans": 2}})
    note_cost(tmp_path, "prediction", {"2": {"scans": 3}})
    note_cost(tmp_path, "training", meter.as_dict())
    assert set(read_cost(tmp_path)["prediction"]) == {"1", "2"}
    assert read_cost(tmp_path / "nothing") == {}


# -- strategies ------------------------------------------------------------------------------------------------------


def test_strategies_work_with_neighbours(sets, tmp_path):
    """Rehearsal mixes earlier slices in and a selector keeps a network per site: both with neighbours as channels."""
    plan = only(tiny("stages.chain.Tr1_R_2-2.5d.strategy=rehearsal+selector"), "slices-2.5d", stages=2)
    maker = StageMaker(plan, sets, tmp_path, device="cpu")
    made = [maker.make(stage.name) for stage in plan.stages.chain]
    rows = sets[1].rows("test")
    rows = rows[(sets[1].slices.table["case"].iloc[rows] == sets[1].slices.table["case"].iloc[rows[0]]).to_numpy()]
    shown = made[1].inputs(sets[1], rows)
    assert shown.shape[1] == 10
    found, expert = made[1].predict_scan(shown, site=1, device="cpu", precision="fp32")
    assert found.shape == sets[1].slices.target[rows].shape
    assert expert in (1, 2)
