from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from pneumoscope.errors import InputError
from pneumoscope.metrics.surface import (
    TOLERANCE_MM,
    area_table,
    as_steps,
    corner_codes,
    hausdorff,
    mean_distance,
    surface_dice,
    surface_distances,
    surface_scores,
)

SPACING_MM = (0.5, 0.8, 1.2)
NOTHING = np.zeros((4, 5, 6), bool)


def blobs(rng, shape=(14, 12, 10), share=0.5):
    """Random lumps: neighbours resemble each other, as in real masks, and all surface codes occur."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), 1.1)
    return field > np.quantile(field, 1 - share)


def ball(shape, centre, radius_mm, spacing_mm):
    axes = np.meshgrid(*[(np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing_mm, strict=True)],
                       indexing="ij")  # fmt: skip
    return sum(a**2 for a in axes) <= radius_mm**2


def deepmind(pred, ref, spacing_mm, areas_of):
    """The benchmark's way, step by step: dense codes, distance transforms, areas; `areas_of` turns codes into mm²."""
    cut = [(n.min(), n.max() + 1) for n in np.nonzero(pred | ref)]
    box = tuple(slice(low, high) for low, high in cut)
    sides = []
    for mask in (pred, ref):
        codes = corner_codes(np.pad(mask[box], 1).astype(np.uint8))
        border = (codes > 0) & (codes < (1 << (1 << mask.ndim)) - 1)
        away = distance_transform_edt(~border, sampling=spacing_mm) if border.any() else np.full(border.shape, np.inf)
        sides.append((border, away, areas_of(codes)))
    (p, to_p, p_area), (r, to_r, r_area) = sides
    return to_r[p], to_p[r], p_area[p], r_area[r]


def test_a_cube_by_hand():
    # One voxel of 0.5 x 0.8 x 1.2 mm: eight corners, each cutting a triangle through the middles of three edges.
    one = NOTHING.copy()
    one[1, 2, 3] = True
    a, b, c = SPACING_MM
    triangle = math.sqrt((a * b) ** 2 + (b * c) ** 2 + (a * c) ** 2) / 8
    found = surface_scores(one, one, SPACING_MM, 1.0)
    assert found.reference_size == pytest.approx(8 * triangle)
    assert (found.nsd, found.hd95_mm, found.msd_mm, found.empty) == (1.0, 0.0, 0.0, "")


def test_a_shift_along_an_axis_by_hand():
    ref = np.zeros((12, 12, 12), bool)
    ref[2:8, 2:8, 2:8] = True
    for axis, step in enumerate(SPACING_MM):
        pred = np.roll(ref, 2, axis)
        assert hausdorff(surface_distances(pred, ref, SPACING_MM), 100) == pytest.approx(2 * step)
        assert surface_scores(pred, ref, SPACING_MM, 2 * step).nsd == 1.0
        assert surface_scores(pred, ref, SPACING_MM, 1.99 * step).nsd < 1.0


def test_a_sphere_has_about_the_area_of_a_sphere():
    # Faces of voxels would count 1.5 times the area; the cuts through edge middles come out an eighth too large.
    mask = ball((60, 40, 30), (30, 20, 15), 11.0, SPACING_MM)
    area = surface_scores(mask, mask, SPACING_MM, 1.0).reference_size
    assert 1.0 < area / (4 * math.pi * 11.0**2) < 1.15


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING_MM, (3.0, 0.7, 0.9)])
def test_the_areas_are_those_of_the_published_table(ndim, spacing):
    utils = pytest.importorskip("monai.metrics.utils")
    theirs = utils.get_code_to_measure_table(spacing[:ndim])[0].numpy()
    kernel = np.array(utils.ENCODING_KERNEL[ndim])
    ours = area_table(as_steps(spacing[:ndim], ndim))
    for code in range(1 << (1 << ndim)):
        corners = (code & kernel) > 0
        assert ours[int(corner_codes(corners.astype(np.uint8)).item())] == pytest.approx(theirs[code], abs=1e-6), code


