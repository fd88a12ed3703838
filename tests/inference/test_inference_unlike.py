from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from fit_familiar import fit_scans, write_scan_space
from pneumoscope.errors import ModelError
from pneumoscope.geometry import Grid
from pneumoscope.inference.inputs import HuFrameInput, LungFrameInput, input_from_card
from pneumoscope.inference.out_of_distribution import FINDING, read_scan_space
from pneumoscope.inference.segmenter import STATE_OF_FINDING, Segmenter
from pneumoscope.models.options import ModelOptions
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.models.weights import save_model
from pneumoscope.preprocess.slices import Appearance, to_slices
from pneumoscope.severity.states import STATES
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

WINDOWS = [[-1024, 400], [-1000, -500]]
CARD = {
    "task": "infiltrate",
    "preprocessing": {"kind": "hu_frame", "frame": [36, 48], "size": 64, "windows_hu": WINDOWS},
}
GRID = Grid((56, 40, 9), [[-4.0, 0, 0, 90], [0, -5.0, 0, 80], [0, 0, 6.0, -20], [0, 0, 0, 1]])


def chest(seed):
    """A body with two lungs of random size, the spine behind, as (scan, lungs); the axes are stored flipped."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, 56), np.linspace(-1, 1, 40), indexing="ij")
    wide = rng.uniform(0.3, 0.33)
    hu = np.where((x / 0.95) ** 2 + (y / 0.9) ** 2 < 1, 40.0, -1000.0)
    right, left = (((x - side * 0.45) / wide) ** 2 + (y / 0.7) ** 2 < 1 for side in (-1, 1))
    hu[right | left] = -850
    hu[(np.abs(x) < 0.12) & (y > 0.3) & (y < 0.75)] = 300
    hu[y > 0.93] = 100  # the table
    hu = np.repeat(hu[..., None], 9, axis=2) + rng.normal(0, 20, (56, 40, 9))
    labels = np.repeat((right + 2 * left).astype(np.uint8)[..., None], 9, axis=2)
    return Volume.from_native(hu, GRID), Mask.from_native(labels, GRID, LUNG_LABELS)


def frames(volume, lungs):
    seen = input_from_card(CARD)
    return seen.fitted(to_slices(lungs.labels) > 0).framed(to_slices(volume.hu))


@pytest.fixture(scope="module")
def space():
    return fit_scans({str(seed): frames(*chest(seed)) for seed in range(20)})


def test_another_chest_is_within_and_a_prone_or_turned_one_is_not(space):
    own = frames(*chest(17))
    assert space.distance(own) <= space.limit
    for other in (own[:, ::-1], np.rot90(own, axes=(1, 2)).repeat(2, axis=2)[:, :36, :48], -600 - own):
        assert space.distance(other) > space.limit
    assert space.findings(None) == () == space.findings(space.limit)
    (finding,) = space.findings(space.limit + 1)
    assert finding.code == FINDING
    assert STATE_OF_FINDING[FINDING] in STATES


def test_a_scan_says_how_far_it_is_and_a_state_when_too_far(tmp_path, space):
    torch.manual_seed(0)
    card = CARD | {"familiar": write_scan_space(tmp_path, space)}
    save_model(tmp_path, UNet(UNetConfig(2, 1, (4, 8))), card)
    segmenter = Segmenter(ModelOptions(model=tmp_path))
    volume, lungs = chest(21)
    found = segmenter.run(volume, lungs)
    assert found.distance == pytest.approx(space.distance(frames(volume, lungs)))
    assert FINDING not in [finding.code for finding in found.findings]
    prone = Volume(np.ascontiguousarray(volume.hu[:, ::-1]), volume.grid, volume.native)
    turned = Mask(np.ascontiguousarray(lungs.labels[:, ::-1]), lungs.grid, LUNG_LABELS)
    assert FINDING in [finding.code for finding in segmenter.run(prone, turned).findings]
    assert segmenter.run(volume, Mask.empty(volume.grid, LUNG_LABELS)).distance is None


def test_the_space_is_read_as_it_was_written_and_damage_is_found(tmp_path, space):
    entry = write_scan_space(tmp_path, space)
    back = read_scan_space(tmp_path, entry)
    own = frames(*chest(3))
    assert back.distance(own) == space.distance(own)
    assert back.limit == space.limit
    with pytest.raises(ModelError, match="incomplete"):
        read_scan_space(tmp_path, {name: value for name, value in entry.items() if name != "limit"})
    with pytest.raises(ModelError, match="not the one of the card"):
        read_scan_space(tmp_path, entry | {"sha256": "0" * 64})


def test_a_frame_of_windows_is_the_scan_as_it_is():
    """Where the lungs fill a frame of the scan's own size, channels are the windows of its Hounsfield units."""
    rng = np.random.default_rng(0)
    stack = rng.uniform(-1200, 600, (2, 48, 48)).astype(np.float32)
    lungs = np.zeros(stack.shape, bool)
    lungs[:, 2:46, 2:46] = True  # with the margin of 2 pixels the whole slice
    seen = input_from_card(
        {"preprocessing": {"kind": "hu_frame", "frame": [48, 48], "size": 48, "windows_hu": WINDOWS}}
    )
    assert isinstance(seen, HuFrameInput)
    images = seen.fitted(lungs).images(stack, lungs)
    assert images.shape == (2, 2, 48, 48)
    assert images.dtype == np.float32
    assert images[:, 0] == pytest.approx((np.clip(stack, -1024, 400) + 1024) / 1424, abs=1e-5)
    assert images[:, 1] == pytest.approx((np.clip(stack, -1000, -500) + 1000) / 500, abs=1e-5)
    assert seen.fitted(lungs).back(images[:, 0], (48, 48)) == pytest.approx(images[:, 0], abs=1e-4)


def test_outside_of_the_slice_is_air_and_no_frame_is_refused():
    stack = np.full((1, 32, 32), 40, np.float32)
    lungs = np.zeros(stack.shape, bool)
    lungs[:, 0:8, 0:30] = True  # wide and low: the frame reaches beyond the slice
    seen = HuFrameInput((32, 32), 32, input_from_card(CARD).windows)
    images = seen.fitted(lungs).images(stack, lungs)
    assert images[0, 0].min() == 0
    assert images[0, 0].max() == pytest.approx(1064 / 1424)
    with pytest.raises(ModelError, match="lung mask"):
        seen.fitted(None)
    with pytest.raises(ModelError, match="fitted"):
        seen.images(stack, lungs)


def test_an_appearance_adds_the_equalised_slice_in_the_same_frame():
    rng = np.random.default_rng(1)
    stack = rng.uniform(-1000, 300, (2, 64, 80)).astype(np.float32)
    lungs = np.zeros(stack.shape, bool)
    lungs[:, 20:44, 10:60] = True
    grey = Appearance(size=64)
    fields = CARD["preprocessing"] | {"appearance": asdict(grey)}
    plain, both = (input_from_card({"preprocessing": p}).fitted(lungs) for p in (CARD["preprocessing"], fields))
    images = both.images(stack, lungs)
    assert images.shape == (2, 3, 36, 48)
    assert np.array_equal(images[:, :2], plain.images(stack, lungs))
    expected = LungFrameInput((36, 48), grey).fitted(lungs).images(stack, lungs)[:, 0]
    assert np.array_equal(images[:, 2], expected.astype(np.float32) / np.float32(255))
    with pytest.raises(ModelError, match="cannot be read"):
        input_from_card({"preprocessing": fields | {"size": 48}})
