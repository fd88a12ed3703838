import re

import pytest
from test_experiments_maganaris import papers_folder, values

from pneumoscope.recipes.papers.maganaris_2022a import NOTES, two_channel
from pneumoscope.recipes.settings import describe

ROWS = {  # typed from table 2 a second time, to five places
    "CT 1-9": (0.99738, 0.75145, 0.83353, 0.78325),
    "CT 10 (no retrain)": (0.99503, 0.62861, 0.64701, 0.61369),
    "CT 10 (with retrain)": (0.99740, 0.81352, 0.86367, 0.82790),
}


def test_table_2_is_the_papers():
    paper = two_channel().paper
    assert {row.name: pytest.approx(values(row), abs=6e-6) for row in paper} == ROWS
    assert [(row.stage, row.test) for row in paper] == [("Tr1", 1), ("Tr1", 2), ("Tr1_R_2", 2)]


@pytest.mark.real
def test_both_tables_equal_the_text_of_the_paper():
    files = sorted(papers_folder().glob("maganaris-2022a*.txt"))
    if not files:
        pytest.skip("the text of the paper is not beside the data folder (PNEUMOSCOPE_DATA)")
    text = files[0].read_text(encoding="utf-8")
    printed = {
        name.strip(): tuple(float(n.replace(",", ".")) for n in numbers.split())
        for name, numbers in re.findall(r"^(CT [^\t\n]*?)((?:\s+0,\d{6}){4})\s*$", text, re.MULTILINE)
    }
    assert {row.name: values(row) for row in two_channel().paper} == printed
    for site in two_channel().data.sites:
        p = site.published
        line = next(line for line in text.splitlines() if re.match(rf"{re.escape(site.label)}\t\d", line))
        assert [int(n) for n in line[len(site.label) :].split()] == [
            p.scans, p.slices, p.lung_slices, p.infiltrate_slices,
            p.train_slices, p.validation_slices, p.test_slices, p.epochs,
        ]  # fmt: skip


def test_the_papers_numbers():
    plan = two_channel()
    assert plan.preprocessing.windows_hu == ((-970, -150),)
    assert (plan.preprocessing.channels, plan.network.out_channels) == (2, 1)
    assert (plan.preprocessing.size, plan.training.batch_size) == (320, 45)
    assert (plan.split.train_slices, plan.split.validation_slices) == (440, 60)
    assert (plan.stages.first.max_epochs, plan.stages.retrain.max_epochs) == (200, 50)
    assert plan.stages.first.learning_rate == 1e-4
    assert [s.published.epochs for s in plan.data.sites] == [111, 46]
    assert [[s.site for s in plan.lineage(stage.name)] for stage in plan.stages.chain] == [[1], [1, 2]]


def test_before_retraining_set_2_is_scored_on_all_slices():
    assert two_channel().scoring.unseen == "all"


def test_misprints_and_deviations_are_named():
    text = " ".join(NOTES)
    for words in ("2156", "1656", "factor 2", "0.9974", "713", "optimiser"):
        assert words in text


def test_no_value_claims_the_other_paper_where_this_one_speaks():
    from_2022b = [row["key"] for row in describe(two_channel()) if row["source"].startswith("Maganaris 2022b")]
    assert from_2022b == []
