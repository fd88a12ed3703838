"""The tidy table of scores and what follows from it, against numbers worked out by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from pneumoscope.errors import InputError
from pneumoscope.metrics.classification import reliability
from pneumoscope.study.report import compare_studies
from pneumoscope.study.scores.table import (
    Scores,
    calibration,
    compare_scores,
    forgetting,
    intervals,
    read_scores,
    tidy,
    write_scores,
)


def scores(stage, test, values, metric="dice"):
    """Two scans of patient a, one of b; a value of None was not measured."""
    rows = {"stage": stage, "test": test, "patient": ["a", "a", "b"], "case": ["a1", "a2", "b1"], metric: values}
    return tidy(pd.DataFrame(rows), [metric])


def test_tidy_rows_leave_out_what_was_not_measured():
    table = scores("s", "t", [0.5, None, 1.0])
    assert table["case"].tolist() == ["a1", "b1"]
    assert table["value"].tolist() == [0.5, 1.0]
    assert (table["structure"] == "").all()


def test_a_mean_counts_scans_and_its_interval_draws_patients():
    table = intervals(scores("s", "t", [0.2, 0.4, 0.9]), n=500, seed=0)
    row = table.iloc[0]
    assert row["mean"] == pytest.approx(0.5)
    assert (row["n_patients"], row["n_values"]) == (2, 3)
    assert (row["low"], row["high"]) == (pytest.approx(0.3), pytest.approx(0.9))  # only a, only b


def test_forgetting_is_the_best_before_minus_now_on_shared_cases():
    table = pd.concat([
        scores("first", "old", [0.8, 0.8, 0.8]), scores("second", "old", [0.9, None, 0.9]),
        scores("third", "old", [0.6, 0.7, 0.5]), scores("third", "new", [1, 1, 1]),
    ])  # fmt: skip
    found = forgetting(table, {"third": (["first", "second"], ["old", "new"])}, "dice", n=100)
    row = found.iloc[0]
    assert list(found) == ["stage", "test", "dice", "best_before", "forgetting", "low", "high", "n_patients"]
    assert (row["stage"], row["test"]) == ("third", "old")
    assert found[["dice", "forgetting", "n_patients"]].iloc[1].fillna(-1).tolist() == [1, -1, 0]  # none had seen it
    assert row["best_before"] == pytest.approx(0.9)
    assert row["dice"] == pytest.approx(0.55)  # a1 and b1, which the best one has
    assert row["forgetting"] == pytest.approx(0.35)
    assert forgetting(table, {}, "dice").empty


def test_calibration_of_a_sure_and_wrong_classifier():
    p, truth = np.array([1.0, 1.0, 0.0, 0.0]), np.array([True, False, False, False])
    row = calibration({("s", "t"): reliability(p, truth), ("s", "none"): reliability(p[:0], truth[:0])}).iloc[0]
    assert (row["n"], row["ece"], row["brier"], row["overconfidence"]) == (4, 0.25, 0.25, 0.25)


def test_runs_are_compared_case_by_case_with_the_first(tmp_path):
    base = scores("s", "t", [0.2, 0.4, 0.9])
    better = scores("s", "t", [0.3, 0.5, None])
    rows = compare_scores({"one": base, "two": better, "other": scores("x", "t", [1, 1, 1])}, ["dice"], n=100)
    two = next(row for row in rows if row["run"] == "two")
    assert two["difference"] == pytest.approx(0.1)
    assert np.isnan([row["difference"] for row in rows if row["run"] != "two"]).all()


@pytest.mark.parametrize("kind", ["mueller-2021-small", "katsamenis-2020"])
def test_studies_of_other_kinds_are_compared_from_their_folders(tmp_path, kind):
    from pneumoscope.recipes.registry import build_any
    from pneumoscope.study.folder import start

    metric = "dice" if kind.startswith("mueller") else "right"
    for name, lift in (("one", 0.0), ("two", 0.1)):
        folder = start(build_any(kind), tmp_path / name)
        write_scores(
            folder, Scores(scores("s", "t", [0.2 + lift, 0.4 + lift, 0.8 + lift], metric), {}, rounds={"n": 50})
        )
    result = compare_studies([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert [row["difference"] for row in result["rows"]] == [None, pytest.approx(0.1)]
    assert "1 of 1 cells differ from one" in result["sentence"]
    assert len(pd.read_csv(tmp_path / "out" / "comparison.csv")) == 2
    assert "Cell by cell" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    start(build_any("maganaris-2022b"), tmp_path / "slices")
    with pytest.raises(InputError, match="cannot be compared"):
        compare_studies([tmp_path / "one", tmp_path / "slices"], tmp_path / "mixed")
    start(build_any(kind), tmp_path / "unfinished")
    with pytest.raises(InputError, match=r"without scores\.csv"):
        read_scores(tmp_path / "unfinished")
