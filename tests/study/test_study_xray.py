"""The X-ray study on pictures of nobody: shortcuts are found and removed, nothing leaks, a killed run ends the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_radiographs import write_sets

from pneumoscope.datasets.splits.draw import leaking
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.models.classifiers import ResNet50, ResNetConfig
from pneumoscope.recipes.papers.katsamenis_2020 import chest_xray
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.recipes.xray import XrayExperiment
from pneumoscope.study.engine import run_study
from pneumoscope.study.learners.base import StudyContext
from pneumoscope.study.learners.classifier import resnet_frozen
from pneumoscope.study.learners.logistic import BaselineStage, RegressionLearner, choose_logistic, fit_logistic
from pneumoscope.study.scores.classification import remedies
from pneumoscope.study.xray import probes
from pneumoscope.study.xray_data import ImageCache, list_cases, read_pool
from pneumoscope.study.xray_page import findings, verdict
from pneumoscope.study.xray_repeat import (
    AS_PAPER,
    HEALTHY,
    SICK,
    Repeat,
    all_mitigations,
    balance,
    make_repeat,
    plain_recipe,
)

SMALL = (
    "data.per_class_1=28,28,28",
    "training.repeats=1",
    "training.max_epochs=3",
    "training.precision=fp32",
    "pictures.side=32",
    "network.features=4,8",
    "scoring.interval_resamples=20",
    "scoring.timed_pictures=1",
    "honest.border=0.15",
    "honest.networks=none",
    "honest.held_out_networks=false",
)


def small(*more: str) -> XrayExperiment:
    return with_overrides(chest_xray(), [*SMALL, *more])


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    return write_sets(tmp_path_factory.mktemp("sets"))


def repeat_of(experiment: XrayExperiment, roots: dict[str, Path], folder: Path) -> tuple[Repeat, ImageCache]:
    pool = read_pool(experiment, list_cases(roots), folder)
    repeat = make_repeat(experiment, pool, 0)
    return repeat, ImageCache(pool, folder, np.arange(len(pool.cases)), plain_recipe(experiment))


def baselines(repeat: Repeat, supply: ImageCache) -> pd.DataFrame:
    context = StudyContext(repeat.experiment, {}, supply.folder, supply=supply)
    return RegressionLearner(context).make(BaselineStage(repeat)).predict("cpu")[0]


@pytest.fixture(scope="module")
def opened(roots, tmp_path_factory) -> tuple[Repeat, ImageCache]:
    return repeat_of(small(), roots, tmp_path_factory.mktemp("opened"))


def test_what_a_retrained_network_kept_is_asked_of_children_who_taught_it_nothing_new(roots, tmp_path):
    """Dataset_0's test pictures of shared classes, without anybody of Dataset_1's training; by Dataset_1's numbers."""
    repeat, _ = repeat_of(small("data.per_class_1=8,8,8"), roots, tmp_path)
    assert repeat.zero is not None
    rows, labels = repeat.tests_of("Model_2")["Dataset_0"]
    assert len(rows)
    assert set(rows) < set(repeat.zero.part("test")[0])
    assert [repeat.one.classes[y] for y in labels] == [repeat.pool.cases[i].label for i in rows]
    teaching = repeat.one.rows[repeat.one.parts != "test"]
    assert not set(repeat.pool.group_of(rows)) & set(repeat.pool.group_of(teaching))
    assert "Dataset_0" not in repeat.tests_of("Model_1")
    assert list(repeat.tests_of("Model_0")) == ["Dataset_0"]


# -- the baseline ----------------------------------------------------------------------------------------------------


