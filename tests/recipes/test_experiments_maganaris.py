import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pneumoscope.recipes.papers.maganaris_2022b import NOTES, four_channel, four_channel_demo

ROWS = {  # typed from table 2 a second time, to five places
    "Tr1_R_None_Te1": (0.99607, 0.82535, 0.80156, 0.79937),
    "Tr1_R_None_Te2": (0.99070, 0.62722, 0.44730, 0.47711),
    "Tr1_R_None_Te3": (0.99594, 0.60511, 0.40805, 0.43502),
    "Tr1_R_2_Te2": (0.99648, 0.81103, 0.80177, 0.79174),
    "Tr1_R_2_Te1": (0.99196, 0.72565, 0.71404, 0.69009),
    "Tr1_R_2_Te3": (0.99636, 0.61970, 0.43525, 0.45491),
    "Tr1_R_2_R_3_Te3": (0.99699, 0.68480, 0.47803, 0.51440),
    "Tr1_R_2_R_3_Te1": (0.98692, 0.40401, 0.20978, 0.24258),
    "Tr1_R_2_R_3_Te2": (0.99264, 0.81756, 0.49278, 0.57227),
    "Tr2_R_None_Te2": (0.99359, 0.61167, 0.88722, 0.70593),
    "Tr2_R_2_Te3": (0.99435, 0.45324, 0.81784, 0.54270),
    "Tr2_R_2_Te2": (0.99205, 0.59849, 0.82876, 0.65120),
    "Tr3_R_None_Te3": (0.99632, 0.56640, 0.73263, 0.59808),
}


def papers_folder():
    root = os.environ.get("PNEUMOSCOPE_DATA")
    return (Path(root) if root else Path(__file__).parents[2] / ".." / "shared" / "data").resolve().parent / "papers"


def values(row):
    return row.accuracy, row.precision, row.recall, row.f1


def test_table_2_is_the_papers():
    assert {row.name: pytest.approx(values(row), abs=6e-6) for row in four_channel().paper} == ROWS


@pytest.mark.real
def test_table_2_and_1_equal_the_text_of_the_paper():
    files = sorted(papers_folder().glob("maganaris-2022b*.txt"))
    if not files:
        pytest.skip("the text of the paper is not beside the data folder (PNEUMOSCOPE_DATA)")
    text = files[0].read_text(encoding="utf-8")
    printed = {
        name: tuple(map(float, numbers.split()))
        for name, numbers in re.findall(r"^(Tr\w+_Te\d)((?:\s+0\.\d{6}){4})\s*$", text, re.MULTILINE)
    }
    assert {row.name: values(row) for row in four_channel().paper} == printed
    for site in four_channel().data.sites:
        p = site.published
        line = next(line for line in text.splitlines() if re.match(rf"{re.escape(site.label)}\s+\d", line))
        assert [int(n) for n in line[len(site.label) :].split()] == [
            p.scans, p.slices, p.lung_slices, p.infiltrate_slices,
            p.train_slices, p.validation_slices, p.test_slices, p.epochs,
        ]  # fmt: skip


def test_the_chain_is_table_2():
    full = four_channel()
    assert [s.name for s in full.stages.chain] == ["Tr1", "Tr1_R_2", "Tr1_R_2_R_3", "Tr2", "Tr2_R_3", "Tr3"]
    assert [[s.site for s in full.lineage(stage.name)] for stage in full.stages.chain] == [
        [1], [1, 2], [1, 2, 3], [2], [2, 3], [3],
    ]  # fmt: skip


def test_names_are_the_papers_where_it_prints_one():
    full = four_channel()
    names = {(stage.name, test): full.row_name(stage.name, test) for stage in full.stages.chain for test in (1, 2, 3)}
    assert len(set(names.values())) == 18
    assert names["Tr2_R_3", 3] == "Tr2_R_2_Te3"  # the misprint is kept, the stage column tells
    assert names["Tr2_R_3", 2] == "Tr2_R_2_Te2"
    assert names["Tr1", 1] == "Tr1_R_None_Te1"
    ours = {name for cell, name in names.items() if full.paper_row(*cell) is None}
    assert ours == {"Tr2_R_None_Te1", "Tr2_R_None_Te3", "Tr2_R_3_Te1", "Tr3_R_None_Te1", "Tr3_R_None_Te2"}


def test_the_papers_numbers():
    full = four_channel()
    assert full.preprocessing.size == 320
    assert full.preprocessing.windows_hu == ((-970, -150), (-700, -450), (-450, -150))
    assert full.preprocessing.channels == 4
    assert (full.split.train_slices, full.split.validation_slices) == (440, 60)
    assert (full.training.batch_size, full.stages.first.learning_rate) == (45, 1e-4)
    assert (full.stages.first.max_epochs, full.stages.retrain.max_epochs) == (200, 50)
    assert len(full.network.features) == 5  # four halvings
    assert [s.published.lung_slices - 500 for s in full.data.sites] == [213, 1656, 1248]
    assert full.data.sites[0].published.test_slices == 214  # the paper's odd slice
    assert [s.dataset for s in full.data.sites] == ["medseg", "covid19ctseg", "mosmed"]


def test_misprints_are_named():
    text = " ".join(NOTES)
    for word in ("Tr2_R_2_Te3", "Tr3_R_2_Te2", "214", "440", "714", "713"):
        assert word in text


def test_the_demo_changes_sizes_only():
    full, demo = four_channel(), four_channel_demo()
    assert demo.stages.chain == full.stages.chain
    assert demo.paper == full.paper
    assert demo.preprocessing.windows_hu == full.preprocessing.windows_hu
    assert demo.recipe != full.recipe


def test_recipes_need_no_torch():
    code = "import sys, pneumoscope.recipes.registry as r; [b.build() for b in r.RECIPES.values()];"
    code += "print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
