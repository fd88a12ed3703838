"""`pneumoscope segment`: scans in, case folders out, endings. The model is small and untrained: the wiring counts."""

import json

import nibabel as nib
import numpy as np
import pytest

from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.models.weights import save_model
from tables import rows_of

AFFINE = np.array([[-1.5, 0.1, 0, 30], [0.1, -1.5, 0.2, 40], [0, -0.2, 4.0, -70], [0, 0, 0, 1]])
SHAPE = (32, 28, 7)


def chest():
    """Air, a body, two lungs."""
    hu = np.full(SHAPE, -1000.0)
    hu[3:29, 4:24] = 40
    hu[6:14, 8:20, 1:6] = -820
    hu[18:26, 8:20, 1:6] = -820
    hu[7:10, 10:13, 2:4] = -300
    return hu + np.random.default_rng(0).normal(0, 15, SHAPE)


def write_nifti(path, array, dtype):
    nib.save(nib.Nifti1Image(array.astype(dtype), AFFINE), path)
    return path


@pytest.fixture
def scan(tmp_path):
    return write_nifti(tmp_path / "chest_01.nii.gz", chest(), np.int16)


@pytest.fixture
def lungs(tmp_path):
    labels = np.zeros(SHAPE)
    labels[6:14, 8:20, 1:6] = 1
    labels[18:26, 8:20, 1:6] = 2
    return write_nifti(tmp_path / "chest_01_lungs.nii.gz", labels, np.uint8)


@pytest.fixture
def model(tmp_path):
    import torch

    torch.manual_seed(0)
    network = UNet(UNetConfig(in_channels=4, out_channels=2, features=(2, 4)))
    windows = [[-970, -150], [-700, -450], [-450, -150]]
    card = {"task": "infiltrate", "preprocessing": {"kind": "hu_windows", "size": 16, "windows_hu": windows}}
    save_model(tmp_path / "model", network, card)
    return tmp_path / "model"


def test_masks_lie_on_the_scans_grid(cli, scan, lungs, model, tmp_path):
    out = tmp_path / "out"
    options = ("--model", model, "--lungs", lungs, "--probability", "--device", "cpu", "--json")
    ran = cli("segment", "-i", scan, "-o", out, *options)
    assert ran.code == 0, ran
    assert [case["case"] for case in ran.json["cases"]] == ["chest_01"]
    for name in ("lungs", "infiltrate", "probability"):
        image = nib.load(out / "chest_01" / f"{name}.nii.gz")
        assert image.shape == SHAPE
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    np.testing.assert_array_equal(nib.load(out / "chest_01" / "lungs.nii.gz").get_fdata(), nib.load(lungs).get_fdata())
    assert (out / "chest_01" / "report.html").is_file()
    assert json.loads((out / "chest_01" / "report.json").read_text())
    assert (out / "run.json").is_file()


def test_the_engine_is_named_and_a_wrong_one_refused(cli, scan, lungs, model, tmp_path):
    options = ("--model", model, "--lungs", lungs, "--device", "cpu", "--precision", "fp32", "--fast")
    out = tmp_path / "out"
    assert cli("segment", "-i", scan, "-o", out, *options, "--engine", "torch").code == 0
    assert json.loads((out / "run.json").read_text())["options"]["engine"] == "torch fp32"
    assert cli("segment", "-i", scan, "-o", tmp_path / "b", *options, "--engine", "abacus").code == 2
    assert not (tmp_path / "b").exists()


