import json
import math
import shutil

import pandas as pd
import pytest
from test_study_matrix import full_table

from pneumoscope.errors import InputError
from pneumoscope.models.cards import read_card
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.study.analysis.acceptance import guard_study, judge
from pneumoscope.study.scores.matrix import Matrix


def made_up(lost):
    """A matrix in which Tr1_R_2 has lost `lost` F1 on set 1 against Tr1 and nothing else changes."""
    table = full_table()
    rows = (table["stage"] == "Tr1_R_2") & (table["test"] == 1)
    table.loc[rows, "f1"] -= lost
    return Matrix(four_channel(), table)


def refused(verdict):
    return [stage["stage"] for stage in verdict["stages"] if not stage["accepted"]]


def test_a_model_that_lost_more_than_allowed_is_refused():
    verdict = judge(made_up(0.2), 0.1)
    assert refused(verdict) == ["Tr1_R_2"]
    first = verdict["stages"][0]
    assert first["losses"][0]["lost"] == pytest.approx(0.2)
    assert first["losses"][0]["against"] == "Tr1"
    assert "Refused by the limit of 0.1" in first["sentence"]
    assert "set 1 +0.200 since Tr1" in first["sentence"]


def test_one_that_lost_less_is_accepted():
    verdict = judge(made_up(0.05), 0.1)
    assert verdict["accepted"]
    assert [s["stage"] for s in verdict["stages"]] == ["Tr1_R_2", "Tr1_R_2_R_3", "Tr2_R_3"]


def test_the_limit_itself_is_not_below_the_limit():
    table = full_table().assign(f1=0.5)
    table.loc[(table["stage"] == "Tr1_R_2") & (table["test"] == 1), "f1"] = 0.25
    assert not judge(Matrix(four_channel(), table), 0.25)["accepted"]
    assert judge(Matrix(four_channel(), table), 0.26)["accepted"]


def test_what_cannot_be_measured_is_refused():
    table = full_table()
    nothing = table["test"] == 1
    table.loc[nothing, ["tp", "fn"]] = 0
    verdict = judge(Matrix(four_channel(), table), 0.5)
    assert refused(verdict) == ["Tr1_R_2", "Tr1_R_2_R_3"]
    assert math.isnan(verdict["stages"][0]["losses"][0]["lost"])
    assert "set 1 not measurable" in verdict["stages"][0]["sentence"]


@pytest.mark.parametrize("limit", [-0.1, 1.5, math.nan])
def test_limits_that_make_no_sense_are_refused(limit):
    with pytest.raises(InputError, match="from 0 to 1"):
        judge(made_up(0.1), limit)


def test_the_card_says_it_and_says_it_once(whole, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(whole.folder, folder)
    per_case = pd.read_csv(folder / "per_case.csv", keep_default_na=False)
    assert not per_case.empty
    for limit in (0.0, 1.0, 0.0):
        verdict = guard_study(folder, whole.experiment, limit)
    assert json.loads((folder / "guard.json").read_text())["accepted"] == verdict["accepted"]
    card = read_card(folder / "stages" / "Tr1_R_2")
    assert card["guard"]["accepted"] == verdict["stages"][0]["accepted"]
    assert card["limits"].startswith(card["guard"]["sentence"])
    assert card["limits"].count("on forgetting") == 1
    assert "not a medical device" in card["limits"]
    assert "guard" not in read_card(folder / "stages" / "Tr1")
