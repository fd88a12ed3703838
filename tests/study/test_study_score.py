"""A transfer matrix without training: models and masks as they are, on several sets."""

import json
import re
import shutil
from dataclasses import replace
from functools import reduce

import numpy as np
import pandas as pd
import pytest
import torch

from inference.external_models import graph
from pneumoscope.cli import main
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.inference.graphs import Description
from pneumoscope.recipes.papers.transfer import transfer_systems_small
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.engine import run_study, score_study
from pneumoscope.study.learners.external import score_experiment
from pneumoscope.study.report import compare_studies

LABELS = {0: "background", 1: "infiltrate"}


class Dense(torch.nn.Module):
    """Infiltrate is what lies between two Hounsfield values, here -700 and 50."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"in_channels": 1, "out_channels": 2})()

    def forward(self, x):
        found = 40 * (0.27 - (x - 0.48).abs())
        return torch.cat((-found, found), dim=1)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("score")
    for site in "AB":
        write_phantom(root / site, site, 3, size="tiny")
        for file in (root / site / "infiltrate").glob("*.nii.gz"):
            (root / "drawn").mkdir(exist_ok=True)
            shutil.copy(file, root / "drawn")
    said = Description(patch=(8, 32, 32), labels=LABELS, window_hu=((-1000.0, 400.0),))
    graph(root, "torchscript", Dense(), said, "dense")
    return root


@pytest.fixture(scope="module")
def scored(work):
    data = {"phantom:first": work / "A", "phantom:second": work / "B"}
    models = {"dense": f"torchscript:{work / 'dense.pt'}"}
    return score_study(work / "out", data=data, models=models, predictions={"drawn": work / "drawn"}, device="cpu")


def test_the_matrix_has_a_row_per_model_and_set(scored, work):
    matrix = pd.read_csv(work / "out" / "matrix.csv")
    assert list(zip(matrix["stage"], matrix["test"], strict=True)) == [
        ("dense", 1), ("dense", 2), ("drawn", 1), ("drawn", 2)
    ]  # fmt: skip
    assert (matrix["n_patients"] == 3).all()  # every patient is tested on
    drawn = matrix[matrix["stage"] == "drawn"]
    assert np.allclose(drawn["dice"], 1)
    assert matrix[matrix["stage"] == "dense"]["dice"].between(0.01, 0.99).all()
    page = (work / "out" / "report.html").read_text()
    assert "dense" in page
    assert "drawn" in page
    assert "first" in page
    assert scored.shown[0] == ["stage and test set", "test set", "f1", "low", "high"]
    assert [row[1] for row in scored.shown[1]] == ["first", "second"] * 2
    assert "2 models or sets of masks made elsewhere were tested on the datasets 1 (first), 2 (second)" in page
    for wrong in (
        "were trained, each",
        "Trained on",
        "trained on last",
        "on sets it was trained on",
        "its own,",
        "of them test",
    ):
        assert wrong not in page, wrong
    shown = re.sub(r"data:[^\"]*|<[^>]*>", " ", page[page.index("<body") : page.index('id="settings"')])
    assert "Model" in shown
    assert not re.search(r"\b[Ss]tages?\b|as in the paper|Training|Numbers fitted|Temperature", shown)
    table = pd.read_csv(work / "out" / "systems.csv")
    assert list(table["system"].unique()) == ["dense", "drawn"], "rows go by their names, not by paths"
    assert table["training_seconds"].isna().all()
    calibration = pd.read_csv(work / "out" / "shift" / "calibration.csv")
    assert set(calibration["stage"]) == {"dense"}, "masks have no probabilities to calibrate"
    splits = [pd.read_csv(file) for file in (work / "out" / "splits").glob("*.csv")]
    assert {part for split in splits for part in split["part"]} == {"test"}
    systems = [
        stage["system"] for stage in json.loads((work / "out" / "experiment.json").read_text())["stages"]["chain"]
    ]
    assert [system.split(":")[0] for system in systems] == ["external", "predictions"]


def copied(work, folder, part=1.0):
    """Masks of both sites in a folder each, of which `part` of every infiltrate is left, in the front of the chest."""
    from pneumoscope.io.read import read_mask
    from pneumoscope.io.write import write_mask
    from pneumoscope.volume import Mask

    for site, label in (("A", "first"), ("B", "second")):
        for file in (work / site / "infiltrate").glob("*.nii.gz"):
            mask = read_mask(file)
            rows = np.cumsum(mask.any.sum(axis=(0, 2))) <= part[label] * mask.any.sum()
            found = np.where(rows[None, :, None], mask.labels, 0).astype(np.uint8)
            (folder / label).mkdir(parents=True, exist_ok=True)
            write_mask(Mask(found, mask.grid, mask.names), folder / label / file.name, mask.grid)
    return folder


def test_models_retrained_elsewhere_are_guarded_and_compared_as_our_own(work, tmp_path, capsys, no_figures):
    before = copied(work, tmp_path / "v1", {"first": 1, "second": 0.4})
    after = copied(work, tmp_path / "v2", {"first": 0.3, "second": 1})
    call = ["study", "score", str(tmp_path / "out"), "--predictions", f"v2={after}", "--predictions", f"v1={before}",
            "--trained-on", "v1=first", "--trained-on", "v2=first,second",
            "--accept-if-forgetting-below", "0.1"]  # fmt: skip
    call += [word for site, name in (("A", "first"), ("B", "second"))
             for word in ("--data", f"phantom:{name}={work / site}")]  # fmt: skip
    assert main(call) == 1
    assert "v2 refused" in capsys.readouterr().err
    verdict = json.loads((tmp_path / "out" / "guard.json").read_text())
    (loss,) = verdict["stages"][0]["losses"]
    assert (verdict["stages"][0]["stage"], loss["test"], loss["against"]) == ("v2", 1, "v1")
    f1 = pd.read_csv(tmp_path / "out" / "matrix.csv").set_index(["stage", "test"])["f1"]
    assert f1["v1", 1] == pytest.approx(1)
    assert f1["v2", 2] == pytest.approx(1)
    assert loss["lost"] == pytest.approx(1 - f1["v2", 1])
    forgotten = pd.read_csv(tmp_path / "out" / "forgetting.csv")
    assert forgotten.set_index("stage").loc["v2", "forgetting"] == pytest.approx(loss["lost"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Refused" in page
    assert "Trained on set 1, then set 2." in page
    assert main(["study", "compare", str(tmp_path / "out"), "-o", str(tmp_path / "c")]) == 0
    (row,) = pd.read_csv(tmp_path / "c" / "comparison.csv").to_dict(orient="records")
    assert row["strategy"] == "v2, trained elsewhere"
    assert row["loss"] == pytest.approx(loss["lost"])
    assert row["gain"] == pytest.approx(1 - f1["v1", 2])
    assert main([*call[:-5], "1", *call[-4:], "--resume"]) == 0, "the same study by another limit"


@pytest.mark.parametrize(
    ("given", "words"),
    [("v3=first", "no row 'v3'"), ("v1=third", "no set 'third'"), ("v1=first,first", "'first', or it is there twice")],
)
def test_rows_and_sets_of_a_training_must_be_there(given, words):
    data, masks = {"phantom:first": "x", "phantom:second": "y"}, {"v1": "z"}
    with pytest.raises(InputError, match=words):
        score_experiment(data, {}, masks, dict([given.split("=")]))


def test_studies_of_models_as_they_are_are_compared_cell_by_cell(scored, work, tmp_path, no_figures):
    part = copied(work, tmp_path / "part", {"first": 0.5, "second": 0.5})
    data = {"phantom:first": work / "A", "phantom:second": work / "B"}
    other = score_study(tmp_path / "other", data=data, predictions={"drawn": part}, device="cpu")
    found = compare_studies([work / "out", tmp_path / "other"], tmp_path / "c")
    rows = {(r["run"], r["stage"], int(r["test"])): r for r in found["rows"] if r["metric"] == "dice"}
    for test in (1, 2):
        lost = rows["other", "drawn", test]["difference"]
        assert lost == pytest.approx(other.matrix.set_index("test").loc[test, "dice"] - 1)
    assert rows["out", "dense", 1]["difference"] is None


def test_a_resumed_score_takes_what_is_there_and_names_what_changed(work, tmp_path, no_figures):
    masks, notes = copied(work, tmp_path / "masks", {"first": 1, "second": 1}) / "first", []
    call = {"data": {"phantom": work / "A"}, "predictions": {"masks": masks}, "device": "cpu",
            "models": {"dense": f"torchscript:{work / 'dense.pt'}"},
            "progress": lambda *said: notes.append(" ".join(map(str, said)))}  # fmt: skip
    score_study(tmp_path / "out", **call)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "stages").rglob("*.npz")}
    assert kept
    notes.clear()
    score_study(tmp_path / "out", resume=True, **call)
    assert kept == {p: p.stat().st_mtime_ns for p in kept}
    assert not [note for note in notes if "again" in note or "trained" in note]
    shutil.copytree(copied(work, tmp_path / "part", {"first": 0.5, "second": 1}) / "first", masks / "phantom")
    matrix = score_study(tmp_path / "out", resume=True, **call).matrix.set_index("stage")["dice"]
    assert any("masks: masks changed; it is predicted and scored again" in note for note in notes), notes
    assert not [note for note in notes if "trained" in note]
    assert matrix["masks"] < 0.8


def test_stages_made_elsewhere_stand_beside_our_own_in_a_recipe(work, tmp_path, no_figures):
    masks = copied(work, tmp_path / "masks", {"first": 1, "second": 1})
    for folder in ("first", "second"):
        for file in (masks / folder).glob("*.nii.gz"):
            shutil.move(file, masks / file.name)
    names = ("Tr1-2d", "Tr1_R_2-2d", "Tr1-threshold")
    plan = transfer_systems_small()
    chain = tuple(stage for stage in plan.stages.chain if stage.name in names)
    sites = tuple(replace(site, dataset="phantom", cases="*") for site in plan.data.sites[:2])
    plan = replace(plan, data=replace(plan.data, sites=sites), stages=replace(plan.stages, chain=chain), systems=(),
                   lung=replace(plan.lung, supply="shipped", sites=(1,)))  # fmt: skip
    plan = with_overrides(plan, [f"stages.chain.Tr1-2d.system=external:torchscript:{work / 'dense.pt'}",
                                 f"stages.chain.Tr1_R_2-2d.system=predictions:{masks}"])  # fmt: skip
    result = run_study(plan, tmp_path / "out", data={"1": work / "A", "2": work / "B"}, device="cpu",
                       accept_if_forgetting_below=0.5)  # fmt: skip
    cells = result.matrix.set_index(["stage", "test"])
    assert np.allclose(cells.loc["Tr1_R_2-2d", "dice"], 1)
    assert cells.loc["Tr1-threshold", "dice"].between(0, 0.99).all()
    assert not result.refusal, "nothing is lost by masks that are right"
    guarded = json.loads((tmp_path / "out" / "guard.json").read_text())
    assert [stage["stage"] for stage in guarded["stages"]] == ["Tr1_R_2-2d"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 networks were trained" in page
    assert "2 models or sets of masks made elsewhere" in page
    calibration = pd.read_csv(tmp_path / "out" / "shift" / "calibration.csv")
    assert set(calibration["stage"]) == {"Tr1-2d"}


def test_labels_get_their_meaning_by_row(work, tmp_path, no_figures):
    from pneumoscope.io.read import read_mask
    from pneumoscope.io.write import write_mask
    from pneumoscope.volume import Mask

    (tmp_path / "numbers").mkdir()
    for file in (work / "A" / "infiltrate").glob("*.nii.gz"):
        mask = read_mask(file)
        labels = np.where(mask.any, 7, 3).astype(np.uint8)  # 3 = all else
        write_mask(Mask(labels, mask.grid, {3: "label 3", 7: "label 7"}), tmp_path / "numbers" / file.name, mask.grid)
    said = Description(patch=(8, 32, 32), labels={0: "background", 1: "class 2"}, window_hu=((-1000.0, 400.0),))
    graph(tmp_path, "torchscript", Dense(), said, "dense")
    call = {"data": {"phantom": work / "A"}, "models": {"dense": f"torchscript:{tmp_path / 'dense.pt'}"},
            "predictions": {"numbers": tmp_path / "numbers"}, "device": "cpu"}  # fmt: skip
    labels = ("numbers:7=infiltrate", "numbers:3=ignore", "dense:class 2=infiltrate")
    score_study(tmp_path / "out", labels=labels, **call)
    matrix = pd.read_csv(tmp_path / "out" / "matrix.csv").set_index("stage")["dice"]
    assert matrix["numbers"] == pytest.approx(1)
    assert 0.01 < matrix["dense"] < 0.99
    with pytest.raises(InputError, match="cannot mean 'tumour'"):
        score_study(tmp_path / "other", labels=("numbers:7=tumour", labels[2]), **call)
    with pytest.raises(PneumoscopeError, match="none of which is known as infiltrate"):
        score_study(tmp_path / "third", labels=("numbers:7=infiltrate", "numbers:3=ignore"), **call)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {}}, "nothing to score"),
        ({"models": {}, "predictions": {}}, "nothing to score"),
        ({"data": {"mosmet": "x"}}, "there is no dataset 'mosmet'; did you mean mosmed"),
        ({"models": {"a/b": "infiltrate"}}, "cannot name a row"),
        ({"models": {"drawn": "infiltrate"}}, "'drawn' cannot name a row"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(changes, words):
    given = {"data": {"phantom": "x"}, "models": {}, "predictions": {"drawn": "y"}, **changes}
    with pytest.raises(InputError, match=words):
        score_experiment(given["data"], given["models"], given["predictions"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"models": {"none": "bundle:NOWHERE"}}, "NOWHERE"),
        ({"models": {"none": "NOWHERE"}}, "NOWHERE"),
        ({"predictions": {"none": "NOWHERE"}}, "no such folder of masks"),
        ({"models": {"dense": "torchscript:DENSE"}, "labels": ("dense:1=tumour",)}, "cannot mean 'tumour'"),
    ],
)
def test_what_cannot_be_opened_is_refused_before_anything_is_written(work, tmp_path, rows, words):
    shown = {"DENSE": str(work / "dense.pt"), "NOWHERE": str(tmp_path / "NOWHERE")}
    given = {key: value if key == "labels" else {
        name: reduce(lambda text, pair: text.replace(*pair), shown.items(), model) for name, model in value.items()
    } for key, value in rows.items()}  # fmt: skip
    with pytest.raises(PneumoscopeError, match=words):
        score_study(tmp_path / "out", data={"phantom": work / "A"}, device="cpu", **given)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_set_without_masks_of_a_case_is_refused(work, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no mask of"):
        score_study(
            tmp_path / "out", data={"phantom": work / "A"}, predictions={"none": tmp_path / "empty"}, device="cpu"
        )
