from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pneumoscope.datasets.splits.draw import balanced_draw, exposure, held_out_draw, leaking
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.metrics.intervals import unpaired_difference
from pneumoscope.study.analysis.leakage import draw_leakage, leakage, leakage_summary, leakage_table, study_leakage

SEEN, UNSEEN = ("a", "b", "c"), ("x", "y")


def made_split(seen=SEEN, unseen=UNSEEN, slices=8):
    """Seen patients: slices 0-3 trained on, 4 chooses, the others tested; unseen ones: all tested."""
    rows = [
        (patient, n, patient, "test" if patient in unseen or n > 4 else "val" if n == 4 else "train")
        for patient in (*seen, *unseen)
        for n in range(slices)
    ]
    return pd.DataFrame(rows, columns=["case", "slice", "patient", "part"])


def made_scores(split, f1_of, stage="Tr1", test=1):
    """Rows of per_case.csv of the test slices; `f1_of(patient, slice)`; every slice has 10 infected pixels."""
    rows = split[split["part"] == "test"].copy()
    rows["f1"] = [f1_of(p, n) for p, n in zip(rows["patient"], rows["slice"], strict=True)]
    rows["tp"] = np.rint(rows["f1"] * 10).astype(int)
    rows["fn"] = rows["fp"] = 10 - rows["tp"]
    return rows.assign(stage=stage, test=test, tn=100, accuracy=0.5, precision=0.5, recall=0.5, iou=0.5)


def test_the_difference_of_known_scores():
    split = made_split()
    found = leakage(made_scores(split, lambda p, n: 0.9 if p in SEEN else 0.6), split)
    assert (found.stage, found.test) == ("Tr1", 1)
    assert (found.seen.mean, found.unseen.mean) == pytest.approx((0.9, 0.6))
    assert (found.added.mean, found.added.low, found.added.high) == pytest.approx((0.3, 0.3, 0.3))
    assert (found.seen.n_patients, found.seen.n_values) == (3, 9)
    assert (found.unseen.n_patients, found.unseen.n_values) == (2, 16)
    assert found.corrected is None


def test_hard_patients_do_not_pass_for_leakage():
    # The unseen patients are harder by 0.2 for everybody, and the training gains 0.1 more on those it has seen.
    split = made_split()
    hard = {"a": 0.0, "b": 0.05, "c": -0.05, "x": -0.2, "y": -0.2}
    control = made_scores(split, lambda p, n: 0.5 + hard[p], stage="Tr2")
    rows = made_scores(split, lambda p, n: 0.5 + hard[p] + (0.3 if p in SEEN else 0.2))
    found = leakage(rows, split, control=control)
    assert found.added.mean == pytest.approx(0.3)
    assert found.control == "Tr2"
    assert (found.corrected.mean, found.corrected.low, found.corrected.high) == pytest.approx((0.1, 0.1, 0.1))


def test_an_effect_within_the_spread_of_patients_is_not_told_from_chance():
    rng = np.random.default_rng(0)
    seen, unseen = [f"s{n}" for n in range(8)], [f"u{n}" for n in range(5)]
    split = made_split(seen, unseen)
    level = dict(zip((*seen, *unseen), rng.uniform(0.2, 0.9, 13), strict=True))
    found = leakage(made_scores(split, lambda p, n: level[p]), split)
    assert found.added.low < 0 < found.added.high
    assert found.added.mean == pytest.approx(
        np.mean([level[p] for p in seen]) - np.mean([level[p] for p in unseen]), abs=1e-9
    )
    assert "cannot be distinguished from chance" in leakage_summary([found])["sentence"]


def test_slices_without_infiltrate_do_not_count():
    split = made_split()
    rows = made_scores(split, lambda p, n: 0.9 if p in SEEN else 0.6)
    healthy = rows["patient"] == "x"
    rows.loc[healthy, ["tp", "fn"]] = 0
    found = leakage(rows, split)
    assert found.unseen.n_patients == 1
    assert found.added.mean == pytest.approx(0.3)
    assert math.isnan(found.added.low)
    assert "no interval" in leakage_summary([found])["sentence"]


def test_without_anybody_on_one_side_nothing_is_claimed():
    split = made_split(unseen=())
    found = leakage(made_scores(split, lambda p, n: 0.9), split)
    assert math.isnan(found.added.mean)
    assert math.isnan(found.unseen.mean)
    assert "cannot be measured" in leakage_summary([found])["sentence"]
    assert leakage_summary([]) == {}


def test_validation_patients_are_seen():
    split = made_split()
    split.loc[split["patient"] == "y", "part"] = ["val"] + ["test"] * 7
    assert exposure(split) == {"a": "seen", "b": "seen", "c": "seen", "x": "unseen", "y": "seen"}


def study_tables():
    splits = {1: made_split(), 2: made_split(unseen=()), 3: made_split(("d", "e"), ("w", "z"))}
    scores = {
        ("Tr1", 1): 0.9, ("Tr1", 2): 0.5, ("Tr1", 3): 0.4,
        ("Tr1_R_3", 1): 0.8, ("Tr1_R_3", 2): 0.5, ("Tr1_R_3", 3): 0.7,
    }  # fmt: skip
    trained = {"Tr1": {1}, "Tr1_R_3": {1, 3}}
    parts = [
        made_scores(splits[test], lambda p, n, at=level, of=(stage, test): at if p not in (*UNSEEN, "w", "z") or
                    of[1] not in trained[of[0]] else at - 0.2, stage, test)
        for (stage, test), level in scores.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True), splits, trained


