"""`pneumoscope quantify`: the call, what it prints, how it ends."""

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.array([[-1.5, 0.1, 0, 30], [0.1, -1.5, 0.2, 40], [0, -0.2, 4.0, -70], [0, 0, 0, 1]])
SHAPE = (32, 28, 7)


def save(path, array, dtype):
    nib.save(nib.Nifti1Image(array.astype(dtype), AFFINE), path)
    return path


@pytest.fixture
def files(tmp_path):
    hu, lungs, spots = np.full(SHAPE, 40.0), np.zeros(SHAPE), np.zeros(SHAPE)
    hu[:2] = -1000
    lungs[6:14, 8:20, 1:6], lungs[18:26, 8:20, 1:6] = 1, 2
    spots[6:10, 8:20, 1:6] = 1
    hu[lungs > 0], hu[spots > 0] = -800, -500
    arrays = {"chest": (hu, np.int16), "lungs": (lungs, np.uint8), "infiltrate": (spots, np.uint8)}
    return {name: save(tmp_path / f"{name}.nii.gz", *array) for name, array in arrays.items()}


def test_one_scan(cli, files, tmp_path):
    argv = ("quantify", "-i", files["chest"], "--lungs", files["lungs"], "--infiltrate", files["infiltrate"])
    ran = cli(*argv, "-o", tmp_path / "out", "--json")
    assert ran.code == 0, ran
    (case,) = ran.json["cases"]
    assert case["summary"]["share_percent"] == pytest.approx(25)
    assert case["summary"]["right_share_percent"] == pytest.approx(50)
    assert (tmp_path / "out" / "chest" / "report.html").is_file()
    cli(*argv, "-o", tmp_path / "out").refused("--overwrite")
    text = cli(*argv, "-o", tmp_path / "out", "--overwrite")
    assert text.out.startswith("chest: ")
    assert "(25.0 %)" in text.out


def test_what_is_saved(cli, files, tmp_path):
    argv = ("quantify", "-i", files["chest"], "--lungs", files["lungs"], "--infiltrate", files["infiltrate"])
    out = tmp_path / "out"

    def names(*more):
        assert cli(*argv, "-o", out, "--overwrite", *more).code == 0
        return {str(path.relative_to(out / "chest")) for path in (out / "chest").rglob("*.*") if path.is_file()}

    default = names()
    assert default == {
        "done.json", "infiltrate.nii.gz", "lungs.nii.gz", "registration.nii.gz", "report.html", "report.json",
        "view.html",
    }  # fmt: skip
    points = {"points/lungs.csv", "points/infiltrate.csv"}
    assert names("--save", "points, vti") == default | points | {"volume.vti"}
    assert names("--save", "vti", "--save", "points") == default | points | {"volume.vti"}
    assert names("--fast") == {"done.json", "lungs.nii.gz", "infiltrate.nii.gz", "report.json"}
    cli(*argv, "-o", out, "--overwrite", "--save", "stl").refused("'stl'", "points, vti, mesh")
    cli(*argv, "-o", out, "--overwrite", "--save", "vti", "--fast").refused("fast", "vti")


def test_unusable_calls(cli, files, tmp_path):
    cli("quantify", "-i", files["chest"], "-o", tmp_path / "out").refused("--infiltrate", "manifest")
    masks = ("--lungs", files["lungs"], "--infiltrate", tmp_path / "nowhere.nii.gz")
    cli("quantify", "-i", files["chest"], *masks, "-o", tmp_path / "out").refused("nowhere.nii.gz")
