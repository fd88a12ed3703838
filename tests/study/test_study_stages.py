import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pneumoscope.errors import InputError, ModelError
from pneumoscope.models.cards import read_card
from pneumoscope.models.options import ModelOptions
from pneumoscope.progress import Noted
from pneumoscope.recipes.settings import revise, with_overrides
from pneumoscope.study.data import build_set
from pneumoscope.study.learners.base import StudyContext
from pneumoscope.study.learners.slices import StageJob, new_model, train_stage
from pneumoscope.study.lungs import LungSupply, evenly


def job(small, name="Tr1", start=None, **changes):
    values = {
        "in_channels": small.preprocessing.channels,
        "out_channels": 2,
        "features": small.network.features,
        "budget": small.stages.first,
        "task": "infiltrate",
        **changes,
    }
    return StageJob(name=name, start=start, **values)


@pytest.fixture
def slices():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 4, 16, 16), dtype=np.uint8)
    bright = (images[:, 0] > 128).astype(np.uint8)
    target = np.stack([bright, 1 - bright], axis=1)
    return images, target, [f"case slice {n}" for n in range(6)]


def trained(experiment, made, train, val, folder, **context):
    return train_stage(StudyContext(experiment, {}, folder, **context), made, train, val)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)


def test_a_stage_leaves_model_card_history_and_checkpoint(small, slices, tmp_path):
    done = trained(small, job(small), slices, slices, tmp_path)
    folder = tmp_path / "stages" / "Tr1"
    for name in ("model.safetensors", "card.json", "history.csv", "last.ckpt", "done.json"):
        assert (folder / name).is_file(), name
    card = read_card(folder)
    assert card["task"] == "infiltrate"
    assert card["preprocessing"]["windows_hu"] == [[-970, -150], [-700, -450], [-450, -150]]
    assert card["training"]["epochs_run"] == 2
    assert card["weights"]["sha256"] == done.weights_sha256
    assert done.trained_now


def test_the_card_serves_inference(small, slices, tmp_path):
    from pneumoscope.inference.segmenter import Segmenter

    done = trained(small, job(small), slices, slices, tmp_path)
    assert Segmenter(ModelOptions(model=done.folder)).input.lung_channel


def test_a_reason_that_is_worded_anew_trains_nothing_again(small, slices, tmp_path):
    trained(small, job(small), slices, slices, tmp_path)
    reworded = replace(small, training=revise(small.training, "our choice: put better", seed=small.training.seed))
    assert not trained(reworded, job(reworded), slices, slices, tmp_path, resume=True).trained_now


def swapped(array):
    """Two values exchanged: names, shapes and sums stay as they were."""
    other = array.copy()
    flat = other.reshape(-1)
    a, b = int(flat.argmax()), int(flat.argmin())
    flat[a], flat[b] = flat[b], flat[a]
    return other


@pytest.mark.parametrize(
    ("change", "said"),
    [("scan", "training data"), ("mask", "training data"), ("validation mask", "validation data"),
     ("setting", "settings")],
)  # fmt: skip
def test_a_stage_whose_data_or_settings_changed_is_trained_anew_and_says_so(small, slices, tmp_path, change, said):
    trained(small, job(small), slices, slices, tmp_path)
    images, targets, names = slices
    train = val = slices
    if change == "scan":
        train = (swapped(images), targets, names)
    elif change == "mask":
        train = (images, swapped(targets), names)
    elif change == "validation mask":
        val = (images, swapped(targets), names)
    else:
        small = with_overrides(small, ["training.weight_decay=0.1"])
    noted = Noted()
    again = trained(small, job(small), train, val, tmp_path, resume=True, progress=noted)
    assert again.trained_now
    assert noted.notes == [f"Tr1: {said} changed since it was trained; it is trained again"]
    noted.notes = []
    assert not trained(small, job(small), train, val, tmp_path, resume=True, progress=noted).trained_now
    assert noted.notes == []