def test_the_areas_are_those_of_marching_cubes():
    # skimage joins the pieces of the fuller side of some codes, so each code is asked for by its emptier side.
    measure = pytest.importorskip("skimage.measure")
    table = area_table(as_steps(SPACING_MM, 3))
    for corners in itertools.product((0, 1), repeat=8):
        cube = np.reshape(corners, (2, 2, 2)).astype(np.uint8)
        if not 0 < cube.sum() <= 4:
            continue
        points, faces, *_ = measure.marching_cubes(cube.astype(float), 0.5, spacing=SPACING_MM, method="lorensen")
        area = measure.mesh_surface_area(points, faces)
        assert table[int(corner_codes(cube).item())] == pytest.approx(area, abs=1e-6)
        assert table[int(corner_codes(1 - cube).item())] == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize("shape", [(14, 12, 10), (17, 13)])
def test_against_the_benchmarks_own_way(rng, shape):
    spacing = SPACING_MM[: len(shape)]
    table = area_table(as_steps(spacing, len(shape)))
    for _ in range(5):
        pred, ref = blobs(rng, shape), blobs(rng, shape, 0.3)
        ours = surface_distances(pred, ref, spacing)
        theirs = deepmind(pred, ref, spacing, lambda codes: table[codes])
        for mine, other in zip(
            (ours.prediction_mm, ours.reference_mm, ours.prediction_sizes, ours.reference_sizes), theirs, strict=True
        ):
            assert np.allclose(np.sort(mine), np.sort(other), atol=1e-9)
        p_mm, r_mm, p_area, r_area = theirs
        met = p_area[p_mm <= 1.2].sum() + r_area[r_mm <= 1.2].sum()
        assert surface_dice(ours, 1.2) == pytest.approx(met / (p_area.sum() + r_area.sum()), abs=1e-9)
        worst = []
        for mm, area in ((p_mm, p_area), (r_mm, r_area)):  # surface-distance's compute_robust_hausdorff
            order = np.argsort(mm, kind="stable")
            share = np.cumsum(area[order]) / area.sum()
            worst.append(mm[order][min(np.searchsorted(share, 0.95), len(mm) - 1)])
        assert hausdorff(ours) == pytest.approx(max(worst), abs=1e-9)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("shape", [(14, 12, 10), (17, 13)])
def test_against_monai(rng, shape):
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    spacing = SPACING_MM[: len(shape)]
    for share in (0.1, 0.3, 0.6):
        pred, ref = blobs(rng, shape, 0.4), blobs(rng, shape, share)
        y_pred, y = torch.tensor(pred)[None, None], torch.tensor(ref)[None, None]
        common = {"include_background": True, "spacing": spacing}
        theirs = compute_surface_dice(y_pred, y, [1.3], use_subvoxels=True, **common).item()
        assert surface_scores(pred, ref, spacing, 1.3).nsd == pytest.approx(theirs, abs=1e-6)
        voxels = surface_distances(pred, ref, spacing, elements="voxels")
        theirs = compute_surface_dice(y_pred, y, [1.3], use_subvoxels=False, **common).item()
        assert surface_dice(voxels, 1.3) == pytest.approx(theirs, abs=1e-6)
        for percent in (95, 100):
            theirs = compute_hausdorff_distance(y_pred, y, percentile=percent, **common).item()
            assert hausdorff(voxels, percent) == pytest.approx(theirs, abs=1e-6)
        theirs = compute_average_surface_distance(y_pred, y, symmetric=True, **common).item()
        assert mean_distance(voxels) == pytest.approx(theirs, abs=1e-6)