def test_logistic_regression_against_its_own_optimum():
    """At the optimum the gradient is 0: averages of features are those of the fitted shares, less the penalty."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)), rng.integers(0, 3, 80)
    fitted = fit_logistic(x, y, 3, 0.1)
    standard = (x - x.mean(0)) / x.std(0)
    gap = (fitted.probability(x) - np.eye(3)[y]) / len(x)
    assert np.allclose(standard.T @ gap + 0.1 * fitted.weights, 0, atol=1e-4)
    assert np.allclose(gap.sum(axis=0), 0, atol=1e-4)
    assert np.allclose(fitted.probability(x).sum(axis=1), 1)


def test_the_penalty_is_chosen_by_validation():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(30, 40)), rng.integers(0, 2, 30)
    assert choose_logistic(noise, (rng.normal(size=(50, 40)), rng.integers(0, 2, 50)), 2, (1e-4, 1.0)).penalty == 1.0
    signal = np.repeat([[0.0], [1.0]], 20, axis=0), np.repeat([0, 1], 20)
    assert choose_logistic(signal, signal, 2, (1e-4, 1.0)).penalty == 1e-4
    empty = np.zeros((0, 1)), np.zeros(0, np.int64)
    assert choose_logistic(signal, empty, 2, (1e-4, 1.0)).penalty == 1.0
    with pytest.raises(InputError, match="rows and their classes"):
        fit_logistic(np.zeros((3, 1)), np.array([0, 1, 2]), 2, 0.1)


def test_balance_makes_sources_and_classes_equally_frequent():
    labels = np.array([0] * 40 + [1] * 10 + [1] * 2)
    sources = ["a"] * 40 + ["b"] * 10 + ["c"] * 2
    taken = balance(labels, sources, 0)
    named = np.array(sources)[taken]
    assert {s: int((named == s).sum()) for s in "abc"} == {"a": 40, "b": 20, "c": 20}
    assert set(taken[named == "c"].tolist()) == {50, 51}
    assert taken.tolist() == balance(labels, sources, 0).tolist()


# -- shortcuts -------------------------------------------------------------------------------------------------------


def told(table: pd.DataFrame, question: str, view: str) -> float:
    return float(table[(table["question"] == question) & (table["view"] == view)]["told_right"].iloc[0])


def test_the_probe_finds_the_mark_and_the_remedy_removes_it(opened):
    found = probes(*opened)
    for view in ("whole picture", "four corners", "lungs cut out"):
        assert told(found, "covid19 only", view) > 0.95, view
        assert told(found, "normal only", view) > 0.95, view
    for view in ("border cut off", "lung box only"):
        assert told(found, "covid19 only", view) < 0.8, view
    assert set(found["chance"]) == {0.5, 0.25}


def test_without_a_mark_the_probe_finds_nothing(tmp_path):
    """A probe that always succeeds would prove nothing."""
    bare = write_sets(tmp_path / "sets", mark=False)
    found = probes(*repeat_of(small(), bare, tmp_path / "run"))
    assert told(found, "covid19 only", "four corners") < 0.8
    assert told(found, "normal only", "whole picture") < 0.8


def test_without_disease_the_mark_is_learnt_and_what_is_left_is_guessing(tmp_path):
    """No stripes: nothing but the source tells COVID-19. Same-source accuracy is high, and all controls fail."""
    empty = write_sets(tmp_path / "sets", stripe=False, covid=12)
    experiment = small()
    repeat, supply = repeat_of(experiment, empty, tmp_path / "run")
    said = baselines(repeat, supply)
    table = remedies(said, probes(repeat, supply), experiment).set_index(["model", "arm"])
    plain, cut = table.loc[("thumbnails", AS_PAPER)], table.loc[("thumbnails", "border")]
    assert table.loc[("corners", AS_PAPER), "recall_covid"] > 0.9
    assert plain["recall_covid"] > 0.9
    assert plain["recall_unseen"] < plain["recall_covid"] - 0.3, "a mark that was never seen is not COVID-19"
    assert cut["recall_covid"] < 0.8
    assert cut["source_told"] < plain["source_told"]


def test_a_real_sign_survives_every_control(opened):
    experiment = small()
    table = remedies(baselines(*opened), probes(*opened), experiment).set_index(["model", "arm"])
    cut = table.loc[("thumbnails", "border")]
    assert cut["accuracy"] > 0.9
    assert cut["healthy_called_covid"] < 0.1
    assert cut["recall_unseen"] > 0.9
    assert cut["adults_only_unseen"] > 0.9
    assert table.loc[("corners", AS_PAPER), "accuracy"] < 0.9


# -- leakage ---------------------------------------------------------------------------------------------------------


def groups_of(repeat: Repeat, rows: np.ndarray) -> set[str]:
    return set(repeat.pool.group_of(rows).tolist())


@pytest.mark.parametrize("arm", ["as paper", "adults", "all"])
@pytest.mark.parametrize("without", ["", "cohen", "hannover"])
def test_nobody_who_tests_teaches(opened, arm, without):
    repeat, _ = opened
    taught = repeat.training_set(all_mitigations(repeat.experiment)[arm], without)
    teachers, judges = groups_of(repeat, taught.train), groups_of(repeat, taught.val)
    assert not teachers & judges
    for name, (rows, _) in repeat.tests(without).items():
        assert not (teachers | judges) & groups_of(repeat, rows), name
    if without:
        assert without not in set(repeat.pool.sources(np.concatenate([taught.train, taught.val])).tolist())
    assert {HEALTHY, SICK} <= set(repeat.tests(without))
    assert ("nih" in repeat.pool.sources(taught.train).tolist()) == (arm != "as paper")


def test_copies_in_two_sources_are_one_group(tmp_path):
    """A picture of Cohen that lies in Hannover's folder too, under another name."""
    shared = write_sets(tmp_path / "sets")
    source = shared["cohen"] / "images" / "c3_0.png"
    (shared["hannover"] / "png" / "h7_1.png").write_bytes(source.read_bytes())
    repeat, _ = repeat_of(small("data.per_class_1=28,28,40"), shared, tmp_path / "run")
    group = {g for g, c in zip(repeat.pool.groups, repeat.pool.cases, strict=True) if c.case in ("c3_0", "h7_1")}
    assert len(group) == 1
    for without in ("cohen", "hannover"):
        taught = repeat.training_set(all_mitigations(repeat.experiment)[AS_PAPER], without)
        assert not group & groups_of(repeat, np.concatenate([taught.train, taught.val]))


