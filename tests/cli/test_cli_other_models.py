"""Models and masks of other programs that cannot be used: one line, exit code 2, nothing run and nothing written."""

import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch

from inference.external_models import Asymmetric, Bomb, bundle, graph, nnunet_result
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.inference.graphs import Description

NET = {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "features": [4] * 6}
DESCRIBED = Description(
    patch=(16, 16, 16), labels={0: "background", 1: "infiltrate", 2: "other"}, window_hu=((-1000, 400),)
)


def onnx(folder, **changes):
    model = graph(folder, "onnx", Asymmetric(**changes), DESCRIBED)
    return folder / "lesion.onnx", model


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def a_folder(folder):
    (folder / "notes.txt").write_text("none")
    return f"nnunet:{folder}", "is no nnU-Net result"


def a_pickle_of_nnunet(folder):
    result = nnunet_result(folder / "nn", {"network_weights": {}, "logging": Bomb(folder / "bomb")})
    return f"nnunet:{result}", "give --trust"


def a_bundle_that_downloads(folder):
    fetching = {**NET, "url": "https://example.org/w.pt"}
    return f"bundle:{bundle(folder / 'b', torch.nn.Conv3d(1, 1, 1), fetching)}", "needs the network"


def a_pickle_of_a_bundle(folder):
    made = bundle(folder / "b", torch.nn.Conv3d(1, 1, 1), NET)
    torch.save({"x": Bomb(folder / "bomb")}, made / "models" / "model.pt")
    return f"bundle:{made}", "give --trust"


def half_a_zip(folder):
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.writestr("b/configs/inference.json", json.dumps({"network_def": NET}) * 100)
    return f"bundle:{cut(folder / 'b.zip')}", "is no MONAI bundle"


def a_zip_with_a_damaged_file(folder):
    with zipfile.ZipFile(folder / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/configs/inference.json", np.random.default_rng(0).bytes(4000))
    content = bytearray((folder / "b.zip").read_bytes())
    content[2000:2100] = bytes(100)
    (folder / "b.zip").write_bytes(bytes(content))
    return f"bundle:{folder / 'b.zip'}", "damaged zip"


def a_zip_that_reaches_outside(folder):
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.writestr("../../evil", "x")
    return f"bundle:{folder / 'b.zip'}", "lies outside it"


def onnx_of_other_channels(folder):
    return onnx(folder, channels=3)[1], "cannot be run on a tensor of [1, 1, 16, 16, 16]"


def half_an_onnx(folder):
    file, model = onnx(folder)
    cut(file)
    return model, "is no ONNX"


def a_pickle_as_torchscript(folder):
    torch.save({"x": Bomb(folder / "bomb")}, folder / "m.pt")
    (folder / "m.toml").write_text(DESCRIBED.as_toml())
    return f"torchscript:{folder / 'm.pt'}", "is no TorchScript"


def unknown_keys_in_the_toml(folder):
    file, model = onnx(folder)
    toml = file.with_suffix(".toml")
    toml.write_text("colour = 'red'\n" + toml.read_text())
    return model, "colour"


def a_label_that_does_not_exist(folder):
    return onnx(folder)[1], "has no label 'tumour'", "--label", "tumour=infiltrate"


def a_label_with_two_meanings(folder):
    return onnx(folder)[1], "give each label once", "--label", "2=infiltrate", "--label", "other=consolidation"


def a_meaning_that_is_none(folder):
    return onnx(folder)[1], "cannot mean 'tumour'", "--label", "2=tumour"


def no_such_kind(folder):
    return f"keras:{folder}", "keras:"


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    file = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    values = np.random.default_rng(0).uniform(-1000, 400, (5, 6, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([0.8, 1.2, 2.0, 1])), file)
    return file


@pytest.mark.parametrize(
    "made",
    [a_folder, a_pickle_of_nnunet, a_bundle_that_downloads, a_pickle_of_a_bundle, half_a_zip, a_zip_with_a_damaged_file,
     a_zip_that_reaches_outside, onnx_of_other_channels, half_an_onnx, a_pickle_as_torchscript,
     unknown_keys_in_the_toml, a_label_that_does_not_exist, a_label_with_two_meanings, a_meaning_that_is_none,
     no_such_kind],
)  # fmt: skip
def test_a_model_that_cannot_be_used_is_one_line(cli, tmp_path, scan, made):
    pytest.importorskip("monai")
    pytest.importorskip("onnxruntime")
    (tmp_path / "in").mkdir()
    model, words, *more = made(tmp_path / "in")
    before = sorted(path for path in tmp_path.rglob("*"))
    cli("segment", "-i", scan, "-o", tmp_path / "out", "--model", model, *more).refused(words)
    labels = [word if word.startswith("--") else f"row:{word}" for word in more]
    score = ("study", "score", tmp_path / "score", "--data", f"manifest={scan}", "--model", f"row={model}")
    cli(*score, *labels).refused(words)
    assert sorted(path for path in tmp_path.rglob("*")) == before, "nothing run, nothing written"


@pytest.mark.parametrize("masks", ["none", "one", "two"])
def test_masks_of_a_set_are_looked_for_before_anything_is_written(cli, tmp_path, masks):
    write_phantom(tmp_path / "site", "A", 2, size="tiny")
    (tmp_path / "masks").mkdir()
    words = {"none": "no mask of A-000", "one": "no mask of A-001", "two": "two masks of A-000"}[masks]
    for file in sorted((tmp_path / "site" / "infiltrate").glob("*.nii.gz"))[: {"none": 0, "one": 1, "two": 2}[masks]]:
        nib.save(nib.load(file), tmp_path / "masks" / file.name)
        if masks == "two":
            nib.save(nib.load(file), tmp_path / "masks" / file.name.replace(".gz", ""))
    before = sorted(tmp_path.rglob("*"))
    rows = ("--data", f"phantom={tmp_path / 'site'}", "--predictions", f"lab={tmp_path / 'masks'}")
    cli("study", "score", tmp_path / "out", *rows).refused(words, "--predictions")
    assert sorted(tmp_path.rglob("*")) == before
