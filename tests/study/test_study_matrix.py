import math

import numpy as np
import pandas as pd
import pytest

from pneumoscope.errors import InputError
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.study.scores.matrix import COLUMNS, Matrix, best_stage, tidy_slices, untrained_f1, values_by_patient
from pneumoscope.study.scores.slices import SLICE_COLUMNS, slice_rows

CONTRACT = (
    "name,stage,test,n_patients,n_slices,accuracy,precision,recall,f1,f1_low,f1_high,dice,dice_low,dice_high,nsd,"
    "paper_accuracy,paper_precision,paper_recall,paper_f1"
)


def rows_of(counts, stage="Tr1", test=1):
    """(patient, tp, fp, fn, tn) per slice to rows of per_case.csv, through the real scoring."""
    pred, ref = np.zeros((len(counts), 1, 20), bool), np.zeros((len(counts), 1, 20), bool)
    for n, (_, tp, fp, fn, _) in enumerate(counts):
        ref[n, 0, : tp + fn] = True
        pred[n, 0, fn : tp + fn + fp] = True
    table = pd.DataFrame(
        {"case": [c[0] for c in counts], "slice": range(len(counts)), "patient": [c[0] for c in counts]}
    )
    return slice_rows(stage, test, table, pred, ref).assign(part="test", contour_mm=math.nan, met_mm=math.nan)


def cell_of(rows):
    """The one cell of such rows, as matrix.csv has it."""
    every = [rows.assign(stage=s.name, test=t) for s in four_channel().stages.chain for t in (1, 2, 3)]
    return Matrix(four_channel(), pd.concat(every, ignore_index=True)).table().iloc[0]


def test_columns_are_the_contract():
    assert ",".join(COLUMNS) == CONTRACT
    assert SLICE_COLUMNS[:5] == ("stage", "test", "case", "slice", "patient")


