import json
import math

import pandas as pd
import pytest
from test_study_matrix import rows_of

from pneumoscope.cli.app import run
from pneumoscope.errors import InputError
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.analysis.comparison import COLUMNS, compare, read_runs, sentence
from pneumoscope.study.folder import start
from pneumoscope.study.report import compare_studies
from pneumoscope.study.scores.table import write_table

BASE = {"Tr1": (0.8, 0.5, 0.4), "Tr1_R_2": (0.7, 0.7, 0.4), "Tr1_R_2_R_3": (0.3, 0.5, 0.6)}
OTHERS = {"Tr2": (0.3, 0.7, 0.2), "Tr2_R_3": (0.2, 0.6, 0.5), "Tr3": (0.1, 0.1, 0.6)}
KEEPS = {**BASE, "Tr1_R_2": (0.78, 0.68, 0.4), "Tr1_R_2_R_3": (0.7, 0.66, 0.5)}


def make_run(folder, values, strategy="plain", seed=0, *, settings=()):
    """A study folder whose F1 is `values` for every slice: two patients with two slices with infiltrate per set."""
    plan = with_overrides(
        four_channel(),
        [f"strategy.name={strategy}", f"training.seed={seed}", "scoring.interval_resamples=200", *settings],
    )
    start(plan, folder)
    parts = []
    for stage, row in {**values, **OTHERS}.items():
        for test, f1 in zip((1, 2, 3), row, strict=True):
            slices = rows_of([(p, 2, 1, 1, 16) for p in ("a", "a", "b", "b")], stage, test)
            parts.append(slices.assign(f1=f1))
    write_table(pd.concat(parts), folder / "per_case.csv")
    return folder


def test_gain_and_loss_by_hand(tmp_path):
    runs = read_runs([make_run(tmp_path / "plain", BASE)])
    row = compare(runs)[0]
    assert (row["strategy"], row["sets"], row["runs"]) == ("plain", "1-2-3", 1)
    assert row["gain"] == pytest.approx(0.6 - 0.4)
    assert row["loss"] == pytest.approx(((0.8 - 0.3) + (0.7 - 0.5)) / 2)
    assert row["mean_f1"] == pytest.approx((0.3 + 0.5 + 0.6) / 3)
    assert row["old_f1"] == pytest.approx(0.4)
    assert math.isnan(row["never_seen_f1"])
    assert math.isnan(row["ahead"])
    shorter = next(r for r in compare(runs) if r["sets"] == "1-2")
    assert shorter["never_seen_f1"] == pytest.approx(0.4)
    assert [cell["f1"] for cell in row["per_set"]] == pytest.approx([0.3, 0.5, 0.6])


def test_seeds_of_a_strategy_are_one_line_and_strategies_are_paired(tmp_path):
    lower = {name: tuple(v - 0.1 for v in row) for name, row in BASE.items()}
    folders = [
        make_run(tmp_path / "p0", BASE),
        make_run(tmp_path / "p1", lower, seed=1),
        make_run(tmp_path / "r0", KEEPS, "rehearsal"),
        make_run(tmp_path / "r1", KEEPS, "rehearsal", 1),
    ]
    rows = {(r["strategy"], r["sets"]): r for r in compare(read_runs(folders))}
    plain, kept = rows["plain", "1-2-3"], rows["rehearsal", "1-2-3"]
    assert (plain["runs"], plain["seeds"]) == (2, "0 1")
    assert plain["mean_f1"] == pytest.approx(1.4 / 3 - 0.05)
    assert plain["mean_f1_spread"] == pytest.approx(0.1 / 2**0.5)
    assert plain["mean_f1_low"] == pytest.approx(1.4 / 3 - 0.1)  # one seed drawn twice
    assert kept["mean_f1_spread"] == pytest.approx(0)
    assert kept["loss"] == pytest.approx(((0.8 - 0.7) + (0.68 - 0.66)) / 2)
    best = ((0.8 - 0.7) + (0.7 - 0.66)) / 2  # with seed 0: Tr1 on set 1, plain Tr1_R_2 or Tr2 on set 2
    assert (kept["below_best"] - best) == pytest.approx(0)
    assert kept["ahead"] == pytest.approx((0.7 + 0.66 + 0.5 - 1.4) / 3 + 0.05)
    assert kept["ahead_low"] > 0
    text = sentence(list(rows.values()))
    assert "rehearsal has the highest mean F1" in text
    assert "stays above 0 when patients and seeds are drawn again" in text


def test_the_folder_holds_table_json_picture_and_page(tmp_path):
    folders = [make_run(tmp_path / "p", BASE), make_run(tmp_path / "r", KEEPS, "rehearsal")]
    result = compare_studies(folders, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert tuple(table.columns) == COLUMNS
    assert set(table["strategy"]) == {"plain", "rehearsal"}
    assert (tmp_path / "out" / "figures" / "gain_against_loss.png").stat().st_size > 5000
    page = (tmp_path / "out" / "report.html").read_text()
    assert "rehearsal" in page
    assert 'src="http' not in page
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == result
    with pytest.raises(InputError, match="already holds a run"):
        compare_studies(folders, tmp_path / "out")
    compare_studies(folders, tmp_path / "out", overwrite=True)


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = make_run(tmp_path / "one", BASE)
    with pytest.raises(InputError, match="given twice"):
        read_runs([one, tmp_path / "x" / ".." / "one"])
    with pytest.raises(InputError, match="no runs given"):
        read_runs([])
    with pytest.raises(InputError, match="holds no study"):
        read_runs([tmp_path])
    other = make_run(tmp_path / "other", BASE, seed=1, settings=["data.sites.1.label=elsewhere"])
    with pytest.raises(InputError, match="other sets"):
        read_runs([one, other])
    again = make_run(tmp_path / "again", BASE)
    with pytest.raises(InputError, match="repeats plain"):
        read_runs([one, again])
    begun = tmp_path / "begun"
    start(with_overrides(four_channel(), ["training.seed=7"]), begun)
    with pytest.raises(InputError, match="without per_case"):
        read_runs([begun])


def test_the_verb(tmp_path, capfd):
    folders = [str(make_run(tmp_path / "p", BASE)), str(make_run(tmp_path / "r", KEEPS, "rehearsal"))]
    assert run(["study", "compare", *folders, "-o", str(tmp_path / "out")]) == 0
    said = capfd.readouterr().out
    assert "rehearsal" in said
    assert "report:" in said
    assert run(["study", "compare", *folders, "-o", str(tmp_path / "out"), "--overwrite", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert [row["strategy"] for row in shown["rows"] if row["sets"] == "1-2-3"] == ["plain", "rehearsal"]
    assert run(["study", "compare", folders[0], folders[0], "-o", str(tmp_path / "no")]) == 2
    assert "given twice" in capfd.readouterr().err


def test_synthetic_patients_of_another_seed_are_others(tmp_path):
    folders = []
    for seed in (0, 1):
        folder = make_run(tmp_path / str(seed), BASE, seed=seed, settings=[f"data.phantom_seed={seed}"])
        (folder / "study.json").write_text(json.dumps({"synthetic": True}))
        folders.append(folder)
    assert compare(read_runs(folders))[0]["patients"] == 2 * 3 * 2  # patients, sets, seeds
    for folder in folders:
        (folder / "study.json").unlink()
    assert compare(read_runs(folders))[0]["patients"] == 2 * 3
