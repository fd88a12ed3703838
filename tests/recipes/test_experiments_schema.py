import json
import re
from dataclasses import asdict, replace

import pytest

from pneumoscope.errors import InputError
from pneumoscope.recipes import schema
from pneumoscope.recipes import settings as access
from pneumoscope.recipes.papers.maganaris_2022b import four_channel
from pneumoscope.recipes.registry import ALL_RECIPES, build_any
from pneumoscope.recipes.settings import revise
from pneumoscope.recipes.stages import build_volume_recipe


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_every_value_has_a_source_and_can_be_set(name):
    experiment = build_any(name)
    rows = access.describe(experiment)
    assert len(rows) > 60
    for row in rows:
        if row["key"].startswith("systems."):  # taken over with the recipe's own source, in that paper's words
            recipe, key = row["key"].removeprefix("systems.").split(".", 1)
            own = {r["key"]: r["source"] for r in access.describe(build_volume_recipe(recipe))}
            assert row["source"] == own[key if key != "overlap" else "scoring.overlap"]
        else:
            assert re.search(r"section|table|program|20\d\d, |our choice: .", row["source"], re.IGNORECASE), row
        raw = "none" if row["value"] is None else json.dumps(row["value"]).strip('"')
        assert access.differences(experiment, access.with_overrides(experiment, [f"{row['key']}={raw}"])) == []


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_json_round_trip_is_equal(name):
    experiment = build_any(name)
    again = access.from_json(type(experiment), json.loads(json.dumps(asdict(experiment))))
    assert again == experiment
    assert asdict(again) == asdict(experiment)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("split.by", None, r"experiment\.split: Object missing required field `by`; made by another version"),
        ("preprocessing.size", "wide", r"experiment\.preprocessing\.size = 'wide': Expected `int`"),
        ("preprocessing.size", 12, "size = 12 is out of bounds; expected from 16 to 1024"),
        ("preprocessing.windows_hu", [[0, "x"]], r"windows_hu\[0\]\[1\] = 'x': Expected `float`"),
        ("preprocessing.colour", "red", r"experiment\.preprocessing\.colour: no such entry"),
        ("stages.chain.1.speed", 4, r"experiment\.stages\.chain\.1\.speed: no such entry"),
        ("stages.chain.1.site", True, r"experiment\.stages\.chain\[1\]\.site = True: Expected `int`"),
        ("network.sources.colour", "x", r"unknown: \['colour'\]"),
        ("network.sources.norm", None, r"without one: \['norm'\]"),
        ("notes", 3, r"experiment\.notes = 3: Expected `array`"),
        ("", [], "experiment = \\[\\]: Expected `object`"),
    ],
)
def test_json_that_is_no_experiment_is_refused_by_name(key, value, message):
    data = json.loads(json.dumps(asdict(four_channel())))
    *parents, last = key.split(".")
    place = data
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if value is None:
        del place[last]
    elif last:
        place[last] = value
    else:
        data = value
    with pytest.raises(InputError, match=message) as refused:
        access.from_json(schema.Experiment, data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("stages.retrain.max_epochs=10", "stages.retrain.max_epochs", 10),
        ("stages.first.learning_rate=1e-3", "stages.first.learning_rate", 0.001),
        ("network.features=8, 16,32", "network.features", (8, 16, 32)),
        ("network.features=[8,16]", "network.features", (8, 16)),
        (
            "preprocessing.windows_hu=[[-1000,400],[0,100]]",
            "preprocessing.windows_hu",
            ((-1000.0, 400.0), (0.0, 100.0)),
        ),
        ("preprocessing.windows_hu=[-1000,400]", "preprocessing.windows_hu", ((-1000.0, 400.0),)),
        ("preprocessing.lung_channel=false", "preprocessing.lung_channel", False),
        ("data.sites.2.dataset=manifest", "data.sites.2.dataset", "manifest"),
        ("data.sites.3.published.scans=4", "data.sites.3.published.scans", 4),
        ("stages.chain.Tr1_R_2.start=none", "stages.chain.Tr1_R_2.start", None),
        ("training.loss = dice", "training.loss", "dice"),
    ],
)
def test_set_reaches_a_value_and_says_who_set_it(text, key, value):
    changed = access.with_overrides(four_channel(), [text])
    row = next(row for row in access.describe(changed) if row["key"] == key)
    assert row["value"] == value
    assert type(row["value"]) is type(value)
    assert row["source"].startswith(access.USER_CHOICE)
    assert len(access.differences(four_channel(), changed)) == 1


