"""`pneumoscope evaluate`: files in, tables out, endings."""

import json

import nibabel as nib
import numpy as np
import pytest

from tables import rows_of


def write_mask(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.diag([0.5, 0.8, 1.2, 1.0])), path)


@pytest.fixture
def folders(tmp_path):
    """Three cases: equal, half found, and one whose prediction is on another grid."""
    drawn = np.zeros((4, 5, 6))
    drawn[1:3, 1:3, 1:3] = 1
    half = drawn.copy()
    half[2] = 0
    for case, found in (("a", drawn), ("b", half)):
        write_mask(tmp_path / "ref" / f"{case}.nii.gz", drawn)
        write_mask(tmp_path / "pred" / f"{case}.nii.gz", found)
    return tmp_path


def test_scores_tables_and_json(cli, folders):
    ran = cli("evaluate", "-i", folders / "pred", "-r", folders / "ref", "-o", folders / "out", "--json")
    assert ran.code == 0, ran
    assert ran.json == json.loads((folders / "out" / "summary.json").read_text())
    rows = rows_of(folders / "out" / "per_case.csv")
    assert [(row["case"], float(row["dice"])) for row in rows] == [("a", 1.0), ("b", pytest.approx(2 / 3, abs=1e-6))]
    assert float(rows[0]["reference_ml"]) == pytest.approx(8 * 0.5 * 0.8 * 1.2 / 1000, abs=1e-6)


def test_text_names_the_mean(cli, folders):
    ran = cli("evaluate", "-i", folders / "pred", "-r", folders / "ref", "-o", folders / "out")
    assert ran.code == 0, ran
    assert "0.833" in ran.out
    assert f"written to {folders / 'out'}" in ran.out


def test_spacing_replaces_the_files(cli, folders):
    spacing = ("--spacing", "1", "1", "10")
    cli("evaluate", "-i", folders / "pred", "-r", folders / "ref", "-o", folders / "out", *spacing)
    assert float(rows_of(folders / "out" / "per_case.csv")[0]["reference_ml"]) == pytest.approx(0.08)


def test_surfaces_and_their_tolerance(cli, folders):
    argv = ("evaluate", "-i", folders / "pred", "-r", folders / "ref", "-o", folders / "out", "--json")
    mean = cli(*argv).json["labels"]["label 1"]
    assert (mean["surface_tolerance_mm"], mean["nsd"]["mean"], mean["n_infinite"]) == (3.0, 1.0, 0)
    strict = cli(*argv, "--overwrite", "--surface-tolerance-mm", "0.1").json["labels"]["label 1"]
    assert strict["surface_tolerance_mm"] == 0.1
    assert 0.5 < strict["nsd"]["mean"] < 1
    assert strict["hd95"]["mean"] == pytest.approx(0.5 / 2)  # the second case lacks one voxel of 0.5 mm


def test_a_case_that_fails_ends_in_1_and_the_others_are_scored(cli, folders):
    write_mask(folders / "ref" / "c.nii.gz", np.zeros((4, 5, 6)))
    write_mask(folders / "pred" / "c.nii.gz", np.zeros((4, 5, 7)))
    ran = cli("evaluate", "-i", folders / "pred", "-r", folders / "ref", "-o", folders / "out", "--json")
    ran.refused("1 of 3", "c", code=1)
    assert ran.json["cases"] == 2
    assert (folders / "out" / "per_case.csv").is_file()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-i", "nowhere", "-r", "ref", "-o", "out"], "nowhere"),
        (["-i", "pred", "-r", "ref", "-o", "out", "--structure", "heart"], "heart"),
        (["-i", "pred", "-r", "ref", "-o", "out", "--spacing", "0", "1", "1"], "spacing"),
        (["-i", "pred", "-r", "ref", "-o", "out", "--spacing", "1", "1"], "--spacing"),
        (["-i", "pred", "-r", "ref", "-o", "out", "--surface-tolerance-mm", "-1"], "--surface-tolerance-mm"),
        (["-i", "pred", "-r", "ref"], "--out"),
    ],
)
def test_unusable_calls(cli, folders, monkeypatch, argv, words):
    monkeypatch.chdir(folders)
    cli("evaluate", *argv).refused(words)


def test_an_unsided_reference_gives_one_score_and_no_made_up_interval(cli, tmp_path):
    sides = np.zeros((4, 5, 6))
    sides[0, 1:4, 1:4], sides[3, 1:4, 1:4] = 1, 2
    write_mask(tmp_path / "pred.nii.gz", sides)
    write_mask(tmp_path / "ref.nii.gz", sides > 0)
    ran = cli("evaluate", "-i", tmp_path / "pred.nii.gz", "-r", tmp_path / "ref.nii.gz", "-o", tmp_path / "out")
    assert ran.code == 0, ran
    _, row, note, _ = ran.out.splitlines()
    assert row.split()[:3] == ["any", "1", "1.000"]
    assert "- to -" not in ran.out
    assert "the prediction holds 1, 2, the reference 1: scored as one structure only" in note
