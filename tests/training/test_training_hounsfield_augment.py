from __future__ import annotations

import numpy as np
import torch

from hounsfield_augment import HounsfieldAugment
from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.data import Batch

STILL = SliceAugment(rotate_deg=0, scale=(1, 1), shift=0, flip=0)


def batch():
    rng = np.random.default_rng(0)
    hu = torch.from_numpy(rng.choice([-1000.0, -860.0, 40.0, 300.0], (6, 1, 9, 14)).astype(np.float32))
    target = torch.from_numpy(rng.choice([-1.0, 0.0, 1.0], (6, 1, 9, 14)).astype(np.float32))
    return Batch(hu, target, tuple("abcdef"))


def test_the_same_generator_gives_the_same_batch_and_targets_keep_their_values():
    first, second = (HounsfieldAugment()(batch(), np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.y, second.y)
    assert set(first.y.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert not torch.equal(first.x, batch().x)


def test_nothing_switched_on_changes_nothing():
    none = HounsfieldAugment(STILL, gain=(1, 1), offset_hu=0, bend_hu=0, noise_hu=0, soft=0, sharp=0)
    out = none(batch(), np.random.default_rng(0))
    assert torch.allclose(out.x, batch().x, atol=1e-2)
    assert torch.equal(out.y, batch().y)


def test_density_moves_as_stated_and_air_stays_air():
    """A factor on HU + 1000: air is fixed, water moves by it; the bump is nowhere higher than stated."""
    only_gain = HounsfieldAugment(STILL, gain=(1.1, 1.1), offset_hu=0, bend_hu=0, noise_hu=0, soft=0, sharp=0)
    out = only_gain(batch(), np.random.default_rng(0)).x
    assert torch.allclose(out, (batch().x + 1000) * 1.1 - 1000, atol=1e-2)
    bent = HounsfieldAugment(STILL, gain=(1, 1), offset_hu=0, bend_hu=50, noise_hu=0, soft=0, sharp=0)
    moved = (bent(batch(), np.random.default_rng(1)).x - batch().x).abs()
    assert 5 < float(moved.max()) <= 50.01


def test_a_soft_and_a_sharp_kernel_move_edges_the_other_way():
    flat = {"gain": (1, 1), "offset_hu": 0, "bend_hu": 0, "noise_hu": 0}
    hu = torch.full((2, 1, 8, 8), -860.0)
    hu[..., 4] = 40.0  # a vessel
    thin = Batch(hu, torch.zeros_like(hu), ("a", "b"))
    soft = HounsfieldAugment(STILL, soft=1, sharp=0, **flat)(thin, np.random.default_rng(0)).x
    sharp = HounsfieldAugment(STILL, soft=0, sharp=1, **flat)(thin, np.random.default_rng(0)).x
    assert float(soft[0, 0, 4, 4]) < 40 < float(sharp[0, 0, 4, 4])
    assert float(soft[0, 0, 4, 3]) > -860 > float(sharp[0, 0, 4, 3])


def test_grey_channels_move_with_the_slice_and_keep_their_range():
    one = batch()
    grey = torch.zeros_like(one.x)
    grey[..., 2:5, 3:9] = 200.0
    both = Batch(torch.cat((one.x, grey), dim=1), (grey > 100).float(), one.names)
    out = HounsfieldAugment()(both, np.random.default_rng(5))
    assert out.x.shape == both.x.shape
    assert 0 <= float(out.x[:, 1].min()) <= float(out.x[:, 1].max()) <= 255
    inside, outside = (out.x[:, 1][out.y[:, 0] == value].mean() for value in (1, 0))
    assert inside > outside + 60


def test_masks_behind_the_grey_channel_only_move():
    one = batch()
    grey, mask = torch.full_like(one.x, 90.0), torch.zeros_like(one.x)
    mask[..., 2:5, 3:9] = 1
    out = HounsfieldAugment()(Batch(torch.cat((one.x, grey, mask), dim=1), mask, one.names), np.random.default_rng(5))
    assert set(out.x[:, 2].unique().tolist()) == {0.0, 1.0}
    assert float((out.x[:, 2:] == out.y).float().mean()) > 0.9  # they move alike but for the interpolation
    unmasked = HounsfieldAugment()(Batch(torch.cat((one.x, grey), dim=1), mask, one.names), np.random.default_rng(5))
    assert torch.equal(out.x[:, :2], unmasked.x)
