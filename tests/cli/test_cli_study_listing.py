"""`pneumoscope study list|show`: every number with its source."""

import pytest

from pneumoscope.recipes.registry import ALL_RECIPES


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
