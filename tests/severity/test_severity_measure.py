from __future__ import annotations

import json

import numpy as np
import pytest

from pneumoscope.errors import GeometryError
from pneumoscope.geometry import Grid
from pneumoscope.severity import measure as counting
from pneumoscope.severity import tally as module
from pneumoscope.severity.measure import STATES, measure
from pneumoscope.severity.regions import with_house_labels
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume

ML = 0.5 * 0.8 * 1.2 / 1000


@pytest.fixture
def scan(tilted):
    """Right lung 2 x 3 x 2, left lung 1 x 3 x 2 voxels well inside a 4 x 5 x 6 scan, two voxels of infiltrate."""

    def make(lungs=None, infiltrate=None, hu=None, names=LUNG_LABELS, spots=INFILTRATE_LABEL):
        base = np.zeros(tilted.shape, np.uint8)
        base[1, 1:4, 1:3] = 2
        base[2, 1:4, 1:3] = 1
        marks = np.zeros(tilted.shape, np.uint8)
        marks[1, 1, 1] = marks[2, 2, 2] = 1
        density = np.full(tilted.shape, -800, np.float32)
        density[1, 1, 1], density[2, 2, 2] = -500, -100
        return (
            Volume(density if hu is None else hu, tilted, tilted),
            Mask(base if lungs is None else lungs, tilted, names),
            Mask(marks if infiltrate is None else infiltrate, tilted, spots),
        )

    return make


def test_volumes_shares_and_densities_by_hand(scan):
    severity = measure(*scan())
    assert severity.right.lung_ml == severity.left.lung_ml == pytest.approx(6 * ML)
    assert severity.total.lung_ml == pytest.approx(12 * ML)
    assert severity.total.infiltrate_ml == pytest.approx(2 * ML)
    assert severity.total.share_percent == severity.right.share_percent == pytest.approx(100 / 6)
    assert (severity.left.ground_glass_ml, severity.left.consolidation_ml) == (pytest.approx(ML), 0)
    assert (severity.right.ground_glass_ml, severity.right.consolidation_ml) == (0, pytest.approx(ML))
    assert severity.left.infiltrate_mean_hu == -500
    assert severity.total.infiltrate_mean_hu == -300
    assert severity.right.lung_mean_hu == pytest.approx((5 * -800 - 100) / 6)
    assert (severity.slices, severity.slices_with_lung, severity.slices_with_infiltrate) == (6, 2, 2)
    assert severity.infiltrate_by_label_ml == {"infiltrate": pytest.approx(2 * ML)}
    assert severity.states == ()
    assert severity.edges == ()


def test_limit_of_consolidation_belongs_to_consolidation(scan):
    assert measure(*scan(), consolidation_from_hu=-100).right.consolidation_ml == pytest.approx(ML)
    assert measure(*scan(), consolidation_from_hu=-99).right.consolidation_ml == 0
    assert measure(*scan(), consolidation_from_hu=-99).consolidation_from_hu == -99


def test_no_lung_gives_no_share(scan, tilted):
    severity = measure(*scan(lungs=np.zeros(tilted.shape, np.uint8)))
    assert severity.states == ("no_lung_found", "infiltrate_outside_lungs")
    for part in (severity.total, severity.right, severity.left):
        assert part.share_percent is None
        assert part.lung_mean_hu is None
        assert part.lung_ml == 0
    assert severity.infiltrate_outside_voxels == 2


def test_one_lung_only(scan, tilted):
    lungs = np.zeros(tilted.shape, np.uint8)
    lungs[1, 1:4, 1:3] = 2
    severity = measure(*scan(lungs=lungs))
    assert "one_lung_only" in severity.states
    assert severity.right.share_percent is None
    assert severity.left.share_percent == severity.total.share_percent == pytest.approx(100 / 6)


