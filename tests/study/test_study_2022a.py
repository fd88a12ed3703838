"""The recipe maganaris-2022a from cases to page, as small as it gets, and a guard that refuses its retraining."""

import json

import pandas as pd
import pytest
from made_up_hospitals import SMALL, make_cases

from pneumoscope.errors import RunError
from pneumoscope.recipes.papers.maganaris_2022a import two_channel
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.engine import run_study
from pneumoscope.study.scores.table import read_table


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    plan = with_overrides(two_channel(), [*SMALL, "split.shortage=proportional", "split.held_out_share=0.3"])
    with pytest.MonkeyPatch.context() as patch:
        cases = {n: make_cases(n) for n in (1, 2)}
        patch.setattr("pneumoscope.study.lungs.find_cases", lambda *args, **kwargs: cases)
        return run_study(plan, tmp_path_factory.mktemp("a") / "study", synthetic=True)


def test_set_2_is_scored_whole_before_the_retraining_and_on_test_slices_after(study):
    rows = read_table(study.folder / "per_case.csv")
    before = rows[(rows["stage"] == "Tr1") & (rows["test"] == 2)]
    after = rows[(rows["stage"] == "Tr1_R_2") & (rows["test"] == 2)]
    split = pd.read_csv(study.folder / "splits" / "phantom-B.csv")
    assert len(before) == len(split)
    assert set(after["part"]) == {"test"}
    assert len(after) == (split["part"] == "test").sum()


def test_the_table_has_the_papers_rows_and_gains_are_taken_on_common_slices(study):
    matrix = pd.read_csv(study.folder / "matrix.csv").set_index("name")
    assert list(matrix.index) == ["CT 1-9", "CT 10 (no retrain)", "Tr1_R_2_Te1", "CT 10 (with retrain)"]
    assert matrix.loc["CT 10 (no retrain)", "paper_f1"] == 0.613689
    assert matrix["nsd"].notna().all()
    tables = json.loads((study.folder / "matrix.json").read_text())
    step = next(r for r in tables["differences"] if (r["test"], r["kind"], r["measure"]) == (2, "step", "f1"))
    assert tables["transfer"][0]["gain_on_new"] == pytest.approx(step["mean"])


def test_the_page_shows_both_and_what_the_split_adds(study):
    page = (study.folder / "report.html").read_text()
    assert "paper 0.614" in page
    assert "are scored on all their slices with lung" in page
    assert "What splitting by slice adds to the scores" in page
    assert "without the factor 2" in page
    assert "not a medical device" in page
    for name in ("calibration", "appearance", "changes", "distance", "lesions", "leakage"):
        assert (study.folder / "figures" / f"{name}.png").is_file(), name
    for name in ("calibration", "abstention", "appearance", "distances", "lesions", "leakage"):
        assert (study.folder / "shift" / f"{name}.csv").is_file(), name


def test_retrained_models_are_refused_after_everything_is_written(study, no_figures):
    with pytest.MonkeyPatch.context() as patch:
        cases = {n: make_cases(n) for n in (1, 2)}
        patch.setattr("pneumoscope.study.lungs.find_cases", lambda *args, **kwargs: cases)
        again = {"synthetic": True, "resume": True}
        refused = run_study(study.experiment, study.folder, accept_if_forgetting_below=0.0, **again)
        with pytest.raises(RunError, match="Tr1_R_2 refused"):  # no loss is below 0.0
            refused.require_accepted()
        assert "Refused by the limit of 0" in refused.report.read_text()
        accepted = run_study(study.experiment, study.folder, accept_if_forgetting_below=1.0, **again)
    accepted.require_accepted()
    assert "Accepted by the limit of 1" in accepted.report.read_text()
