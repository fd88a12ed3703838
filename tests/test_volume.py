from dataclasses import FrozenInstanceError, replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given

from grids import BRIGHT_HU, all_axis_codes, any_grid, bright_corner, build_grid, numbered
from pneumoscope.errors import Finding, GeometryError
from pneumoscope.geometry import Grid
from pneumoscope.volume import INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume, array_to_native

RAS = ("R", "A", "S")


# --- In and out -------------------------------------------------------------------------------------------------------


@given(any_grid())
def test_a_scan_comes_in_as_ras_and_goes_out_as_it_was_stored(native):
    stored = numbered(native.shape)
    volume = Volume.from_native(stored, native)
    assert volume.grid.axis_codes == RAS
    assert volume.native is native
    back = array_to_native(volume.hu, native)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, stored)


@pytest.mark.parametrize("codes", all_axis_codes())
def test_the_bright_corner_stays_at_its_millimetre(codes):
    native = build_grid(codes, tilt_degrees=(9, -4, 6), shear=0.1)
    volume = Volume.from_native(bright_corner(), native)
    bright = np.argwhere(volume.hu == BRIGHT_HU)
    assert len(bright) == 1
    np.testing.assert_allclose(volume.grid.world(bright[0]), native.world([3, 4, 5]), atol=1e-9)


@given(any_grid())
def test_coming_in_agrees_with_nibabel(native):
    stored = numbered(native.shape)
    volume = Volume.from_native(stored, native)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(stored, native.affine))
    np.testing.assert_array_equal(volume.hu, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(volume.grid.affine, canonical.affine, atol=1e-9)


@given(any_grid())
def test_a_mask_goes_back_onto_the_stored_grid(native):
    stored = (numbered(native.shape) % 3).astype(np.uint8)
    mask = Mask.from_native(stored, native, LUNG_LABELS)
    assert mask.grid.axis_codes == RAS
    np.testing.assert_array_equal(mask.to_native(native), stored)


def test_a_mask_lands_on_the_scan_whatever_order_each_is_stored_in(flipped_grid):
    stored = (bright_corner() == BRIGHT_HU).astype(np.uint8)
    scan = Volume.from_native(bright_corner(), flipped_grid)
    other = flipped_grid.reorient(("S", "R", "P"))
    order, flips = flipped_grid.reorientation(("S", "R", "P"))
    turned = stored.transpose(order)[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]
    mask = Mask.from_native(turned, other, {1: "corner"})
    mask.grid.require_same_space(scan.grid)
    assert scan.hu[mask.any].tolist() == [BRIGHT_HU]
    np.testing.assert_array_equal(mask.to_native(scan.native), stored)


def test_whole_numbers_become_float32(permuted_grid):
    volume = Volume.from_native(np.full((4, 5, 6), -1024, np.int16), permuted_grid)
    assert volume.hu.dtype == np.float32
    assert volume.hu.flags.c_contiguous
    assert volume.spacing_mm == volume.grid.spacing_mm


# --- Volume -----------------------------------------------------------------------------------------------------------


def test_findings_are_added_to_a_new_volume(volume):
    finding = Finding("IN-DCM-001", "something odd")
    more = volume.with_findings(finding)
    assert more.findings == (finding,)
    assert volume.findings == ()
    assert more.hu is volume.hu
    with pytest.raises(FrozenInstanceError):
        volume.case = "other"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_volume_that_is_not_finite_is_refused(grid, bad):
    hu = bright_corner()
    hu[1, 2, 3] = bad
    with pytest.raises(GeometryError, match="must be finite"):
        Volume.from_native(hu, grid)


def test_values_too_large_for_float32_are_refused(grid):
    with pytest.raises(GeometryError, match="must be finite"):
        Volume.from_native(np.full((4, 5, 6), 1e300), grid)


def test_a_volume_that_does_not_fit_its_grid_is_refused(grid):
    with pytest.raises(GeometryError, match=r"a volume has shape \(4, 5, 7\), its grid \(4, 5, 6\)"):
        Volume.from_native(np.zeros((4, 5, 7), np.float32), grid)
    with pytest.raises(GeometryError, match="a volume has shape"):
        Volume(np.zeros((4, 5, 7), np.float32), grid, grid)


def test_a_volume_must_be_ras_and_float32(grid, flipped_grid):
    with pytest.raises(GeometryError, match=r"must have RAS.* got LPI; use from_native"):
        Volume(bright_corner(), flipped_grid, flipped_grid)
    with pytest.raises(GeometryError, match="float32 Hounsfield units, got float64"):
        Volume(bright_corner().astype(np.float64), grid, grid)


def test_the_native_grid_must_be_the_same_place(volume):
    elsewhere = volume.native.crop((0, 0, 0), (4, 5, 5)).pad((0, 0, 1), (0, 0, 0))
    with pytest.raises(GeometryError, match="a volume's grid lies on another grid"):
        replace(volume, native=elsewhere)


# --- Mask -------------------------------------------------------------------------------------------------------------


def test_labels_by_number_name_and_together(lungs):
    right, left = lungs.of(1), lungs.of("left lung")
    assert right.sum() == 2 * 3 * 5
    assert left.sum() == 1 * 3 * 5
    np.testing.assert_array_equal(lungs.any, right | left)


def test_volumes_in_millilitres_by_hand(lungs):
    voxel = 0.5 * 0.8 * 1.2 / 1000
    assert lungs.volume_ml() == pytest.approx(45 * voxel)
    assert lungs.volume_ml("right lung") == pytest.approx(30 * voxel)
    assert lungs.volume_ml(2) == pytest.approx(15 * voxel)


def test_an_empty_mask_has_no_volume(grid):
    empty = Mask.empty(grid, INFILTRATE_LABELS)
    assert empty.volume_ml() == 0.0
    assert empty.volume_ml("consolidation") == 0.0
    assert not empty.any.any()
    assert empty.labels.dtype == np.uint8


def test_a_label_that_is_not_there_is_named(lungs):
    with pytest.raises(GeometryError, match=r"no label 'heart'; it has .*right lung"):
        lungs.of("heart")
    assert not lungs.of(7).any()


def test_two_numbers_of_one_name_count_together(grid):
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, 0], labels[1, 1, 1] = 1, 3
    assert Mask(labels, grid, {1: "lesion", 3: "lesion"}).of("lesion").sum() == 2


