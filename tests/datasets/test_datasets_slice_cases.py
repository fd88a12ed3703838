"""Folders of 8-bit slices as cases: a volume that says it is none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import trees_more as trees
from trees import patient

from pneumoscope.datasets.registry import read_dataset
from pneumoscope.datasets.slices import read_slice_cases, read_slice_folder
from pneumoscope.errors import DatasetError
from pneumoscope.preprocess.slices import to_slices


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return trees.make_slices(tmp_path_factory.mktemp("slices"))


def cases_of(root) -> dict:
    return {case.case: case for case in read_dataset("slices", root)}


def test_all_sources_are_listed_and_no_picture_is_opened(root, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", None)
    cases = cases_of(root)
    assert list(cases) == [
        "coronacases_001", "coronacases_002", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3", "medseg-0",
        "medseg-1",
    ]  # fmt: skip
    assert {case.patient for case in cases.values() if case.source == "radiopaedia"} == {"radiopaedia_10"}
    assert all(case.licence and case.citation and case.files is None for case in cases.values())


def test_a_folder_of_one_source_is_known_by_its_name(root, tmp_path):
    assert len(read_slice_cases(root / "coronacases")) == 2
    assert [case.source for case in read_slice_cases(root / "medseg")] == ["medseg"] * 2
    link = tmp_path / "anything"
    link.symlink_to(root / "coronacases", target_is_directory=True)
    assert len(read_slice_cases(link)) == 2


def test_the_volume_says_that_it_is_no_scan(root):
    volume = cases_of(root)["coronacases_001"].load().volume
    codes = {finding.code: finding for finding in volume.findings}
    assert codes["IN-SET-131"].severity == "error"
    assert "not Hounsfield units" in codes["IN-SET-131"].message
    assert "unknown" in codes["IN-SET-132"].message
    assert "neighbours" in codes["IN-SET-133"].message
    assert volume.source["values"] == "grey, 0 to 255, not Hounsfield units"
    assert volume.source["spacing"] == "unknown; 1 mm stands in"
    assert volume.source["pictures"].split()[:2] == ["000", "001"]
    assert volume.spacing_mm == (1, 1, 1)
    assert 0 <= volume.hu.min() < volume.hu.max() <= 255


@pytest.mark.parametrize(
    ("case", "site", "number"),
    [("coronacases_001", "B", 0), ("radiopaedia_10_85902_1", "B", 2), ("radiopaedia_10_85902_3", "B", 3)],
)
def test_pictures_and_masks_come_back_where_they_were(root, case, site, number):
    """Upside-down sources are turned; right is right, the front is the front, the head is up."""
    scan = patient(site, number).scan
    ct, _, _ = trees.pictures(scan)
    got = cases_of(root)[case].load()
    np.testing.assert_array_equal(to_slices(got.volume.hu), ct)
    np.testing.assert_array_equal(got.lungs.labels, scan.lungs.labels > 0)
    np.testing.assert_array_equal(got.infiltrate.labels, scan.infiltrate.labels > 0)
    assert dict(got.lungs.names) == {1: "lung"}
    assert dict(got.infiltrate.names) == {1: "infiltrate"}


def test_medseg_is_one_slice_each_of_its_own_size_with_kinds(root):
    cases = cases_of(root)
    scan = patient("A", 1).scan
    k = scan.volume.grid.shape[2] // 2
    first, second = cases["medseg-0"].load(), cases["medseg-1"].load()
    assert first.volume.grid.shape == (64, 64, 1)
    assert second.volume.grid.shape == (64, 63, 1)
    assert second.lungs is None
    assert dict(second.infiltrate.names) == {1: "ground-glass", 2: "consolidation"}
    np.testing.assert_array_equal(to_slices(second.infiltrate.labels)[0], to_slices(scan.infiltrate.labels)[k][1:])
    assert "IN-SET-133" not in {finding.code for finding in second.volume.findings}


def test_cases_and_stacks_are_the_same_pictures(root):
    cases = cases_of(root)
    for source in ("coronacases", "radiopaedia", "medseg"):
        for stack in read_slice_folder(root, source):
            scan = cases[stack.case].load()
            np.testing.assert_array_equal(to_slices(scan.volume.hu), stack.images)
            np.testing.assert_array_equal(to_slices(scan.infiltrate.labels), stack.infiltrate)
            assert cases[stack.case].patient == stack.patient


def test_gaps_in_the_numbers_are_told_and_nothing_is_put_in(tmp_path):
    root = trees.make_slices(tmp_path)
    for kind in ("ct", "lung", "infection"):
        for number in (3, 4, 7):
            (root / "coronacases" / "coronacases_001" / kind / f"{number:03d}.png").unlink()
    volume = cases_of(root)["coronacases_001"].load().volume
    names = volume.source["pictures"].split()
    assert names == [f"{n:03d}" for n in range(len(names) + 3) if n not in (3, 4, 7)]
    assert volume.grid.shape[2] == len(names)
    assert "have 2 gaps" in next(f.message for f in volume.findings if f.code == "IN-SET-133")


def test_bad_folders_are_one_line(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no folders coronacases.*the folder's name tells"):
        read_slice_cases(tmp_path)
    (tmp_path / "coronacases").mkdir()
    with pytest.raises(DatasetError, match="holds no <patient>/ct"):
        read_slice_cases(tmp_path)
    root = trees.make_slices(tmp_path / "whole")
    (root / "coronacases" / "coronacases_001" / "lung" / "003.png").unlink()
    with pytest.raises(DatasetError, match="has no picture '003'"):
        cases_of(root)["coronacases_001"].load()
    picture = root / "coronacases" / "coronacases_002" / "ct" / "003.png"
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(DatasetError, match="not a readable picture"):
        cases_of(root)["coronacases_002"].load()


@pytest.mark.real
def test_the_real_slices_are_cases(tmp_path):
    root = Path(os.environ.get("PNEUMOSCOPE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ct-slices"
    if not root.is_dir():
        pytest.skip(f"no real slices at {root}; set PNEUMOSCOPE_DATA")
    cases = read_slice_cases(root)
    assert len(cases) == 7 + 5 + 45
    assert len({case.patient for case in cases}) == 7 + 4 + 44, "two scans of one patient, two drawings of one picture"
    bases = []
    slices = dict.fromkeys(("coronacases", "radiopaedia", "medseg"), 0)
    for case in cases:
        scan = case.load()
        slices[case.source] += scan.volume.grid.shape[2]
        assert (scan.lungs is None) == (case.source == "medseg")
        assert scan.infiltrate.any.any()
        if case.source != "medseg" and scan.volume.grid.shape[2] > 20:  # feet first: liver and spleen fill the bases
            area = np.count_nonzero(scan.lungs.labels, axis=(0, 1))
            bases.append(area[0] < area[len(area) // 2])
    assert np.mean(bases) > 0.8
    assert slices == {"coronacases": 789, "radiopaedia": 219, "medseg": 45}
