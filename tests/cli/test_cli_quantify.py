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


def batch(files, tmp_path, broken):
    """A manifest of the scan and of `broken` files cut off, as words of a call."""
    lines = ["case,image,lungs,infiltrate", "good,chest.nii.gz,lungs.nii.gz,infiltrate.nii.gz"]
    for number in range(broken):
        (tmp_path / f"cut{number}.nii.gz").write_bytes(files["chest"].read_bytes()[:-200])
        lines.append(f"bad{number},cut{number}.nii.gz,lungs.nii.gz,infiltrate.nii.gz")
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    return "quantify", "-i", tmp_path / "cases.csv", "-o", tmp_path / "out", "--fast"


def test_the_reason_that_all_failures_share_is_said_once(cli, files, tmp_path):
    ran = cli(*batch(files, tmp_path, broken=3))
    ran.refused("3 of 4 scans failed: [IN-", "cases.csv", code=1)
    assert (ran.out + ran.err).count("[IN-") == 1
    assert ran.out.count("bad") == 0


def test_reasons_that_differ_are_said_with_their_cases(cli, files, tmp_path):
    argv = batch(files, tmp_path, broken=2)
    (tmp_path / "cut1.nii.gz").write_bytes(b"")
    ran = cli(*argv)
    ran.refused("2 of 3 scans failed; see ", code=1)
    assert [line.split(":")[0] for line in ran.out.splitlines() if "failed" in line] == ["bad0", "bad1"]


def test_states_are_words_and_each_is_explained_once(cli, files, tmp_path):
    lungs = nib.load(files["lungs"]).get_fdata()
    save(files["lungs"], lungs > 0, np.uint8)
    argv = batch(files, tmp_path, broken=0)
    with (tmp_path / "cases.csv").open("a") as table:
        table.write("again,chest.nii.gz,lungs.nii.gz,infiltrate.nii.gz\n")
    ran = cli(*argv)
    assert ran.out.count("; lungs not sided") == 2
    assert ran.out.count("The lung mask does not separate right from left") == 1
    assert "lungs_not_sided" not in ran.out


def test_a_terminal_says_what_was_found_before_the_work(cli, files, tmp_path, monkeypatch):
    argv = batch(files, tmp_path, broken=1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert "2 scans; first: good" in cli(*argv).err
    assert "first:" not in cli(*argv, "--overwrite", "--quiet").err


@pytest.mark.parametrize("name", ["picture.png", "slice.jpg"])
def test_pictures_are_sent_to_the_verb_that_reads_them(cli, tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    for given in (tmp_path / "in", tmp_path / "in" / name):
        cli("segment", "-i", given, "-o", tmp_path / "out").refused("xray predict", "no Hounsfield units")
    assert not (tmp_path / "out").exists()


def test_a_single_slice_is_refused_with_what_to_give(cli, tmp_path):
    flat = save(tmp_path / "flat.nii.gz", np.full((*SHAPE[:2], 1), -800.0), np.int16)
    cli("segment", "-i", flat, "-o", tmp_path / "out").refused("single slice", "no volume to measure", "whole scan")
