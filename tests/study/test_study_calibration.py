import math

import numpy as np
import pandas as pd
import pytest
from test_study_matrix import full_table
from test_study_scoring import make_sets

from pneumoscope.metrics.classification import rescaled
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.study.analysis.appearance import features_of
from pneumoscope.study.analysis.calibration import (
    abstention,
    calibration_row,
    distance_table,
    fit_temperature,
    levels,
    mahalanobis,
)
from pneumoscope.study.scores.matrix import Matrix
from pneumoscope.study.scores.predictions import Cell, VoxelCounts


def counts_of(truth_at, voxels=100_000):
    """Counts (2, 256): as many voxels at each level, `truth_at(p)` of them infiltrate."""
    ill = np.round(truth_at(levels()) * voxels).astype(np.int64)
    return np.stack([voxels - ill, ill])


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.5])
def test_the_planted_temperature_is_found(planted):
    counts = counts_of(lambda p: rescaled(p, planted))
    assert fit_temperature(counts) == pytest.approx(planted, rel=0.02)


def test_the_temperature_equals_a_search_over_a_grid():
    counts = counts_of(lambda p: np.clip(p**1.7, 0, 1), voxels=977)
    grid = np.exp(np.linspace(math.log(0.05), math.log(20), 4001))
    p = levels()[None]
    scaled = np.clip(1 / (1 + np.exp(-np.log(p / (1 - p)) / grid[:, None])), 1e-6, 1 - 1e-6)
    loss = -(counts[0] * np.log(1 - scaled) + counts[1] * np.log(scaled)).sum(axis=1)
    assert fit_temperature(counts) == pytest.approx(grid[np.argmin(loss)], rel=5e-3)


def test_one_kind_of_voxel_alone_has_no_temperature():
    assert math.isnan(fit_temperature(np.stack([np.ones(256, int), np.zeros(256, int)])))


def cell_of(val, test):
    counts = np.stack([val, *test])
    names = np.array(["v", *(f"t{k}" for k in range(len(test)))])
    parts = np.array(["val"] + ["test"] * len(test))
    return Cell("Tr1", 1, "k", pd.DataFrame(), pd.DataFrame(), VoxelCounts(names, parts, counts))


def test_scaling_repairs_an_overconfident_stage():
    hot = counts_of(lambda p: rescaled(p, 3.0))
    row = calibration_row(cell_of(hot, [hot, hot, hot]), four_channel().scoring)
    assert row["temperature"] == pytest.approx(3.0, rel=0.02)
    assert row["ece_after"] < 0.1 * row["ece"]
    assert row["brier_after"] < row["brier"]
    assert row["log_loss_after"] < row["log_loss"]
    assert row["ece_low"] == pytest.approx(row["ece"])  # three patients who are alike
    assert row["patients"] == 3
    assert len(row["confidence"]) == 15


def test_patients_who_differ_give_an_interval_and_one_patient_none():
    good, bad = counts_of(lambda p: p), counts_of(lambda p: 1 - p)
    row = calibration_row(cell_of(good, [good, bad]), four_channel().scoring)
    assert row["ece_low"] < row["ece"] <= row["ece_high"]
    assert math.isnan(calibration_row(cell_of(good, [bad]), four_channel().scoring)["ece_low"])
    empty = np.zeros((2, 256), np.int64)
    none = calibration_row(cell_of(empty, [empty]), four_channel().scoring)
    assert math.isnan(none["ece"])
    assert math.isnan(none["temperature"])


def test_mahalanobis_of_independent_features_is_the_scaled_distance():
    rng = np.random.default_rng(0)
    training = rng.normal(0, [1.0, 5.0], (20_000, 2))
    found = mahalanobis(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 10.0]]), training)
    assert found == pytest.approx([0, 2, 2], abs=0.05)
    assert np.isnan(mahalanobis(np.zeros((1, 2)), training[:1])).all()


def test_a_noisy_hospital_is_told_from_the_one_learnt(small, hospitals, find_all_lungs, tmp_path):
    hospitals[3] = hospitals[2]  # noise of 60 HU in place of 10
    sets = make_sets(small, hospitals, tmp_path, find_all_lungs)
    features = {n: features_of(small, s, s.rows()) for n, s in sets.items()}
    table = distance_table(sets, features)
    assert list(table.columns) == ["test", "patient", "slices", "to_1", "to_3"]
    own, other = table[table["test"] == 1]["to_1"], table[table["test"] == 3]["to_1"]
    assert own.max() < other.min()


def test_abstention_by_hand():
    """Two known patients near, two strangers: one near, one far. AUC = (2 + 0.5 + ...) by pairs."""
    table = full_table()
    distances = pd.DataFrame(
        {
            "test": [1, 1, 2, 2],
            "patient": ["a", "b", "a", "b"],
            "slices": 1,
            "to_1": [1.0, 2.0, 1.5, 9.0],
            "to_2": [9.0, 9.0, 0.5, 0.5],
            "to_3": 9.0,
        }
    )
    rows = {row["stage"]: row for row in abstention(Matrix(four_channel(), table), distances)}
    tr1 = rows["Tr1"]
    assert tr1["auc"] == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert (tr1["known"], tr1["strangers"]) == (2, 2)
    assert tr1["limit"] == pytest.approx(np.percentile([1.0, 2.0], 95))
    assert tr1["refused"] == 0.5
    assert rows["Tr1_R_2"]["sites"] == [1, 2]
    assert math.isnan(rows["Tr1_R_2"]["auc"])  # set 3 has no rows here: no strangers left
