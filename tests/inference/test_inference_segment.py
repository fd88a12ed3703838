from dataclasses import asdict

import numpy as np
import pytest
import torch

from pneumoscope.errors import GeometryError, InputError, ModelError, RunError
from pneumoscope.geometry import Grid
from pneumoscope.inference.engines import installed_engines, predict_probability
from pneumoscope.inference.inputs import HuWindowInput, LungFrameInput, input_from_card
from pneumoscope.inference.maps import infiltrate_mask
from pneumoscope.inference.segmenter import Segmenter, segment_volume
from pneumoscope.models.options import ModelOptions
from pneumoscope.models.unet import UNet, UNet3D, UNet3DConfig, UNetConfig
from pneumoscope.models.weights import save_model
from pneumoscope.preprocess.slices import Appearance, LungCrop
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

WINDOWS = {"kind": "hu_windows", "size": 32, "windows_hu": [[-970, -150], [-700, -450], [-450, -150]]}
FRAME = {"kind": "lung_frame", "frame": [24, 32], "appearance": asdict(Appearance(size=48))}


def save(folder, channels, preprocessing, task="infiltrate", bias=0.0):
    """A small network that says the same probability everywhere but for a little texture."""
    torch.manual_seed(1)
    model = UNet(UNetConfig(channels, 2, (4, 8)))
    with torch.no_grad():
        model.head.weight.mul_(0.01)
        model.head.bias[:] = torch.tensor([bias, -bias])
    save_model(folder, model, {"task": task, "preprocessing": preprocessing})
    return folder


@pytest.fixture
def scan():
    """A scan with awkward axes, and its lungs."""
    grid = Grid((30, 9, 28), [[0, 0, -2.5, 60], [2.0, 0, 0, -40], [0, 6.0, 0.2, 5], [0, 0, 0, 1]])
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 10, grid.shape)
    lungs = np.zeros(grid.shape, np.uint8)
    lungs[6:24, 1:8, 3:12] = 1
    lungs[6:24, 1:8, 16:25] = 2
    hu[lungs > 0] -= 880
    return Volume.from_native(hu, grid, case="awkward"), Mask.from_native(lungs, grid, LUNG_LABELS)


@pytest.mark.parametrize(
    ("channels", "preprocessing"), [(4, WINDOWS), (3, WINDOWS | {"lung_channel": False}), (2, FRAME)]
)
def test_the_mask_lies_on_the_scan_and_inside_the_lungs(tmp_path, scan, channels, preprocessing):
    volume, lungs = scan
    found = segment_volume(volume, ModelOptions(model=save(tmp_path, channels, preprocessing, bias=4.0)), lungs)
    assert found.infiltrate.grid == volume.grid
    assert found.infiltrate.names == INFILTRATE_LABEL
    assert not (found.infiltrate.any & ~lungs.any).any()
    assert found.infiltrate.any.sum() > 0.9 * lungs.any.sum()
    assert found.probability.dtype == np.uint8
    assert not found.probability[~lungs.any].any()
    assert found.cards["infiltrate"]["task"] == "infiltrate"
    assert "lungs" not in found.cards


def test_no_lung_means_no_infiltrate_and_no_network_run(tmp_path, scan, monkeypatch):
    volume, _ = scan
    segmenter = Segmenter(ModelOptions(model=save(tmp_path, 4, WINDOWS, bias=4.0)))
    monkeypatch.setattr("pneumoscope.inference.maps.predict_probability", None)
    found = segmenter.run(volume, Mask.empty(volume.grid, LUNG_LABELS))
    assert not found.infiltrate.any.any()


def test_slabs_do_not_change_the_result(tmp_path, scan, monkeypatch):
    volume, lungs = scan
    model = save(tmp_path, 2, FRAME)
    whole = segment_volume(volume, ModelOptions(model=model), lungs).probability
    monkeypatch.setattr("pneumoscope.inference.maps.SLAB", 2)
    assert np.array_equal(segment_volume(volume, ModelOptions(model=model), lungs).probability, whole)


def test_a_lung_mask_of_another_scan_is_refused(tmp_path, scan):
    volume, _ = scan
    other = Mask.empty(Grid.from_spacing(volume.grid.shape, (2, 2, 6)), LUNG_LABELS)
    with pytest.raises(GeometryError, match="lung mask lies on another grid"):
        Segmenter(ModelOptions(model=save(tmp_path, 4, WINDOWS))).run(volume, other)