def test_model_0_does_not_learn_from_those_who_test_later(opened, roots, tmp_path):
    repeat, _ = opened
    assert repeat.zero is not None
    later = groups_of(repeat, repeat.one.rows[repeat.one.parts != "train"])
    assert not groups_of(repeat, repeat.zero.rows) & later
    as_paper, _ = repeat_of(small("data.apart=false"), roots, tmp_path)
    assert as_paper.zero is not None
    taught = groups_of(as_paper, as_paper.zero.rows[as_paper.zero.parts == "train"])
    assert taught & groups_of(as_paper, as_paper.one.rows[as_paper.one.parts == "test"])


def test_a_split_by_image_is_said_to_leak(roots, tmp_path):
    repeat, _ = repeat_of(small("split.by=image"), roots, tmp_path)
    assert repeat.one.leaking_groups
    assert list(repeat.one.leaking_groups) == leaking(repeat.one.parts, repeat.pool.group_of(repeat.one.rows).tolist())
    kept, _ = repeat_of(small(), roots, tmp_path)
    assert kept.one.leaking_groups == ()


# -- what is missing -------------------------------------------------------------------------------------------------


def test_a_set_of_one_patient_and_a_class_of_too_few(tmp_path):
    one = write_sets(tmp_path / "one", covid=1)
    one.pop("hannover")
    with pytest.raises(DatasetError, match=r"class covid19 has 1 patients.*at least 3") as caught:
        repeat_of(small(), one, tmp_path / "a")
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="class covid19 has 2 pictures, 28 were asked for"):
        repeat_of(small("data.shortage=error"), one, tmp_path / "b")
    lonely = write_sets(tmp_path / "adults", adults=1)
    repeat, _ = repeat_of(small(), lonely, tmp_path / "c")
    assert repeat.adults is None, "one adult is no control"
    assert HEALTHY not in repeat.tests()


