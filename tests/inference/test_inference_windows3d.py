"""Sliding windows: every voxel once, by hand and against MONAI; memory bounded by a slab; votes and their spread."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from pneumoscope.errors import InputError, RunError
from pneumoscope.inference.volumes import entropy, to_bytes
from pneumoscope.inference.windows3d import WindowPlan, slide, softmax
from pneumoscope.models.unet import UNet3D, UNet3DConfig

PLAN = WindowPlan((4, 6, 8))


def network(seed=0, classes=3):
    torch.manual_seed(seed)
    model = UNet3D(UNet3DConfig(1, classes, (4, 8))).eval()

    def predict(patches):
        with torch.inference_mode():
            return softmax(5 * model(torch.from_numpy(patches)).numpy())

    return model, predict


def whole(image, members, plan):
    """All slabs put together, after checking that each slice came once and in order."""
    slabs, at = list(slide(image, members, plan)), 0
    for slab in slabs:
        assert slab.start == at
        assert slab.variance.shape == slab.probability.shape[1:]
        at += slab.variance.shape[0]
    assert at == image.shape[1]
    return np.concatenate([s.probability for s in slabs], 1), np.concatenate([s.variance for s in slabs])


def identity(patches):
    """Two 'classes' that carry the picture itself, so that blending must give the picture back."""
    return np.concatenate((patches, 1 - patches), axis=1)


@pytest.mark.parametrize("shape", [(4, 6, 8), (9, 13, 17), (3, 5, 2), (1, 1, 1), (4, 20, 8), (30, 6, 9)])
@pytest.mark.parametrize("blend", ["mean", "gaussian"])
def test_every_voxel_comes_back_where_it_was(rng, shape, blend):
    image = rng.random((1, *shape), np.float32)
    plan = WindowPlan((4, 6, 8), (0.5, 0.3, 0.6), blend, mirror=(0, 2), batch_size=3)
    probability, spread = whole(image, [identity], plan)
    assert probability.shape == (2, *shape)
    assert np.allclose(probability[0], image[0], atol=1e-5)
    assert np.allclose(spread, 0, atol=1e-5)


def test_places_and_mean_by_hand():
    assert WindowPlan((4, 4, 4)).starts((10, 4, 5)) == ([0, 2, 4, 6], [0], [0, 1])
    assert WindowPlan((80, 160, 160), (30 / 80, 0.5, 0.5)).starts((104, 254, 267))[0] == [0, 24]
    calls = []

    def numbered(patches):
        calls.append(len(patches))
        return np.full((len(patches), 1, 2, 1, 1), len(calls), np.float32)

    # three windows of two slices over three slices in steps of one: 1, (1 + 2) / 2, 2
    probability, spread = whole(np.zeros((1, 3, 1, 1), np.float32), [numbered], WindowPlan((2, 1, 1)))
    assert np.allclose(probability[0, :, 0, 0], [1, 1.5, 2])
    assert np.allclose(spread[:, 0, 0], [0, 0.25, 0]), "the mean square distance of 1 and 2 to 1.5"


@pytest.mark.parametrize("blend", ["mean", "gaussian"])
@pytest.mark.parametrize(("shape", "overlap"), [((19, 22, 17), 0.5), ((8, 16, 30), 0.25), ((9, 21, 16), 0.7)])
def test_the_same_as_monai(rng, blend, shape, overlap):
    inferers = pytest.importorskip("monai.inferers")
    _, predict = network()
    image = rng.standard_normal((1, *shape), dtype=np.float32)
    other = inferers.SlidingWindowInferer(
        (8, 16, 16), sw_batch_size=2, overlap=overlap, mode="constant" if blend == "mean" else "gaussian"
    )
    expected = other(torch.from_numpy(image[None]), lambda x: torch.from_numpy(predict(x.numpy())))[0].numpy()
    own, _ = whole(image, [predict], WindowPlan((8, 16, 16), (overlap,) * 3, blend, batch_size=2))
    assert np.abs(own - expected).max() < 1e-4


def test_a_patch_as_large_as_the_volume_is_the_network_itself(rng):
    _, predict = network()
    image = rng.standard_normal((1, 4, 6, 8), dtype=np.float32)
    own, _ = whole(image, [predict], PLAN)
    assert np.allclose(own, predict(image[None])[0], atol=1e-6)


def test_mirroring_and_members_are_averaged(rng):
    (_, first), (_, second) = network(0), network(1)
    image = rng.standard_normal((1, 4, 6, 8), dtype=np.float32)
    flipped = np.ascontiguousarray(image[..., ::-1])
    votes = np.stack(
        [n(image[None])[0] for n in (first, second)] + [n(flipped[None])[0][..., ::-1] for n in (first, second)]
    )
    own, spread = whole(image, [first, second], WindowPlan((4, 6, 8), mirror=(2,)))
    assert np.allclose(own, votes.mean(0), atol=1e-5)
    assert np.allclose(spread, np.square(votes - votes.mean(axis=0)).mean(axis=0).sum(axis=0), atol=1e-5)
    assert spread.max() > 1e-3
    again, _ = whole(flipped, [first, second], WindowPlan((4, 6, 8), mirror=(2,)))
    assert np.allclose(again[..., ::-1], own, atol=1e-5), "with mirroring the result does not know left from right"


def test_batches_change_nothing(rng):
    _, predict = network()
    image = rng.standard_normal((1, 9, 13, 17), dtype=np.float32)
    one, _ = whole(image, [predict], PLAN)
    five, _ = whole(image, [predict], WindowPlan((4, 6, 8), batch_size=5))
    assert np.allclose(one, five, atol=1e-5)


def test_what_cannot_be_is_refused(rng):
    image = np.zeros((1, 4, 6, 8), np.float32)
    with pytest.raises(InputError, match="no network"):
        next(slide(image, [], PLAN))
    with pytest.raises(InputError, match=r"shape \(c, d, h, w\)"):
        next(slide(image[0], [identity], PLAN))
    with pytest.raises(RunError, match="NaN"):
        next(slide(image, [lambda x: x * np.nan], PLAN))
    with pytest.raises(RunError, match="voxels of a patch"):
        next(slide(image, [lambda x: x[:, :, 1:]], PLAN))


@pytest.mark.parametrize(
    "fields", [{"patch": (0, 1, 1)}, {"overlap": (1, 0, 0)}, {"blend": "max"}, {"mirror": (3,)}, {"batch_size": 0}]
)
def test_impossible_plans_are_refused(fields):
    with pytest.raises(InputError):
        WindowPlan(**{"patch": (4, 4, 4), **fields})


def test_entropy_and_bytes_by_hand():
    p = np.array([[1.0, 0.5, 0.25], [0.0, 0.5, 0.75]], np.float32)
    expected = [0, 1, -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))]
    assert np.allclose(entropy(p), expected, atol=1e-6)
    assert np.allclose(entropy(np.full((4, 1), 0.25, np.float32)), 1)
    assert not entropy(np.ones((1, 3), np.float32)).any()
    assert to_bytes(np.array([-0.1, 0.5, 1.0, 1.2], np.float32)).tolist() == [0, 128, 255, 255]


MEMORY = """
import json, resource, sys
import numpy as np
from pneumoscope.inference.windows3d import WindowPlan, slide