def test_weights_of_another_stage_put_in_its_place_are_not_taken(small, slices, tmp_path):
    """Card and weights agree with each other, and are not those that were trained here."""
    first = trained(small, job(small), slices, slices, tmp_path)
    other = with_overrides(small, ["training.seed=5"])
    stranger = trained(other, job(other), slices, slices, tmp_path / "other")
    for name in ("model.safetensors", "card.json"):
        shutil.copyfile(stranger.folder / name, first.folder / name)
    noted = Noted()
    again = trained(small, job(small), slices, slices, tmp_path, resume=True, progress=noted)
    assert same(weights(first), weights(again))
    assert noted.notes == ["Tr1: the kept weights are damaged or were replaced; restored from the checkpoint"]


def test_a_stage_started_from_other_weights_does_not_resume_their_checkpoint(small, slices, tmp_path):
    parents = [
        trained(e, job(e), slices, slices, tmp_path / str(n))
        for n, e in enumerate((small, with_overrides(small, ["training.seed=5"])))
    ]
    retrain = {"budget": small.stages.retrain}
    trained(small, job(small, "Tr1_R_2", parents[0], **retrain), slices, slices, tmp_path)
    (tmp_path / "stages" / "Tr1_R_2" / "done.json").unlink()  # killed at the end; then its parent is another
    other = trained(small, job(small, "Tr1_R_2", parents[1], **retrain), slices, slices, tmp_path, resume=True)
    clean = trained(small, job(small, "Tr1_R_2", parents[1], **retrain), slices, slices, tmp_path / "clean")
    assert same(weights(other), weights(clean))


def test_a_stage_begins_with_the_weights_of_the_one_before(small, slices, tmp_path):
    first = trained(small, job(small), slices, slices, tmp_path)
    still = with_overrides(small, ["stages.retrain.learning_rate=1e-12"])
    second = trained(still, job(still, "Tr1_R_2", first, budget=still.stages.retrain), slices, slices, tmp_path)
    for name, tensor in first.model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert np.allclose(tensor.numpy(), second.model.state_dict()[name].numpy(), atol=1e-6), name
    said = read_card(second.folder)["started_from"]
    assert said.startswith("weights of Tr1: ")
    assert "left fresh" not in said


def test_weights_of_another_shape_are_refused(small, slices, tmp_path):
    first = trained(small, job(small), slices, slices, tmp_path)
    with pytest.raises(ModelError, match="Tr1 does not fit the next stage"):
        trained(small, job(small, "wide", first, features=(4, 16)), slices, slices, tmp_path)


def test_the_first_weights_depend_on_the_seed_alone(small):
    states = [new_model(e, job(small)).state_dict() for e in (small, small, with_overrides(small, ["training.seed=1"]))]
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_lungs_are_found_by_a_network_that_is_trained_once(small, hospitals, find_all_lungs, tmp_path):
    sets = {}
    supply = LungSupply(small, sets, tmp_path)
    sets.update({n: build_set(small, small.site(n), hospitals[n], tmp_path, lungs_for=supply) for n in (1, 2)})
    assert not supply.model_folder.exists()  # sets with masks ask for nothing
    three = build_set(small, small.site(3), hospitals[3], tmp_path, lungs_for=supply)
    assert three.supplied == 4
    marker = json.loads((supply.model_folder / "done.json").read_text())
    again = LungSupply(small, sets, tmp_path, resume=True)
    assert not again.network().trained_now
    assert again.network().weights_sha256 == marker["sha256"]
    assert read_card(supply.model_folder)["task"] == "lungs"


def test_a_teaching_set_without_lung_masks_is_named(small, hospitals, tmp_path):
    supply = LungSupply(small, {}, tmp_path)
    with pytest.raises(InputError, match=r"set 1 holds scans without lung masks"):
        build_set(small, small.site(1), hospitals[3], tmp_path, lungs_for=supply)


def test_thinning_keeps_both_ends():
    assert evenly(3, 5).tolist() == [0, 1, 2]
    assert evenly(11, 3).tolist() == [0, 5, 10]
