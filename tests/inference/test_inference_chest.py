"""Whole chests for a 3D network: what it is shown, and its answer back on the scan's slices."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from painted_chest import CLASSES
from pneumoscope.errors import ModelError
from pneumoscope.geometry import Grid
from pneumoscope.inference.chest import ChestInput, chest_votes, drop_strays, one_fluid, one_side
from pneumoscope.inference.engines import Engine
from pneumoscope.inference.lungs import STATE_OF_FINDING, find_lungs, lungs_input
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.severity.states import STATES
from pneumoscope.volume import Volume

SPACING = (8.0, 3.0, 2.5)
INPUT = ChestInput(labels=CLASSES)


class Truth(Engine):
    """Stands for a network: tells pieces of air by their middle Hounsfield units, and fluid by its own."""

    name, precision, out_channels = "truth", "fp32", len(CLASSES)

    def __init__(self, levels):
        self.levels, self.seen = INPUT.curve(np.asarray(levels, np.float32)), None

    def logits(self, images):
        self.seen = images
        (image,) = images[0]
        classes = np.where(np.abs(image - self.levels[5]) < 0.04, 5, 0)
        pieces, count = ndimage.label(image < INPUT.curve(np.float32(-500)))
        for piece in range(1, count + 1):
            here = pieces == piece
            classes[here] = np.abs(np.median(image[here]) - self.levels[:5]).argmin()
        classes[classes == 4] = 0  # the room
        return (10 * (np.arange(len(CLASSES))[:, None, None, None] == classes)).astype(np.float32)[None]


LEVELS = (40, -850, -700, -980, -1024, 0)
"""Background, right, left, airway, gas, fluid."""


@pytest.fixture
def chest():
    """(hu, classes), (d, h, w) = (30, 60, 90) of 8 x 3 x 2.5 mm: a body with both lungs, fluid and a tube."""
    hu = np.full((30, 60, 90), -1024, np.float32)
    classes = np.zeros(hu.shape, np.int8)
    hu[:, 8:52, 6:84] = 40
    for value, where in (
        (1, np.s_[4:26, 15:45, 12:36]), (2, np.s_[4:26, 15:45, 54:78]), (5, np.s_[4:12, 30:45, 54:78]),
        (3, np.s_[14:30, 20:29, 40:50]),
    ):  # fmt: skip
        classes[where], hu[where] = value, LEVELS[value]
    return hu, classes


def volume_of(hu):
    grid = Grid.from_spacing(hu.shape[::-1], SPACING[::-1])
    return Volume(from_slices(hu), grid, grid)


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_votes_lie_where_the_classes_are(chest):
    hu, classes = chest
    votes = chest_votes(hu, SPACING, Truth(LEVELS), INPUT)
    rows, columns = votes.right.shape[1:]
    assert (rows, columns) == (40, 50)  # 60 x 3 mm and 90 x 2.5 mm in voxels of 4.5 mm
    at = np.ix_(range(30), (np.arange(rows) * 60) // rows, (np.arange(columns) * 90) // columns)
    for value, map_ in ((1, votes.right), (2, votes.left), (3, votes.airway), (5, votes.fluid)):
        assert dice(map_ > 0.5, classes[at] == value) > 0.75


def test_sides_fluid_and_airway_come_from_the_network(chest):
    hu, classes = chest
    mask, findings = find_lungs(volume_of(hu), Truth(LEVELS), INPUT)
    found = to_slices(mask.labels)
    assert dice(found == 1, classes == 1) > 0.97
    assert dice(found == 2, classes == 2) > 0.9
    assert not (found[classes == 3] > 0).any()
    assert [f.code for f in findings] == ["SEG-LUNG-003"]
    assert set(STATE_OF_FINDING.values()) <= set(STATES)


def test_one_lung_of_either_side_keeps_it_wherever_it_lies(chest):
    """A right lung alone, painted where the left one would be: the network knows, the picture does not."""
    hu, _ = chest
    hu = hu.copy()
    hu[4:26, 15:45, 12:36] = 40
    hu[4:26, 15:45, 54:78] = LEVELS[1]
    mask, _ = find_lungs(volume_of(hu), Truth(LEVELS), INPUT)
    assert mask.volume_ml("left lung") == 0
    assert mask.volume_ml("right lung") > 900


def test_what_a_lone_lung_reaches_over_to_the_other_side_is_its_own(chest):
    class Reaching(Truth):
        def logits(self, images):
            answer = super().logits(images)
            corner = answer[0, :, 30:33, 12:15, 8:11]
            assert (corner[1] > 0).all()
            corner[[1, 2]] = corner[[2, 1]]
            return answer

    hu = chest[0].copy()
    hu[4:26, 15:45, 54:78] = 40
    mask, _ = find_lungs(volume_of(hu), Reaching(LEVELS), INPUT)
    assert mask.volume_ml("left lung") == 0
    assert mask.volume_ml("right lung") > 900


def test_air_around_the_body_is_cut_off_and_changes_nothing(chest):
    hu, _ = chest
    engine = Truth(LEVELS)
    narrow, _ = find_lungs(volume_of(hu), engine, INPUT)
    size = engine.seen.shape
    wide = np.pad(hu, ((0, 0), (66, 66), (72, 72)), constant_values=-1024)
    found, _ = find_lungs(volume_of(wide), engine, INPUT)
    assert np.prod(engine.seen.shape) < 1.6 * np.prod(size)
    for side in (1, 2):
        assert found.volume_ml(side) == pytest.approx(narrow.volume_ml(side), rel=0.02)


def test_a_scan_without_tissue_or_lung_gives_an_empty_mask_and_says_so():
    for level in (-1024.0, 40.0):
        mask, findings = find_lungs(volume_of(np.full((6, 12, 14), level, np.float32)), Truth(LEVELS), INPUT)
        assert not mask.any.any()
        assert [f.code for f in findings] == ["SEG-LUNG-000"]


def test_an_island_of_one_lung_in_the_other_changes_sides():
    probability = np.zeros((len(CLASSES), 6, 8, 20), np.float32)
    probability[1, :, 1:7, 1:9] = 0.9
    probability[2, :, 1:7, 11:19] = 0.9
    probability[1, 2:4, 2:4, 13:15], probability[2, 2:4, 2:4, 13:15] = 0.8, 0.1
    lone = probability.copy()
    lone[1, 0, 0, 19], lone[2, 0, 0, 19] = 0.9, 0.0
    one_side(lone, CLASSES)
    assert (lone[2, 2:4, 2:4, 13:15] == np.float32(0.8)).all()
    assert (lone[1, :, 1:7, 11:19] <= 0.1).all()
    assert (lone[1, :, 1:7, 1:9] == np.float32(0.9)).all()


def test_the_answer_to_a_smoothed_view_is_averaged_with_that_to_the_chest_as_it_is(chest):
    class Grain(Truth):
        def logits(self, images):
            self.views = [*getattr(self, "views", []), images[0, 0]]
            answer = np.zeros((1, len(CLASSES), *images.shape[2:]), np.float32)
            answer[0, 3] = 100 * (images[0, 0] > self.views[0])  # airway is what smoothing made denser
            answer[0, 0] = 50
            return answer

    hu = chest[0] + 40 * np.random.default_rng(0).standard_normal(chest[0].shape, dtype=np.float32)
    engine = Grain(LEVELS)
    votes = chest_votes(hu, SPACING, engine, replace(INPUT, smooth_voxels=1.0))
    first, second = engine.views
    assert np.array_equal(second, ndimage.gaussian_filter(first, 1.0))
    assert 0.2 < votes.airway.max() <= 0.5001
    alone = Grain(LEVELS)
    assert chest_votes(hu, SPACING, alone, INPUT).airway.max() < 1e-6
    assert len(alone.views) == 1


def test_a_card_is_read_back_and_others_are_refused():
    card = {"preprocessing": INPUT.as_card(), "labels": {str(n): name for n, name in enumerate(CLASSES)}}
    assert lungs_input(card) == INPUT
    smooth = replace(INPUT, smooth_voxels=1.0)
    assert lungs_input({**card, "preprocessing": smooth.as_card()}) == smooth
    del card["preprocessing"]["smooth_voxels"]  # as in cards of before
    assert lungs_input(card) == INPUT
    for damaged in (
        {**card, "labels": {"0": "background", "1": "lungs"}},
        {**card, "preprocessing": {"kind": "chest_volume"}},
        {**card, "preprocessing": smooth.as_card() | {"smooth_voxels": -1}},
        {**card, "preprocessing": smooth.as_card() | {"smooth_voxels": float("nan")}},
        {**card, "labels": None},
    ):
        with pytest.raises(ModelError):
            lungs_input(damaged)


@pytest.mark.parametrize("foam", [np.s_[4:6, 18:20, 4:7], np.s_[1:11, 17:20, 2:28]])
def test_lung_in_foam_beside_the_body_is_none(foam):
    """However large a piece of foam is: it has no vessels."""
    probability = np.zeros((len(CLASSES), 12, 20, 30), np.float32)
    body = np.zeros(probability.shape[1:], bool)
    body[:, 2:16, 2:28] = True
    body[:, :, 20:] = False  # the field cuts the left side open
    probability[1, 1:11, 4:14, 4:12] = 0.9
    probability[2, 1:11, 4:14, 20:28] = 0.9
    probability[1, 5, 8, 15] = 0.9  # a small piece in the body
    probability[1][foam] = 0.9
    hu = np.full(body.shape, -860, np.float32)
    hu[:, ::4] = -600
    hu[foam] = -910
    before = probability.copy()
    drop_strays(probability, CLASSES, body, hu)
    assert not probability[1][foam].any()
    before[1][foam] = 0
    assert (probability == before).all()


def wet_side(fluid_hu, core_hu, rim=2):
    """(probability, hu) of a right side filled to the rim with fluid, 60 x 100 x 60 mm, whose core the network takes
    for lung, and aerated lung beside it on the left."""
    hu = np.full((12, 20, 30), 40, np.float32)
    probability = np.zeros((len(CLASSES), *hu.shape), np.float32)
    probability[2, :, :, 16:], hu[:, :, 16:] = 0.9, -850
    probability[5, :, :, 1:13], hu[:, :, 1:13] = 0.9, fluid_hu
    core = np.s_[rim : 12 - rim, rim : 20 - rim, 1 + rim : 13 - rim]
    probability[5][core], probability[1][core], hu[core] = 0.2, 0.7, core_hu
    return probability, hu, core


@pytest.mark.parametrize(
    ("fluid_hu", "core_hu", "rim", "spreads"),
    [
        (11, 12, 2, True),
        (-8, -3, 2, True),
        (11, 45, 2, False),  # consolidated or collapsed lung in an effusion
        (40, 42, 2, False),  # as dense as lung without air: the network decides
        (-100, -100, 2, False),  # fat
        (11, 12, 0, False),  # nobody sees fluid
    ],
)
def test_fluid_spreads_to_lung_that_is_as_dense_as_it(fluid_hu, core_hu, rim, spreads, rng):
    probability, hu, core = wet_side(fluid_hu, core_hu, rim)
    hu += rng.normal(0, 3, hu.shape).astype(np.float32)
    before = probability.copy()
    one_fluid(probability, INPUT, hu)
    assert (probability[2] == before[2]).all()
    assert np.mean(probability[5 if spreads else 1][core] > 0.5) > 0.95
    assert probability.sum(axis=0) == pytest.approx(before.sum(axis=0))


def test_less_fluid_than_an_effusion_stays_where_it_is():
    probability, hu, _ = wet_side(11, 12)
    probability[5, 1:] = 0
    before = probability.copy()
    one_fluid(probability, INPUT, hu)
    assert (probability == before).all()