def test_models_of_another_task_are_refused(tmp_path):
    save(tmp_path, 1, WINDOWS, task="lungs")
    with pytest.raises(ModelError, match="model for 'lungs', expected one for 'infiltrate'"):
        Segmenter(ModelOptions(model=tmp_path))


def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(InputError, match="not on this machine"):
        Segmenter(ModelOptions(model=save(tmp_path, 4, WINDOWS), device="cuda:7"))


@pytest.mark.parametrize(
    "preprocessing",
    [None, {}, {"kind": "wavelets"}, {"kind": "hu_windows"}, {"kind": "lung_frame", "frame": [3], "appearance": {}}],
)
def test_a_card_without_readable_preprocessing_is_refused(preprocessing):
    with pytest.raises(ModelError):
        input_from_card({"preprocessing": preprocessing})


@pytest.mark.parametrize(
    ("kind", "words"),
    [("grey8", "8-bit pictures"), ("grey8_2.5d", "8-bit"), ("hu_windows_2.5d", "with its neighbours"),
     ("raw_volume", "known are hu_windows"), ("wavelets", "known are hu_windows")],
)  # fmt: skip
def test_networks_of_studies_are_refused_in_one_line_that_names_the_folder(tmp_path, kind, words):
    save(tmp_path, 2, {"kind": kind, "size": 32, "windows_hu": [[0, 255]], "lung_channel": True})
    with pytest.raises(ModelError, match=words) as caught:
        Segmenter(ModelOptions(model=tmp_path))
    assert str(caught.value).startswith(str(tmp_path))
    assert "KeyError" not in str(caught.value)


def test_batches_and_mirror(scan):
    torch.manual_seed(0)
    model = UNet(UNetConfig(1, 1, (4, 8)))
    images = np.random.default_rng(0).random((5, 1, 16, 16)).astype(np.float32)
    one = predict_probability(model, images, batch_size=1)
    assert np.allclose(one, predict_probability(model, images, batch_size=4), atol=1e-6)
    both = predict_probability(model, images, mirror=True)
    flipped = predict_probability(model, images[..., ::-1].copy(), mirror=True)[..., ::-1]
    assert np.allclose(both, flipped, atol=1e-6)
    assert predict_probability(model, images[:0]).shape == (0, 1, 16, 16)
    byte = (images * 255).astype(np.uint8)
    assert np.allclose(predict_probability(model, byte), predict_probability(model, byte / np.float32(255)), atol=1e-6)


def test_probabilities_that_are_not_finite_are_an_error():
    model = UNet(UNetConfig(1, 1, (4, 8)))
    with pytest.raises(RunError, match="NaN"):
        predict_probability(model, np.full((1, 1, 8, 8), np.nan, np.float32))


def test_lung_crop_comes_back_where_it_was():
    lungs = np.zeros((3, 50, 60), bool)
    lungs[0, 10:30, 15:50] = True
    lungs[2, 20:35, 12:20] = True
    crop = LungCrop.around(lungs, (24, 32))
    picture = np.zeros((3, 50, 60), np.float32)
    picture[:, 18:24, 20:40] = 1
    back = crop.paste(crop.cut(picture).astype(np.float32)) > 0.5
    assert 2 * (back & (picture > 0)).sum() / (back.sum() + (picture > 0).sum()) > 0.93
    rows, columns = np.nonzero(back[0])
    assert abs(rows.mean() - 20.5) < 0.5
    assert abs(columns.mean() - 29.5) < 0.5
    assert crop.cut(lungs, nearest=True).any(axis=0).sum() > 0


def test_lung_crop_without_lungs_takes_the_whole_slice():
    crop = LungCrop.around(np.zeros((2, 20, 40), bool), (20, 40))
    picture = np.random.default_rng(0).random((2, 20, 40)).astype(np.float32)
    assert np.allclose(crop.cut(picture), picture, atol=1e-5)


def test_a_lung_frame_must_be_fitted_first():
    way = input_from_card({"preprocessing": FRAME})
    assert isinstance(way, LungFrameInput)
    with pytest.raises(ModelError, match="fitted"):
        way.images(np.zeros((1, 8, 8), np.float32), np.zeros((1, 8, 8), bool))
    with pytest.raises(ModelError, match="needs a lung mask"):
        way.fitted(None)


