"""`pneumoscope demo` and `study run|report` at their smallest: the wiring, not the science."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO

import pytest

from pneumoscope.cli.app import run
from pneumoscope.recipes.papers.maganaris_2022b import four_channel_demo
from pneumoscope.recipes.registry import ALL_RECIPES
from pneumoscope.recipes.settings import with_overrides
from tables import rows_of

TINY = [
    "data.phantom_size=tiny", *(f"data.sites.{n}.phantom_patients=2" for n in (1, 2, 3)), "preprocessing.size=16",
    "network.features=4,8", "split.train_slices=4", "split.validation_slices=2", "stages.first.max_epochs=1",
    "stages.retrain.max_epochs=1", "lung.budget.max_epochs=1", "lung.features=4,8", "lung.max_slices=8",
    "scoring.interval_resamples=20",
]  # fmt: skip
RUN = ("study", "run", "maganaris-2022b-demo", "--synthetic")
SET = [word for setting in TINY for word in ("--set", setting)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo, run once: its folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.study.engine.four_channel_demo", lambda: with_overrides(four_channel_demo(), TINY))
        printed = StringIO()
        with redirect_stdout(printed):
            code = run(["demo", "--out", str(out), "--device", "cpu", "--seed", "3", "--json"])
    assert code == 0
    return out, json.loads(printed.getvalue())


def test_the_demo_writes_a_study_and_a_case_and_names_the_report(demo):
    out, printed = demo
    assert printed["report"] == str(out / "report.html")
    for name in ("experiment.json", "environment.json", "matrix.csv", "forgetting.csv", "per_case.csv", "report.html"):
        assert (out / name).is_file(), name
    assert [row["name"] for row in rows_of(out / "matrix.csv")] == [row["name"] for row in printed["matrix"]]
    assert list((out / "cases").glob("*/report.html"))
    assert printed["case"].startswith(str(out / "cases"))


def test_the_seed_reached_the_experiment(demo):
    numbers = {row["key"]: row["value"] for row in json.loads((demo[0] / "experiment.json").read_text())["numbers"]}
    assert numbers["training.seed"] == 3


def test_nothing_half_written_is_left(demo):
    assert not [path for path in demo[0].rglob("*") if path.name.startswith(".tmp-")]


def test_report_again(cli, demo):
    out, _ = demo
    (out / "report.html").unlink()
    ran = cli("study", "report", out)
    assert ran.code == 0, ran
    assert ran.out == f"report: {out / 'report.html'}\n"
    assert (out / "report.html").is_file()
    assert cli("study", "report", out, "--json").json == {"report": str(out / "report.html")}


def test_report_of_what_is_no_study(cli, tmp_path):
    cli("study", "report", tmp_path).refused(str(tmp_path), "holds no study")
    (tmp_path / "plan.json").write_text("{}")
    for verb in (("report", tmp_path), ("compare", tmp_path, "-o", tmp_path / "out")):
        cli("study", *verb).refused("training on own scans", "validation.csv", "model info")


def test_a_study_is_not_written_over(cli, demo):
    out, _ = demo
    cli("demo", "--out", out).refused("--overwrite")
    cli(*RUN, "-o", out, *SET).refused("--overwrite")
    cli(*RUN, "-o", out, *SET, "--resume", "--overwrite").refused("one of them")


def test_a_run_with_other_settings_is_not_gone_on_with(cli, demo):
    cli(*RUN, "-o", demo[0], *SET, "--resume").refused("training.seed")


def test_a_finished_run_is_gone_on_with_at_once(cli, demo, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(demo[0], copy)
    ran = cli(*RUN, "-o", copy, *SET, "--seed", "3", "--resume", "--device", "cpu")
    assert ran.code == 0, ran
    assert ran.out.splitlines()[-1] == f"report: {copy / 'report.html'}"
    assert (copy / "matrix.csv").read_bytes() == (demo[0] / "matrix.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "medseg=nowhere"], "nowhere"),
        (["--data", "heart=."], "heart"),
        (["--data", "1=."], "missing"),
        (["--device", "cuda:77"], "cuda:77"),
    ],
)
def test_unusable_calls(cli, tmp_path, options, words):
    cli(*RUN, "-o", tmp_path / "out", *SET, *options).refused(words)


def test_list(cli):
    assert [row["name"] for row in cli("study", "list", "--json").json] == list(ALL_RECIPES)
    assert "maganaris-2022b" in cli("study", "list").out


@pytest.mark.parametrize("recipe", ALL_RECIPES)
def test_show_gives_every_value_a_source(cli, recipe):
    shown = cli("study", "show", recipe, "--json").json
    assert shown["recipe"] == recipe
    assert shown["values"]
    for row in shown["values"]:
        assert row["key"]
        assert row["source"]
    text = cli("study", "show", recipe).out
    assert all(row["key"] in text for row in shown["values"])


def values(ran):
    return {row["key"]: row for row in ran.json["values"]}


def test_set_changes_one_value_and_says_so(cli):
    key = "stages.retrain.max_epochs"
    before = values(cli("study", "show", "maganaris-2022b", "--json"))
    after = values(cli("study", "show", "maganaris-2022b", "--set", f"{key}=7", "--json"))
    assert after[key]["value"] == 7
    assert "set by the user" in after[key]["source"]
    assert {k for k in before if before[k] != after[k]} == {key}


def test_seed_reaches_every_seed_and_set_goes_before_it(cli):
    shown = values(
        cli("study", "show", "maganaris-2022b", "--seed", "41", "--set", "scoring.interval_seed=5", "--json")
    )
    seeds = {key: row["value"] for key, row in shown.items() if key.endswith("seed")}
    assert len(seeds) >= 3
    assert seeds.pop("scoring.interval_seed") == 5
    assert set(seeds.values()) == {41}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["show", "maganaris-2022"], "maganaris-2022b"),
        (["show", "maganaris-2022b", "--set", "stages.retrain.max_epoch=3"], "stages.retrain.max_epochs"),
        (["show", "maganaris-2022b", "--set", "nothing"], "key=value"),
        (["show", "maganaris-2022b", "--set", "stages.retrain.max_epochs=many"], "whole number"),
        (["show", "maganaris-2022b", "--set", "stages.retrain.max_epochs=0"], "bounds"),
        (["run", "nope", "-o", "x"], "nope"),
    ],
)
def test_refusals(cli, argv, words):
    cli("study", *argv).refused(words)


def test_show_names_the_misprints_and_every_printed_number(cli):
    shown = cli("study", "show", "maganaris-2022a", "--json").json
    assert any("factor 2" in note for note in shown["notes"])
    printed = {row["key"]: row for row in shown["values"] if row["key"].startswith("paper.")}
    assert printed["paper.CT 10 (with retrain).f1"]["value"] == 0.827899
    assert all("table 2" in row["source"] for row in printed.values())
    assert len(printed) == 12
    assert "note: Equation 5" in cli("study", "show", "maganaris-2022a").out


def test_options_of_other_studies_are_refused_on_volumes(cli, tmp_path):
    cli("study", "run", "mueller-2021-small", "-o", tmp_path / "x", "--seeds", 2).refused("studies of radiographs")
    cli("study", "run", "mueller-2021", "-o", tmp_path / "x", "--data", f"an2020={tmp_path}").refused("covid19ctseg")
