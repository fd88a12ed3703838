"""`pneumoscope xray predict`: endings, JSON, and what is printed."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))

from xray_models import chest, make_model

import pneumoscope as ps


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("xray") / "model")


@pytest.fixture
def good(tmp_path, rng):
    path = tmp_path / "good.png"
    Image.fromarray(np.rint(chest(rng, 96, spot=True, columns=130) * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.png"
    path.write_text("text")
    return path


def test_one_picture(cli, model, good, tmp_path):
    out = tmp_path / "out"
    ran = cli("xray", "predict", "-i", good, "-o", out, "--model", model, "--device", "cpu")
    assert ran.code == 0, ran
    assert ran.out.startswith("good: Bacterial pneumonia (")
    assert {p.name for p in out.glob("[!.]*")} == {"predictions.csv", "good_heatmap.png", "report.html", "run.json"}
    cli("xray", "predict", "-i", good, "-o", out, "--model", model).refused("--overwrite")


def test_json_is_one_document_and_agrees_with_python(cli, model, good, tmp_path):
    ran = cli("xray", "predict", "-i", good, "-o", tmp_path / "o", "--model", model, "--no-heatmaps", "--json")
    said = ran.json["images"][0]
    answer = ps.classify(good, model=model)[0]
    assert (said["prediction"], said["status"]) == (answer.prediction, "answered")
    assert said["p_bacterial"] == pytest.approx(answer.probability["bacterial"], abs=1e-5)
    assert ran.json["counts"]["answered"] == 1


def test_endings(cli, model, good, bad, tmp_path):
    call = ("--model", model, "--device", "cpu", "--no-heatmaps")
    cli("xray", "predict", "-i", bad, "-o", tmp_path / "a", *call).refused("bad.png", "cannot be read as an image")
    mixed = cli("xray", "predict", "-i", bad, good, "-o", tmp_path / "b", *call)
    assert mixed.code == 1
    assert mixed.err == f"error: 1 of 2 pictures failed; see {tmp_path / 'b' / 'predictions.csv'}\n"
    assert "bad: failed: " in mixed.out
    assert "good: Bacterial pneumonia" in mixed.out
    cli("xray", "predict", "-i", good, "-o", tmp_path / "c", "--model", tmp_path).refused("card.json")
    cli("xray", "predict", "-i", good, "-o", tmp_path / "c", "--heatmap-method", "lime").refused("lime")
    cli("xray", "predict", "-o", tmp_path / "c").refused("--input")


def test_occlusion_from_the_command_line(cli, model, good, tmp_path):
    options = ("--model", model, "--device", "cpu", "--heatmap-method", "occlusion")
    assert cli("xray", "predict", "-i", good, "-o", tmp_path / "o", *options).code == 0
    assert "occlusion (Zeiler" in (tmp_path / "o" / "report.html").read_text()
