from itertools import product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from grids import ORIGIN_MM, SHAPE, SPACING_MM, all_axis_codes, any_grid, build_grid, numbered
from pneumoscope.errors import GeometryError
from pneumoscope.geometry import LPS_TO_RAS, Grid, reorient_array, require_axis_codes, whole_triple

codes = st.sampled_from(all_axis_codes())
angles = st.tuples(*[st.floats(-180, 180)] * 3)


def assert_same_grid(one: Grid, other: Grid, tolerance: float = 1e-9):
    assert one.shape == other.shape
    np.testing.assert_allclose(one.affine, other.affine, rtol=0, atol=tolerance)


# --- What a grid says of itself ---------------------------------------------------------------------------------------


def test_an_upright_grid_by_hand():
    grid = Grid.from_spacing((4, 5, 6), (0.5, 0.8, 1.2), (10, 20, 30))
    assert grid.axis_codes == ("R", "A", "S")
    assert grid.spacing_mm == pytest.approx((0.5, 0.8, 1.2))
    assert grid.origin_mm == (10, 20, 30)
    assert grid.voxel_volume_ml == pytest.approx(0.5 * 0.8 * 1.2 / 1000)
    np.testing.assert_allclose(grid.world([1, 2, 3]), [10.5, 21.6, 33.6])
    np.testing.assert_allclose(grid.index([10.5, 21.6, 33.6]), [1, 2, 3])
    np.testing.assert_allclose(grid.corners()[-1], [11.5, 23.2, 36])
    assert repr(grid) == "Grid(4 x 5 x 6, 0.5 x 0.8 x 1.2 mm, RAS)"


def test_a_turn_by_hand():
    grid = build_grid(("P", "I", "R"), shape=(2, 3, 4), spacing_mm=(1, 2, 3), origin_mm=(0, 0, 0))
    np.testing.assert_array_equal(grid.world([1, 0, 0]), [0, -1, 0])
    np.testing.assert_array_equal(grid.world([0, 1, 0]), [0, 0, -2])
    np.testing.assert_array_equal(grid.world([0, 0, 1]), [3, 0, 0])


@given(any_grid())
def test_axis_codes_agree_with_nibabel(grid):
    assert grid.axis_codes == nib.aff2axcodes(grid.affine)


@given(any_grid(), st.tuples(*[st.floats(-20, 20)] * 3))
def test_index_undoes_world(grid, index):
    np.testing.assert_allclose(grid.index(grid.world(index)), index, atol=1e-8)


def test_world_takes_many_points(tilted_grid):
    points = np.random.default_rng(0).random((7, 2, 3))
    assert tilted_grid.world(points).shape == (7, 2, 3)
    np.testing.assert_allclose(tilted_grid.world(points)[3, 1], tilted_grid.world(points[3, 1]))
    np.testing.assert_allclose(tilted_grid.index(points)[3, 1], tilted_grid.index(points[3, 1]))


@given(any_grid())
def test_simpleitk_puts_voxels_at_the_same_place(grid):
    spacing = np.asarray(grid.spacing_mm)
    image = sitk.Image(grid.shape, sitk.sitkUInt8)
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin((LPS_TO_RAS @ grid.affine)[:3, 3].tolist())
    image.SetDirection(((LPS_TO_RAS @ grid.affine)[:3, :3] / spacing).ravel().tolist())
    last = [n - 1 for n in grid.shape]
    lps = np.array(image.TransformIndexToPhysicalPoint(last))
    np.testing.assert_allclose(LPS_TO_RAS[:3, :3] @ lps, grid.world(last), atol=1e-9)


@given(angles, st.floats(-0.5, 0.5))
def test_volume_of_a_voxel_is_turned_and_sheared_unchanged(tilt, shear):
    grid = build_grid(spacing_mm=(0.5, 0.8, 1.2), tilt_degrees=tilt, shear=shear)
    assert grid.voxel_volume_ml == pytest.approx(0.5 * 0.8 * 1.2 / 1000, rel=1e-9)


