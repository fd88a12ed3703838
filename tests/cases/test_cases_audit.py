"""`audit_dataset` on trees that are no dataset: one clear refusal, nothing written; and what a model adds."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pneumoscope.cases import audit
from pneumoscope.cases.audit import audit_dataset
from pneumoscope.cases.options import AuditOptions
from pneumoscope.datasets.audit.rules import AuditRules
from pneumoscope.datasets.phantom.folder import scan_patient, write_phantom
from pneumoscope.errors import DatasetError, InputError, ModelError, PneumoscopeError, ReadError, RunError
from pneumoscope.geometry import Grid
from pneumoscope.io.read import read_mask
from pneumoscope.io.write import write_mask
from pneumoscope.volume import Mask


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "A"
    write_phantom(folder, "A", 3, seed=3, size="tiny")
    return folder


@pytest.fixture
def tree(made, tmp_path):
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def refused(tree, *words, name="phantom", error=InputError, **options):
    out, fixed = tree.parent / "out", tree.parent / "fixed"
    with pytest.raises(error) as caught:
        audit_dataset(name, tree, out, AuditOptions(fix=fixed, **options))
    assert not out.exists()
    assert not fixed.exists()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path):
    (tmp_path / "data").mkdir()
    refused(tmp_path / "data", "phantom.json", error=DatasetError)
    refused(tmp_path / "data", "manifest.csv", name="manifest")
    refused(tmp_path / "nowhere", "nowhere", name="manifest")


def test_half_a_download(tree):
    scan = tree / "images" / "A-001.nii.gz"
    scan.write_bytes(scan.read_bytes()[:5000])
    refused(tree, "A-001.nii.gz", "--keep-going", error=ReadError)
    mask = tree / "infiltrate" / "A-002.nii.gz"
    mask.unlink()
    refused(tree, "A-002", error=DatasetError)


def test_going_on_without_what_cannot_be_read(tree):
    scan = tree / "images" / "A-001.nii.gz"
    scan.write_bytes(scan.read_bytes()[:5000])
    mask = tree / "lungs" / "A-000.nii.gz"
    mask.write_bytes(mask.read_bytes()[:300])
    options = AuditOptions(keep_going=True, fix=tree.parent / "fixed")
    result = audit_dataset("phantom", tree, tree.parent / "out", options)
    assert [(f.case, f.kind) for f in result.findings if f.kind == "unreadable"] == [
        ("A-000", "unreadable"),
        ("A-001", "unreadable"),
    ]
    assert result.errors == 2
    assert result.summary["repairs"]["cases"] == 2
    assert "A-001" not in (tree.parent / "fixed" / "manifest.csv").read_text()


def test_masks_of_other_scans(tree):
    grid = Grid.from_spacing((9, 8, 7), (3.0, 3.0, 5.0))
    for path in [*(tree / "lungs").iterdir(), *(tree / "infiltrate").iterdir()]:
        write_mask(Mask(np.ones(grid.shape, np.uint8), grid, {1: "x"}), path, grid)
    refused(tree, "6 masks", "other scans", error=DatasetError)


def test_a_link_out_of_the_folder(tree):
    elsewhere = tree.parent / "elsewhere.nii.gz"
    (tree / "images" / "A-001.nii.gz").rename(elsewhere)
    (tree / "images" / "A-001.nii.gz").symlink_to(elsewhere)
    refused(tree, "A-001.nii.gz", "link", error=DatasetError)
    (tree / "images" / "A-001.nii.gz").unlink()
    (tree / "images" / "A-001.nii.gz").symlink_to("A-000.nii.gz")
    result = audit_dataset("phantom", tree, tree.parent / "out")  # a link within is a scan given twice
    assert "duplicate-patient" in {f.kind for f in result.findings}


def test_outputs_that_would_touch_the_data(tree):
    for place in (tree, tree / "fixed", tree.parent):
        with pytest.raises(InputError, match="beside it"):
            audit_dataset("phantom", tree, tree.parent / "out", AuditOptions(fix=place))
    assert not (tree.parent / "out").exists()
    audit_dataset("phantom", tree, tree.parent / "out")
    with pytest.raises(InputError, match="--overwrite"):
        audit_dataset("phantom", tree, tree.parent / "out")
    audit_dataset("phantom", tree, tree.parent / "out", overwrite=True)


def test_unknown_repairs_models_and_sets(tree):
    with pytest.raises(InputError, match="no repair for mirrored-mask"):
        AuditOptions(fix=tree.parent / "fixed", repair=("mirrored-mask",))
    refused(tree, "nonsense", error=ModelError, model="nonsense")
    refused(tree, "slices", "--fix", name="slices")
    with pytest.raises(PneumoscopeError, match="radiographs"):
        audit_dataset("kermany", tree, tree.parent / "out")


def test_copies_across_sets(tree, made):
    result = audit_dataset("phantom", tree, tree.parent / "out", AuditOptions(also=(("manifest", made),)))
    copies = [f for f in result.findings if f.kind == "duplicate-scan"]
    assert [f.case for f in copies] == ["A-000", "A-001", "A-002"]
    assert "never train on one and test on the other" in copies[0].detail


def test_dicom_scans_are_copied_and_their_masks_repaired(tmp_path):
    write_phantom(tmp_path / "data", "A", 3, seed=3, size="tiny", format="dicom")
    first = audit_dataset("phantom", tmp_path / "data", tmp_path / "out", AuditOptions(fix=tmp_path / "fixed"))
    assert [(f.case, f.kind) for f in first.findings] == [("A-002", "speck")]
    again = audit_dataset("manifest", tmp_path / "fixed", tmp_path / "out2")
    assert again.findings == []
    source = next((tmp_path / "data" / "images" / "A-002").iterdir())
    copy = tmp_path / "fixed" / "images" / "A-002" / source.name
    assert copy.read_bytes() == source.read_bytes()
    assert not copy.samefile(source)


def test_the_shipped_models_take_part(tree):
    """Site A's reader draws everything; with the drawing taken away the model must miss it."""
    for path in (tree / "infiltrate").iterdir():
        with_grid = tree / "truth" / f"{path.name.removesuffix('.nii.gz')}-lungs.nii.gz"

        lungs = read_mask(with_grid)
        write_mask(Mask(np.zeros_like(lungs.labels), lungs.grid, {1: "infiltrate"}), path, lungs.grid)
    options = AuditOptions(model="infiltrate")
    result = audit_dataset("phantom", tree, tree.parent / "out", options)
    missing = [f for f in result.findings if f.kind == "missing-annotation"]
    assert missing
    assert [f.confidence for f in missing] == sorted((f.confidence for f in missing), reverse=True)
    summary = json.loads((tree.parent / "out" / "audit.json").read_text())
    assert summary["model"] == "infiltrate"
    assert summary["kinds"]["missing-annotation"] == len(missing)


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch):
    """Names of the cases that are judged, as they are."""
    names, judge = [], audit.judge_one
    monkeypatch.setattr(audit, "judge_one", lambda case, *more: names.append(case.case) or judge(case, *more))
    return names


