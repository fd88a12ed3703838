"""The X-ray study as a whole, on pictures of nobody: what it writes and leaves out, and that a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_up_radiographs import small_xray as small
from made_up_radiographs import write_sets

from pneumoscope.errors import InputError, ModelError
from pneumoscope.models.classifiers import ResNet50, ResNetConfig
from pneumoscope.study.engine import run_study
from pneumoscope.study.report import write_report


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    return write_sets(tmp_path_factory.mktemp("sets"), children=12)


TABLES = ("per_case.csv", "matrix.csv", "remedies.csv", "probes.csv", "scores.csv", "intervals.csv", "calibration.csv")


@pytest.fixture(scope="module")
def done(roots, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "run"
    run_study(small(), out, data=roots, device="cpu")
    return out


def test_the_folder_holds_what_the_interface_promises(done):
    for name in ("experiment.json", "environment.json", "study.json", "report.html", *TABLES):
        assert (done / name).is_file(), name
    for stage in ("Model_0", "Model_1", "Model_2", "Model_1_border"):
        for name in ("history.csv", "model.safetensors", "last.ckpt", "card.json", "done.json"):
            assert (done / "stages" / f"{stage}_seed0" / name).is_file(), (stage, name)
    split = pd.read_csv(done / "splits" / "Dataset_1_seed0.csv")
    assert {"case", "slice", "patient", "part", "group"} <= set(split.columns)
    card = json.loads((done / "stages" / "Model_2_seed0" / "card.json").read_text())
    assert "the body of Model_0_seed0" in card["started_from"]
    assert [step["step"] for step in card["training"]["steps"]] == ["head", "whole"]
    matrix = pd.read_csv(done / "matrix.csv")
    row = matrix[(matrix["stage"] == "Model_2") & (matrix["test"] == "Dataset_1") & (matrix["seed"] == "all")].iloc[0]
    assert row["paper_accuracy"] == 0.9565
    assert set(pd.read_csv(done / "remedies.csv")["model"]) >= {
        "thumbnails",
        "corners",
        "no lungs",
        "Model_1",
        "Model_2",
    }


def test_remedies_networks_of_fewer_draws_are_counted_as_such(done, roots, tmp_path):
    out = shutil.copytree(done, tmp_path / "run")
    settings = json.loads((out / "experiment.json").read_text())
    settings["honest"]["network_draws"] = 1
    (out / "experiment.json").write_text(json.dumps(settings))
    plan = small("honest.network_draws=1", "training.repeats=2", "training.stages=Model_1")
    settings["training"]["stages"] = ["Model_1"]
    (out / "experiment.json").write_text(json.dumps(settings))
    table = run_study(plan, out, data=roots, device="cpu", resume=True).tables["remedies"].set_index(["model", "arm"])
    assert not (out / "stages" / "Model_1_border_seed1").exists()
    assert (out / "stages" / "Model_1_seed1" / "done.json").is_file()
    assert table.loc[("Model_1", "border"), "draws"] == 1
    assert table.loc[("Model_1", "as paper"), "draws"] == 2
    assert "1 of 2 draws" in (out / "report.html").read_text()


def test_without_the_file_model_3_is_left_out_and_said(done):
    said = json.loads((done / "study.json").read_text())["left_out"]
    assert any(line.startswith("Model_3: no file of ImageNet weights") and "resnet50=FILE" in line for line in said)
    assert not list((done / "stages").glob("Model_3*"))
    assert "Model_3" not in set(pd.read_csv(done / "matrix.csv")["stage"])
    assert "Left out" in (done / "report.html").read_text()


def test_the_page_is_whole_offline_and_plain(done):
    page = (done / "report.html").read_text()
    for words in ("What is left of the accuracy", "thumbnails", "guessing", "not a medical device", "Guangzhou"):
        assert words in page
    assert "http-equiv" in page
    assert "<script" not in page
    assert write_report(done).read_text() == page


class Killed(Exception):
    pass


def kill_in(what: str, call: int) -> Callable[..., None]:
    """Progress that stops the run at the n-th call whose name begins with `what`."""
    seen = []

    def advance(name: str, done: int, total: int, note: str = "") -> None:
        if name.startswith(what):
            seen.append(name)
            if len(seen) == call:
                raise Killed

    return advance


@pytest.mark.slow
def test_a_study_killed_while_pictures_are_prepared_ends_with_the_same_bytes(done, roots, tmp_path):
    experiment, out = small(), tmp_path / "run"
    with pytest.raises(Killed):
        run_study(experiment, out, data=roots, device="cpu", progress=kill_in("pictures", 40))
    run_study(experiment, out, data=roots, device="cpu", resume=True)
    for name in TABLES:
        assert (out / name).read_bytes() == (done / name).read_bytes(), name
    for stage in ("Model_1_seed0", "Model_2_seed0", "Model_1_border_seed0"):
        weights = (folder / "stages" / stage / "model.safetensors" for folder in (out, done))
        assert len({path.read_bytes() for path in weights}) == 1, stage


@pytest.mark.slow
def test_more_seeds_go_on_with_a_finished_study(done, roots, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(done, out)
    before = (out / "stages" / "Model_1_seed0" / "model.safetensors").stat().st_mtime_ns
    more = small("training.stages=Model_1", "training.repeats=2")
    with pytest.raises(InputError, match=r"other settings \(training\.stages"):
        run_study(more, out, data=roots, device="cpu", resume=True)
    more = small("training.repeats=2")
    run_study(more, out, data=roots, device="cpu", resume=True)
    assert (out / "stages" / "Model_1_seed0" / "model.safetensors").stat().st_mtime_ns == before
    matrix = pd.read_csv(out / "matrix.csv")
    assert set(matrix["seed"]) == {"0", "1", "all"}
    first = matrix[(matrix["seed"] == "0")].reset_index(drop=True)
    old = pd.read_csv(done / "matrix.csv")
    pd.testing.assert_frame_equal(first, old[old["seed"] == "0"].reset_index(drop=True))


def test_model_3_from_a_local_file(roots, tmp_path):
    import torch

    torch.manual_seed(3)
    torch.save(ResNet50(ResNetConfig(classes=1000, width=2)).state_dict(), tmp_path / "some.pth")
    experiment = small(
        "training.stages=Model_3",
        "training.max_epochs=1",
        "network.resnet_width=2",
        "honest.networks=none",
        "pictures.side=64",
    )
    result = run_study(experiment, tmp_path / "run", data={**roots, "resnet50": tmp_path / "some.pth"}, device="cpu")
    card = json.loads((tmp_path / "run" / "stages" / "Model_3_seed0" / "card.json").read_text())
    assert "some.pth, which is no published file" in card["started_from"]
    assert not any("Model_3" in line for line in result.left_out)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="not a weights file"):
        run_study(experiment, tmp_path / "other", data={**roots, "resnet50": tmp_path / "bad.pth"}, device="cpu")


@pytest.mark.slow
def test_networks_trained_by_two_processes_are_those_of_one(done, roots, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = []
    run_study(small(), tmp_path, data=roots, device="cpu", jobs=2, progress=lambda what, *rest: seen.append(what))
    assert not [what for what in seen if "epoch" in what]  # none was trained in this process
    for name in TABLES:
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes(), name
