import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pneumoscope.datasets.tensors import CLASS_NAMES, PreparedVolume, VolumeRecipe, draw_centre, prepare
from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid, cut
from pneumoscope.training.augment import VolumeAugment, Warp, elastic
from pneumoscope.training.data import Batch, PatchSource
from pneumoscope.training.multiclass import (
    MulticlassTask,
    cross_entropy,
    dice_balanced_cross_entropy,
    dice_cross_entropy,
    held_dice_cross_entropy,
    tversky_sum,
)

NEVER = {name: 0.0 for name in VolumeAugment.__dataclass_fields__ if name.endswith("_p")}
STILL = VolumeAugment(**NEVER)


def volume(shape=(9, 14, 20), seed=0, infected=True) -> PreparedVolume:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal(shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    labels[:, 3:12, 2:9], labels[:, 3:12, 11:18] = 1, 2
    if infected:
        labels[4:7, 5:8, 4:7] = 3
    places = np.argwhere(labels == 3).astype(np.int32)
    grid = Grid.from_spacing(shape[::-1], (1.0, 1.0, 2.0))
    return PreparedVolume(f"case{seed}", f"p{seed}", image, labels, places, grid, float(image.min()))


# -- augmentation -------------------------------------------------------------------------------------------------


def test_nothing_drawn_changes_nothing():
    source = PatchSource([volume()], (6, 8, 8), 4, augment=STILL)
    plain = dataclasses.replace(source, augment=None)
    for seed in range(5):
        here = source.batch(np.arange(2), np.random.default_rng(seed))
        box = here.x[0, 0]
        assert any(  # the box is a piece of the volume, value for value
            torch.equal(box, torch.from_numpy(cut(volume().image, start, (6, 8, 8), 0)))
            for start in np.ndindex(4, 7, 13)
        )
    assert torch.equal(plain.batch(np.arange(3), None).x, source.batch(np.arange(3), None).x)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["rotate_p", "scale_p", "elastic_p", "mirror_p"])
def test_image_and_mask_move_together_and_labels_stay_labels(kind, seed):
    shape = (24, 40, 40)
    labels = np.zeros(shape, np.uint8)
    labels[8:16, 10:24, 22:32] = 3
    moved = PreparedVolume("a", "p", labels.astype(np.float32), labels, np.argwhere(labels == 3).astype(np.int32),
                           Grid.from_spacing(shape[::-1], (1, 1, 1)))  # fmt: skip
    augment = VolumeAugment(**{**NEVER, kind: 1.0})
    batch = PatchSource([moved], (16, 24, 24), 1, 1.0, augment).batch(np.arange(1), np.random.default_rng(seed))
    image, mask = batch.x[0, 0], batch.y[0, 0]
    assert set(mask.unique().tolist()) <= {0.0, 3.0}
    assert (mask == 3).any()
    clear = (image - 1.5).abs() > 0.9  # away from the interpolated edge the two must agree
    assert torch.equal(image[clear] > 1.5, mask[clear] > 1.5)
    assert clear.float().mean() > 0.9


def test_mirroring_turns_the_box_exactly_round():
    box = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
    warp = Warp(np.diag([1.0, -1.0, -1.0]))
    assert warp.reach((2, 3, 4)) == (2, 3, 4)
    for nearest in (True, False):
        assert torch.allclose(warp.apply(box, (2, 3, 4), nearest=nearest), box.flip(1, 2), atol=1e-4)


def test_a_quarter_turn_is_that_of_numpy():
    box = torch.arange(5 * 5 * 5, dtype=torch.float32).reshape(5, 5, 5)
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    found = Warp(turn).apply(box, (5, 5, 5), nearest=True)
    assert any(torch.equal(found, torch.rot90(box, k, (1, 2))) for k in (1, 3))


def test_zooming_out_reads_real_tissue_and_not_a_border():
    ramp = np.broadcast_to(np.arange(60, dtype=np.float32), (20, 30, 60)).copy()
    middle = np.array([[10, 15, 30]], np.int32)
    grid = Grid.from_spacing((60, 30, 20), (1, 1, 1))
    wide = PreparedVolume("a", "p", ramp, np.zeros(ramp.shape, np.uint8), middle, grid)
    augment = VolumeAugment(**{**NEVER, "scale_p": 1.0}, scale=(0.5, 0.5))
    box = PatchSource([wide], (6, 8, 10), 1, 1.0, augment).batch(np.arange(1), np.random.default_rng(3)).x[0, 0]
    steps = box.diff(dim=2)
    assert torch.allclose(steps, torch.full_like(steps, 2.0), atol=1e-3)  # to the very edge of the box