def test_against_simpleitk(rng):
    sitk = pytest.importorskip("SimpleITK")
    for _ in range(4):
        masks = [np.pad(blobs(rng), 1) for _ in range(2)]  # ITK leaves the array's border out of contours
        contours = []
        for mask in masks:
            image = sitk.GetImageFromArray(mask.astype(np.uint8))
            image.SetSpacing(SPACING_MM[::-1])
            contours.append(sitk.LabelContour(image, fullyConnected=False))
        measured = []
        for own, other in (contours, contours[::-1]):
            field = sitk.SignedMaurerDistanceMap(other, squaredDistance=False, useImageSpacing=True)
            away = np.abs(sitk.GetArrayFromImage(field)) * (sitk.GetArrayFromImage(other) == 0)
            measured.append(away[sitk.GetArrayFromImage(own) > 0])
        ours = surface_distances(*masks, SPACING_MM, elements="voxels")
        assert np.allclose(np.sort(ours.prediction_mm), np.sort(measured[0]), atol=1e-5)
        assert np.allclose(np.sort(ours.reference_mm), np.sort(measured[1]), atol=1e-5)
        both = np.concatenate(measured)
        assert hausdorff(ours, 100) == pytest.approx(both.max(), abs=1e-5)
        assert mean_distance(ours) == pytest.approx(both.mean(), abs=1e-6)


def test_empty_masks():
    some = NOTHING.copy()
    some[1:3, 1:3, 1:3] = True
    both = surface_scores(NOTHING, NOTHING, SPACING_MM, 3.0)
    assert both.empty == "both"
    assert all(map(math.isnan, (both.nsd, both.hd95_mm, both.msd_mm)))
    for pred, ref, empty in ((NOTHING, some, "prediction"), (some, NOTHING, "reference")):
        for tolerance in (3.0, math.inf):  # however generous: a total miss is a miss
            found = surface_scores(pred, ref, SPACING_MM, tolerance)
            assert (found.nsd, found.hd95_mm, found.msd_mm, found.empty) == (0.0, math.inf, math.inf, empty)
        voxels = surface_distances(pred, ref, SPACING_MM, elements="voxels")
        assert hausdorff(voxels) == mean_distance(voxels) == math.inf


def test_a_mask_that_fills_the_array_is_closed_at_its_border():
    full = ~NOTHING
    one_less = full.copy()
    one_less[0] = False
    found = surface_scores(one_less, full, SPACING_MM, 0.1)
    assert 0 < found.nsd < 1
    assert found.hd95_mm == pytest.approx(0.5)
    padded = [np.pad(mask, 3) for mask in (one_less, full)]
    assert surface_scores(*padded, SPACING_MM, 0.1) == found


def test_a_slice_is_not_a_volume_of_one_slice():
    drawn = np.zeros((9, 9), bool)
    drawn[2:6, 3:7] = True
    found = surface_scores(np.roll(drawn, 1, 0), drawn, (0.5, 0.8), 0.4)
    # 4 x 4 pixels: straight sides between the corner cuts, and four halves of a pixel's diagonal
    assert found.reference_size == pytest.approx(2 * 3 * 0.5 + 2 * 3 * 0.8 + 4 * math.hypot(0.5, 0.8) / 2)
    assert found.hd95_mm == pytest.approx(0.5)
    as_volume = surface_scores(drawn[..., None], drawn[..., None], SPACING_MM, 1)
    assert as_volume.reference_size > found.reference_size * 1.2  # side walls of 1.2 mm, and top and bottom


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_turning_and_flipping_both_masks_changes_nothing(seed, order, flips):
    rng = np.random.default_rng(seed)
    pred, ref = (rng.random((2, 4, 5, 6)) < rng.random()).astype(bool)
    cut = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    turned = [mask.transpose(order)[cut] for mask in (pred, ref)]
    before = surface_scores(pred, ref, SPACING_MM, 0.9)
    after = surface_scores(*turned, [SPACING_MM[a] for a in order], 0.9)
    assert after.empty == before.empty
    for name in ("nsd", "hd95_mm", "msd_mm", "prediction_size", "reference_size"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), nan_ok=True), name
    swapped = surface_scores(ref, pred, SPACING_MM, 0.9)
    assert (swapped.nsd, swapped.hd95_mm) == pytest.approx((before.nsd, before.hd95_mm), nan_ok=True)


@pytest.mark.parametrize("elements", ["surfels", "voxels"])
def test_a_large_mask_is_scored_in_pieces_as_whole(rng, monkeypatch, elements):
    pred, ref = blobs(rng, (40, 12, 10)), blobs(rng, (40, 12, 10))
    whole = surface_distances(pred, ref, SPACING_MM, elements=elements)
    monkeypatch.setattr("pneumoscope.metrics.surface._SLAB_VOXELS", 300)
    pieces = surface_distances(pred, ref, SPACING_MM, elements=elements)
    assert np.array_equal(whole.prediction_mm, pieces.prediction_mm)
    assert np.array_equal(whole.reference_sizes, pieces.reference_sizes)


