import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_study_scoring import Bright, make_sets

from pneumoscope.metrics.classification import reliability
from pneumoscope.metrics.surface import surface_scores
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.scores.predictions import cell_folder, count_voxels, read_cell, reliability_of
from pneumoscope.study.scores.slices import SLICE_COLUMNS, Scorer, contour_rows


@pytest.fixture
def sets(small, hospitals, find_all_lungs, tmp_path):
    return make_sets(small, hospitals, tmp_path, find_all_lungs)


def test_a_new_set_costs_one_cell_and_new_weights_all(small, sets, tmp_path):
    model = Bright(tmp_path)
    Scorer(small, {1: sets[1]}).stage(model, tmp_path)
    with_set_3 = Scorer(small, sets)
    with_set_3.stage(model, tmp_path)
    assert with_set_3.computed == [("Tr1", 3)]
    model.sha256 = "cd" * 32
    retrained = Scorer(small, sets)
    retrained.stage(model, tmp_path)
    assert retrained.computed == [("Tr1", 1), ("Tr1", 3)]


@pytest.mark.parametrize("change", ["scoring.threshold=0.4", "scoring.surface_tolerance_mm=9"])
def test_other_scoring_is_another_cell(small, sets, tmp_path, change):
    Scorer(small, sets).stage(Bright(tmp_path), tmp_path)
    other = Scorer(with_overrides(small, [change]), sets)
    other.stage(Bright(tmp_path), tmp_path)
    assert len(other.computed) == 2


def test_a_set_whose_masks_or_split_changed_is_another_set(small, sets):
    before, slices = sets[1].content, sets[1].slices
    assert replace(sets[1]).content == before
    others = []
    for name in ("images", "target", "lungs"):
        array = getattr(slices, name).copy()
        array.flat[-1] += 1
        others.append(replace(sets[1], slices=replace(slices, **{name: array})))
    wider = slices.table.assign(row_mm=slices.table["row_mm"] * 1.01)
    others.append(replace(sets[1], slices=replace(slices, table=wider)))
    others.append(replace(sets[1], split=sets[1].split.assign(part=sets[1].split["part"].to_numpy()[::-1])))
    assert len({before, *(other.content for other in others)}) == 6


def test_a_cell_comes_back_as_it_was_and_a_damaged_one_not_at_all(small, sets, tmp_path):
    scorer = Scorer(small, sets)
    cell = scorer.cell(Bright(tmp_path), 1, tmp_path)
    kept = read_cell(tmp_path, "Tr1", 1)
    assert kept is not None
    assert kept.key == cell.key
    assert tuple(kept.slices.columns) == SLICE_COLUMNS
    assert set(kept.slices["part"]) == {"val", "test"}
    np.testing.assert_array_equal(kept.voxels.counts, cell.voxels.counts)
    assert read_cell(tmp_path, "Tr1", 1, "another key") is None
    (cell_folder(tmp_path, 1) / "voxels.npz").write_bytes(b"cut off")
    assert read_cell(tmp_path, "Tr1", 1) is None
    (cell_folder(tmp_path, 1) / "done.json").write_text(json.dumps([]))
    assert read_cell(tmp_path, "Tr1", 1) is None


def test_a_set_never_trained_on_is_scored_whole_when_the_recipe_says_so(small, sets, tmp_path):
    """2022a scores set 2 on all slices before the retraining and on the test slices after it."""
    plan = with_overrides(small, ["scoring.unseen=all"])
    rows = Scorer(plan, sets).stage(Bright(tmp_path), tmp_path)
    assert set(rows.loc[rows["test"] == 1, "part"]) == {"test"}
    unseen = rows[rows["test"] == 3]
    assert set(unseen["part"]) == {"train", "val", "test"}
    assert len(unseen) == len(sets[3].split)
    trained = Bright(tmp_path / "other")
    trained.name = "Tr3"
    after = Scorer(plan, sets).stage(trained, tmp_path / "other")
    assert set(after.loc[after["test"] == 3, "part"]) == {"test"}


def test_counts_of_probabilities_give_the_same_calibration_as_the_voxels():
    rng = np.random.default_rng(0)
    p = rng.integers(0, 256, (6, 9, 9), dtype=np.uint8)
    truth, lungs = rng.random(p.shape) < p / 300, np.ones(p.shape, bool)
    lungs[:, :3] = False
    lungs[5] = False  # a slice without lung mask counts whole
    counts = count_voxels(p, truth, lungs, [("a", "test")] * 3 + [("b", "test")] * 2 + [("b", "val")])
    inside = lungs[:5]
    exact = reliability(p[:5][inside] / 255, truth[:5][inside])
    found = reliability_of(counts.total("test"), 15)
    assert found.ece == pytest.approx(exact.ece)
    assert found.brier == pytest.approx(exact.brier)
    assert found.count.tolist() == exact.count.tolist()
    assert counts.total("val").sum() == 81
    assert list(counts.by_patient("test")) == ["a", "b"]
    assert reliability_of(counts.total("train"), 15).n == 0


def test_contours_add_up_to_the_nsd_of_a_slice():
    found, truth = np.zeros((3, 20, 20), bool), np.zeros((3, 20, 20), bool)
    truth[0, 5:12, 5:12] = True
    found[0, 6:15, 5:12] = True
    found[1, 2:4, 2:4] = True
    table = pd.DataFrame({"row_mm": [2.0] * 3, "column_mm": [1.0] * 3})
    rows = contour_rows(found, truth, table, 3.0)
    alone = surface_scores(found[0], truth[0], (2.0, 1.0), 3.0)
    assert rows["met_mm"][0] / rows["contour_mm"][0] == pytest.approx(alone.nsd)
    assert 0 < alone.nsd < 1
    assert rows.iloc[1].tolist() == [pytest.approx(rows["contour_mm"][1]), 0.0]
    assert rows["contour_mm"][1] > 0
    assert rows.iloc[2].tolist() == [0, 0]
    assert contour_rows(found, truth, table[["row_mm"]], 3.0).isna().all(axis=None)
    assert not math.isnan(rows["met_mm"].sum())
