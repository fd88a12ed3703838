import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_study_scoring import make_sets

from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.study.analysis.appearance import (
    FEATURES,
    apart,
    appearance,
    density_group,
    features_of,
    lesion_rows,
    missed_by_kind,
    slice_features,
)


@pytest.fixture
def sets(small, hospitals, find_all_lungs, tmp_path):
    return make_sets(small, hospitals, tmp_path, find_all_lungs)


def test_lesions_and_false_alarms_of_one_slice(small, sets):
    """The made-up patient has one blob in each lung; one is found whole, and a false one lies in the front."""
    study_set = sets[1]
    row = int(np.flatnonzero(study_set.slices.target.any(axis=(1, 2)))[0])
    truth = study_set.slices.target[row] > 0
    half = truth & (np.arange(truth.shape[1]) < truth.shape[1] // 2)
    false = np.zeros_like(truth)
    front = np.flatnonzero(study_set.slices.lungs[row].any(axis=1))[0]
    false[front, np.flatnonzero(study_set.slices.lungs[row][front])[0]] = True
    rows = lesion_rows(small, study_set, np.array([row]), (half | false)[None])
    assert [r["kind"] for r in rows] == ["lesion", "lesion", "false alarm"]
    assert sorted(r["found"] for r in rows[:2]) == [0, 1]
    assert sum(r["pixels"] for r in rows[:2]) == truth.sum()
    assert rows[0]["area_mm2"] == pytest.approx(rows[0]["pixels"] * 100)  # 10 x 10 mm
    assert rows[0]["value"] == pytest.approx(-500, abs=30)  # blobs of -500 HU, lung of -850
    assert rows[2]["dorsal"] == 0
    assert math.isnan(rows[2]["found"])
    assert 0 <= rows[0]["depth"] <= 1


def test_nothing_drawn_and_nothing_found_is_no_row(small, sets):
    empty = np.flatnonzero(~sets[1].slices.target.any(axis=(1, 2)))[:2]
    assert lesion_rows(small, sets[1], empty, np.zeros((2, 32, 32), bool)) == []


def made_up_lesions():
    common = {"stage": "Tr1", "test": 1, "case": "c", "slice": 0, "depth": 0.1, "height": 0.2, "dorsal": 0.9}
    rows = [
        {"patient": "a", "kind": "lesion", "lung_share": 0.001, "value": -700.0, "found": 0.0},
        {"patient": "a", "kind": "lesion", "lung_share": 0.10, "value": -200.0, "found": 0.8},
        {"patient": "b", "kind": "lesion", "lung_share": 0.002, "value": -650.0, "found": 0.5},
        {"patient": "b", "kind": "false alarm", "lung_share": 0.002, "value": -650.0, "found": math.nan},
    ]
    return pd.DataFrame([{**common, **row} for row in rows])


def test_what_is_missed_by_kind():
    table = missed_by_kind(made_up_lesions(), "HU", four_channel().scoring).set_index(["by", "group"])
    small = table.loc[("size", "below 1 % of the lungs")]
    assert (small["lesions"], small["patients"], small["false_alarms"]) == (2, 2, 1)
    assert small["found"] == pytest.approx(0.25)
    assert small["missed"] == pytest.approx(0.5)
    assert (small["found_low"], small["found_high"]) == (0, 0.5)
    assert table.loc[("density", "above -300 HU"), "found"] == pytest.approx(0.8)
    assert math.isnan(table.loc[("size", "1 to 5 %"), "found"])
    assert table.loc[("front to back", "back half"), "lesions"] == 3


def test_a_single_slice_has_no_height(small, sets):
    first = sets[1].slices.table["case"] == sets[1].slices.table["case"][0]
    rows = np.flatnonzero(first & sets[1].slices.target.any(axis=(1, 2)))[:1]
    alone = replace(sets[1], slices=sets[1].slices.select(rows))
    found = lesion_rows(small, alone, np.array([0]), np.zeros((1, 32, 32), bool))
    assert all(math.isnan(row["height"]) for row in found)
    table = missed_by_kind(pd.DataFrame(found).assign(stage="Tr1", test=1), "HU", four_channel().scoring)
    assert table[table["by"] == "height"]["lesions"].sum() == 0
    assert table[table["by"] == "depth"]["lesions"].sum() == len(found) > 0


def test_grey_values_are_cut_in_thirds():
    cuts, names = density_group(pd.Series(np.arange(100.0)), "grey")
    assert cuts == (33.0, 66.0)
    assert len(names) == 3
    assert density_group(pd.Series([], dtype=float), "grey")[0] == (0.0, 0.0)


def test_the_noise_estimate_finds_planted_noise():
    rng = np.random.default_rng(0)
    inside = np.ones((80, 80), bool)
    for planted in (5.0, 40.0):
        values = -800 + rng.normal(0, planted, inside.shape)
        found = dict(zip(FEATURES, slice_features(values, inside), strict=True))
        assert found["noise"] == pytest.approx(planted, rel=0.1)
        assert found["mean"] == pytest.approx(-800, abs=2)
        assert abs(found["smoothness"]) < 0.1
    assert np.isnan(slice_features(np.zeros((9, 9)), np.zeros((9, 9), bool))).all()
    flat = dict(zip(FEATURES, slice_features(np.full((30, 30), 7.0), np.ones((30, 30), bool)), strict=True))
    assert (flat["noise"], flat["sd"], flat["smoothness"]) == (0, 0, 1)


def test_sets_side_by_side(small, sets):
    features = {n: features_of(small, s, s.rows()) for n, s in sets.items()}
    looks = appearance(small, sets, features)
    assert looks["unit"] == "HU"
    first = looks["sets"][0]
    assert first["pixel_mm"] == 10
    assert first["slice_mm"] == 20
    assert 5 < first["lung_noise"] < 30  # 10 HU planted; the lungs are ten pixels wide
    assert 0 < first["load_mean"] <= first["load_max"] < 1
    assert first["lesions_per_infected_slice"] == pytest.approx(2)
    assert sum(looks["histograms"][1]["lung"]) == pytest.approx(1)
    assert looks["apart"][0]["lung"] < 20  # the same rules made both


def test_a_planted_shift_is_the_distance_of_histograms():
    edges = np.linspace(0, 10, 11)
    one = {"lung": [0, 1] + [0] * 8, "infiltrate": [1] + [0] * 9}
    two = {"lung": [0] * 4 + [1] + [0] * 5, "infiltrate": [1] + [0] * 9}
    assert apart({1: one, 2: two}, edges) == [{"a": 1, "b": 2, "lung": pytest.approx(3.0), "infiltrate": 0}]