def test_one_cell_by_hand():
    rows = rows_of(
        [
            ("a", 4, 0, 4, 12),  # precision 1, recall 1/2, F1 2/3, accuracy 16/20
            ("a", 2, 2, 0, 16),  # precision 1/2, recall 1, F1 2/3, accuracy 18/20
            ("a", 0, 3, 0, 17),  # no infiltrate: not averaged, but its false pixels count in the Dice
            ("b", 0, 0, 5, 15),  # missed: 0, 0, 0, accuracy 15/20
            ("c", 0, 1, 0, 19),  # a patient without infiltrate: no Dice
        ]
    )
    cell = cell_of(rows)
    assert (cell["n_patients"], cell["n_slices"]) == (2, 3)
    assert cell["accuracy"] == pytest.approx((0.8 + 0.9 + 0.75) / 3)
    assert cell["precision"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert cell["recall"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert cell["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert cell["dice"] == pytest.approx((2 * 6 / (2 * 6 + 5 + 4) + 0) / 2)
    assert cell["f1_low"] <= cell["f1"] <= cell["f1_high"]
    assert cell["dice_low"] == 0


def test_one_patient_has_no_interval_and_no_infiltrate_no_score():
    one = cell_of(rows_of([("a", 4, 0, 4, 12)]))
    assert one["f1"] == pytest.approx(2 / 3)
    assert math.isnan(one["f1_low"])
    assert math.isnan(one["dice_high"])
    none = cell_of(rows_of([("a", 0, 2, 0, 18)]))
    assert (none["n_patients"], none["n_slices"]) == (0, 0)
    assert all(math.isnan(none[key]) for key in ("accuracy", "precision", "recall", "f1", "dice"))


def full_table():
    counts = [("a", 4, 0, 4, 12), ("b", 2, 2, 0, 16)]
    parts = [rows_of(counts, s.name, t) for s in four_channel().stages.chain for t in (1, 2, 3)]
    return pd.concat(parts, ignore_index=True)


def test_the_matrix_has_a_row_per_stage_and_set_with_the_papers_numbers_beside():
    matrix = Matrix(four_channel(), full_table()).table()
    assert list(matrix.columns) == list(COLUMNS)
    assert len(matrix) == 18
    assert matrix["name"].is_unique
    with_paper = matrix.dropna(subset=["paper_f1"])
    assert sorted(with_paper["name"]) == sorted(row.name for row in four_channel().paper)
    row = matrix[(matrix["stage"] == "Tr2_R_3") & (matrix["test"] == 3)].iloc[0]
    assert (row["name"], row["paper_f1"]) == ("Tr2_R_2_Te3", 0.542704)
    assert matrix["nsd"].isna().all()
    assert matrix["paper_f1"].isna().sum() == 5


def test_a_cell_that_was_never_scored_is_an_error():
    table = full_table()
    with pytest.raises(InputError, match="no rows of stage Tr3 on set 2"):
        Matrix(four_channel(), table[~((table["stage"] == "Tr3") & (table["test"] == 2))]).table()


def test_the_tidy_table_has_a_row_per_infected_slice_and_per_patient():
    rows = tidy_slices(rows_of([("a", 4, 0, 4, 12), ("a", 0, 3, 0, 17), ("b", 0, 1, 0, 19)]))
    found = {(r["case"], r["metric"]): r["value"] for r in rows.to_dict("records")}
    assert found == {
        ("a slice 0", "accuracy"): 0.8, ("a slice 0", "precision"): 1.0, ("a slice 0", "recall"): 0.5,
        ("a slice 0", "f1"): pytest.approx(2 / 3), ("a", "dice"): pytest.approx(8 / 15),
    }  # fmt: skip


def test_small_summaries():
    matrix = pd.DataFrame({"stage": ["x", "y", "x", "y"], "test": [1, 1, 2, 2], "f1": [0.2, 0.5, math.nan, math.nan]})
    assert best_stage(matrix) == {1: "y"}
    assert untrained_f1(rows_of([("a", 4, 0, 4, 12), ("a", 0, 3, 0, 17)])) == {1: pytest.approx(2 / 3)}


def test_nsd_of_a_patient_sums_contours_over_slices():
    rows = rows_of([("a", 4, 0, 4, 12), ("a", 2, 2, 0, 16), ("b", 0, 1, 0, 19)])
    rows["contour_mm"], rows["met_mm"] = [10.0, 30.0, 5.0], [10.0, 10.0, 0.0]
    assert values_by_patient(rows, "nsd") == {"a": [pytest.approx(0.5)]}
    assert cell_of(rows)["nsd"] == pytest.approx(0.5)
    assert values_by_patient(rows.assign(contour_mm=math.nan, met_mm=math.nan), "nsd") == {}


def test_differences_are_paired_on_the_slices_that_both_stages_have():
    table = full_table()
    better = (table["stage"] == "Tr1_R_2") & (table["test"] == 1) & (table["patient"] == "a")
    table.loc[better, "f1"] = 0.9  # was 2/3; patient b stays at 2/3
    extra = table[(table["stage"] == "Tr1") & (table["test"] == 1)].assign(part="train", f1=0.0)
    matrix = Matrix(four_channel(), pd.concat([table, extra], ignore_index=True))
    gap = matrix.difference("Tr1_R_2", "Tr1", 1)
    assert gap.mean == pytest.approx((0.9 - 2 / 3) / 2)
    assert gap.n_patients == 2
    assert (gap.low, gap.high) == (pytest.approx(0), pytest.approx(0.9 - 2 / 3))
    assert matrix.table()["f1"][0] == pytest.approx(1 / 3)  # the cell itself takes all its rows
    assert matrix.table(common=True)["f1"][0] == pytest.approx(2 / 3)


def test_every_retrained_stage_is_compared_with_the_one_before_and_with_the_best_before():
    rows = Matrix(four_channel(), full_table()).differences()
    steps = {(r["stage"], r["against"], r["test"]) for r in rows if r["kind"] == "step" and r["measure"] == "f1"}
    assert ("Tr1_R_2_R_3", "Tr1_R_2", 3) in steps
    assert len(steps) == 9
    losses = {(r["stage"], r["test"]) for r in rows if r["kind"] == "loss" and r["measure"] == "f1"}
    assert losses == {("Tr1_R_2", 1), ("Tr1_R_2_R_3", 1), ("Tr1_R_2_R_3", 2), ("Tr2_R_3", 2)}
    assert {r["measure"] for r in rows} == {"f1", "dice", "nsd"}
