import json
import re
import shutil

import pandas as pd
import pytest
from made_up_hospitals import make_cases

from pneumoscope.errors import DatasetError, InputError
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.engine import run_study
from pneumoscope.study.scores.matrix import COLUMNS, Matrix
from pneumoscope.study.scores.slices import SLICE_COLUMNS
from pneumoscope.study.scores.table import read_scores, read_table

TABLES = ("per_case.csv", "untrained.csv", "matrix.csv", "forgetting.csv")
STAGES = ("Tr1", "Tr1_R_2", "Tr1_R_2_R_3", "Tr2", "Tr2_R_3", "Tr3")


class Killed(BaseException):
    """Ends a study at once, as a killed process would; nothing in the program catches it."""


def kill_at(wanted):
    """Progress that kills the study when work of that name has advanced."""

    def progress(what, done, total, note=""):
        if re.fullmatch(wanted, what):
            raise Killed

    return progress


def tables(folder):
    return {name: (folder / name).read_bytes() for name in TABLES}


def test_the_folder_is_the_contract(whole):
    folder = whole.folder
    for name in (*TABLES, "experiment.json", "environment.json", "matrix.json", "report.html"):
        assert (folder / name).is_file(), name
    for stage in (*STAGES, "lungs"):
        for name in ("history.csv", "model.safetensors", "last.ckpt", "card.json"):
            assert (folder / "stages" / stage / name).is_file(), (stage, name)
    assert {p.stem for p in (folder / "splits").iterdir()} == {"phantom-A", "phantom-B", "phantom-C"}
    figures = {p.name for p in (folder / "figures").iterdir()}
    assert {"heatmap_f1.png", "curves_Tr1.png", "curves_lungs.png", "examples_Tr3.png"} <= figures
    assert not [p for p in folder.rglob("*") if p.name.startswith(".tmp")]


def test_the_tables_hang_together(whole):
    folder = whole.folder
    per_case = read_table(folder / "per_case.csv")
    assert tuple(per_case.columns) == (*SLICE_COLUMNS, "data")
    matrix = pd.read_csv(folder / "matrix.csv")
    assert tuple(matrix.columns) == (*COLUMNS, "data")
    assert len(matrix) == 18
    again = Matrix(whole.experiment, per_case).table()
    assert again["f1"].tolist() == pytest.approx(matrix["f1"].tolist(), abs=1e-6)
    scores = read_scores(folder)
    for column in ("accuracy", "f1", "dice"):
        means = scores[scores["metric"] == column].groupby(["stage", "test"])["value"].mean()
        assert [means[row.stage, str(row.test)] for row in matrix.itertuples()] == pytest.approx(
            matrix[column].tolist(), abs=1e-6
        )
    calibrated = pd.read_csv(folder / "calibration.csv")
    shift = pd.read_csv(folder / "shift" / "calibration.csv")
    assert calibrated["ece"].tolist() == pytest.approx(shift["ece"].tolist(), abs=1e-7)
    counts = per_case.groupby(["stage", "test"]).size().groupby("test").nunique()
    assert (counts == 1).all()  # every stage is scored on the same slices
    written = json.loads((folder / "matrix.json").read_text())
    assert len(written["rows"]) == 18
    assert "Chaudhry" in written["formulas"]["forgetting"]
    assert [row["stage"] for row in written["transfer"]] == ["Tr1_R_2", "Tr1_R_2_R_3", "Tr2_R_3"]
    assert (
        (folder / "forgetting.csv")
        .read_text()
        .startswith("stage,test,f1,best_before,forgetting,low,high,n_patients,data\nTr1_R_2,1,")
    )


@pytest.mark.parametrize(
    "moment",
    [
        "Tr1_R_2 epoch 1",
        "scoring Tr2",
        *(pytest.param(when, marks=pytest.mark.slow) for when in ("reading set 3", "lungs epoch 2", "Tr1_R_2")),
    ],
)
def test_a_study_killed_anywhere_ends_with_the_same_tables(small, hospitals, whole, no_figures, tmp_path, moment):
    with pytest.raises(Killed):
        run_study(small, tmp_path, progress=kill_at(moment), synthetic=True)
    seen = []
    run_study(small, tmp_path, synthetic=True, resume=True, progress=lambda what, *rest: seen.append((what, rest[-1])))
    assert tables(tmp_path) == tables(whole.folder)
    if moment == "scoring Tr2":
        assert ("Tr2", "taken from the folder") in seen
        assert not {what.split()[0] for what, _ in seen if "epoch" in what} & {"Tr1", "Tr2", "lungs"}
        assert not [what for what, _ in seen if what == "scoring Tr1"]


def test_a_study_with_no_infiltrate_in_one_set_says_so(small, hospitals, tmp_path):
    """The draw needs both kinds of slices, so a set without infiltrate is one clear line."""
    hospitals[2] = [
        type(case)(**{**vars(case), "load": lambda case=case: _healthy(case.load())}) for case in make_cases(2)
    ]
    with pytest.raises(DatasetError, match="infiltrate"):
        run_study(small, tmp_path, synthetic=True)


def _healthy(scan):
    from pneumoscope.volume import Mask

    return type(scan)(scan.volume, scan.lungs, Mask.empty(scan.volume.grid, scan.infiltrate.names))


def test_a_set_with_one_patient_has_scores_without_intervals(small, hospitals, no_figures, tmp_path):
    hospitals[2] = make_cases(2, patients=1, slices=40)
    small = with_overrides(small, ["stages.first.max_epochs=1", "stages.retrain.max_epochs=1"])
    result = run_study(small, tmp_path, synthetic=True)
    cells = result.matrix[result.matrix["test"] == 2]
    assert cells["f1"].notna().all()
    assert cells["f1_low"].isna().all()
    assert "Set 2 has one patient" in (tmp_path / "report.html").read_text()


def test_refusals_leave_a_finished_study_alone(small, hospitals, whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole.folder, copy)
    with pytest.raises(InputError, match="already holds a run"):
        run_study(small, copy, synthetic=True)
    with pytest.raises(InputError, match="other settings"):
        run_study(with_overrides(small, ["training.seed=4"]), copy, resume=True, synthetic=True)
    assert tables(copy) == tables(whole.folder)
