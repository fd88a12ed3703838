"""Scans, masks and headers that do not quite agree; grids are awkward (tilted, flipped, anisotropic)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grids import any_grid, build_grid
from pneumoscope.datasets.case import CaseFiles
from pneumoscope.datasets.formats.labelled import load_case, put_right
from pneumoscope.errors import DatasetError, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.volume import Volume

SHAPE = (6, 7, 8)
AXES = ("left-right", "front-back", "head-foot")


def write(path, array, grid, dtype=None):
    nibabel.Nifti1Image(np.asarray(array, dtype), grid.affine).to_filename(path)
    return path


@pytest.fixture
def grid() -> Grid:
    return build_grid(("L", "P", "S"), shape=SHAPE, tilt_degrees=(6.0, 2.0, -3.0))


@pytest.fixture
def hu(rng) -> np.ndarray:
    return rng.integers(-1000, 400, SHAPE).astype(np.int16)


@pytest.fixture
def labels(rng) -> np.ndarray:
    return rng.integers(0, 3, SHAPE).astype(np.uint8)


@pytest.fixture
def files(tmp_path, grid, hu, labels) -> CaseFiles:
    image = write(tmp_path / "image.nii.gz", hu, grid)
    mask = write(tmp_path / "mask.nii.gz", labels, grid)
    return CaseFiles(image, mask, mask)


def codes(scan):
    return [finding.code for finding in scan.volume.findings]


def test_voxels_and_labels_come_in_as_they_are_stored(files, hu, labels):
    scan = load_case("k", files)
    np.testing.assert_array_equal(scan.volume.hu, hu[::-1, ::-1])
    np.testing.assert_array_equal(scan.lungs.labels, labels[::-1, ::-1])
    assert codes(scan) == []


def test_labels_are_mapped_and_the_order_of_the_house_comes_out(files, labels):
    scan = load_case("k", replace(files, lung_labels={1: 2, 2: 1}, infiltrate_labels={2: 1}, ignored_labels={1}))
    np.testing.assert_array_equal(scan.lungs.labels, np.array([0, 2, 1])[labels][::-1, ::-1])
    np.testing.assert_array_equal(scan.infiltrate.labels, (labels == 2)[::-1, ::-1])
    assert dict(scan.infiltrate.names) == {1: "infiltrate"}


def test_ignored_labels_become_background_and_are_counted(tmp_path, files, grid, labels):
    labels[0, 0, :3] = 3
    lungs = write(tmp_path / "lungs.nii.gz", labels, grid)
    scan = load_case("k", replace(files, lungs=lungs, ignored_labels=frozenset({3})))
    assert scan.lungs.labels.max() == 2
    (note,) = [f for f in scan.volume.findings if f.code == "IN-SET-087"]
    assert note.message.startswith("3 voxels of mask label 3")
    assert note.severity == "info"


def test_labels_the_set_does_not_declare_are_refused(tmp_path, files, grid, labels):
    labels[0, 0, 0] = 5
    lungs = write(tmp_path / "lungs.nii.gz", labels, grid)
    with pytest.raises(DatasetError, match=r"lungs\.nii\.gz: holds the labels \[5\], this set has 1, 2, 3"):
        load_case("k", replace(files, lungs=lungs, ignored_labels=frozenset({3})))


@pytest.mark.parametrize(("off", "noted"), [(1e-4, False), (0.3, True)])
def test_fractions_are_rounded_and_told_beyond_noise(tmp_path, files, grid, labels, off, noted):
    lungs = write(tmp_path / "lungs.nii.gz", labels - off, grid, np.float64)
    scan = load_case("k", replace(files, lungs=lungs, infiltrate=None))
    np.testing.assert_array_equal(scan.lungs.labels, labels[::-1, ::-1])
    assert ("IN-SET-083" in codes(scan)) is noted
    if noted:
        assert f"{labels.size} mask voxels held fractions (up to 0.3 off" in scan.volume.findings[-1].message


def test_0_and_255_mean_0_and_1(tmp_path, files, grid, labels):
    drawn = write(tmp_path / "drawn.nii.gz", np.where(labels == 1, 255, 0), grid, np.uint8)
    scan = load_case("k", replace(files, lungs=None, infiltrate=drawn, infiltrate_labels={1: 1}))
    np.testing.assert_array_equal(scan.infiltrate.labels, (labels == 1)[::-1, ::-1])


@pytest.mark.parametrize(("value", "match"), [(np.nan, "NaN or infinite"), (-3, "values -3 to"), (300, "to 300")])
def test_values_that_are_no_labels(tmp_path, files, grid, labels, value, match):
    array = labels.astype(np.float32)
    array[1, 2, 3] = value
    with pytest.raises(DatasetError, match=match):
        load_case("k", replace(files, lungs=write(tmp_path / "lungs.nii.gz", array, grid)))


def test_an_empty_mask_is_a_mask(tmp_path, files, grid):
    drawn = write(tmp_path / "drawn.nii.gz", np.zeros(SHAPE, np.uint8), grid)
    scan = load_case("k", replace(files, infiltrate=drawn))
    assert scan.infiltrate is not None
    assert not scan.infiltrate.any.any()


# --- shapes first, then headers -----------------------------------------------------------------------------------


def test_another_shape_is_refused_before_headers_are_looked_at(tmp_path, files, labels):
    short = Grid(labels[:, :, :-1].shape, np.eye(4))
    lungs = write(tmp_path / "lungs.nii.gz", labels[:, :, :-1], short)
    with pytest.raises(DatasetError, match=r"lungs\.nii\.gz: has 6 x 7 x 7 voxels, its scan 6 x 7 x 8"):
        load_case("k", replace(files, lungs=lungs))


def test_a_mask_stored_in_another_axis_order_on_the_same_place_fits(tmp_path, files, grid, labels):
    turned = grid.reorient(("S", "R", "A"))
    order, flips = grid.reorientation(("S", "R", "A"))
    array = labels.transpose(order)[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]
    scan = load_case("k", replace(files, lungs=write(tmp_path / "lungs.nii.gz", array, turned), infiltrate=None))
    np.testing.assert_array_equal(scan.lungs.labels, labels[::-1, ::-1])
    assert codes(scan) == []


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1)])
def test_a_header_that_says_nothing_is_laid_on_voxel_for_voxel(tmp_path, files, labels, signs):
    lungs = write(tmp_path / "lungs.nii.gz", labels, Grid(SHAPE, np.diag([*signs, 1])))
    scan = load_case("k", replace(files, lungs=lungs, infiltrate=None))
    np.testing.assert_array_equal(scan.lungs.labels, labels[::-1, ::-1])
    assert codes(scan) == ["IN-SET-084"]


@pytest.mark.parametrize(("voxels", "fits"), [(0.4, True), (0.6, False)])
def test_headers_that_differ_by_less_than_half_a_voxel(tmp_path, files, grid, labels, voxels, fits):
    affine = grid.affine.copy()
    affine[:3, 3] += voxels * affine[:3, 1]
    lungs = write(tmp_path / "lungs.nii.gz", labels, Grid(SHAPE, affine))
    if fits:
        scan = load_case("k", replace(files, lungs=lungs, infiltrate=None))
        assert codes(scan) == ["IN-SET-084"]
        np.testing.assert_array_equal(scan.lungs.labels, labels[::-1, ::-1])
    else:
        with pytest.raises(DatasetError, match=r"lungs\.nii\.gz: .*shifted by"):
            load_case("k", replace(files, lungs=lungs, infiltrate=None))


def test_a_mirrored_mask_is_refused(tmp_path, files, grid, labels):
    affine = np.diag([1.0, -1, 1, 1]) @ grid.affine
    with pytest.raises(DatasetError, match="mirrored front-back"):
        load_case("k", replace(files, lungs=write(tmp_path / "lungs.nii.gz", labels, Grid(SHAPE, affine))))


def test_a_scan_that_is_no_hu_is_refused(tmp_path, files, grid, rng):
    image = write(tmp_path / "grey.nii.gz", rng.integers(0, 256, SHAPE), grid, np.uint8)
    with pytest.raises(ReadError, match="Hounsfield"):
        load_case("k", replace(files, image=image))


# --- headers known to be wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [c for n in range(4) for c in product(AXES, repeat=n) if len(set(c)) == n])
def test_a_mirrored_header_is_put_right_and_the_voxels_stay(files, grid, hu, labels, mirrored):
    """Every voxel keeps its value and its mask; it lies where the mirrored lattice says."""
    files = replace(files, mirrored=mirrored)
    scan = load_case("k", files)
    assert scan.volume.grid.is_same_space(grid.reorient(("R", "A", "S")))
    flips = tuple(slice(None, None, -1) if a in mirrored else slice(None) for a in AXES)
    np.testing.assert_array_equal(scan.volume.hu, hu[::-1, ::-1][flips])
    np.testing.assert_array_equal(scan.lungs.labels, labels[::-1, ::-1][flips])
    np.testing.assert_array_equal(scan.lungs.to_native(scan.volume.native), labels)  # the file's own order
    assert ("IN-SET-081" in codes(scan)) is bool(mirrored)


def test_the_finding_names_axes_and_both_orientations(files):
    (note,) = load_case("k", replace(files, mirrored=("front-back", "head-foot"))).volume.findings
    assert "front-back and head-foot" in note.message
    assert "LPS by the header, LAI in truth" in note.message


@given(any_grid(), st.sets(st.sampled_from(AXES)))
def test_putting_right_twice_is_doing_nothing(grid, mirrored):
    files = CaseFiles(image=None, mirrored=tuple(mirrored))
    back = files.corrected_grid(files.corrected_grid(grid))
    assert back.is_same_space(grid)
    now, before = (np.sort(g.corners().round(6), axis=0) for g in (files.corrected_grid(grid), grid))
    np.testing.assert_allclose(now, before, atol=1e-5)  # the same points, counted otherwise


@given(any_grid(), st.sets(st.sampled_from(AXES)))
def test_each_voxel_lies_where_the_corrected_grid_says(grid, mirrored):
    """The value at a point of the corrected volume is that of the stored voxel there."""
    files = CaseFiles(image=None, mirrored=tuple(mirrored))
    stored = np.arange(np.prod(grid.shape), dtype=np.float32).reshape(grid.shape)
    right = put_right(Volume.from_native(stored.copy(), grid), files)
    index = tuple(n // 2 for n in grid.shape)
    at = np.rint(right.grid.index(files.corrected_grid(grid).world(index))).astype(int)
    assert right.hu[tuple(at)] == stored[index]


@pytest.mark.parametrize(
    ("header", "true", "expected"),
    [
        (("R", "A", "S"), ("L", "P", ""), ("L", "P", "S")),
        (("L", "P", "I"), ("L", "P", ""), ("L", "P", "I")),
        (("L", "A", "S"), ("L", "P", "I"), ("L", "P", "I")),
        (("A", "R", "S"), ("L", "P", ""), ("A", "R", "S")),  # other axes altogether: the header is trusted
    ],
)
def test_known_axes_overrule_the_header(header, true, expected):
    files = CaseFiles(image=None, stored_axes=true)
    assert files.corrected_grid(build_grid(header)).axis_codes == expected
