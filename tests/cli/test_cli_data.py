from __future__ import annotations

import json
import shutil

import pytest

from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.datasets.registry import DATASETS, read_dataset
from tables import rows_of


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


def test_list_names_every_data_set(cli):
    rows = cli("data", "list", "--json").json
    assert [row["name"] for row in rows] == list(DATASETS)
    text = cli("data", "list").out
    assert all(name in text for name in DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_info(cli, name):
    found = cli("data", "info", name, "--json").json
    assert found["licence"]
    assert found["citation"]
    assert found["home"]
    assert f"name: {name}" in cli("data", "info", name).out


def test_unknown_name(cli):
    cli("data", "info", "medsegg").refused("medsegg", "medseg")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Patient 2 has a speck, patient 3 infiltrate on a slice without lung."""
    folder = tmp_path_factory.mktemp("phantom") / "B"
    write_phantom(folder, "B", 4, seed=3, size="tiny")
    return folder


def test_check(cli, made):
    ran = cli("data", "check", "phantom", made)
    assert (ran.code, ran.err) == (0, "")
    assert "it is complete" in ran.out
    assert cli("data", "check", "phantom", made, "--quick", "--json").json["whole"] is True


def test_check_of_half_a_set(cli, made, tmp_path):
    shutil.copytree(made, tmp_path / "B")
    (tmp_path / "B" / "images" / "B-001.nii.gz").write_bytes(b"")
    ran = cli("data", "check", "phantom", tmp_path / "B", "--quick")
    assert (ran.code, ran.err) == (1, "")
    assert "problem: B-001: image B-001.nii.gz is empty" in ran.out
    cli("data", "check", "phantom", tmp_path).refused("phantom.json")
    cli("data", "check", "nonsense", made).refused("nonsense")


def test_audit_writes_tables_and_a_page(cli, made, tmp_path):
    ran = cli("data", "audit", "phantom", made, "-o", tmp_path / "out")
    assert (ran.code, ran.err) == (1, "")
    rows = rows_of(tmp_path / "out" / "findings.csv")
    planted = rows_of(made / "faults.csv")
    assert [(r["case"], r["kind"], r["severity"]) for r in rows] == [
        ("B-003", "no-lung-slice", "error"),
        ("B-002", "speck", "warning"),
    ]
    for row, fault in zip(rows, reversed(planted), strict=True):
        assert (row["slice"], row["voxels"]) == (fault["slice"], fault["voxels"])
        assert [float(row[a]) for a in "xyz"] == pytest.approx([float(fault[a]) for a in "xyz"], abs=4)
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2
    assert "not a medical device" in page
    assert "http" not in page.replace("http-equiv", "")
    cli("data", "audit", "phantom", made, "-o", tmp_path / "out").refused("--overwrite")


def test_audit_as_json_with_a_cleaned_copy(cli, made, tmp_path):
    argv = ("data", "audit", "phantom", made, "-o", tmp_path / "out", "--fix", tmp_path / "fixed", "--json")
    ran = cli(*argv)
    assert ran.code == 1
    assert ran.json["repairs"]["voxels"] == {"speck": 3, "no-lung-slice": 9}
    assert ran.json == json.loads((tmp_path / "out" / "audit.json").read_text())
    again = cli("data", "audit", "manifest", tmp_path / "fixed", "-o", tmp_path / "again", "--json")
    assert (again.code, again.json["severities"]) == (0, {"error": 0, "warning": 0, "note": 0})
    kept = cli(*argv, "--overwrite", "--no-repair", "speck")
    assert kept.json["repairs"]["voxels"] == {"no-lung-slice": 9}
    assert kept.json["repairs"]["left"] == {"speck": 1}


def test_thresholds_are_shown_and_changed(cli, made, tmp_path):
    shown = cli("data", "audit", "phantom", made, "--thresholds", "--json").json
    assert shown["speck_voxels"] == 10
    ran = cli("data", "audit", "phantom", made, "-o", tmp_path / "o", "--set", "speck_voxels=2", "--set",
              "outside_mm=500", "--json")  # fmt: skip
    assert ran.json["kinds"] == {"no-lung-slice": 1}
    assert ran.json["rules"]["outside_mm"] == 500
    cli("data", "audit", "phantom", made, "-o", tmp_path / "p", "--set", "speck=2").refused("speck_voxels")
    cli("data", "audit", "phantom", made, "-o", tmp_path / "p", "--set", "bone_hu=dense").refused("number")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--out"]),
        (["-o", "out", "--repair", "speck"], ["--fix"]),
        (["-o", "out", "--fix", "f", "--no-repair", "spek"], ["spek"]),
        (["-o", "out", "--also", "phantom"], ["also", "NAME=ROOT"]),
        (["-o", "out", "--model", "nonsense"], ["nonsense"]),
    ],
)
def test_refusals(cli, made, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    cli("data", "audit", "phantom", made, *argv).refused(*words)
    assert list(tmp_path.iterdir()) == []