def test_an_ensemble_writes_how_unsure_it_is_and_the_report_says_so(cli, scan, lungs, model, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(model, other)
    options = ("--lungs", lungs, "--device", "cpu", "--precision", "fp32", "--engine", "torch")
    out = tmp_path / "out"
    both = ("--model", model, "--model", other, "--mirror", "--uncertainty")
    ran = cli("segment", "-i", scan, "-o", out, *options, *both)
    assert ran.code == 0, ran
    for name in ("entropy", "variance"):
        image = nib.load(out / "chest_01" / f"uncertainty-{name}.nii.gz")
        assert image.shape == SHAPE
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
        assert 0 <= image.get_fdata().min() <= image.get_fdata().max() <= 1
    report = json.loads((out / "chest_01" / "report.json").read_text())
    computing = report["computing"]
    assert computing["engines"] == {"infiltrate": "torch fp32"}
    assert (computing["infiltrate_models"], computing["mirrored"]) == (2, True)
    assert 0 <= computing["uncertainty"]["mean_entropy_in_infiltrate"] <= 1
    page = (out / "chest_01" / "report.html").read_text()
    assert "torch fp32" in page
    assert "uncertainty-entropy.nii.gz" in page
    assert json.loads((out / "run.json").read_text())["options"]["model"] == ["model", "other"]
    again = cli("segment", "-i", scan, "-o", out, *options, "--model", model, "--overwrite")
    assert again.code == 0, again
    assert not (out / "chest_01" / "uncertainty-entropy.nii.gz").exists()
    assert "uncertainty" not in json.loads((out / "chest_01" / "report.json").read_text())["computing"]
    assert json.loads((out / "run.json").read_text())["options"]["model"] == "model"


def test_several_scans_after_one_i_and_one_that_fails(cli, scan, lungs, model, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(scan.read_bytes()[:-400])
    manifest = tmp_path / "cases.csv"
    manifest.write_text(f"case,image,lungs\none,{scan.name},{lungs.name}\ntwo,{broken.name},{lungs.name}\n")
    ran = cli("segment", "-i", manifest, "-o", tmp_path / "out", "--model", model)
    ran.refused("1 of 2", "cases.csv", code=1)
    assert "two: failed: " in ran.out
    assert [(row["case"], row["status"]) for row in rows_of(tmp_path / "out" / "cases.csv")] == [
        ("one", "done"),
        ("two", "failed"),
    ]
    assert not (tmp_path / "out" / "two" / "report.json").exists()


def test_scans_may_follow_one_i(cli, scan, model, tmp_path):
    other = write_nifti(tmp_path / "chest_02.nii.gz", chest(), np.int16)
    ran = cli("segment", "-i", scan, other, "-o", tmp_path / "out", "--model", model, "--lungs", "x.nii")
    ran.refused("--lungs: no such file or folder")


def test_a_series_is_of_a_dicom_scan(cli, scan, lungs, model, tmp_path):
    options = ("-o", tmp_path / "out", "--model", model, "--lungs", lungs, "--series", "2")
    cli("segment", "-i", scan, *options).refused("DICOM only")


def test_one_unusable_scan_ends_in_2_with_its_own_message(cli, scan, lungs, model, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(scan.read_bytes()[:-400])
    ran = cli("segment", "-i", broken, "-o", tmp_path / "out", "--model", model, "--lungs", lungs)
    ran.refused("IN-NII-", "broken.nii.gz")
    assert ran.out == ""


def test_an_earlier_run_is_kept_without_overwrite(cli, scan, lungs, model, tmp_path):
    argv = ("segment", "-i", scan, "-o", tmp_path / "out", "--model", model, "--lungs", lungs)
    assert cli(*argv).code == 0
    cli(*argv).refused("--overwrite")
    assert cli(*argv, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-i", "nowhere.nii", "-o", "out"], "nowhere.nii"),
        (["-i", "chest_01.nii.gz", "-o", "out", "--model", "nope"], "nope"),
        (["-i", "chest_01.nii.gz", "-o", "out", "--model", "model", "--device", "cuda:77"], "cuda:77"),
        (["-i", "chest_01.nii.gz"], "--out"),
        (["-o", "out"], "--input"),
    ],
)
def test_unusable_calls_write_nothing(cli, scan, model, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    cli("segment", *argv).refused(words)
    assert not (tmp_path / "out").exists()