def test_the_papers_input_is_the_windows_and_the_lungs():
    way = input_from_card({"preprocessing": WINDOWS})
    assert isinstance(way, HuWindowInput)
    hu = np.full((1, 32, 32), -560.0, np.float32)
    lungs = np.zeros((1, 32, 32), bool)
    lungs[0, 4:8] = True
    channels = way.images(hu, lungs)[0]
    assert channels[:, 5, 5] == pytest.approx([410 / 820, 140 / 250, 0, 1])
    assert channels[3, 20, 20] == 0


def test_appearance_is_the_public_sets():
    rng = np.random.default_rng(0)
    hu = rng.normal(-300, 400, (2, 40, 40)).astype(np.float32)
    out = Appearance(size=64).of_hu(hu)
    assert out.dtype == np.uint8
    assert out.shape == (2, 64, 64)
    shifted = Appearance(size=64, window_hu=(-3000, 4000)).of_hu(hu * 0.5 + 200)
    assert np.abs(out.astype(int) - Appearance(size=64, window_hu=(-3000, 4000)).of_hu(hu)).mean() < 40
    assert np.abs(shifted.astype(int) - Appearance(size=64, window_hu=(-3000, 4000)).of_hu(hu)).max() <= 4
    assert not Appearance(size=64).of_hu(np.full((1, 40, 40), -1000, np.float32)).std() > 1
    with pytest.raises(InputError):
        Appearance(window_hu=(10, 10))


def test_specks_are_dropped_by_volume_and_lesions_stay():
    probability = np.zeros((12, 10, 8), np.uint8)
    probability[1:4, 1:4, 1:4] = 200  # 27 voxels
    probability[8, 8, 6] = probability[9, 9, 7] = 255  # two that touch at a corner
    lung, spacing = np.ones(probability.shape, bool), (5.0, 10.0, 2.0)  # 0.1 ml a voxel
    for threshold, ml, left in ((0.5, 0, 29), (0.5, 0.3, 27), (0.5, 2.8, 0), (0.9, 0, 2)):
        assert infiltrate_mask(probability, lung, spacing, {"threshold": threshold, "smallest_ml": ml}).sum() == left


def test_a_dome_of_the_diaphragm_is_no_infiltrate_and_a_lesion_upon_it_is():
    lung = np.zeros((30, 8, 20), bool)
    lung[:, :, 4:18] = True
    lung[10:20, :, 4:8] = False  # the dome
    probability = np.zeros(lung.shape, np.uint8)
    probability[11:19, 2:6, 8:11] = 255  # 9 mm over the dome
    spacing = (2.0, 2.0, 3.0)

    def left(mm, **other):
        return int(infiltrate_mask(probability, lung, spacing, {"threshold": 0.5, "dome_layer_mm": mm, **other}).sum())

    layer = 8 * 4 * 3
    assert (left(0), left(8), left(10)) == (layer, layer, 0)
    probability[2:8, 2:6, 12:14] = 255  # a flat lesion in the middle of the lung
    assert left(10) == 6 * 4 * 2
    probability[11:19, 2:6, 11:13] = 255  # 15 mm over the dome: a lesion of the base
    assert left(10) == 6 * 4 * 2 + 8 * 4 * 5
    assert left(10, threshold=1.0) == left(10)
    probability[:] = 0
    assert left(10) == 0


def test_in_a_single_slice_no_dome_is_told_from_infiltrate():
    lung, probability = np.ones((8, 8, 1), bool), np.zeros((8, 8, 1), np.uint8)
    probability[2:5, 2:5] = 255
    assert infiltrate_mask(probability, lung, (1.0, 1.0, 3.0), {"dome_layer_mm": 10.0}).sum() == 9


def test_infiltrate_must_be_denser_than_the_lung(tmp_path, scan):
    volume, lungs = scan
    folder = save(tmp_path, 2, FRAME, bias=4.0)
    free = Segmenter(ModelOptions(model=folder))
    bound = Segmenter(ModelOptions(model=folder))
    bound.card["denser_than_lung_hu"] = 120
    assert free.run(volume, lungs).infiltrate.any.sum() > 0.9 * lungs.any.sum()
    assert not bound.run(volume, lungs).infiltrate.any.any()


