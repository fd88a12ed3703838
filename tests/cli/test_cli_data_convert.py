from __future__ import annotations

import json

import pytest

from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.datasets.registry import read_dataset


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "A"
    write_phantom(folder, "A", 2, size="tiny")
    return folder


@pytest.mark.parametrize("to", ["nnunet", "slices", "manifest"])
def test_a_set_is_written_in_each_layout(cli, phantom, tmp_path, to):
    ran = cli("data", "convert", "phantom", phantom, "-o", tmp_path / "out", "--to", to)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"2 cases in {tmp_path / 'out'} for {to}\n"
    assert len(read_dataset(to, tmp_path / "out")) == 2


def test_json_says_what_was_written(cli, phantom, tmp_path):
    ran = cli("data", "convert", "phantom", phantom, "-o", tmp_path / "out", "--to", "nnunet", "--json")
    held = ran.json
    assert ran.code == 0
    assert held["cases"] == [case.case for case in read_dataset("phantom", phantom)]
    assert held["labels"] == {"1": "ground-glass", "2": "consolidation"}
    assert held["failed"] == {}
    assert held["without_infiltrate"] == []


def test_a_second_time_needs_overwrite(cli, phantom, tmp_path):
    call = ("data", "convert", "phantom", phantom, "-o", tmp_path / "out", "--to", "manifest")
    assert cli(*call).code == 0
    cli(*call).refused("already holds a run", "--overwrite")
    assert cli(*call, "--overwrite").code == 0


def test_a_damaged_scan_ends_with_one_and_the_others_are_written(cli, phantom, tmp_path):
    import shutil

    root = shutil.copytree(phantom, tmp_path / "set")
    first, second = (case.case for case in read_dataset("phantom", root))
    image = root / "images" / f"{first}.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    ran = cli("data", "convert", "phantom", root, "-o", tmp_path / "out", "--to", "nnunet")
    assert ran.code == 1
    assert ran.err.startswith("error: 1 of 2 cases could not be read; left out")
    assert ran.err.count("\n") == 1
    assert f"{first}.nii.gz" in ran.err
    assert [case.case for case in read_dataset("nnunet", tmp_path / "out")] == [second]


def test_unknown_labels_are_mapped_on_the_command_line(cli, phantom, tmp_path):
    made = tmp_path / "nn"
    assert cli("data", "convert", "phantom", phantom, "-o", made, "--to", "nnunet").code == 0
    held = json.loads((made / "dataset.json").read_text())
    held["labels"] = {"background": 0, "Trübung": 1, "dense part": 2}
    (made / "dataset.json").write_text(json.dumps(held))
    call = ("data", "convert", "nnunet", made, "-o", tmp_path / "out", "--to", "manifest")
    cli(*call).refused("dataset.json", "'Trübung' (1)", "--label", "consolidation")
    mapped = cli(*call, "--label", "Trübung=ground-glass", "--label", "dense part=consolidation", "--json")
    assert mapped.code == 0
    assert mapped.json["labels"] == {"1": "ground-glass", "2": "consolidation"}
    cli(*call, "--label", "Trübung=fog").refused("'fog'", "ground-glass")
    cli(*call, "--label", "Trübung").refused("is not NAME=VALUE")


def test_unusable_calls_are_one_line(cli, phantom, tmp_path):
    cli("data", "convert", "phantom", phantom, "-o", tmp_path / "o", "--to", "bids").refused("'bids'", "nnunet")
    cli("data", "convert", "phantom", phantom, "-o", phantom / "o", "--to", "slices").refused("own folder")
    cli("data", "convert", "nowhere", phantom, "-o", tmp_path / "o", "--to", "slices").refused("there is no dataset")
    cli("data", "convert", "phantom", tmp_path / "none", "-o", tmp_path / "o", "--to", "slices").refused("none")
    cli("data", "convert", "mosmed", phantom, "-o", tmp_path / "o", "--to", "slices", "--label", "a=b").refused(
        "labels of its own"
    )
    assert not (tmp_path / "o").exists()