d = int(sys.argv[1])
image = np.zeros((1, d, 256, 256), np.float32)
image += 1
plan = WindowPlan((32, 256, 256))
def predict(patches):
    return np.full((len(patches), 4, *patches.shape[2:]), 0.25, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
labels = np.ones((d, 256, 256), np.uint8)
for slab in slide(image, [predict], plan):
    labels[slab.start : slab.start + slab.probability.shape[1]] = slab.probability.argmax(0)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([peak - before, plan.slab_bytes(image.shape[1:], 4), labels.nbytes]))
"""


def test_memory_is_a_slab_and_not_the_volume():
    """Peak of a fresh process above its start: the slab, what is handed on, the labels; no more for more slices."""

    def peak(slices):
        ran = subprocess.run(
            [sys.executable, "-c", MEMORY, str(slices)], capture_output=True, text=True, check=True, timeout=100
        )
        return json.loads(ran.stdout)

    short, slab, labels = peak(96)
    assert slab == 4 * 6 * 32 * 256 * 256
    assert short < 4 * slab + labels + 30e6
    long, same_slab, more_labels = peak(288)
    assert same_slab == slab
    assert long - short < more_labels - labels + 30e6, "only labels grow with the number of slices"
    assert long < 4 * 4 * 288 * 256 * 256, "less than the whole volume's probabilities would take"
