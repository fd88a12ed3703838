import numpy as np
import pytest
from scipy import ndimage

from pneumoscope.geometry import Grid
from pneumoscope.inference.lungs import LungRules, find_lungs, join_with_hu, split_sides
from pneumoscope.preprocess.slices import resize_linear, to_slices
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


def test_air_that_the_network_calls_other_is_no_lung(chest):
    """Trachea, stomach, pneumothorax: thin or not, joined to the lung or not, the higher probability decides."""
    hu, right, left = chest
    collapsed = right.copy()
    collapsed[:, 20:] = False  # a pneumothorax in front of what is left
    trachea = np.zeros(GRID.shape, bool)
    trachea[21:26, 18:23, 3:] = True
    hu[trachea] = -990
    other = network_view(trachea, right & ~collapsed)
    probability = 0.9 * network_view(collapsed, left) + 0.3 * network_view(trachea)
    found = join_with_hu(to_slices(hu), probability, GRID, RULES, other=other)
    assert not (found & to_slices(trachea)).any()
    assert dice(found, to_slices(collapsed | left)) > 0.97


def test_thin_lung_beyond_the_networks_sight_is_reached_from_it(chest):
    hu, right, left = chest
    sulcus = np.zeros(GRID.shape, bool)
    sulcus[38:40, 8:11, 0] = True  # below the last slice that the network saw lung in
    far = np.zeros(GRID.shape, bool)
    far[2:4] = True
    hu[sulcus] = -800
    unsure = network_view(right, left) + 0.1 * network_view(sulcus, far)
    found = join_with_hu(to_slices(hu), unsure, GRID, RULES, other=np.zeros_like(unsure))
    assert (found & to_slices(sulcus)).sum() == sulcus.sum()
    assert not (found & to_slices(far)).any()


def test_the_networks_coarse_border_is_no_dense_lung(chest):
    """Half a network voxel over the edge all round is 100 ml of chest wall; a white lung is thicker than that."""
    hu, right, left = chest
    white = left.copy()
    hu[white] = 35
    rim = ndimage.binary_dilation(right, structure=np.ones((3, 3, 1))) & ~right
    view = np.stack([resize_linear(p, (20, 24)) for p in to_slices(right | rim | left).astype(np.float32)])
    found = join_with_hu(to_slices(hu), view, GRID, LungRules(rim_mm=4), other=np.zeros_like(view))
    assert not (found & to_slices(rim)).any()
    assert dice(found & to_slices(white), to_slices(white)) > 0.95


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


@pytest.mark.parametrize("lost", [True, False])
def test_what_rules_drop_against_the_networks_vote_is_reported(chest, monkeypatch, lost):
    hu, right, left = chest
    effusion = np.zeros(GRID.shape, bool)
    effusion[27:40, 8:32, 0] = lost  # dense, with no aerated lung in the slice
    view = network_view(right | effusion, left)
    volume = Volume.from_native(hu, GRID)
    monkeypatch.setattr("pneumoscope.inference.lungs.predict_probability", lambda model, images, **_: images)
    monkeypatch.setattr("pneumoscope.inference.lungs.REPORTED_ML", 20)
    _, findings = find_lungs(volume, None, Oracle(view), rules=LungRules(smallest_ml=5, sure=0.75))
    assert [f.code for f in findings] == (["SEG-LUNG-002"] if lost else [])
    assert not lost or "26 ml" in findings[0].message  # 28 less what the small network rounds off
