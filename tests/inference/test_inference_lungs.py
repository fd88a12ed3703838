import numpy as np
import pytest

from pneumoscope.geometry import Grid
from pneumoscope.inference.lungs import LungRules, find_lungs, join_with_hu, split_sides
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import Volume

GRID = Grid.from_spacing((48, 40, 6), (3.0, 3.0, 10.0))
RULES = LungRules(smallest_ml=5)


@pytest.fixture
def chest():
    """(hu, right, left): a soft-tissue body in air with two lungs; (i, j, k) RAS+, so the right lung has large i."""
    hu = np.full(GRID.shape, -1000, np.float32)
    hu[4:44, 4:36] = 40
    right, left = np.zeros(GRID.shape, bool), np.zeros(GRID.shape, bool)
    right[27:40, 8:32, 1:5] = True
    left[8:20, 8:32, 1:5] = True
    hu[right | left] = -850
    return hu, right, left


def network_view(*lungs) -> np.ndarray:
    """A network's opinion at half the size: sure inside, nothing outside."""
    stack = to_slices(np.any(lungs, axis=0)).astype(np.float32)
    n, h, w = stack.shape
    return stack.reshape(n, h // 2, 2, w // 2, 2).mean(axis=(2, 4))


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_edges_come_from_hounsfield_units(chest):
    hu, right, left = chest
    found = join_with_hu(to_slices(hu), network_view(right, left), GRID, RULES)
    assert dice(found, to_slices(right | left)) > 0.99


def test_consolidation_inside_the_lung_is_kept(chest):
    hu, right, left = chest
    dense = right.copy()
    dense[:, 20:] = False
    hu[dense] = 30
    found = join_with_hu(to_slices(hu), network_view(right, left), GRID, RULES)
    assert np.count_nonzero(found & to_slices(dense)) > 0.8 * np.count_nonzero(dense)


def test_what_lung_surrounds_is_lung_unless_it_is_large(chest):
    hu, right, left = chest
    vessel = np.zeros(GRID.shape, bool)
    vessel[30:35, 12:16, 2] = True  # 5 x 4 voxels of 9 mm2: 1.8 cm2
    dome = np.zeros(GRID.shape, bool)
    dome[29:38, 11:29, 1] = True  # 14.6 cm2
    hu[vessel | dome] = 40
    unseen = network_view(right & ~vessel & ~dome, left)
    found = join_with_hu(to_slices(hu), unseen, GRID, RULES)
    assert (found & to_slices(vessel)).sum() == vessel.sum()
    assert (found & to_slices(dome)).sum() < 0.4 * dome.sum()


def test_a_network_that_sees_lung_in_the_belly_is_not_believed(chest):
    hu, right, left = chest
    belly = np.zeros(GRID.shape, bool)
    belly[10:38, 8:32, 0] = True  # soft tissue below the lungs
    found = join_with_hu(to_slices(hu), network_view(right, left, belly), GRID, RULES)
    assert not (found & to_slices(belly)).any()


def test_the_air_of_the_room_is_not_lung(chest):
    hu, right, left = chest
    corner = np.zeros(GRID.shape, bool)
    corner[0:3, :, :] = True
    found = join_with_hu(to_slices(hu), network_view(right, left, corner), GRID, RULES)
    assert not (found & to_slices(corner)).any()


def test_a_lung_cut_off_by_the_field_of_view_is_kept():
    grid = Grid.from_spacing((24, 24, 3), (4.0, 4.0, 8.0))
    hu = np.full(grid.shape, 40, np.float32)
    lung = np.zeros(grid.shape, bool)
    lung[12:24, 4:20] = True  # reaches the border
    hu[lung] = -850
    stack = to_slices(lung).astype(np.float32)
    probability = stack.reshape(3, 12, 2, 12, 2).mean(axis=(2, 4))
    found = join_with_hu(to_slices(hu), probability, grid, RULES)
    assert dice(found, to_slices(lung)) > 0.95


def test_small_pieces_of_air_are_dropped(chest):
    hu, right, left = chest
    gas = np.zeros(GRID.shape, bool)
    gas[22:25, 10:12, 0] = True
    hu[gas] = -900
    found = join_with_hu(to_slices(hu), network_view(right, left, gas), GRID, RULES)
    assert not (found & to_slices(gas)).any()


def test_nothing_seen_gives_nothing(chest):
    hu, *_ = chest
    found = join_with_hu(to_slices(hu), np.zeros((6, 20, 24), np.float32), GRID, RULES)
    assert not found.any()


def test_right_is_the_patients_right(chest):
    _, right, left = chest
    labels, findings = split_sides(to_slices(right | left), GRID.spacing_mm)
    assert findings == ()
    assert np.array_equal(labels == 1, to_slices(right))
    assert np.array_equal(labels == 2, to_slices(left))


def test_lungs_that_touch_are_cut_between_them(chest):
    _, right, left = chest
    bridge = np.zeros(GRID.shape, bool)
    bridge[18:30, 30:32, 2] = True
    labels, findings = split_sides(to_slices(right | left | bridge), GRID.spacing_mm)
    assert findings == ()
    assert dice(labels == 1, to_slices(right)) > 0.97
    assert dice(labels == 2, to_slices(left)) > 0.97


def test_a_lung_that_reaches_over_the_middle_stays_one():
    """After a pneumonectomy the other lung fills much of the picture."""
    lung = np.zeros((4, 20, 40), bool)
    lung[:, 4:16, 4:26] = True
    labels, findings = split_sides(lung, (3.0, 3.0, 10.0))
    assert [f.code for f in findings] == ["SEG-LUNG-001"]
    assert set(np.unique(labels[lung])) == {1}


def test_one_lung_keeps_its_side():
    for columns, expected in ((slice(4, 16), 1), (slice(26, 38), 2)):
        lung = np.zeros((4, 20, 40), bool)
        lung[:, 4:16, columns] = True
        labels, _ = split_sides(lung, (3.0, 3.0, 10.0))
        assert set(np.unique(labels[lung])) == {expected}


def test_no_lung_is_said():
    labels, findings = split_sides(np.zeros((3, 8, 8), bool), (1.0, 1.0, 1.0))
    assert not labels.any()
    assert [f.code for f in findings] == ["SEG-LUNG-000"]
    assert findings[0].severity == "error"


class Oracle:
    """Stands for a lung model and its preprocessing: knows the truth."""

    needs_lungs = False

    def __init__(self, probability):
        self.probability = probability

    def images(self, stack_hu, lungs):
        return self.probability[:, None]


@pytest.mark.parametrize("codes", [("R", "A", "S"), ("L", "P", "S"), ("A", "S", "R")])
def test_whatever_the_scans_orientation_right_stays_right(chest, codes, monkeypatch):
    hu, right, left = chest
    order, flips = GRID.reorientation(codes)
    native = GRID.reorient(codes)
    stored = hu.transpose(order)[tuple(slice(None, None, -1) if f else slice(None) for f in flips)]
    volume = Volume.from_native(stored, native)
    monkeypatch.setattr("pneumoscope.inference.lungs.predict_probability", lambda model, images, **_: images)
    mask, _ = find_lungs(volume, None, Oracle(network_view(right, left)), rules=RULES)
    assert mask.grid.is_same_space(GRID)
    assert dice(mask.of("right lung"), right) > 0.99
    assert dice(mask.of("left lung"), left) > 0.99
    assert mask.to_native(native).shape == native.shape


def test_the_trachea_is_gas_also_where_the_rooms_air_reads_too_high(chest):
    """Scans that passed through grey levels store air at -905 HU; the trachea above the lungs is gas all the same."""
    hu, right, left = chest
    trachea = np.zeros(GRID.shape, bool)
    trachea[21:26, 18:23, 3:] = True
    hu[trachea] = -1000
    hu = hu * np.float32(0.94) + np.float32(35)
    unsure = network_view(right, left) + 0.5 * network_view(trachea)
    found = join_with_hu(to_slices(hu), unsure, GRID, RULES)
    assert not (found & to_slices(trachea)).any()
    assert dice(found, to_slices(right | left)) > 0.99
    cut = hu[6:-6, 6:-6]  # no air of the room in the picture: nothing to measure it by
    grid = Grid.from_spacing(cut.shape, (3.0, 3.0, 10.0))
    view = network_view(right[6:-6, 6:-6], left[6:-6, 6:-6])
    assert dice(join_with_hu(to_slices(cut), view, grid, RULES), to_slices((right | left)[6:-6, 6:-6])) > 0.99


@pytest.mark.parametrize("level", [-860, -965, -1000])
@pytest.mark.parametrize("corners", ["air", "table", "one of air", "shifted", "body"])
def test_no_rule_overrules_a_network_that_is_sure(chest, corners, level):
    """Emphysema is as thin as gas, and where the corners hold foam or bedding any lung seemed to be."""
    hu, right, left = chest
    hu[right | left] = level
    if corners in ("table", "one of air"):
        hu[hu == -1000] = -887
    if corners == "one of air":
        hu[:8, :8] = -1000
    grid = GRID
    if corners == "shifted":
        hu = hu * np.float32(0.94) + np.float32(35)
    if corners == "body":
        hu, right, left = (array[6:-6, 6:-6] for array in (hu, right, left))
        grid = Grid.from_spacing(hu.shape, (3.0, 3.0, 10.0))
    found = join_with_hu(to_slices(hu), network_view(right, left), grid, RULES)
    assert dice(found, to_slices(right | left)) > 0.99


def test_a_corner_of_air_sets_the_limit_of_gas(chest):
    """Lung of -880 HU that the network half believes in is no gas because three corners hold the table."""
    hu, right, left = chest
    hu[hu == -1000] = -887
    hu[:8, :8] = -1000
    hu[right | left] = -880
    found = join_with_hu(to_slices(hu), 0.6 * network_view(right, left), GRID, RULES)
    assert dice(found, to_slices(right | left)) > 0.99


@pytest.mark.parametrize("lost", [True, False])
def test_what_rules_drop_against_the_networks_vote_is_reported(chest, monkeypatch, lost):
    hu, right, left = chest
    effusion = np.zeros(GRID.shape, bool)
    effusion[27:40, 8:32, 0] = lost  # dense, with no aerated lung in the slice
    view = network_view(right | effusion, left)
    volume = Volume.from_native(hu, GRID)
    monkeypatch.setattr("pneumoscope.inference.lungs.predict_probability", lambda model, images, **_: images)
    monkeypatch.setattr("pneumoscope.inference.lungs.REPORTED_ML", 20)
    _, findings = find_lungs(volume, None, Oracle(view), rules=RULES)
    assert [f.code for f in findings] == (["SEG-LUNG-002"] if lost else [])
    assert not lost or "26 ml" in findings[0].message  # 28 less what the small network rounds off
