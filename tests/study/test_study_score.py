"""A transfer matrix without training: models and masks as they are, on several sets."""

import json
import shutil
from functools import reduce

import numpy as np
import pandas as pd
import pytest
import torch

from inference.external_models import graph
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.inference.graphs import Description
from pneumoscope.study.engine import score_study
from pneumoscope.study.learners.external import score_experiment

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


def test_labels_get_their_meaning_by_row(work, tmp_path):
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
        ({"data": {"mosmet": "x"}}, "no reader 'mosmet'"),
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