@pytest.mark.parametrize(
    ("index", "edge"),
    [
        ((0, 2, 2), "left"), ((3, 2, 2), "right"), ((1, 0, 2), "posterior"), ((1, 4, 2), "anterior"),
        ((1, 2, 0), "inferior"), ((1, 2, 5), "superior"),
    ],
)  # fmt: skip
def test_lung_at_any_edge_is_incomplete_but_counted(scan, index, edge, monkeypatch):
    volume, lungs, infiltrate = scan()
    labels = lungs.labels.copy()
    labels[index] = 1
    cut = Mask(labels, lungs.grid, LUNG_LABELS)
    assert measure(volume, cut, infiltrate).states == ()  # a voxel of about 1 mm2 is no cut lung
    monkeypatch.setattr(counting, "EDGE_MM2", 0.3)
    severity = measure(volume, cut, infiltrate)
    assert severity.states == ("lung_incomplete",)
    assert severity.edges == (edge,)
    assert severity.total.lung_ml == pytest.approx(13 * ML)


def test_no_infiltrate_is_a_share_of_zero_and_a_state(scan, tilted):
    severity = measure(*scan(infiltrate=np.zeros(tilted.shape, np.uint8)))
    assert severity.states == ("no_infiltrate_found",)
    assert severity.total.share_percent == severity.right.share_percent == 0.0
    assert severity.total.infiltrate_mean_hu is None
    assert severity.slices_with_infiltrate == 0


def test_nothing_marked_at_all(scan, tilted):
    nothing = np.zeros(tilted.shape, np.uint8)
    severity = measure(*scan(lungs=nothing, infiltrate=nothing))
    assert severity.states == ("no_lung_found", "no_infiltrate_found")
    assert severity.total.share_percent is None
    assert severity.slices_with_lung == 0


def test_infiltrate_outside_the_lungs_is_counted_apart(scan, tilted):
    marks = np.zeros(tilted.shape, np.uint8)
    marks[2, 2, 2] = marks[3, 4, 5] = 1
    severity = measure(*scan(infiltrate=marks))
    assert severity.states == ("infiltrate_outside_lungs",)
    assert severity.infiltrate_outside_voxels == 1
    assert severity.infiltrate_outside_ml == pytest.approx(ML)
    assert severity.total.infiltrate_ml == pytest.approx(ML)
    assert severity.slices_with_infiltrate == 2


def test_mask_without_sides_gives_totals_only(scan, tilted):
    labels = np.zeros(tilted.shape, np.uint8)
    labels[1:3, 1:4, 1:3] = 1
    severity = measure(*scan(lungs=labels, names={1: "lungs"}))
    assert severity.states == ("lungs_not_sided",)
    assert severity.right is severity.left is None
    assert severity.total.share_percent == pytest.approx(100 / 6)


def test_sides_follow_names_and_other_labels_are_no_lung(scan):
    volume, lungs, infiltrate = scan()
    labels = np.select([lungs.labels == 1, lungs.labels == 2], [7, 3], 0).astype(np.uint8)
    labels[0, 0, 0] = 9
    severity = measure(volume, Mask(labels, lungs.grid, {3: "left lung", 7: "right lung", 9: "trachea"}), infiltrate)
    assert severity == measure(volume, lungs, infiltrate)


def test_labels_of_the_infiltrate_are_reported_apart(scan, tilted):
    marks = np.zeros(tilted.shape, np.uint8)
    marks[1, 1, 1], marks[2, 2, 1:3] = 1, 2
    severity = measure(*scan(infiltrate=marks, spots=INFILTRATE_LABELS))
    expected = {"ground-glass": pytest.approx(ML), "consolidation": pytest.approx(2 * ML)}
    assert severity.infiltrate_by_label_ml == expected
    assert severity.total.infiltrate_ml == pytest.approx(3 * ML)