def test_an_engine_may_be_chosen_and_is_named(tmp_path, scan):
    volume, lungs = scan
    folder = save(tmp_path, 2, FRAME)
    plain = Segmenter(ModelOptions(model=folder, engine="torch", device="cpu", precision="fp32")).run(volume, lungs)
    assert plain.engines == {"infiltrate": "torch fp32"}
    for name in installed_engines():
        found = Segmenter(ModelOptions(model=folder, engine=name, device="cpu", precision="fp32")).run(volume, lungs)
        assert found.engines == {"infiltrate": f"{name} fp32"}
        assert np.abs(found.probability.astype(int) - plain.probability).max() <= 1
    with pytest.raises(InputError, match="no engine 'abacus'"):
        Segmenter(ModelOptions(model=folder, engine="abacus"))


@pytest.mark.parametrize("labels", [["background", "left lung", "right lung", "infection"], None])
def test_a_network_on_volumes_segments_inside_the_lungs(tmp_path, scan, labels):
    volume, lungs = scan
    torch.manual_seed(0)
    model = UNet3D(UNet3DConfig(1, 4 if labels else 1, (2, 4)))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias[-1] = 3
    card = {"kind": "hu_volume", "window_hu": [-1250, 250], "spacing_mm": [4, 4, 6], "patch": [4, 8, 8]}
    save_model(tmp_path, model, {"task": "infiltrate", "preprocessing": card, **({"labels": labels} if labels else {})})
    found = Segmenter(ModelOptions(model=tmp_path, device="cpu")).run(volume, lungs)
    assert found.infiltrate.grid == volume.grid
    assert np.array_equal(found.infiltrate.any, lungs.any), "everything is infiltrate to this network"
    chance = np.exp(3) / (np.exp(3) + (3 if labels else 1))
    assert set(np.unique(found.probability)) == {0, round(255 * chance)}
    empty = Mask.empty(volume.grid, LUNG_LABELS)
    assert not Segmenter(ModelOptions(model=tmp_path, device="cpu")).run(volume, empty).infiltrate.any.any()


PLAIN = {"device": "cpu", "precision": "fp32", "engine": "torch"}


def pair(tmp_path, preprocessing=WINDOWS, channels=4):
    """Two networks of the same preprocessing, one sure of infiltrate, one not quite sure of none."""
    return save(tmp_path / "a", channels, preprocessing, bias=4.0), save(
        tmp_path / "b", channels, preprocessing, bias=-1.0
    )


@pytest.mark.parametrize("mirror", [None, True])
def test_models_on_slices_are_averaged_and_their_uncertainty_by_hand(tmp_path, scan, mirror):
    volume, lungs = scan
    one, other = pair(tmp_path)
    alone = [
        Segmenter(ModelOptions(model=m, **PLAIN, mirror=mirror)).run(volume, lungs).probability / 255
        for m in (one, other)
    ]
    found = Segmenter(ModelOptions(model=(one, other), **PLAIN, mirror=mirror), uncertainty=True).run(volume, lungs)
    inside = lungs.any
    p = (alone[0] + alone[1]) / 2
    assert np.abs(found.probability / 255 - p)[inside].max() < 2 / 255
    q = p[inside]
    entropy = -(q * np.log2(q) + (1 - q) * np.log2(1 - q))
    assert np.abs(found.entropy[inside] / 255 - entropy).max() < 0.02
    spread = 2 * ((alone[0] - alone[1]) / 2) ** 2  # of both classes
    assert np.abs(found.variance[inside] / 255 - spread[inside]).max() < 0.02
    assert found.variance.max() > 60
    assert not found.entropy[~inside].any()
    assert not found.variance[~inside].any()
    card = found.cards["infiltrate"]
    assert [m["name"] for m in card["members"]] == ["a", "b"]
    assert card["threshold"] == 0.5
    assert found.mirrored == bool(mirror)


def test_uncertainty_changes_no_mask_and_one_vote_does_not_vary(tmp_path, scan):
    volume, lungs = scan
    model = save(tmp_path, 2, FRAME)
    for mirror in (False, True):
        plain = Segmenter(ModelOptions(model=model, **PLAIN, mirror=mirror)).run(volume, lungs)
        found = Segmenter(ModelOptions(model=model, **PLAIN, mirror=mirror), uncertainty=True).run(volume, lungs)
        assert plain.entropy is None
        assert np.array_equal(plain.probability, found.probability)
        assert found.variance.max() <= 1 if not mirror else True
        assert found.entropy[lungs.any].min() > 200, "this network is never sure"
    nowhere = Segmenter(ModelOptions(model=model), uncertainty=True).run(volume, Mask.empty(volume.grid, LUNG_LABELS))
    assert not nowhere.entropy.any()