def test_one_source_of_covid_cannot_be_held_out(roots, tmp_path):
    alone = {name: root for name, root in roots.items() if name != "cohen"}
    repeat, _ = repeat_of(small(), alone, tmp_path)
    assert repeat.held_out == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs --data kermany=ROOT"),
        ({"kermany": "."}, "--data cohen=ROOT, --data hannover=ROOT"),
        ({"kermany": ".", "cohen": ".", "mosmed": "."}, "--data mosmed"),
        ({"kermany": ".", "cohen": ".", "resnet50": "nowhere.pth"}, "no such file"),
    ],
)
def test_data_that_are_missing_or_strange(tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        run_study(small(), tmp_path / "run", data=given)
    assert not (tmp_path / "run").exists()


# -- the real pictures -----------------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_shortcut_is_there_in_the_real_pictures(tmp_path):
    """What anybody may check within minutes: high accuracy from thumbnails, and healthy adults called COVID-19."""
    root = Path(os.environ.get("PNEUMOSCOPE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "xray"
    if not root.is_dir():
        pytest.skip(f"no real radiographs at {root}; set PNEUMOSCOPE_DATA")
    roots = {
        "kermany": root / "kermany",
        "cohen": root / "cohen-covid",
        "hannover": root / "hannover-covid",
        "nih": root,
    }
    experiment = with_overrides(chest_xray(), ["pictures.side=64", "training.stages=none"])
    pool = read_pool(experiment, list_cases(roots), tmp_path)
    repeat = make_repeat(experiment, pool, 0)
    assert repeat.adults is not None
    used = np.unique(np.concatenate([repeat.one.rows, repeat.adults.rows, repeat.sick]))
    supply = ImageCache(pool, tmp_path, used, None)
    table = remedies(baselines(repeat, supply), pd.DataFrame(), experiment).set_index(["model", "arm"])
    plain = table.loc[("thumbnails", AS_PAPER)]
    assert plain["accuracy"] > 0.88
    assert plain["healthy_called_covid"] > 0.5
    assert table.loc[("corners", AS_PAPER), "accuracy"] > 0.7
    assert table.loc[("thumbnails", "adults"), "recall_unseen"] < 0.5


# -- pieces -----------------------------------------------------------------------------------------------------------


def test_the_last_11_layers_of_a_resnet():
    model = ResNet50(ResNetConfig(width=2))
    frozen = resnet_frozen(model, 11)
    moving = {
        name.rsplit(".", 1)[0]
        for name, _ in model.named_parameters()
        if not any(name.startswith(f"{module}.") for module in frozen)
    }
    assert {name for name in moving if "conv" in name or name == "fc"} == set(model.weighted_layers()[-11:])
    assert "layer4.0.downsample.0" in moving
    assert "layer3.5.bn3" in moving
    assert "layer3.5.bn2" not in moving
    assert all(name.startswith(("layer4", "layer3.5", "fc")) for name in moving)


@pytest.mark.parametrize(
    ("wrong", "level", "words"),
    [(0.79, "error", "says nothing about COVID-19"), (0.05, "warning", "One control"), (None, "warning", "Not tested")],
)
def test_the_verdict_follows_the_control(wrong, level, words):
    names = ("accuracy", "healthy_called_covid")
    rows = [
        {"model": model, "arm": AS_PAPER, **dict(zip(names, values, strict=True))}
        for model, values in {"Model_3": (0.97, wrong), "thumbnails": (0.94, 0.8), "corners": (0.85, 0.5)}.items()
    ]
    said = verdict(rows)
    assert said["level"] == level
    assert words in said["title"] + said["text"]
    assert "94.0 %" in said["text"]


def test_the_page_says_when_the_split_leaks():
    row = {"name": "Dataset_1", "seed": 0, "groups": 50}
    (leaking,) = findings([], [], [{**row, "leaking_groups": 7}, {**row, "leaking_groups": 3}])
    assert leaking["title"] == "The split leaks"
    assert "7 of 50 patients" in leaking["text"]
    (whole,) = findings([], [], [{**row, "leaking_groups": 0}])
    assert whole["title"] == "The split"
