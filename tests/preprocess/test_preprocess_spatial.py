import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from grids import BRIGHT_HU, all_axis_codes, any_grid, bright_corner, build_grid, numbered
from pneumoscope.errors import Finding, GeometryError, InputError
from pneumoscope.geometry import LPS_TO_RAS, Grid, reorient_array
from pneumoscope.preprocess.spatial import AIR_HU, Crop, Resample, axis_weights, coarse_size, crop_to, resample_axes
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

codes = st.sampled_from(all_axis_codes())
amounts = st.tuples(*[st.integers(0, 3)] * 3)


def assert_same_grid(one: Grid, other: Grid):
    assert one.shape == other.shape
    np.testing.assert_allclose(one.affine, other.affine, rtol=0, atol=1e-9)


def marked(grid: Grid, index=(0, 0, 0)) -> np.ndarray:
    array = np.zeros(grid.shape, np.float32)
    array[index] = BRIGHT_HU
    return array


def place(array, grid):
    """Millimetres of the one bright voxel."""
    (index,) = np.argwhere(array == BRIGHT_HU)
    return grid.world(index)


# --- Crop and pad -----------------------------------------------------------------------------------------------------


@given(any_grid(), st.data())
def test_a_crop_keeps_a_marked_corner_and_its_inverse_the_grid(grid, data):
    start = tuple(data.draw(st.integers(0, n - 1)) for n in grid.shape)
    shape = tuple(data.draw(st.integers(1, n - s)) for n, s in zip(grid.shape, start, strict=True))
    step = Crop(start, shape)
    array = marked(grid, start)
    small, moved = step.move(array, grid)
    assert small.shape == moved.shape == shape
    np.testing.assert_allclose(place(small, moved), place(array, grid), atol=1e-9)
    back, again = Resample(grid, "nearest").move(small, moved)
    assert_same_grid(again, grid)
    np.testing.assert_allclose(place(back, again), place(array, grid), atol=1e-9)
    inside = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    np.testing.assert_array_equal(back[inside], array[inside])
    outside = np.ones(grid.shape, bool)
    outside[inside] = False
    assert (back[outside] == AIR_HU).all()


def test_a_crop_lets_go_of_the_large_array(grid):
    array = numbered(grid.shape)
    small, _ = Crop((0, 0, 0), (2, 2, 2)).move(array, grid)
    assert not np.shares_memory(small, array)
    assert small.flags.c_contiguous


def test_volume_and_mask_move_together(volume, lungs):
    step = Crop((1, 1, 2), (3, 3, 4))
    scan, mask = step.apply(volume), step.apply(lungs)
    assert isinstance(scan, Volume)
    assert isinstance(mask, Mask)
    mask.grid.require_same_space(scan.grid)
    assert mask.names == LUNG_LABELS
    np.testing.assert_array_equal(scan.hu, volume.hu[1:4, 1:4, 2:6])
    np.testing.assert_array_equal(mask.labels, lungs.labels[1:4, 1:4, 2:6])


def test_what_a_volume_carries_goes_along(volume):
    noted = volume.with_findings(Finding("IN-1", "odd"))
    moved = Crop((1, 0, 0), (3, 4, 6)).apply(noted)
    assert (moved.case, moved.findings, moved.source) == (noted.case, noted.findings, noted.source)
    assert moved.native.axis_codes == volume.native.axis_codes == ("L", "P", "I")
    assert moved.native.shape == (3, 4, 6)


def test_a_mask_is_filled_with_background(lungs):
    padded = Resample(lungs.grid.pad((1, 1, 1), (1, 1, 1))).apply(lungs)
    assert padded.labels[0].max() == 0
    assert padded.labels.sum() == lungs.labels.sum()
    assert padded.labels.dtype == np.uint8


def test_a_mask_made_on_a_crop_lands_on_the_scan_as_stored(volume):
    step = Crop((2, 0, 1), (2, 4, 3))
    on_crop = step.apply(volume)
    found = Mask((on_crop.hu > np.median(on_crop.hu)).astype(np.uint8), on_crop.grid, {1: "found"})
    back = Resample(volume.grid).apply(found)
    stored = back.to_native(volume.native)
    assert stored.shape == volume.native.shape
    assert stored.sum() == found.labels.sum()


# --- Resample ---------------------------------------------------------------------------------------------------------