def test_a_sheared_grid_is_not_orthogonal():
    assert build_grid(tilt_degrees=(30, 20, 10)).is_orthogonal
    assert not build_grid(shear=0.05).is_orthogonal
    assert build_grid(shear=0.0005).is_orthogonal, "rounding of a float32 header must pass"


def test_grids_compare_and_hash_by_value():
    assert build_grid() == build_grid()
    assert hash(build_grid()) == hash(build_grid())
    assert build_grid() != build_grid(shear=1e-12)
    assert build_grid() != build_grid(shape=(4, 5, 7))
    assert build_grid() != "a grid"


def test_an_affine_cannot_be_changed_behind_the_back():
    given_affine = np.diag([0.5, 0.8, 1.2, 1.0])
    grid = Grid((4, 5, 6), given_affine)
    given_affine[0, 0] = 9
    assert grid.spacing_mm[0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 9


# --- Same space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift_mm", "same"), [(0.0, True), (0.009, True), (0.011, False)])
def test_same_space_ends_at_a_hundredth_of_a_millimetre(shift_mm, same):
    x, y, z = ORIGIN_MM
    assert build_grid().is_same_space(build_grid(origin_mm=(x, y, z + shift_mm))) is same


def test_same_space_needs_the_same_shape_and_orientation():
    grid = build_grid()
    assert not grid.is_same_space(build_grid(shape=(4, 5, 7)))
    assert not grid.is_same_space(grid.reorient(("L", "A", "S")))
    assert not grid.is_same_space(build_grid(spacing_mm=(0.5, 0.8, 1.21)))


def test_same_space_sees_the_thickness_of_a_single_slice():
    one = build_grid(shape=(4, 5, 1))
    assert not one.is_same_space(build_grid(shape=(4, 5, 1), spacing_mm=(0.5, 0.8, 5)))


def test_another_space_is_named_with_both_grids():
    grid = build_grid()
    grid.require_same_space(build_grid())
    with pytest.raises(GeometryError, match=r"^the lung mask lies on another grid: expected Grid\(4 x 5 x 6.*resample"):
        grid.require_same_space(grid.reorient(("L", "A", "S")), "the lung mask")


# --- Reorient ---------------------------------------------------------------------------------------------------------


@given(any_grid(), codes)
def test_reorienting_moves_no_voxel(grid, wanted):
    order, flips = grid.reorientation(wanted)
    array = numbered(grid.shape)
    turned = reorient_array(array, order, flips)
    moved = grid.reorient(wanted)
    assert moved.axis_codes == wanted
    assert turned.shape == moved.shape
    assert np.shares_memory(turned, array)
    for corner in product(*((0, n - 1) for n in moved.shape)):
        old = np.rint(grid.index(moved.world(corner))).astype(int)
        assert turned[corner] == array[tuple(old)]
        np.testing.assert_allclose(grid.world(old), moved.world(corner), atol=1e-9)


@given(any_grid(), codes)
def test_reorienting_and_back_is_exact(grid, wanted):
    back = grid.reorient(wanted).reorient(grid.axis_codes)
    assert_same_grid(back, grid)
    np.testing.assert_array_equal(back.affine[:3, :3], grid.affine[:3, :3])


@given(any_grid())
def test_reorienting_to_ras_agrees_with_nibabel(grid):
    array = numbered(grid.shape)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, grid.affine))
    ours = reorient_array(array, *grid.reorientation(("R", "A", "S")))
    np.testing.assert_array_equal(ours, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(grid.reorient(("R", "A", "S")).affine, canonical.affine, atol=1e-9)


@given(angles, codes)
def test_a_reoriented_grid_has_the_codes_asked_for_at_any_tilt(tilt, wanted):
    grid = build_grid(tilt_degrees=tilt, shear=0.1)
    assert grid.reorient(wanted).axis_codes == wanted
    assert grid.reorient(wanted).reorient(grid.axis_codes).axis_codes == grid.axis_codes


@pytest.mark.parametrize("tilt", [(45, 0, 0), (0, 45, 0), (0, 0, 45), (0, 0, 135), (-45, 0, 0), (45, 0, 45)])
@pytest.mark.parametrize("built", [("R", "A", "S"), ("S", "L", "P"), ("A", "R", "I")])
def test_a_tilt_of_exactly_45_degrees_is_settled_once_for_all_orders(tilt, built):
    grid = build_grid(built, tilt_degrees=tilt)
    assert {code for code in grid.axis_codes if code in "RL"}
    for wanted in all_axis_codes():
        assert grid.reorient(wanted).axis_codes == wanted


def test_a_tie_to_the_last_bit_is_settled_by_direction_and_not_by_order():
    affine = np.eye(4)
    affine[:3, :3] = [[1, -1, 0], [1, 1, 0], [0, 0, 1]]
    grid = Grid((2, 3, 4), affine)
    for wanted in all_axis_codes():
        assert grid.reorient(wanted).axis_codes == wanted


def test_a_tie_of_three_axes_is_settled_too():
    a, b, c = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]).T / 3
    for columns in ((a, b, c), (c, a, b), (b, c, a), (-a, c, b)):
        affine = np.eye(4)
        affine[:3, :3] = np.stack(columns, axis=1)
        grid = Grid((2, 3, 4), affine)
        for wanted in all_axis_codes():
            assert grid.reorient(wanted).axis_codes == wanted