def test_labels_without_name_are_refused(grid):
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, 0], labels[1, 1, 1] = 3, 9
    with pytest.raises(GeometryError, match=r"labels \[3, 9\] that have no name"):
        Mask(labels, grid, LUNG_LABELS)


@pytest.mark.parametrize("value", [0.5, -1, 256, np.nan, np.inf, 1e20])
def test_values_that_are_no_labels_are_refused(grid, value):
    labels = np.zeros((4, 5, 6))
    labels[1, 2, 3] = value
    with pytest.raises(GeometryError, match="whole numbers from 0 to 255"):
        Mask.from_native(labels, grid, LUNG_LABELS)


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32, np.uint8])
def test_whole_values_of_any_type_become_labels(grid, kind):
    labels = np.zeros((4, 5, 6), kind)
    labels[1, 2, 3] = 1
    mask = Mask.from_native(labels, grid, LUNG_LABELS)
    assert mask.labels.dtype == np.uint8
    assert np.argwhere(mask.labels).tolist() == [[1, 2, 3]]


def test_a_mask_must_fit_be_ras_and_uint8(grid, flipped_grid):
    with pytest.raises(GeometryError, match="a mask has shape"):
        Mask.from_native(np.zeros((4, 5, 7), np.uint8), grid, LUNG_LABELS)
    with pytest.raises(GeometryError, match="a mask must have RAS"):
        Mask(np.zeros((4, 5, 6), np.uint8), flipped_grid, LUNG_LABELS)
    with pytest.raises(GeometryError, match="uint8 labels, got int64"):
        Mask(np.zeros((4, 5, 6), np.int64), grid, LUNG_LABELS)


def test_a_mask_is_not_written_onto_another_place(lungs, grid):
    with pytest.raises(GeometryError, match="lies on another grid"):
        lungs.to_native(grid)


def test_an_array_of_the_wrong_shape_does_not_go_out(permuted_grid):
    with pytest.raises(GeometryError, match=r"expected RAS\+ shape \(6, 4, 5\)"):
        array_to_native(np.zeros((4, 5, 6)), permuted_grid)


def test_a_float32_header_is_still_the_same_place(lungs, flipped_grid):
    rounded = Grid(flipped_grid.shape, flipped_grid.affine.astype(np.float32))
    assert lungs.to_native(rounded).sum() == lungs.labels.sum()