def itk_image(array, grid):
    """A SimpleITK image of an array on a grid: k, j, i order of the buffer, LPS millimetres."""
    lps = LPS_TO_RAS @ grid.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / np.asarray(grid.spacing_mm)).ravel().tolist())
    return image


def itk_resample(array, source, target, method, fill):
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(itk_image(np.zeros(target.shape, np.uint8), target))
    resampler.SetInterpolator(sitk.sitkLinear if method == "linear" else sitk.sitkNearestNeighbor)
    resampler.SetDefaultPixelValue(fill)
    return sitk.GetArrayFromImage(resampler.Execute(itk_image(array, source))).transpose(2, 1, 0)


def source_index(source, target):
    """Where each target voxel lies in the source, (i, j, k, 3)."""
    return source.index(target.world(np.stack(np.indices(target.shape), axis=-1)))


def clear_of_edges(source, target, method):
    """Target voxels whose value does not hang on rounding: not on the outer edge, not halfway between two voxels."""
    index = source_index(source, target)
    shape = np.asarray(source.shape)
    edge = np.minimum(np.abs(index + 0.5), np.abs(index - shape + 0.5)).min(axis=-1)
    halfway = np.abs(index - np.floor(index) - 0.5).min(axis=-1)
    return (edge > 1e-3) & ((halfway > 1e-3) | (method == "linear"))


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.float32)


def overlapping(source: Grid, data) -> Grid:
    """Another grid, tilted and spaced on its own, over about the same place."""
    grid = build_grid(
        data.draw(codes),
        shape=data.draw(st.tuples(*[st.integers(1, 9)] * 3)),
        spacing_mm=data.draw(st.tuples(*[st.floats(0.3, 5)] * 3)),
        tilt_degrees=data.draw(st.tuples(*[st.floats(-40, 40)] * 3)),
        shear=data.draw(st.floats(-0.2, 0.2)),
    )
    affine = grid.affine.copy()
    middle = source.world((np.asarray(source.shape) - 1) / 2)
    affine[:3, 3] += middle - grid.world((np.asarray(grid.shape) - 1) / 2)
    return Grid(grid.shape, affine)


@pytest.mark.parametrize("method", ["linear", "nearest"])
@given(source=any_grid(max_side=8), data=st.data())
def test_resampling_agrees_with_simpleitk(method, source, data):
    target = overlapping(source, data)
    array = noise(source.shape)
    ours, grid = Resample(target, method, fill_hu=-2000).move(array, source)
    assert grid is target
    assert ours.dtype == np.float32
    theirs = itk_resample(array, source, target, method, -2000)
    sure = clear_of_edges(source, target, method)
    np.testing.assert_allclose(ours[sure], theirs[sure], atol=0.02 if method == "linear" else 0)


@given(any_grid(), codes, st.sampled_from(["linear", "nearest"]))
def test_onto_a_reoriented_grid_it_is_reorienting(grid, wanted, method):
    array = noise(grid.shape)
    expected, target = reorient_array(array, *grid.reorientation(wanted)), grid.reorient(wanted)
    ours, _ = Resample(target, method).move(array, grid)
    np.testing.assert_array_equal(ours, expected)


@given(any_grid(), amounts, amounts)
def test_onto_a_padded_grid_it_is_padding(grid, before, after):
    array = noise(grid.shape)
    expected = np.pad(array, list(zip(before, after, strict=True)), constant_values=AIR_HU)
    target = grid.pad(before, after)
    ours, _ = Resample(target).move(array, grid)
    np.testing.assert_array_equal(ours, expected)


@given(any_grid(), st.tuples(*[st.integers(1, 4)] * 3))
def test_labels_on_a_finer_grid_come_back_exactly(grid, factor):
    labels = (numbered(grid.shape) % 3).astype(np.uint8)
    ras = grid.reorient(("R", "A", "S"))
    mask = Mask.from_native(labels, grid, LUNG_LABELS)
    step = Resample(ras.resize([n * f for n, f in zip(ras.shape, factor, strict=True)]))
    fine = step.apply(mask)
    assert set(np.unique(fine.labels)) == set(np.unique(labels))
    assert fine.volume_ml() == pytest.approx(mask.volume_ml())
    back = step.inverse(ras).apply(fine)
    assert back.grid == ras
    np.testing.assert_array_equal(back.labels, mask.labels)
    np.testing.assert_array_equal(back.to_native(grid), labels)


