"""`pneumoscope data phantom`: a synthetic site on disk, readable by everything else."""

import pytest

from pneumoscope.datasets.registry import read_dataset


def phantom(cli, out, *options):
    return cli("data", "phantom", "-o", out, "--patients", "1", "--size", "tiny", *options)


def test_what_is_written_is_read(cli, tmp_path):
    ran = phantom(cli, tmp_path / "a", "--site", "A", "--json")
    assert ran.code == 0, ran
    assert ran.json["cases"] == [case.case for case in read_dataset("phantom", tmp_path / "a")]
    scan = read_dataset("manifest", tmp_path / "a" / "manifest.csv")[0].load()
    assert scan.lungs is not None
    assert scan.infiltrate is not None


def test_dicom_of_site_c_has_no_lungs(cli, tmp_path):
    ran = phantom(cli, tmp_path / "c", "--site", "C", "--format", "dicom")
    assert ran.code == 0, ran
    assert ran.out == f"1 case of site C in {tmp_path / 'c'}\n"
    [case] = read_dataset("phantom", tmp_path / "c")
    assert case.load().lungs is None


def test_another_seed_is_another_set_and_needs_overwrite(cli, tmp_path):
    assert phantom(cli, tmp_path / "a", "--site", "A").code == 0
    phantom(cli, tmp_path / "a", "--site", "A", "--seed", "1").refused("--overwrite")
    assert phantom(cli, tmp_path / "a", "--site", "A", "--seed", "1", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--site", "D"], "D"),
        (["--site", "A", "--format", "png"], "png"),
        (["--site", "A", "--size", "huge"], "huge"),
        ([], "--site"),
    ],
)
def test_unusable_calls_write_nothing(cli, tmp_path, options, words):
    phantom(cli, tmp_path / "x", *options).refused(words)
    assert not (tmp_path / "x").exists()
