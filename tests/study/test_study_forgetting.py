import math
from dataclasses import replace

import pandas as pd
import pytest

from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.scores.matrix import FORMULAS, lineages_of, transfer
from pneumoscope.study.scores.table import forgetting, tidy

TOY = {  # stage: F1 on sets 1, 2, 3; made up, so that every number below can be done by hand
    "Tr1": (0.80, 0.50, 0.40),
    "Tr1_R_2": (0.70, 0.75, 0.45),
    "Tr1_R_2_R_3": (0.25, 0.60, 0.55),
    "Tr2": (0.30, 0.70, 0.20),
    "Tr2_R_3": (0.20, 0.72, 0.50),
    "Tr3": (0.10, 0.15, 0.60),
}
UNTRAINED = {1: 0.05, 2: 0.10, 3: 0.02}


def toy(values=TOY):
    rows = [(stage, test, f1) for stage, row in values.items() for test, f1 in zip((1, 2, 3), row, strict=True)]
    return pd.DataFrame(rows, columns=["stage", "test", "f1"])


def forgotten(experiment, matrix):
    """Of one scan of one patient."""
    return forgetting(tidy(matrix.assign(case="a", patient="p"), ["f1"]), lineages_of(experiment), "f1")


def gains(experiment, matrix, untrained):
    return transfer(experiment, matrix, forgotten(experiment, matrix), untrained)


def test_forgetting_is_best_before_minus_now():
    table = forgotten(four_channel(), toy())
    found = {(row.stage, row.test): (row.f1, row.best_before, row.forgetting) for row in table.itertuples()}
    assert found == {
        ("Tr1_R_2", 1): pytest.approx((0.70, 0.80, 0.10)),
        ("Tr1_R_2_R_3", 1): pytest.approx((0.25, 0.80, 0.55)),
        ("Tr1_R_2_R_3", 2): pytest.approx((0.60, 0.75, 0.15)),
        ("Tr2_R_3", 2): pytest.approx((0.72, 0.70, -0.02)),
    }


def test_best_before_may_be_from_a_stage_that_had_not_seen_the_set():
    better = {**TOY, "Tr1": (0.80, 0.90, 0.40)}
    table = forgotten(four_channel(), toy(better)).set_index(["stage", "test"])
    assert table.loc[("Tr1_R_2_R_3", 2), "forgetting"] == pytest.approx(0.30)  # Chaudhry: max over all earlier stages


def test_transfer_by_hand():
    rows = {row["stage"]: row for row in gains(four_channel(), toy(), UNTRAINED)}
    assert list(rows) == ["Tr1_R_2", "Tr1_R_2_R_3", "Tr2_R_3"]
    last = rows["Tr1_R_2_R_3"]
    assert last["sites"] == [1, 2, 3]
    assert last["backward_transfer"] == pytest.approx(((0.25 - 0.80) + (0.60 - 0.75)) / 2)
    assert last["forward_transfer"] == pytest.approx(((0.50 - 0.10) + (0.45 - 0.02)) / 2)
    assert last["average_forgetting"] == pytest.approx((0.55 + 0.15) / 2)
    assert last["gain_on_new"] == pytest.approx(0.55 - 0.45)
    assert last["over_from_scratch"] == pytest.approx(0.55 - 0.60)
    assert rows["Tr2_R_3"]["backward_transfer"] == pytest.approx(0.02)


def test_a_set_without_score_gives_no_number():
    values = {**TOY, "Tr1": (math.nan, 0.5, 0.4)}
    table = forgotten(four_channel(), toy(values)).set_index(["stage", "test"])
    assert math.isnan(table.loc[("Tr1_R_2", 1), "forgetting"])
    assert table.loc[("Tr1_R_2_R_3", 1), "best_before"] == 0.70  # what is known counts
    rows = {row["stage"]: row for row in gains(four_channel(), toy(values), {})}
    assert math.isnan(rows["Tr1_R_2"]["backward_transfer"])
    assert math.isnan(rows["Tr1_R_2"]["forward_transfer"])  # nothing untrained was scored


def test_nothing_retrained_gives_an_empty_table():
    full = four_channel()
    single = replace(full, paper=(), stages=replace(full.stages, chain=full.stages.chain[:1]))
    assert forgotten(single, toy()).empty
    assert gains(single, toy(), UNTRAINED) == []


def test_a_lineage_that_returns_to_a_set():
    back = with_overrides(four_channel(), ["stages.chain.Tr1_R_2_R_3.site=1"])  # 1, 2, 1 again
    table = forgotten(back, toy()).set_index(["stage", "test"])
    assert [test for stage, test in table.index if stage == "Tr1_R_2_R_3"] == [2]  # set 1 was just learnt again


def test_formulas_name_their_papers():
    assert "Chaudhry et al. 2018" in FORMULAS["forgetting"]
    for key in ("backward_transfer", "forward_transfer"):
        assert "Lopez-Paz and Ranzato 2017" in FORMULAS[key]
    keys = set(gains(four_channel(), toy(), UNTRAINED)[0]) - {"stage", "sites"}
    assert keys < set(FORMULAS)