@pytest.mark.parametrize("sigma", [9.0, 13.0])
def test_elastic_has_the_strength_of_filtered_noise_on_every_voxel(sigma):
    rng = np.random.default_rng(0)
    found = np.sqrt(np.mean([elastic((60, 60, 60), 900, sigma, rng).pow(2).mean().item() for _ in range(12)]))
    variance = 1 / 3 / (2 * np.sqrt(np.pi) * sigma) ** 3  # of uniform noise in [-1, 1] after a 3D Gaussian
    assert found == pytest.approx(900 * np.sqrt(variance), rel=0.15)


@pytest.mark.parametrize("kind", ["brightness_p", "contrast_p", "gamma_p", "noise_p"])
def test_appearance_keeps_the_mask_and_changes_the_image(kind):
    source = PatchSource([volume()], (6, 8, 8), 1, 0.5, STILL)
    changed = dataclasses.replace(source, augment=VolumeAugment(**{**NEVER, kind: 1.0}))
    before, after = (s.batch(np.arange(1), np.random.default_rng(4)) for s in (source, changed))
    assert torch.equal(before.y[0], after.y[0])
    assert not torch.equal(before.x[0], after.x[0])
    assert torch.isfinite(after.x).all()


def test_gamma_keeps_mean_and_deviation_and_contrast_the_range():
    image = torch.randn(6, 7, 8, generator=torch.Generator().manual_seed(0)) * 3 + 2
    bent = VolumeAugment(**{**NEVER, "gamma_p": 1.0}).appearance(image, np.random.default_rng(1))
    assert bent.mean().item() == pytest.approx(image.mean().item(), abs=1e-4)
    assert bent.std().item() == pytest.approx(image.std().item(), rel=1e-3)
    strong = VolumeAugment(**{**NEVER, "contrast_p": 1.0}).appearance(image, np.random.default_rng(1))
    assert strong.min() >= image.min()
    assert strong.max() <= image.max()


def test_bad_probabilities_and_ranges_are_refused():
    for bad in ({"scale_p": 1.5}, {"gamma": (2.0, 1.0)}, {"mirror_axes": (3,)}):
        with pytest.raises(InputError):
            VolumeAugment(**bad)


# -- boxes --------------------------------------------------------------------------------------------------------