def test_against_plain_boolean_arithmetic(tilted, rng, monkeypatch):
    monkeypatch.setattr(module, "SLAB_VOXELS", 35)
    hu = rng.normal(-500, 300, tilted.shape).astype(np.float32)
    lungs = rng.integers(0, 3, tilted.shape).astype(np.uint8)
    marks = rng.integers(0, 2, tilted.shape).astype(np.uint8)
    volume = Volume(hu, tilted, tilted)
    severity = measure(volume, Mask(lungs, tilted, LUNG_LABELS), Mask(marks, tilted, INFILTRATE_LABEL))
    for part, inside in ((severity.total, lungs > 0), (severity.right, lungs == 1), (severity.left, lungs == 2)):
        spot = inside & (marks > 0)
        assert part.share_percent == pytest.approx(100 * spot.sum() / inside.sum())
        assert part.lung_mean_hu == pytest.approx(hu[inside].mean(), rel=1e-5)
        assert part.infiltrate_mean_hu == pytest.approx(hu[spot].mean(), rel=1e-5)
        assert part.consolidation_ml == pytest.approx((spot & (hu >= -300)).sum() * ML)
    assert severity.slices_with_infiltrate == (marks > 0).any(axis=(0, 1)).sum()


def test_every_state_has_words_and_the_dictionary_is_json(scan, tilted):
    severity = measure(*scan(lungs=np.zeros(tilted.shape, np.uint8)))
    assert set(severity.states) <= set(STATES)
    assert json.loads(json.dumps(severity.as_dict()))["total"]["share_percent"] is None


def test_masks_on_another_grid_are_refused(scan, tilted):
    volume, lungs, infiltrate = scan()
    elsewhere = Grid.from_spacing(tilted.shape, (1, 1, 1))
    with pytest.raises(GeometryError, match="the lung mask lies on another grid"):
        measure(volume, Mask.empty(elsewhere, LUNG_LABELS), infiltrate)
    with pytest.raises(GeometryError, match="the infiltrate mask lies on another grid"):
        measure(volume, lungs, Mask.empty(elsewhere, INFILTRATE_LABEL))


LOBES = {n: f"lung_{lobe}" for n, lobe in zip(
    range(10, 15), ("upper_lobe_left", "lower_lobe_left", "upper_lobe_right", "middle_lobe_right", "lower_lobe_right"),
    strict=True,
)}  # fmt: skip


def test_exchanged_sides_are_a_state(scan, tilted):
    volume, lungs, infiltrate = scan()
    assert "sides_exchanged" not in measure(volume, lungs, infiltrate).states
    swapped = Mask(np.array([0, 2, 1], np.uint8)[lungs.labels], tilted, LUNG_LABELS)
    assert "sides_exchanged" in measure(volume, swapped, infiltrate).states
    half = lungs.labels.copy()
    half[:, :, 2] = swapped.labels[:, :, 2]
    assert "sides_exchanged" in measure(volume, Mask(half, tilted, LUNG_LABELS), infiltrate).states
    alone = Mask(np.where(lungs.labels == 1, 2, 0).astype(np.uint8), tilted, LUNG_LABELS)  # nothing to compare with
    assert measure(volume, alone, infiltrate).states == ("one_lung_only", "infiltrate_outside_lungs")


@pytest.mark.parametrize("names", [LOBES, {n: f"label {n}" for n in LOBES}, {**LOBES, 3: "trachea"}])
def test_lobes_keep_their_sides(scan, tilted, names):
    volume, lungs, infiltrate = scan()
    lobes = np.array([0, 14, 11], np.uint8)[lungs.labels]
    lobes[2, 1, 1], lobes[1, 1, 1] = 12, 10
    if 3 in names:
        lobes[3, 4, 5] = 3  # no lung
    expected = measure(volume, lungs, infiltrate)
    mask = Mask(lobes, tilted, names)
    for given in (mask, with_house_labels(mask)):
        assert measure(volume, given, infiltrate).as_dict() == expected.as_dict()
    assert np.array_equal(with_house_labels(mask).labels, lungs.labels)
    mirrored = Mask(np.array([0, 11, 14], np.uint8)[lungs.labels], tilted, names)
    assert "sides_exchanged" in measure(volume, mirrored, infiltrate).states


def test_a_mask_that_tells_no_sides_stays_as_it_is(tilted):
    plain = Mask(np.ones(tilted.shape, np.uint8), tilted, {1: "lung"})
    assert with_house_labels(plain) is plain
