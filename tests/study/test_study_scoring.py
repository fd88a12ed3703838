import numpy as np
import pandas as pd

from pneumoscope.study.data import build_set
from pneumoscope.study.scores.slices import SLICE_COLUMNS, Scorer, ranked_slice
from pneumoscope.study.scores.table import read_table, write_table


class Bright:
    """Stands in for a stage: infiltrate is where the second window is bright inside the lungs."""

    def __init__(self, folder):
        self.name, self.folder, self.sha256, self.calls = "Tr1", folder, "ab" * 32, 0

    loads_scans = False

    def inputs(self, study_set, rows):
        return study_set.slices.images[rows]

    def predict_scan(self, images, **compute):
        self.calls += 1
        return ((images[:, 1] > 100) & (images[:, 3] > 0)).astype(np.float32), 0


def make_sets(small, hospitals, folder, find):
    return {n: build_set(small, small.site(n), hospitals[n], folder, lungs_for=find) for n in (1, 3)}


def test_a_stage_is_scored_on_test_slices_only_and_once(small, hospitals, find_all_lungs, tmp_path):
    sets = make_sets(small, hospitals, tmp_path, find_all_lungs)
    model = Bright(tmp_path)
    scorer = Scorer(small, sets)
    table = scorer.stage(model, tmp_path)
    assert list(table.columns) == list(SLICE_COLUMNS)
    for number, study_set in sets.items():
        scored = table[table["test"] == number]
        test = study_set.split[study_set.split["part"] == "test"]
        assert set(zip(scored["case"], scored["slice"], strict=True)) == set(
            zip(test["case"], test["slice"], strict=True)
        )
    infected = table[table["tp"] + table["fn"] > 0]
    assert infected["f1"].mean() > 0.9  # the rule finds the planted blobs
    calls = model.calls
    assert scorer.stage(model, tmp_path).equals(table)
    assert model.calls == calls  # taken from the folder
    model.sha256 = "cd" * 32
    scorer.stage(model, tmp_path)
    assert model.calls > calls
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == ["set-1", "set-3"]


def test_a_table_comes_back_as_it_was_written(tmp_path):
    row = ["Tr1", 2, "007", 4, "01", 0.5, 0.25, 1.0, 0.4, 0.25, 1, 3, 0, 12, "test", 20.5, 8.0]
    table = pd.DataFrame([row], columns=list(SLICE_COLUMNS))
    write_table(table, tmp_path / "per_case.csv")
    assert read_table(tmp_path / "per_case.csv").to_dict("records") == table.to_dict("records")


def test_examples_are_chosen_by_rank():
    f1 = [0.1, 0.9, 0.5, 0.3, 0.7, 0.0, 1.0, 0.2, 0.6, 0.4, 0.8]
    rows = pd.DataFrame({"f1": f1, "tp": 1, "fn": 0, "case": "c", "slice": range(11)})
    assert f1[ranked_slice(rows, 90)] == 0.9
    assert f1[ranked_slice(rows, 10)] == 0.1
    assert ranked_slice(rows.assign(tp=0), 50) is None