def test_several_values_are_checked_together_only():
    chain = ["stages.chain.Tr1_R_2.site=3", "stages.chain.Tr1_R_2_R_3.site=2"]
    changed = access.with_overrides(four_channel(), chain)
    assert [stage.site for stage in changed.lineage("Tr1_R_2_R_3")] == [1, 3, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages.retrain.epochs=3", "did you mean stages.retrain.max_epochs"),
        ("max_epochs=3", "stages.first.max_epochs"),
        ("qqqq=3", "study show"),
        ("stages.retrain.max_epochs", "is not key=value"),
        ("stages.retrain.max_epochs=1.5", "expected a whole number"),
        ("stages.retrain.max_epochs=true", "expected a whole number"),
        ("stages.retrain.max_epochs=0", "out of bounds; expected from 1"),
        ("stages.first.learning_rate=nan", "out of bounds"),
        ("stages.first.learning_rate=fast", "expected a number"),
        ("preprocessing.lung_channel=perhaps", "expected true or false"),
        ("preprocessing.windows_hu=[[5,1]]", "low < high"),
        ("preprocessing.windows_hu=1,2,3", r"expected a list of \[low, high\] pairs"),
        ("network.features=8", "2 to 8 levels"),
        ("network.features=", "expected a list of whole numbers"),
        ("split.by=case", "expected one of slice, patient"),
        ("data.sites.1.label=", "expected text"),
        ("stages.chain.Tr2.start=Tr3", "starts from 'Tr3'"),
        ("stages.chain.Tr2.site=7", "trains on set 7"),
        ("lung.sites=1,9", r"learns from sets \[9\]"),
    ],
)
def test_wrong_settings_are_refused_by_name(text, message):
    with pytest.raises(InputError, match=message):
        access.with_overrides(four_channel(), [text])


def test_a_value_without_source_cannot_be_built():
    with pytest.raises(InputError, match=r"needs a source; without one: \['patience'\]"):
        schema.Budget(max_epochs=1, patience=1, learning_rate=1.0, sources={"max_epochs": "x", "learning_rate": "y"})
    with pytest.raises(InputError, match=r"unknown: \['speed'\]"):
        revise(four_channel().stages.first, "ours").__class__(
            max_epochs=1, patience=1, learning_rate=1.0,
            sources={"max_epochs": "x", "learning_rate": "y", "patience": "z", "speed": "s"},
        )  # fmt: skip


def test_revise_replaces_value_and_source_together():
    first = four_channel().stages.first
    changed = revise(first, "our choice: faster", max_epochs=3)
    assert (changed.max_epochs, changed.sources["max_epochs"]) == (3, "our choice: faster")
    assert changed.sources["patience"] == first.sources["patience"]


def test_inconsistent_chains_are_refused():
    full = four_channel()
    with pytest.raises(InputError, match="stage names must be given and unique"):
        replace(full, stages=replace(full.stages, chain=full.stages.chain + full.stages.chain[:1]))
    with pytest.raises(InputError, match="not in the chain"):
        replace(full, stages=replace(full.stages, chain=full.stages.chain[:5]))


def test_losses_are_known_to_training():
    from pneumoscope.training import losses

    assert set(schema.LOSSES) <= set(losses.LOSSES)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="did you mean maganaris-2022b"):
        build_any("maganaris-2022")