def outputs(out):
    return [(out / name).read_bytes() for name in ("findings.csv", "audit.html", "audit.json")]


def test_a_resumed_audit_judges_what_changed_and_ends_with_the_same_files(tree, judged, caplog):
    out, again, options = tree.parent / "out", tree.parent / "again", AuditOptions(also=(("manifest", tree),))
    audit_dataset("phantom", tree, out, options)
    before = outputs(out)
    audit_dataset("phantom", tree, out, options, resume=True)
    assert judged == ["A-000", "A-001", "A-002"]
    assert outputs(out) == before
    mask = tree / "infiltrate" / "A-001.nii.gz"
    grid = read_mask(mask).grid
    write_mask(Mask(np.ones(grid.shape, np.uint8), grid, {1: "infiltrate"}), mask, grid)
    caplog.clear()
    audit_dataset("phantom", tree, out, options, resume=True)
    assert judged[3:] == ["A-001"]
    assert "A-001 (case changed)" in caplog.text
    audit_dataset("phantom", tree, again, options)
    assert outputs(again) == outputs(out)
    rules = replace(AuditRules(), speck_voxels=11)
    judged.clear()
    audit_dataset("phantom", tree, out, replace(options, rules=rules), resume=True)
    assert len(judged) == 3


def test_an_interrupted_audit_leaves_what_it_found_and_resumes(tree, judged, monkeypatch):
    out, judge = tree.parent / "out", audit.judge_one

    def interrupted(case, *more):
        if case.case == "A-002":
            raise KeyboardInterrupt
        return judge(case, *more)

    with monkeypatch.context() as patch:
        patch.setattr(audit, "judge_one", interrupted)
        with pytest.raises(KeyboardInterrupt):
            audit_dataset("phantom", tree, out)
    summary = json.loads((out / "audit.json").read_text())
    assert (summary["finished"], summary["cases"]) == (False, 2)
    with pytest.raises(InputError, match="--resume"):
        audit_dataset("phantom", tree, out)
    audit_dataset("phantom", tree, out, resume=True)
    assert judged == ["A-000", "A-001", "A-002"]
    audit_dataset("phantom", tree, tree.parent / "again")
    assert outputs(tree.parent / "again") == outputs(out)


def test_a_resumed_audit_that_is_refused_or_finds_no_room_keeps_what_was_judged(tree, judged, monkeypatch):
    out = tree.parent / "out"

    judge = audit.judge_one

    def full(case, *more):
        if case.case == "A-002":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return judge(case, *more)

    with monkeypatch.context() as patch:
        patch.setattr(audit, "judge_one", full)
        with pytest.raises(RunError, match="the disk is full"):
            audit_dataset("phantom", tree, out)
    with pytest.raises(InputError, match="nowhere"):
        audit_dataset("phantom", tree, out, AuditOptions(also=(("manifest", tree / "nowhere"),)), resume=True)
    audit_dataset("phantom", tree, out, resume=True)
    assert judged == ["A-000", "A-001", "A-002"]


def test_a_scan_is_segmented_once_also_for_the_cleaned_copy(tmp_path, monkeypatch):
    """Site C has no lung masks: what the model finds while a case is judged says in the copy where lung is."""
    write_phantom(tmp_path / "C", "C", 3, seed=3, size="tiny")
    lungs = {scan_patient("C", n, seed=3, size="tiny").scan.volume.case: scan_patient("C", n, seed=3, size="tiny").lungs
             for n in range(3)}  # fmt: skip
    asked = []

    class Once:
        def run(self, volume, given):
            assert given is None
            asked.append(volume.case)
            empty = np.zeros(volume.grid.shape, np.uint8)
            return SimpleNamespace(
                lungs=lungs[volume.case], infiltrate=Mask(empty, volume.grid, {1: "infiltrate"}), probability=empty
            )

    monkeypatch.setattr("pneumoscope.cases.audit._segmenter", lambda options: Once())
    options = AuditOptions(model="infiltrate", fix=tmp_path / "fixed")
    result = audit_dataset("phantom", tmp_path / "C", tmp_path / "out", options)
    assert sorted(asked) == sorted(lungs)
    assert result.summary["repairs"]["voxels"], "the speck outside the lungs that were found is removed"
    again = audit_dataset("phantom", tmp_path / "C", tmp_path / "out", options, resume=True)
    assert len(asked) == 3
    assert again.summary["repairs"] == result.summary["repairs"]
