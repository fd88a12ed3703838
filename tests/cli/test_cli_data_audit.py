"""`pneumoscope data check` and `data audit`: tables, files, endings."""

from __future__ import annotations

import json
import shutil

import pytest

from pneumoscope.datasets.phantom.folder import write_phantom
from tables import rows_of


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