def test_slices_much_closer_than_the_smoothing_are_not_all_shown_to_the_network(tmp_path, scan, monkeypatch):
    volume, lungs = scan  # seven slices of lung, 6 mm apart
    shown = []

    def counted(engine, images, **how):
        shown.append(len(images))
        return predict_probability(engine, images, **how)

    monkeypatch.setattr("pneumoscope.inference.maps.predict_probability", counted)
    segmenter = Segmenter(ModelOptions(model=save(tmp_path, 2, FRAME, bias=4.0), **PLAIN))
    for smooth_mm, slices in ((0.0, 7), (4.0, 7), (20.0, 4), (30.0, 3)):
        segmenter.members[0].card["smooth_z_mm"] = smooth_mm
        found = segmenter.run(volume, lungs)
        assert shown.pop() == slices
        assert found.infiltrate.any.sum() > 0.9 * lungs.any.sum()
        assert not found.infiltrate.any[~lungs.any].any()
        unsure = Segmenter(ModelOptions(model=tmp_path, **PLAIN), uncertainty=True)
        unsure.members[0].card["smooth_z_mm"] = smooth_mm
        assert np.array_equal(unsure.run(volume, lungs).probability, found.probability), "every slice is shown here"
        assert shown == [7, *shown[1:]]
        shown.clear()


def volumes(folder, bias, patch=(4, 8, 8)):
    torch.manual_seed(0)
    model = UNet3D(UNet3DConfig(1, 2, (4, 8)))
    with torch.no_grad():
        model.head.weight.mul_(3)
        model.head.bias[:] = torch.tensor([-bias, bias])
    card = {"kind": "hu_volume", "window_hu": [-1250, 250], "patch": list(patch)}
    labels = {"0": "background", "1": "infiltrate"}
    save_model(folder, model, {"task": "infiltrate", "preprocessing": card, "labels": labels})
    return folder


def test_models_on_volumes_are_averaged_mirrored_and_unsure(tmp_path, scan):
    volume, lungs = scan
    sure, unlike = volumes(tmp_path / "a", 1.0), volumes(tmp_path / "b", -0.5)
    alone = [Segmenter(ModelOptions(model=m, **PLAIN)).run(volume, lungs).probability / 255 for m in (sure, unlike)]
    found = Segmenter(ModelOptions(model=(sure, unlike), **PLAIN), uncertainty=True).run(volume, lungs)
    inside = lungs.any
    assert np.abs(found.probability / 255 - (alone[0] + alone[1]) / 2)[inside].max() < 2 / 255
    assert found.variance[inside].max() > 30
    assert not found.variance[~inside].any()
    mirrored = Segmenter(ModelOptions(model=sure, **PLAIN, mirror=True)).run(volume, lungs)
    assert mirrored.mirrored
    assert not np.array_equal(
        mirrored.probability, Segmenter(ModelOptions(model=sure, **PLAIN)).run(volume, lungs).probability
    )
    flipped = Volume(volume.hu[::-1].copy(), volume.grid, volume.grid)
    turned = Segmenter(ModelOptions(model=sure, **PLAIN, mirror=True)).run(
        flipped, Mask(lungs.labels[::-1].copy(), volume.grid, LUNG_LABELS)
    )
    assert np.abs(turned.probability[::-1].astype(int) - mirrored.probability).max() <= 1, "left and right are alike"


def test_models_that_do_not_go_together_are_refused(tmp_path):
    flat, deep = save(tmp_path / "flat", 4, WINDOWS), volumes(tmp_path / "deep", 1.0)
    with pytest.raises(ModelError, match="flat and deep cannot be averaged: one takes slices"):
        Segmenter(ModelOptions(model=(flat, deep)))
    with pytest.raises(ModelError, match="same preprocessing"):
        Segmenter(ModelOptions(model=(deep, volumes(tmp_path / "other", 1.0, (8, 8, 8)))))
    with pytest.raises(ModelError, match="at least one"):
        Segmenter(ModelOptions(model=()))