def test_linear_by_hand():
    source = Grid.from_spacing((4, 1, 1), (1, 1, 1))
    array = np.array([0, 10, 20, 40], np.float32).reshape(4, 1, 1)
    target = Grid.from_spacing((6, 1, 1), (1, 1, 1), (-1.25, 0, 0))
    ours, _ = Resample(target, fill_hu=-1).move(array, source)
    # places -1.25 (outside), -0.25 (border held), 0.75, 1.75, 2.75, 3.75 (outside)
    np.testing.assert_allclose(ours.ravel(), [-1, 0, 7.5, 17.5, 35, -1])


def test_the_border_holds_for_half_a_voxel_and_no_further():
    source = Grid.from_spacing((3, 3, 3), (2, 2, 2))
    array = numbered((3, 3, 3))
    for shift, inside in ((-0.99, True), (-1.01, False), (4.99, True), (5.01, False)):
        target = Grid.from_spacing((1, 1, 1), (1, 1, 1), (shift, 2, 2))
        for method in ("linear", "nearest"):
            ours, _ = Resample(target, method, fill_hu=-7).move(array, source)
            assert ours.item() == ((array[0, 1, 1] if shift < 0 else array[2, 1, 1]) if inside else -7)


def test_halfway_takes_the_higher_index_all_along_an_axis():
    source = Grid.from_spacing((40, 1, 1), (0.7, 1, 1), (-13.37, 0, 0))
    array = np.arange(40, dtype=np.float32).reshape(40, 1, 1)
    ours, _ = Resample(source.resize((20, 1, 1)), "nearest").move(array, source)
    np.testing.assert_array_equal(ours.ravel(), np.arange(1, 40, 2))


def test_a_scan_and_its_mask_by_one_step(volume, lungs):
    step = Resample(volume.grid.respace((1, 1, 1)))
    scan, mask = step.apply(volume), step.apply(lungs)
    assert scan.grid == mask.grid == step.target
    assert scan.native.axis_codes == volume.native.axis_codes
    assert set(np.unique(mask.labels)) <= {0, 1, 2}
    back = step.inverse(volume.grid).apply(scan)
    assert back.grid == volume.grid
    back.native.require_same_space(volume.native)
    assert back.hu.min() >= AIR_HU
    assert back.hu.max() <= BRIGHT_HU


def test_far_away_there_is_only_fill(volume, lungs):
    far = Grid.from_spacing((2, 2, 2), (1, 1, 1), (5000, 0, 0))
    assert (Resample(far).apply(volume).hu == AIR_HU).all()
    assert not Resample(far).apply(lungs).any.any()


def test_true_and_false_can_be_resampled(grid):
    array = bright_corner() == BRIGHT_HU
    ours, _ = Resample(grid.resize((8, 10, 12)), "nearest", fill_hu=0).move(array, grid)
    assert ours.dtype == bool
    assert ours.sum() == 8


def test_an_array_of_any_layout_gives_the_same(grid):
    array = noise((6, 5, 4)).transpose(2, 1, 0)
    target = grid.respace((0.6, 0.6, 0.6))
    for step in (Resample(target), Resample(target, "nearest")):
        one, _ = step.move(array, grid)
        other, _ = step.move(np.ascontiguousarray(array), grid)
        np.testing.assert_array_equal(one, other)
        assert one.flags.c_contiguous


def test_shrinking_does_not_smooth():
    """What the docstring warns of: stripes as fine as the voxels come out as all of one kind."""
    source = Grid.from_spacing((16, 1, 1), (1, 1, 1))
    stripes = np.tile(np.array([0, 1000], np.float32), 8).reshape(16, 1, 1)
    every_fourth = Grid.from_spacing((4, 1, 1), (4, 1, 1), (1, 0, 0))
    assert (Resample(every_fourth).move(stripes, source)[0] == 1000).all()


# --- Crop to a mask ---------------------------------------------------------------------------------------------------


def test_crop_to_a_mask_by_hand(grid):
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1, 2, 3], labels[2, 2, 4] = 1, 2
    mask = Mask(labels, grid, LUNG_LABELS)
    assert crop_to(mask) == Crop((1, 2, 3), (2, 1, 2))
    # 0.8 mm are 2 voxels of 0.5 mm (cut to 1 at the edge), 1 of 0.8 mm, 1 of 1.2 mm
    assert crop_to(mask, 0.8) == Crop((0, 1, 2), (4, 3, 4))
    assert crop_to(mask, 1000) == Crop((0, 0, 0), (4, 5, 6))
    assert crop_to(mask).apply(mask).volume_ml() == mask.volume_ml()