def test_every_stage_on_every_set_it_was_trained_on():
    per_case, splits, trained = study_tables()
    found = study_leakage(per_case, splits, trained)
    # Set 2 holds nobody out, and set 1 was seen by every stage: no control for it.
    assert [(one.stage, one.test, one.control) for one in found] == [
        ("Tr1", 1, None), ("Tr1_R_3", 1, None), ("Tr1_R_3", 3, "Tr1")
    ]  # fmt: skip
    assert [one.added.mean for one in found] == pytest.approx([0.2] * 3)
    assert found[2].corrected.mean == pytest.approx(0.2)
    table = leakage_table(found)
    assert table["added"].tolist() == pytest.approx([0.2] * 3)
    assert table["control"].tolist() == ["", "", "Tr1"]
    assert table["corrected"].isna().tolist() == [True, True, False]
    assert len(study_leakage(per_case, {1: splits[1]}, trained)) == 2
    assert leakage_table([]).columns.tolist() == table.columns.tolist()
    summary = leakage_summary(found)
    assert summary["rows"][2]["interval_corrected"] == "+0.200 to +0.200"
    assert "flatters the score" in summary["sentence"]
    assert "0.900 on test slices of 3 patients of set 1" in summary["sentence"]
    with pytest.raises(InputError, match="no rows of stage Tr1 on set 3"):
        study_leakage(per_case[(per_case["stage"] != "Tr1") | (per_case["test"] != 3)], splits, trained)


def test_the_picture_is_drawn(tmp_path):
    found = study_leakage(*study_tables())
    draw_leakage(found, tmp_path / "leakage.png")
    assert (tmp_path / "leakage.png").read_bytes().startswith(b"\x89PNG")


def slice_table(patients=10, slices=40):
    rows = [(f"c{p}", n, f"p{p}", True, n % 2 == 0 and p != 0) for p in range(patients) for n in range(slices)]
    return pd.DataFrame(rows, columns=["case", "slice", "patient", "has_lung", "has_infiltrate"])


@pytest.mark.parametrize("seed", range(4))
def test_patients_are_held_out_before_the_draw(seed):
    table = slice_table()
    split = held_out_draw(table, 0.3, 80, 20, seed)
    sides = exposure(split)
    aside = {patient for patient, side in sides.items() if side == "unseen"}
    assert len(aside) == 3
    assert "p0" not in aside  # has no infiltrate: nothing could be told from it
    assert (split[split["patient"].isin(aside)]["part"] == "test").all()
    assert len(split) == len(table)
    assert leaking(split["part"], split["patient"])
    rest = split[~split["patient"].isin(aside)].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, balanced_draw(table[~table["patient"].isin(aside)], 80, 20, seed))
    pd.testing.assert_frame_equal(held_out_draw(table.sample(frac=1, random_state=1), 0.3, 80, 20, seed), split)


def test_who_is_held_out_depends_on_the_seed():
    sides = [
        frozenset(p for p, s in exposure(held_out_draw(slice_table(), 0.3, 80, 20, n)).items() if s == "unseen")
        for n in range(6)
    ]
    assert len(set(sides)) > 1


def test_few_patients():
    assert list(exposure(held_out_draw(slice_table(3), 0.9, 10, 2)).values()).count("unseen") == 1
    assert list(exposure(held_out_draw(slice_table(4), 0.01, 10, 2)).values()).count("unseen") == 1
    with pytest.raises(DatasetError, match="at least two with infiltrate, the set has 1"):
        held_out_draw(slice_table(2), 0.5)
    for share in (0, 1, -0.1, math.nan):
        with pytest.raises(DatasetError, match="between 0 and 1"):
            held_out_draw(slice_table(), share)


def test_slices_without_lung_take_no_part():
    table = slice_table().assign(has_lung=lambda t: t["slice"] < 30)
    assert held_out_draw(table, 0.3, 80, 20)["slice"].max() == 29


def test_unpaired_differences_draw_within_groups():
    rng = np.random.default_rng(3)
    one = {f"a{n}": rng.normal(1.0, 0.5, rng.integers(1, 9)).tolist() for n in range(12)}
    other = {f"b{n}": rng.normal(0.2, 0.5, rng.integers(1, 9)).tolist() for n in range(7)}
    found = unpaired_difference(one, other)
    flat = [np.concatenate([np.asarray(v) for v in side.values()]) for side in (one, other)]
    assert found.mean == pytest.approx(flat[0].mean() - flat[1].mean())
    assert (found.n_patients, found.n_values) == (19, len(flat[0]) + len(flat[1]))
    drawn = []
    for _ in range(4000):  # the plain way, one round after the other
        means = []
        for side in (one, other):
            picked = rng.choice(sorted(side), len(side))
            means.append(np.concatenate([side[p] for p in picked]).mean())
        drawn.append(means[0] - means[1])
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.04)
    assert unpaired_difference(dict(reversed(one.items())), other) == found
    with pytest.raises(InputError, match="'a1' is in both"):
        unpaired_difference(one, {"a1": [1.0]})
    assert math.isnan(unpaired_difference({}, other).mean)
    single = unpaired_difference({"q": [1.0, 2.0]}, {"r": [0.5], "s": [0.5]})
    assert (single.mean, math.isnan(single.low)) == (1.0, True)
