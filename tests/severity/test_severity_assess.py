"""Zones, lobes, lesions, distribution, interval and states: against plain arithmetic on awkward grids and phantoms."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from grids import build_grid
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.severity import tally
from pneumoscope.severity.change import (
    BORDER_MM,
    DENSITY_STEP_HU,
    LEAST_ML,
    fate_map,
    noise_ml,
    region_change,
    surface_mm2,
)
from pneumoscope.severity.measure import ProbabilityMap, assess
from pneumoscope.severity.regions import LEVELS, LOBES, PERIPHERAL_MM, ZONES, count_lesions, lobe_lookup, lobe_score
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, RAS, Mask, Volume

TILTED = build_grid(shape=(11, 9, 13), spacing_mm=(7.0, 5.0, 9.0), tilt_degrees=(12.0, -7.0, 5.0), shear=0.1)


@pytest.fixture
def chest(rng):
    """Two box-shaped lungs with random infiltrate on a tilted, sheared, anisotropic grid."""
    lungs = np.zeros(TILTED.shape, np.uint8)
    lungs[1:5, 1:8, 1:12], lungs[6:10, 1:8, 2:12] = 2, 1
    spots = ((rng.random(TILTED.shape) < 0.2) & (lungs > 0)).astype(np.uint8)
    hu = rng.normal(-800, 50, TILTED.shape).astype(np.float32)
    hu[spots > 0] += 400
    return Volume(hu, TILTED, TILTED), Mask(lungs, TILTED, LUNG_LABELS), Mask(spots, TILTED, INFILTRATE_LABEL)


def with_labels(mask: Mask, labels, names=None) -> Mask:
    return Mask(labels.astype(np.uint8), mask.grid, names or mask.names)


def world(grid: Grid) -> np.ndarray:
    return grid.world(np.moveaxis(np.indices(grid.shape), 0, -1))  # (i, j, k, 3)


def test_zones_are_thirds_of_the_height_in_millimetres(chest, monkeypatch):
    monkeypatch.setattr(tally, "SLAB_VOXELS", 200)
    _, lungs, infiltrate = chest
    severity = assess(*chest)
    z = world(TILTED)[..., 2]
    low, high = z[lungs.any].min(), z[lungs.any].max()
    level = np.select([z >= high - (high - low) / 3, z >= low + (high - low) / 3], ["upper", "middle"], "lower")
    assert tuple(severity.zones) == ZONES
    for name, part in severity.zones.items():
        side, third = name.split("_")
        inside = (lungs.labels == (1 if side == "right" else 2)) & (level == third)
        assert part.lung_ml == pytest.approx(inside.sum() * TILTED.voxel_volume_ml)
        assert part.share_percent == pytest.approx(100 * (inside & infiltrate.any).sum() / inside.sum())
    assert sum(part.lung_ml for part in severity.zones.values()) == pytest.approx(severity.total.lung_ml)
    assert TILTED.voxel_volume_ml == pytest.approx(7 * 5 * 9 / 1000)  # a shear along j keeps the volume


def test_lungs_without_sides_have_three_zones_and_no_lung_none(chest):
    volume, lungs, infiltrate = chest
    one = assess(volume, with_labels(lungs, lungs.labels > 0, {1: "lung"}), infiltrate)
    assert tuple(one.zones) == LEVELS
    assert one.densities.right is None
    none = assess(volume, with_labels(lungs, 0 * lungs.labels), infiltrate)
    assert none.zones == {}
    assert none.densities.total.normal_percent is None
    assert none.distribution.peripheral_percent is None
    assert none.lesions.count == none.lesions.specks == 0
    left = assess(volume, with_labels(lungs, np.where(lungs.labels == 2, 2, 0)), infiltrate)
    assert left.zones["right_upper"].share_percent is None
    assert left.zones["left_lower"].lung_ml > 0


def test_classes_of_density(chest):
    volume, lungs, _ = chest
    classes = assess(*chest).densities
    hu = volume.hu[lungs.any]
    assert classes.total.normal_ml == pytest.approx((hu < -700).sum() * TILTED.voxel_volume_ml)
    assert classes.total.consolidation_percent == pytest.approx(100 * (hu >= -300).mean())
    assert classes.right.ground_glass_ml + classes.left.ground_glass_ml == pytest.approx(classes.total.ground_glass_ml)
    at_limit = Volume(np.full(TILTED.shape, -700, np.float32), TILTED, TILTED)
    assert assess(at_limit, *chest[1:]).densities.total.ground_glass_percent == 100


def test_pieces_touch_over_corners_and_specks_are_counted_apart():
    marks = np.zeros((8, 8, 8), bool)
    marks[1:3, 1:3, 1:3] = marks[3, 3, 3] = True  # one piece of nine
    marks[6, 6, 6] = True
    lesions = count_lesions(marks, 0.05, smallest_ml=0.1)
    assert (lesions.count, lesions.specks, lesions.specks_ml) == (1, 1, pytest.approx(0.05))
    assert lesions.volumes_ml == (pytest.approx(0.45),)
    assert lesions.largest_ml == lesions.median_ml == pytest.approx(0.45)
    assert count_lesions(np.zeros_like(marks), 0.05).largest_ml is None


def test_distance_to_the_surface_against_every_pair_of_voxels(chest):
    """Brute force: the nearest voxel centre that is not of the same lung, on an upright grid of the same spacing."""
    grid = Grid.from_spacing(TILTED.shape, TILTED.spacing_mm)
    volume, lungs, infiltrate = (
        type(x)(x.hu, grid, grid) if i == 0 else with_labels(x, x.labels) for i, x in enumerate(chest)
    )
    lungs, infiltrate = (Mask(m.labels, grid, m.names) for m in (lungs, infiltrate))
    severity = assess(volume, lungs, infiltrate)
    near = np.zeros(grid.shape, bool)
    for label in (1, 2):
        own = np.argwhere(lungs.labels == label)
        other = np.argwhere(lungs.labels != label)
        nearest = cdist(own * grid.spacing_mm, other * grid.spacing_mm).min(axis=1) - min(grid.spacing_mm) / 2
        near[tuple(own.T)] = nearest <= PERIPHERAL_MM
    inside = infiltrate.any & lungs.any
    assert severity.distribution.peripheral_percent == pytest.approx(100 * near[inside].mean())
    assert severity.distribution.lung_peripheral_percent == pytest.approx(100 * near[lungs.any].mean())
    assert severity.distribution.right_percent == pytest.approx(100 * (lungs.labels[inside] == 1).mean())


def test_fine_grids_are_thinned_without_moving_the_surface():
    grid = Grid.from_spacing((120, 100, 40), (0.6, 0.6, 2.5))
    lungs = np.zeros(grid.shape, np.uint8)
    lungs[5:115, 5:95, 2:38] = 1
    spots = np.zeros(grid.shape, np.uint8)
    spots[5:115, 5:95, 20] = 1  # the middle plane: 45 mm from top and bottom, so its rim is peripheral
    volume = Volume(np.full(grid.shape, -800, np.float32), grid, grid)
    found = assess(volume, Mask(lungs, grid, LUNG_LABELS), Mask(spots, grid, INFILTRATE_LABEL)).distribution
    expected = 100 * (1 - (66 - 2 * PERIPHERAL_MM) * (54 - 2 * PERIPHERAL_MM) / (66 * 54))
    assert found.peripheral_percent == pytest.approx(expected, abs=3)


def test_back_and_base(chest):
    volume, lungs, _ = chest
    at = world(TILTED)
    back = lungs.any & (at[..., 1] < np.median(at[..., 1][lungs.any]) - 12)
    base = lungs.any & (at[..., 2] < np.median(at[..., 2][lungs.any]) - 30)
    assert assess(volume, lungs, with_labels(lungs, back, INFILTRATE_LABEL)).distribution.dorsal_percent == 100
    found = assess(volume, lungs, with_labels(lungs, base, INFILTRATE_LABEL)).distribution
    assert found.caudal_percent == 100
    everywhere = assess(volume, lungs, with_labels(lungs, lungs.any, INFILTRATE_LABEL)).distribution
    assert everywhere.dorsal_percent == everywhere.caudal_percent == pytest.approx(50, abs=1)


def test_the_interval_holds_the_volume_and_says_what_was_cut(chest, rng):
    volume, lungs, _ = chest
    values = np.where(lungs.any, rng.integers(0, 256, TILTED.shape), 77).astype(np.uint8)
    marked = Mask(((values >= 128) & lungs.any).astype(np.uint8), TILTED, INFILTRATE_LABEL)
    severity = assess(volume, lungs, marked, probability=ProbabilityMap(values, 0.5))
    interval, ml = severity.interval, TILTED.voxel_volume_ml
    assert (interval.strict, interval.threshold, interval.loose) == (0.75, 0.5, 0.25)
    assert interval.low_ml == pytest.approx((values[lungs.any] >= 192).sum() * ml)
    assert interval.high_ml == pytest.approx((values[lungs.any] >= 64).sum() * ml)
    assert interval.low_ml <= severity.total.infiltrate_ml <= interval.high_ml
    assert interval.expected_ml == pytest.approx(values[lungs.any].sum(dtype=float) / 255 * ml)
    assert interval.high_percent == pytest.approx(100 * interval.high_ml / severity.total.lung_ml)
    empty = with_labels(lungs, 0 * lungs.labels)
    assert assess(volume, empty, marked, probability=ProbabilityMap(values)).interval.low_percent is None
    extreme = assess(volume, lungs, marked, probability=ProbabilityMap(values, 0.9)).interval
    assert extreme.threshold < extreme.strict < 1


@pytest.mark.parametrize(
    ("share", "score"),
    [(None, None), (0, 0), (0.1, 1), (4.9, 1), (5, 2), (25, 2), (25.1, 3), (49.9, 3), (50, 4), (75, 4), (75.1, 5)],
)
def test_score_of_a_lobe(share, score):
    assert lobe_score(share) == score


def test_lobes_are_scored_and_a_missing_one_leaves_no_total(chest):
    volume, lungs, infiltrate = chest
    labels = np.zeros(TILTED.shape, np.uint8)
    labels[6:10, 1:8, 9:12], labels[6:10, 1:8, 6:9], labels[6:10, 1:8, 2:6] = 3, 4, 5
    labels[1:5, 1:8, 6:12], labels[1:5, 1:8, 1:6] = 1, 2
    unnamed = {n: f"label {n}" for n in range(1, 6)}
    spots = with_labels(infiltrate, (labels == 4) | ((labels == 1) & infiltrate.any))
    severity = assess(volume, lungs, spots, lobes=with_labels(lungs, labels, unnamed))
    assert severity.lobes.scores["right_middle_lobe"] == 5
    assert severity.lobes.scores["right_lower_lobe"] == 0
    assert severity.lobes.total == 5 + lobe_score(severity.lobes.parts["left_upper_lobe"].share_percent)
    assert sum(part.lung_ml for part in severity.lobes.parts.values()) == pytest.approx(severity.total.lung_ml)
    fewer = assess(volume, lungs, spots, lobes=with_labels(lungs, np.where(labels == 2, 0, labels), unnamed))
    assert fewer.lobes.total is None
    assert fewer.lobes.scores["left_lower_lobe"] is None
    assert "lobes_incomplete" in fewer.states
    assert "lobes_exchanged" not in {*severity.states, *fewer.states}
    for other_order in ([0, 4, 5, 1, 2, 3], [0, 2, 1, 3, 4, 5], [0, 1, 2, 5, 4, 3]):  # sides, left and right levels
        lobes = with_labels(lungs, np.array(other_order, np.uint8)[labels], unnamed)
        assert "lobes_exchanged" in assess(volume, lungs, spots, lobes=lobes).states
    with pytest.raises(GeometryError, match="the lobe mask"):
        assess(volume, lungs, spots, lobes=Mask.empty(Grid.from_spacing(TILTED.shape, (1, 1, 1)), unnamed))


def test_names_of_lobes_in_other_programs_words(grid):
    def lookup(names):
        return {n: LOBES[lobe - 1] for n, lobe in enumerate(lobe_lookup(Mask.empty(grid, names))) if lobe}

    assert lookup({7: "lung_upper_lobe_left", 8: "Right-middle-lobe", 9: "trachea"}) == {
        7: "left_upper_lobe",
        8: "right_middle_lobe",
    }
    assert lookup({n: f"label {n}" for n in range(10, 15)})[13] == "right_middle_lobe"
    for names in ({1: "liver"}, {1: "right upper lobe", 2: "right_upper_lobe"}, {1: "left middle lobe"}):
        with pytest.raises(InputError, match="a lobe mask has the labels"):
            lookup(names)


def test_scans_outside_the_intended_use_are_named(chest):
    volume, lungs, infiltrate = chest
    assert "lung_volume_implausible" in assess(*chest).states
    hot = Volume(volume.hu + 700, TILTED, TILTED)
    assert "density_implausible" in assess(hot, lungs, infiltrate).states
    thick = Grid.from_spacing(TILTED.shape, (7, 5, 11))
    moved = (Volume(volume.hu, thick, thick), *(Mask(m.labels, thick, m.names) for m in (lungs, infiltrate)))
    assert "slices_too_thick" in assess(*moved).states
    unequal = with_labels(lungs, np.where((lungs.labels == 1) & (np.indices(TILTED.shape)[2] > 3), 0, lungs.labels))
    assert "lungs_unequal" in assess(volume, unequal, infiltrate).states


@pytest.mark.parametrize(("site", "patient"), [("A", 0), ("A", 1), ("B", 2), ("B", 4), ("C", 1), ("C", 3)])
def test_true_masks_of_a_phantom_give_its_true_share(site, patient):
    made = scan_patient(site, patient, size="tiny")
    severity = assess(made.scan.volume, made.lungs, made.scan.truth)
    lung, spot = made.lungs.any, made.scan.truth.any
    for part, inside in ((severity.total, lung), (severity.right, lung & (world(made.lungs.grid)[..., 0] > 0))):
        assert part.share_percent == pytest.approx(100 * (spot & inside).sum() / inside.sum(), abs=0.5)
    assert sum(p.infiltrate_ml for p in severity.zones.values()) == pytest.approx(severity.total.infiltrate_ml)
    assert severity.states in ((), ("slices_too_thick",), ("lung_incomplete", "slices_too_thick"))


def test_everything_is_json_and_shares_are_none_without_lung(chest):
    volume, lungs, infiltrate = chest
    plain = json.loads(json.dumps(assess(volume, with_labels(lungs, 0 * lungs.labels), infiltrate).as_dict()))
    assert plain["total"]["share_percent"] is None
    assert plain["lobes"] is plain["interval"] is None
    assert TILTED.axis_codes == RAS


def test_surface_of_a_box_and_of_a_ball():
    grid = Grid.from_spacing((12, 12, 12), (1.0, 2.0, 3.0))
    box = np.zeros(grid.shape, bool)
    box[2:6, 3:6, 4:9] = True  # 4 x 6 x 15 mm
    assert surface_mm2(box, grid) == pytest.approx(2 / 3 * 2 * (4 * 6 + 4 * 15 + 6 * 15))
    at = np.stack(np.meshgrid(*[np.arange(41) - 20.0] * 3, indexing="ij"))
    ball = np.sqrt((at**2).sum(0)) <= 15
    upright = Grid.from_spacing(ball.shape, (1, 1, 1))
    assert surface_mm2(ball, upright) == pytest.approx(4 * np.pi * 15**2, rel=0.03)
    assert surface_mm2(np.zeros_like(ball), upright) == 0
    touching = np.ones((2, 2, 2), bool)
    assert surface_mm2(touching, Grid.from_spacing((2, 2, 2), (1, 1, 1))) == pytest.approx(2 / 3 * 24)


def test_the_floor_grows_with_surface_and_with_an_unsteady_map():
    assert noise_ml(30_000, 40_000) == pytest.approx(1.96 * 50 * BORDER_MM)
    assert noise_ml(30_000, 40_000, 1.0) == pytest.approx(1.96 * 50 * np.hypot(BORDER_MM, 1.0))
    assert noise_ml(0, 0) == LEAST_ML


@pytest.mark.parametrize(
    ("after", "lungs", "verdict"),
    [
        (60.0, (1000.0, 1000.0), "more"),
        (20.0, (1000.0, 1000.0), "less"),
        (45.0, (1000.0, 1000.0), "no measurable change"),
        (60.0, (1000.0, 1500.0), "no measurable change"),  # a deeper breath, the same share
        (60.0, (1000.0, 0.0), "not measurable"),
    ],
)
def test_verdicts_go_by_the_share(after, lungs, verdict):
    found = region_change((40.0, after), lungs, 10.0)
    assert found.verdict == verdict
    assert found.change_ml == after - 40
    if verdict == "not measurable":
        assert found.followup_percent is found.change_points is found.noise_points is None
    else:
        assert found.baseline_percent == 4
        assert found.noise_points == 1


def test_fates_divide_what_is_marked_on_either_date():
    baseline = np.array([1, 1, 1, 1, 0, 0], bool).reshape(6, 1, 1)
    followup = np.array([0, 1, 1, 1, 1, 0], bool).reshape(6, 1, 1)
    density = np.array([0, 0, 1, -1, 0, 1]).reshape(6, 1, 1).astype(np.float32) * (DENSITY_STEP_HU + 1)
    assert fate_map(baseline, followup, density).ravel().tolist() == [2, 3, 4, 5, 1, 0]