def test_an_empty_mask_cannot_be_cropped_to(grid):
    with pytest.raises(GeometryError, match="mask is empty"):
        crop_to(Mask.empty(grid, LUNG_LABELS))


@pytest.mark.parametrize("margin", [-1, np.nan, np.inf])
def test_an_impossible_margin_is_refused(lungs, margin):
    with pytest.raises(GeometryError, match="margin must be 0 mm or more"):
        crop_to(lungs, margin)


# --- Guards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop((-1, 0, 0), (1, 1, 1)), "start of a crop"),
        (lambda: Crop((0, 0, 0), (0, 1, 1)), "shape of a crop"),
        (lambda: Crop((0, 0), (1, 1, 1)), "start of a crop"),
        (lambda: Crop((0.5, 0, 0), (1, 1, 1)), "start of a crop"),
        (lambda: Resample(build_grid(), "cubic"), "choose linear or nearest"),
    ],
)
def test_an_impossible_step_cannot_be_made(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("step", [Crop((0, 0, 0), (1, 1, 1)), Resample(build_grid())])
def test_an_array_must_lie_on_its_grid(step, grid):
    with pytest.raises(GeometryError, match=r"array has shape \(4, 5, 7\), its grid \(4, 5, 6\)"):
        step.move(np.zeros((4, 5, 7), np.float32), grid)


def test_a_crop_that_does_not_fit_is_refused(grid):
    step = Crop((2, 0, 0), (3, 1, 1))
    with pytest.raises(GeometryError, match="does not lie inside"):
        step.move(np.zeros(grid.shape), grid)


def test_labels_are_never_mixed(grid):
    with pytest.raises(InputError, match="needs floats, got uint8; use nearest"):
        Resample(grid, fill_hu=0).move(np.zeros(grid.shape, np.uint8), grid)


@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_a_fill_value_that_would_wrap_round_is_refused(kind, grid):
    with pytest.raises(InputError, match=r"fill value -1024.0 cannot be held by"):
        Resample(grid, "nearest").move(np.zeros(grid.shape, kind), grid)


def test_a_fill_value_must_be_finite(grid):
    with pytest.raises(InputError, match="fill value nan"):
        Resample(grid, fill_hu=np.nan).move(np.zeros(grid.shape, np.float32), grid)


def test_rows_of_weights_add_up_to_one():
    for size, step, out, out_step in ((12, 1.0, 4, 3.0), (5, 8.0, 9, 4.5), (1, 2.0, 3, 1.0), (7, 1.3, 1, 9.0)):
        weights = axis_weights(size, step, out, out_step)
        assert weights.shape == (out, size)
        assert np.allclose(weights.sum(axis=1), 1)


def test_a_ramp_stays_a_ramp_both_ways():
    """Values that rise by 3 a millimetre do so on every grid, but where the border value is held."""
    fine = np.broadcast_to((3 * np.arange(60) * 0.7)[:, None, None], (60, 2, 3)).astype(np.float32)
    coarse = resample_axes(fine, (0.7, 1, 1), (14, 2, 3), (3.0, 1, 1))
    assert np.allclose(np.diff(coarse[1:-1, 0, 0]), 9, rtol=0.02)
    back = resample_axes(coarse, (3.0, 1, 1), (60, 2, 3), (0.7, 1, 1))
    assert np.allclose(back[8:-8], fine[8:-8], atol=0.3)


def test_finer_grids_agree_with_linear_interpolation():
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    doubled = resample_axes(values, (2, 2, 2), (8, 10, 12), (1, 1, 1))
    at = np.meshgrid(*((np.arange(2 * n) + 0.5) / 2 - 0.5 for n in values.shape), indexing="ij")
    assert np.allclose(doubled, ndimage.map_coordinates(values, at, order=1, mode="nearest"), atol=1e-5)


def test_noise_is_averaged_and_not_sampled():
    noise = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    assert resample_axes(noise, (1, 1, 1), (10, 10, 10), (4, 4, 4)).std() < 0.1


@pytest.mark.parametrize(("size", "step", "target", "expected"), [(134, 3.0, 5.5, 73), (1, 1.0, 5.5, 1)])
def test_sizes(size, step, target, expected):
    assert coarse_size(size, step, target) == expected