def test_axes_behind_the_third_stay_where_they_are():
    array = numbered((4, 5, 6, 2))
    turned = reorient_array(array, (2, 0, 1), (True, False, False))
    assert turned.shape == (6, 4, 5, 2)
    np.testing.assert_array_equal(turned[0, 0, 0], array[0, 0, 5])


# --- Crop, pad, resize, respace ---------------------------------------------------------------------------------------


@given(any_grid(), st.data())
def test_cropping_keeps_places_and_padding_brings_the_grid_back(grid, data):
    start = [data.draw(st.integers(0, n - 1)) for n in grid.shape]
    shape = [data.draw(st.integers(1, n - s)) for n, s in zip(grid.shape, start, strict=True)]
    cropped = grid.crop(start, shape)
    assert cropped.shape == tuple(shape)
    np.testing.assert_allclose(cropped.world([0, 0, 0]), grid.world(start), atol=1e-9)
    np.testing.assert_array_equal(cropped.affine[:3, :3], grid.affine[:3, :3])
    after = [n - s - c for n, s, c in zip(grid.shape, start, shape, strict=True)]
    assert_same_grid(cropped.pad(start, after), grid)


@given(any_grid(), st.tuples(*[st.integers(0, 4)] * 3), st.tuples(*[st.integers(0, 4)] * 3))
def test_padding_keeps_places_and_cropping_brings_the_grid_back(grid, before, after):
    padded = grid.pad(before, after)
    np.testing.assert_allclose(padded.world(before), grid.world([0, 0, 0]), atol=1e-9)
    assert_same_grid(padded.crop(before, grid.shape), grid)


@given(any_grid(), st.tuples(*[st.integers(1, 12)] * 3))
def test_resizing_keeps_the_outer_edges(grid, shape):
    resized = grid.resize(shape)
    assert resized.shape == shape
    for edge in product((0, 1), repeat=3):
        ours = np.asarray(edge) * resized.shape - 0.5
        theirs = np.asarray(edge) * grid.shape - 0.5
        np.testing.assert_allclose(resized.world(ours), grid.world(theirs), atol=1e-9)
    assert_same_grid(resized.resize(grid.shape), grid)


def test_resizing_by_hand():
    grid = Grid.from_spacing((4, 6, 3), (1, 1, 2), (0, 0, 0)).resize((2, 12, 3))
    assert grid.spacing_mm == pytest.approx((2, 0.5, 2))
    assert grid.origin_mm == pytest.approx((0.5, -0.25, 0))