def test_a_sheared_grid_is_measured_in_the_world():
    # Slices of a tilted gantry: 45 degrees. Moving by (0, -1, 1) voxels moves by 1 mm along z, not by sqrt(2).
    steps = np.array([[1.0, 0, 0], [0, 1, 1], [0, 0, 1]])
    ref = np.zeros((8, 12, 12), bool)
    ref[2:6, 5:9, 2:6] = True
    pred = np.roll(ref, (-1, 1), (1, 2))
    ours = surface_distances(pred, ref, steps)
    places = [
        np.argwhere(np.isin(corner_codes(np.pad(mask, 1).astype(np.uint8)), (0, 255), invert=True)) @ steps.T
        for mask in (pred, ref)
    ]
    assert np.allclose(np.sort(ours.prediction_mm), np.sort(cKDTree(places[1]).query(places[0])[0]))
    turn = np.linalg.qr(np.arange(9).reshape(3, 3) + np.eye(3))[0]
    turned = surface_scores(pred, ref, turn @ steps, 0.6)
    assert turned.nsd == pytest.approx(surface_scores(pred, ref, steps, 0.6).nsd)
    assert surface_scores(pred, ref, turn * SPACING_MM, 1).msd_mm == pytest.approx(
        surface_scores(pred, ref, SPACING_MM, 1).msd_mm
    )


def test_a_sheared_volume_has_the_area_of_its_sides():
    # A big sheared box: faces of (n a) x (n b) stay; the slanted sides grow with the slant; edges matter little.
    n = 40
    box = np.pad(np.ones((n, n, n), bool), 1)
    steps = np.array([[1.0, 0, 0], [0, 1, 0.5], [0, 0, 1]])
    slanted = 2 * n * n * (1 + 1 + math.hypot(1, 0.5))
    assert surface_scores(box, box, steps, 1).reference_size == pytest.approx(slanted, rel=0.03)


def test_tolerance_is_inclusive_whatever_the_rounding():
    ref = np.zeros((30, 6, 6), bool)
    ref[3:10, 2:4, 2:4] = True
    for step in (0.1, 0.3, np.float32(0.7), 1 / 3):
        moved = np.roll(ref, 10, 0)
        scores = surface_scores(moved, ref, (step, 1, 1), 10 * step)
        assert scores.nsd == 1.0


def test_the_benchmarks_tolerances():
    assert TOLERANCE_MM == {"infiltrate": 3.0, "lungs": 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: surface_scores(NOTHING.astype(int), NOTHING, SPACING_MM, 1), "prediction must be boolean"),
        (lambda: surface_scores(NOTHING, NOTHING[:2], SPACING_MM, 1), "one shape"),
        (lambda: surface_scores(NOTHING[0, 0], NOTHING[0, 0], (1,), 1), r"slices \(h, w\) and volumes"),
        (lambda: surface_scores(NOTHING[:0], NOTHING[:0], SPACING_MM, 1), "got shape"),
        (lambda: surface_scores(NOTHING, NOTHING, (1, 1), 1), "3 positive numbers"),
        (lambda: surface_scores(NOTHING, NOTHING, (1, 1, 0), 1), "3 positive numbers"),
        (lambda: surface_scores(NOTHING, NOTHING, (1, 1, math.nan), 1), "3 positive numbers"),
        (lambda: surface_scores(NOTHING, NOTHING, np.ones((3, 3)), 1), "3 positive numbers"),
        (lambda: surface_scores(NOTHING, NOTHING, SPACING_MM, -1), "at least 0"),
        (lambda: surface_scores(NOTHING, NOTHING, SPACING_MM, math.nan), "at least 0"),
        (lambda: hausdorff(surface_distances(NOTHING, NOTHING, SPACING_MM), 101), "between 0 and 100"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