def test_a_step_is_a_function_of_its_generator():
    source = PatchSource([volume(seed=1), volume(seed=2)], (6, 8, 8), 10, 0.4, VolumeAugment())
    first, again = (source.batch(np.array([3, 8]), np.random.default_rng([5, 1, 1, 7])) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert first.names == ("case2", "case1")
    assert first.x.shape == (2, 1, 6, 8, 8)


def test_every_volume_has_its_turn_in_epochs_of_fewer_boxes():
    source = PatchSource([volume(seed=seed) for seed in range(7)], (6, 8, 8), 3)
    names = {name for s in range(40) for name in source.batch(np.arange(3), np.random.default_rng(s)).names}
    assert names == {f"case{seed}" for seed in range(7)}
    assert source.batch(np.arange(3), None).names == ("case0", "case1", "case2")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_foreground_share_is_kept(share):
    source = PatchSource([volume((30, 40, 50))], (5, 6, 6), 1, share)
    held = [bool((source.batch(np.arange(1), np.random.default_rng(s)).y == 3).any()) for s in range(40)]
    assert all(held) if share else sum(held) < 10


def test_boxes_lie_inside_and_small_volumes_are_filled_up():
    source = PatchSource([volume((4, 6, 30))], (6, 8, 8), 1)
    for seed in range(10):
        batch = source.batch(np.arange(1), np.random.default_rng(seed))
        outside = batch.x[0, 0] == np.float32(volume((4, 6, 30)).lowest)
        assert outside.sum() >= 6 * 8 * 8 - 4 * 6 * 8
        assert (batch.y[0, 0][outside] == 0).all()
        middle = draw_centre(volume(), (5, 5, 5), 0.0, np.random.default_rng(seed))
        assert (middle >= 2).all()
        assert (middle <= np.array([9, 14, 20]) - 3).all()


def test_volumes_without_infection_are_drawn_all_the_same():
    batch = PatchSource([volume(infected=False)], (5, 6, 6), 1, 1.0).batch(np.arange(1), np.random.default_rng(0))
    assert not (batch.y == 3).any()


def test_memory_is_bounded_by_the_box_and_not_by_the_volumes():
    small = PatchSource([volume()], (6, 8, 8), 4, 0, VolumeAugment())
    assert small.resident_bytes(2) == PatchSource(
        [volume((90, 140, 200))], (6, 8, 8), 4, 0, VolumeAugment()
    ).resident_bytes(2)
    assert small.resident_bytes(4) > small.resident_bytes(2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("more", [(), ("--plain",)])
def test_memory_stays_below_the_bound_in_a_process_of_its_own(more):
    """Boxes of 96 x 96 x 48 out of mapped volumes; the paper's size is in benchmarks/volumes_memory.py."""
    script = Path(__file__).parents[2] / "benchmarks" / "volumes_memory.py"
    command = [sys.executable, str(script), "--size", "96", "96", "48", "--batches", "3", *more]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(ran.stdout)
    assert 0.02 < said["share_of_bound"] < 1


# -- prepared volumes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    from pneumoscope.datasets.phantom.folder import read_phantom, write_phantom

    folder = tmp_path_factory.mktemp("site")
    write_phantom(folder, "A", 1, size="tiny")
    return read_phantom(folder)[0]


RECIPE = VolumeRecipe(spacing_mm=(8.0, 8.0, 26.0))


def test_prepared_volume_has_the_papers_order(phantom):
    ready = prepare(phantom, RECIPE)
    scan = phantom.load()
    assert ready.shape == RECIPE.grid(scan.volume.grid).shape[::-1]
    assert ready.image.mean() == pytest.approx(0, abs=1e-4)
    assert ready.image.std() == pytest.approx(1, abs=1e-3)
    assert ready.lowest == ready.image.min()
    assert set(np.unique(ready.labels)) == {0, 1, 2, 3}
    left = np.argwhere(ready.labels == 1)[:, 2].mean()  # columns run from the patient's right to left
    assert left > np.argwhere(ready.labels == 2)[:, 2].mean()
    assert (ready.labels[tuple(ready.places.T)] == 3).all()
    assert len(CLASS_NAMES["lungs_infiltrate"]) == 4


def test_cached_volume_is_mapped_and_equal(phantom, tmp_path):
    from pneumoscope.datasets.cache import ArrayCache

    cache = ArrayCache(tmp_path)
    plain, made = prepare(phantom, RECIPE), prepare(phantom, RECIPE, cache)
    found = prepare(phantom, RECIPE, ArrayCache(tmp_path))
    for ready in (made, found):
        assert np.array_equal(plain.image, ready.image)
        assert np.array_equal(plain.labels, ready.labels)
        assert isinstance(ready.image.base if ready.image.base is not None else ready.image, np.memmap)
        assert ready.grid == plain.grid
    other = prepare(phantom, dataclasses.replace(RECIPE, classes="infiltrate"), cache)
    assert set(np.unique(other.labels)) == {0, 1}


def test_one_shape_for_all_and_unit_range(phantom):
    ready = prepare(phantom, VolumeRecipe((-2000, 500), "unit", None, (16, 16, 6), "infiltrate"))
    assert ready.shape == (6, 16, 16)
    assert ready.image.min() >= 0
    assert ready.image.max() <= 1
    assert ready.grid.spacing_mm[2] == pytest.approx(12 * 26 / 6)


def test_what_the_classes_need_must_be_there(phantom):
    bare = dataclasses.replace(phantom, load=lambda: dataclasses.replace(phantom.load(), lungs=None))
    with pytest.raises(InputError, match="no lung mask"):
        prepare(bare, RECIPE)
    with pytest.raises(InputError):
        VolumeRecipe(spacing_mm=(1, 1, 1), shape=(4, 4, 4))


# -- losses and scores --------------------------------------------------------------------------------------------


def test_tversky_and_cross_entropy_by_hand():
    target = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])  # n, 1, h, w
    p1 = torch.tensor([0.2, 0.7, 0.9, 0.4])
    logits = torch.stack([torch.log(1 - p1), torch.log(p1)])[None, :, None]
    # class 1: tp 1.6, fn 0.4, fp 0.6; class 0: tp 1.4, fn 0.6, fp 0.4
    wanted = 2 - 1.6 / (1.6 + 0.2 + 0.3) - 1.4 / (1.4 + 0.3 + 0.2)
    assert tversky_sum(logits, target).item() == pytest.approx(wanted, abs=1e-5)
    entropy = -np.log([0.8, 0.7, 0.9, 0.6]).mean()
    assert cross_entropy(logits, target).item() == pytest.approx(entropy, abs=1e-5)
    dice = 1 - (2 * 1.6 + 1) / ((p1**2).sum().item() + 2 + 1)
    assert dice_cross_entropy(logits, target).item() == pytest.approx(dice + entropy, abs=1e-5)


