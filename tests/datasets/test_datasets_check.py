"""Whole or not: what is missing, unreadable, beyond; counts against published ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from trees_more import make_nnunet

from pneumoscope.cases.audit import audit_dataset
from pneumoscope.datasets import check as module
from pneumoscope.datasets.check import check_dataset, leaving_link, listed
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.datasets.registry import DATASETS
from pneumoscope.errors import DatasetError, InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "B"
    write_phantom(folder, "B", 3, seed=3, size="tiny")
    return folder


@pytest.fixture
def tree(made, tmp_path):
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def counts(found):
    return {count.name: count.found for count in found.counts}


def test_a_whole_set(tree, tiny):
    found = check_dataset("phantom", tree)
    assert found.whole
    assert (found.problems, counts(found)["scans"], counts(found)["patients"]) == ((), 3, 3)
    assert 0 < counts(found)["slices_with_infiltrate"] < counts(found)["slices_with_lung"] < counts(found)["slices"]
    quick = check_dataset("phantom", tree, quick=True)
    assert (quick.whole, counts(quick)["scans"], counts(quick)["slices"]) == (True, 3, None)


def test_files_cut_off_empty_and_beyond(tree):
    scan = tree / "images" / "B-001.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-200])
    (tree / "infiltrate" / "B-002.nii.gz").write_bytes(b"")
    (tree / "images" / "leftover.nii.gz").write_bytes(b"x")
    found = check_dataset("phantom", tree)
    assert not found.whole
    assert [(p.case, "B-001.nii.gz" in p.what or "empty" in p.what) for p in found.problems] == [
        ("B-001", True),
        ("B-002", True),
    ]
    assert "images/leftover.nii.gz" in found.beyond
    quick = check_dataset("phantom", tree, quick=True)
    assert [p.case for p in quick.problems] == ["B-002"]  # only reading finds the file that is cut off


def test_a_table_with_files_that_are_not_there(tree):
    (tree / "lungs" / "B-000.nii.gz").unlink()
    (tree / "images" / "B-001.nii.gz").unlink()
    for name in ("phantom", "manifest"):
        found = check_dataset(name, tree)
        assert [p.what for p in found.problems] == ["lungs/B-000.nii.gz is missing", "images/B-001.nii.gz is missing"]


def test_a_mask_that_others_have(tree):
    text = (tree / "manifest.csv").read_text().replace("lungs/B-001.nii.gz", "")
    (tree / "manifest.csv").write_text(text)
    found = check_dataset("manifest", tree)
    assert [(p.case, p.what) for p in found.problems] == [
        ("B-001", "no lungs mask, though other cases of phantom-B have one")
    ]
    (tree / "manifest.csv").write_text("\n".join(",".join(line.split(",")[:2]) for line in text.splitlines()))
    bare = check_dataset("manifest", tree, quick=True)
    assert bare.whole
    assert "3 of 3 cases have no lungs mask" in bare.notes


def publish(monkeypatch, expected):
    monkeypatch.setattr(module, "dataset_info", lambda name: replace(DATASETS[name], expected=expected))


def test_counts_against_published_ones(tree, monkeypatch):
    whole = counts(check_dataset("manifest", tree))
    expected = {
        "scans": 3,
        "slices": whole["slices"],
        "scans@phantom-B": 3,
        "slices_with_lung@masks": whole["slices_with_lung"],
    }
    publish(monkeypatch, expected)
    assert check_dataset("manifest", tree).whole
    publish(monkeypatch, {**expected, "slices": 1})
    found = check_dataset("manifest", tree)
    assert not found.whole
    assert [count.name for count in found.counts if count.differs] == ["slices"]
    assert check_dataset("manifest", tree, quick=True).whole  # a quick check cannot count slices


def test_links(tree):
    inside, outside = tree / "images" / "here.nii.gz", tree.parent / "there.nii.gz"
    outside.write_bytes(b"x")
    inside.symlink_to(outside)
    assert leaving_link(inside, tree)
    assert not leaving_link(outside, tree)  # written outside: somebody's choice
    assert not leaving_link(tree / "images" / "B-000.nii.gz", tree)
    scan = tree / "images" / "B-000.nii.gz"
    scan.rename(tree.parent / "B-000.nii.gz")
    scan.symlink_to(tree.parent / "B-000.nii.gz")
    assert "link that leads out" in check_dataset("phantom", tree, quick=True).problems[0].what


def test_folders_that_are_not_the_set(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"phantom\.json"):
        check_dataset("phantom", tmp_path / "empty")
    with pytest.raises(InputError):
        check_dataset("manifest", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="radiographs"):
        check_dataset("kermany", tmp_path)


def test_long_lists_are_summed_up():
    assert listed(["a/1", "b/2"]) == ["a/1", "b/2"]
    assert listed([f"a/{n}" for n in range(40)]) == ["40 files in a"]


@pytest.fixture
def empty_labels(tmp_path):
    """An nnU-Net set of kinds: a sixth label that nobody drew, one that is no infiltrate, and a mask of nothing."""
    import nibabel as nib
    import numpy as np

    folder = make_nnunet(tmp_path / "set", variant="kinds") / "Dataset501_Chest"
    described = json.loads((folder / "dataset.json").read_text())
    described["labels"] |= {"infiltrate": 6, "pleural effusion": 7}
    (folder / "dataset.json").write_text(json.dumps(described))
    mask = folder / "labelsTr" / "chest_001.nii.gz"
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine, image.header), mask)
    return folder


ABSENT = [
    "label 6 (infiltrate) is declared and no case holds it",
    "label 7 (neither lung nor infiltrate) is declared and no case holds it",
]


def test_a_label_that_no_case_holds_is_mentioned(empty_labels):
    found = check_dataset("nnunet", empty_labels)
    assert found.whole, found.problems
    assert [note for note in found.notes if note.startswith("label")] == ABSENT
    assert "the infiltrate mask of chest_001 marks nothing" in found.notes
    assert not [note for note in check_dataset("nnunet", empty_labels, quick=True).notes if "label" in note]


def test_an_audit_mentions_it_too(empty_labels, tmp_path):
    result = audit_dataset("nnunet", empty_labels, tmp_path / "out")
    assert [f.detail for f in result.findings if f.kind == "absent-label"] == ABSENT
    assert {"rule": "infiltrate", "why": "the infiltrate mask marks nothing", "cases": 1} in result.summary[
        "not_judged"
    ]
    page = (tmp_path / "out" / "audit.html").read_text()
    assert all(text in page for text in ABSENT)


def test_labels_that_some_case_holds_are_not(tmp_path, tree):
    found = check_dataset("nnunet", make_nnunet(tmp_path / "kinds", variant="kinds"))
    assert not [note for note in found.notes if "declared" in note], found.notes
    assert not [note for note in check_dataset("phantom", tree).notes if "declared" in note]
    regions = check_dataset("nnunet", make_nnunet(tmp_path / "plain"))
    assert [note[:8] for note in regions.notes if "declared" in note] == ["label 8 "]
