from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.datasets.formats.manifest import read_manifest_cases
from pneumoscope.datasets.registry import read_dataset
from pneumoscope.errors import DatasetError, InputError, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.write import write_mask, write_volume
from pneumoscope.volume import Mask, Volume


@pytest.fixture
def folder(tmp_path):
    grid = Grid.from_spacing((6, 7, 8), (0.5, 0.8, 1.2))
    hu = np.random.default_rng(0).integers(-1000, 400, grid.shape).astype(np.float32)
    write_volume(Volume(hu, grid, grid.reorient(("L", "P", "S"))), tmp_path / "a.nii.gz")
    labels = np.zeros(grid.shape, np.uint8)
    labels[1:3], labels[4:] = 2, 1
    write_mask(Mask(labels, grid, {1: "right lung", 2: "left lung"}), tmp_path / "lungs.nii.gz", grid)
    write_mask(Mask((labels == 1).astype(np.uint8), grid, {1: "infiltrate"}), tmp_path / "one.nii.gz", grid)
    write_mask(Mask(labels, grid, {1: "x", 2: "y"}), tmp_path / "two.nii.gz", grid)
    write_mask(Mask(labels * 2, grid, {2: "x", 4: "y"}), tmp_path / "four.nii.gz", grid)
    other = Grid.from_spacing((6, 7, 8), (0.5, 0.8, 1.3))
    write_mask(Mask(labels, other, {1: "x", 2: "y"}), tmp_path / "other.nii.gz", other)
    return tmp_path


def table(folder, *rows, header="case,image,lungs,infiltrate,patient,date,source"):
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "manifest.csv"


def test_cases_are_read_with_the_houses_names(folder):
    table(folder, "k1,a.nii.gz,lungs.nii.gz,two.nii.gz,p9,2020-03-01,north", "k2,a.nii.gz,,one.nii.gz,,,")
    first, second = read_dataset("manifest", folder)
    assert (first.patient, first.source, second.patient, second.source) == ("p9", "north", "k2", "")
    scan = first.load()
    assert scan.volume.case == "k1"
    assert dict(scan.lungs.names) == {1: "right lung", 2: "left lung"}
    assert dict(scan.infiltrate.names) == {1: "ground-glass", 2: "consolidation"}
    assert scan.truth is None
    plain = second.load()
    assert plain.lungs is None
    assert dict(plain.infiltrate.names) == {1: "infiltrate"}


def test_a_table_elsewhere_is_read_too(folder):
    assert len(read_manifest_cases(table(folder, "k,a.nii.gz", header="case,image"))) == 1


def test_labels_without_meaning_are_refused_with_the_file(folder):
    (case,) = read_manifest_cases(table(folder, "k,a.nii.gz,,four.nii.gz,,,"))
    with pytest.raises(DatasetError, match=r"four\.nii\.gz.*\[0, 2, 4\]"):
        case.load()


def test_masks_on_another_grid_are_refused(folder):
    (case,) = read_manifest_cases(table(folder, "k,a.nii.gz,other.nii.gz,,,,"))
    with pytest.raises(ReadError, match=r"other\.nii\.gz: the lung mask of k does not lie on its scan: .*spacing"):
        case.load()


@pytest.mark.parametrize("codes", [("L", "P", "S"), ("S", "R", "A"), ("P", "I", "R")])
def test_a_mask_in_another_orientation_lies_on_its_scan(folder, codes):
    grid = Grid.from_spacing((6, 7, 8), (0.5, 0.8, 1.2))
    labels = np.random.default_rng(1).integers(0, 3, grid.shape).astype(np.uint8)
    write_mask(Mask(labels, grid, {1: "x", 2: "y"}), folder / "turned.nii.gz", grid.reorient(codes))
    (case,) = read_manifest_cases(table(folder, "k,a.nii.gz,turned.nii.gz,turned.nii.gz,,,"))
    scan = case.load()
    np.testing.assert_array_equal(scan.lungs.labels, labels)
    np.testing.assert_array_equal(scan.infiltrate.labels, labels)
    assert scan.lungs.grid == scan.volume.grid


def test_the_date_is_kept(folder):
    (case,) = read_manifest_cases(table(folder, "k,a.nii.gz,,,p,2020-03-01,"))
    assert case.date == "2020-03-01"


def test_lungs_of_no_side_stay_so(folder):
    grid = Grid.from_spacing((6, 7, 8), (0.5, 0.8, 1.2))
    write_mask(Mask(np.ones(grid.shape, np.uint8), grid, {1: "lung"}), folder / "lung.nii.gz", grid)
    (case,) = read_manifest_cases(table(folder, "k,a.nii.gz,lung.nii.gz,,,,"))
    assert dict(case.load().lungs.names) == {1: "lung"}


def test_a_bad_table_is_refused(folder):
    with pytest.raises(InputError):
        read_manifest_cases(table(folder, "k,missing.nii.gz,,,,,"))