def test_what_is_not_stated_costs_nothing():
    logits = torch.randn(2, 4, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    target = torch.randint(0, 4, (2, 1, 3, 4, 5), generator=torch.Generator().manual_seed(2)).float()
    part = target.clone()
    part[:, :, 0] = -1
    for loss in (tversky_sum, cross_entropy, dice_cross_entropy):
        assert loss(logits, part).item() == pytest.approx(loss(logits[:, :, 1:], target[:, :, 1:]).item(), rel=1e-5)
    assert cross_entropy(logits, torch.full_like(target, -1)).item() == 0


def test_scores_per_class_add_up_over_batches():
    task = MulticlassTask(CLASS_NAMES["lungs_infiltrate"])
    truth = torch.tensor([0.0, 1, 2, 3, 3, -1]).view(1, 1, 1, 2, 3)
    said = torch.tensor([0, 1, 1, 3, 0, 3]).view(1, 1, 2, 3)
    output = torch.nn.functional.one_hot(said, 4).movedim(-1, 1).float()
    batch = Batch(output, truth, ("a",))
    counts = task.counts(output, batch)
    scores = task.scores(counts + counts)
    assert scores["dice"] == scores["dice_infection"] == pytest.approx(2 / 3)
    assert scores["dice_left_lung"] == pytest.approx(2 / 3)
    assert scores["dice_right_lung"] == 0
    empty = torch.zeros(1, 1, 1, 2, 3)
    nothing = torch.nn.functional.one_hot(empty[:, 0].long(), 4).movedim(-1, 1).float()
    assert task.scores(task.counts(nothing, Batch(nothing, empty, ("b",))))["dice"] == 1.0


def test_channels_and_names_must_agree():
    with pytest.raises(InputError, match="2 channels for 4 classes"):
        MulticlassTask(CLASS_NAMES["lungs_infiltrate"]).loss(
            torch.zeros(1, 2, 2, 2), Batch(torch.zeros(1), torch.zeros(1, 1, 2, 2), ())
        )
    with pytest.raises(InputError, match="unknown loss"):
        MulticlassTask(("a", "b"), "huber")


def test_balanced_cross_entropy_weighs_rare_classes_by_the_root_of_their_share():
    """Of 16 voxels 15 are class 0, one is class 1: weights 1 / sqrt(15/16) and 1 / sqrt(1/16), mean 1 over voxels."""
    target = torch.zeros(1, 1, 1, 4, 4)
    target[0, 0, 0, 0, 0] = 1
    logits = torch.randn(1, 3, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    each = torch.nn.functional.cross_entropy(logits, target[:, 0].long(), reduction="none").flatten()
    weights = torch.full((16,), (16 / 15) ** 0.5)
    weights[0] = 4
    p = torch.softmax(logits, 1)[0, 1]  # class 2 is in no voxel and has no Dice
    dice = (2 * p[0, 0, 0] + 1) / ((p * p).sum() + 2)
    expected = 1 - dice + (each * weights / weights.mean()).mean()
    assert dice_balanced_cross_entropy(logits, target).item() == pytest.approx(expected.item(), abs=1e-5)
    even = torch.arange(16).reshape(1, 1, 1, 4, 4).remainder(2).float()
    assert dice_balanced_cross_entropy(logits[:, :2], even).item() == pytest.approx(
        dice_cross_entropy(logits[:, :2], even).item(), abs=1e-5
    )
    assert dice_balanced_cross_entropy(logits, torch.full_like(target, -1)).item() == 0
    assert held_dice_cross_entropy(logits, target).item() == pytest.approx((1 - dice + each.mean()).item(), abs=1e-5)