@given(any_grid(), st.tuples(*[st.floats(0.4, 6)] * 3))
def test_respacing_keeps_centre_directions_and_extent(grid, spacing):
    respaced = grid.respace(spacing)
    np.testing.assert_allclose(respaced.spacing_mm, spacing, rtol=1e-9)
    assert respaced.axis_codes == grid.axis_codes
    middle, ours = (np.asarray(grid.shape) - 1) / 2, (np.asarray(respaced.shape) - 1) / 2
    np.testing.assert_allclose(respaced.world(ours), grid.world(middle), atol=1e-9)
    before = np.asarray(grid.shape) * grid.spacing_mm
    after = np.asarray(respaced.shape) * spacing
    rounded = np.abs(after - before) <= np.asarray(spacing) / 2 + 1e-9
    assert (rounded | (np.asarray(respaced.shape) == 1)).all()


@given(any_grid())
def test_respacing_to_the_own_spacing_changes_nothing(grid):
    assert_same_grid(grid.respace(grid.spacing_mm), grid)


# --- Guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(4, 5), (4, 5, 0), (4, 5, -1), (4.5, 5, 6), (1, 2, 3, 4), ("a", "b", "c"), (True,) * 3]
)
def test_an_impossible_shape_is_refused(shape):
    with pytest.raises(GeometryError, match="a grid's shape must be three whole numbers of at least 1"):
        Grid(shape, np.eye(4))


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), "4 x 4 and finite"), (np.diag([1, 1, np.nan, 1]), "4 x 4 and finite"),
        (np.diag([1, np.inf, 1, 1]), "4 x 4 and finite"), (np.diag([1, 1, 1, 2]), "last row"),
        (np.diag([1, 0, 1, 1]), "singular"), ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "singular"),
        (np.zeros((4, 4)), "last row"),
    ],
)  # fmt: skip
def test_an_impossible_affine_is_refused(affine, message):
    with pytest.raises(GeometryError, match=message):
        Grid((4, 5, 6), affine)


@pytest.mark.parametrize(
    ("start", "shape"),
    [
        ((-1, 0, 0), (1, 1, 1)), ((0, 0, 0), (5, 1, 1)), ((3, 0, 0), (2, 1, 1)), ((0, 0, 0), (0, 1, 1)),
        ((0,), (1, 1, 1)),
    ],
)  # fmt: skip
def test_a_crop_outside_is_refused(grid, start, shape):
    with pytest.raises(GeometryError, match="crop"):
        grid.crop(start, shape)


@pytest.mark.parametrize(
    ("before", "after"), [((-1, 0, 0), (0, 0, 0)), ((0, 0, 0), (0, 0, -2)), ((0.5, 0, 0), (0, 0, 0))]
)
def test_negative_padding_is_refused(grid, before, after):
    with pytest.raises(GeometryError, match="padding"):
        grid.pad(before, after)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (np.nan, 1, 1), (np.inf, 1, 1), (1, 1), 1.0])
def test_impossible_spacing_is_refused(grid, spacing):
    with pytest.raises(GeometryError, match="three positive numbers"):
        grid.respace(spacing)


def test_an_impossible_size_is_refused(grid):
    with pytest.raises(GeometryError, match="the wanted shape must be three whole numbers"):
        grid.resize((4, 5, 0))


@pytest.mark.parametrize(
    "wrong", [("R", "A"), ("R", "L", "S"), ("R", "A", "X"), ("R", "R", "S"), "RASL", ("r", "a", "s")]
)
def test_impossible_axis_codes_are_refused(grid, wrong):
    with pytest.raises(GeometryError, match="each of R/L, A/P, S/I once"):
        grid.reorientation(wrong)
    with pytest.raises(GeometryError, match="each of R/L, A/P, S/I once"):
        require_axis_codes(wrong)


def test_numpy_integers_are_whole_numbers():
    assert whole_triple(np.array([1, 2, 3], np.uint16), "it", least=1) == (1, 2, 3)
    assert Grid(np.array(SHAPE), np.diag([*SPACING_MM, 1])).shape == SHAPE
