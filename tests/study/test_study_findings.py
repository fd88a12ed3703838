from dataclasses import asdict

import pytest

from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.settings import from_json, with_overrides
from pneumoscope.study.data import draw_split
from pneumoscope.study.transfer_page import certainty, findings, pattern


def change(stage, against, test, kind, mean, low=None, high=None):
    names = ("stage", "against", "test", "kind", "mean", "low", "high")
    return dict(zip(names, (stage, against, test, kind, mean, low, high), strict=True), measure="f1")


def test_the_main_chain_is_the_longest_and_the_first_of_several():
    assert four_channel().main_stages() == ["Tr1", "Tr1_R_2", "Tr1_R_2_R_3"]


def test_losses_are_told_with_how_sure_they_are():
    rows = [
        change("Tr1_R_2", "Tr1", 2, "step", 0.3, 0.2, 0.4),
        change("Tr1_R_2", "Tr1", 1, "loss", -0.1, -0.2, 0.05),
        change("Tr2_R_3", "Tr2", 2, "loss", -0.5, -0.6, -0.4),
    ]
    told = findings(four_channel(), {"differences": rows}, {})
    assert len(told) == 1  # Tr2_R_3 is not of the main chain
    assert told[0]["title"] == "Retraining on set 2 (Tr1_R_2)"
    assert "+0.300 on set 2 itself (+0.200 to +0.400; a gain)" in told[0]["text"]
    assert "\N{MINUS SIGN}0.100 on set 1 against the best model before" in told[0]["text"]
    assert "may be chance" in told[0]["text"]
    assert certainty({"low": None, "high": None}).startswith("too few patients")


def test_a_study_without_numbers_says_nothing():
    assert findings(four_channel(), {}, {}) == []


def test_the_papers_changes_beside_ours():
    printed = [
        {"stage": s.name, "test": t, "paper_f1": getattr(four_channel().paper_row(s.name, t), "f1", None)}
        for s in four_channel().stages.chain
        for t in (1, 2, 3)
    ]
    ours = [change("Tr1_R_2", "Tr1", 1, "step", -0.05), change("Tr1_R_2", "Tr1", 3, "step", -0.01)]
    rows = pattern(printed, [*ours, change("Tr2_R_3", "Tr2", 1, "step", 0.1)])  # the paper prints no Tr2 on set 1
    assert [(r["test"], r["agrees"]) for r in rows] == [(1, True), (3, False)]
    assert rows[0]["paper"] == pytest.approx(0.690094 - 0.799373)


def test_a_split_by_slice_can_hold_patients_out(small, hospitals, find_all_lungs, tmp_path):
    from test_study_scoring import make_sets

    plan = with_overrides(small, ["split.held_out_share=0.25", "split.train_slices=4", "split.validation_slices=2"])
    table = make_sets(small, hospitals, tmp_path, find_all_lungs)[1].slices.table
    parts = draw_split(table, plan.split).groupby("patient")["part"].agg(set)
    assert (parts == {"test"}).sum() == 1
    assert sum("train" in part for part in parts) >= 2


def test_an_experiment_written_before_a_value_existed_has_its_default():
    plain = asdict(four_channel())
    del plain["split"]["held_out_share"]
    del plain["split"]["sources"]["held_out_share"]
    assert from_json(Experiment, plain) == four_channel()
