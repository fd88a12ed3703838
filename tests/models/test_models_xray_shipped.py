"""The shipped model of radiographs: small, whole, with a card that tells how little its numbers say; and real films."""

import json

import numpy as np
import pytest

from pneumoscope.inference.radiographs import DEFAULT_MODEL, RadiographClassifier
from pneumoscope.io.formats.radiograph import read_radiograph
from pneumoscope.models.cards import find_model, read_card

MOST_BYTES = 1_600_000


@pytest.fixture(scope="module")
def classifier():
    return RadiographClassifier(DEFAULT_MODEL, device="cpu")


def test_it_is_small_and_its_card_tells_data_licences_and_limits():
    folder = find_model(DEFAULT_MODEL)
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    card = read_card(folder)
    assert "CC BY-NC-SA" in card["licence"]
    assert {entry["name"] for entry in card["training_data"]} == {"kermany", "cohen", "hannover", "nih"}
    assert all(entry["licence"] and entry["citation"] and entry["pictures"] > 0 for entry in card["training_data"])
    assert any("not been shown" in limit for limit in card["limits"])
    assert "/" not in json.dumps(card["training"]).replace("scripts/train_xray.py", "")


def test_its_numbers_stand_beside_a_regression_on_thumbnails():
    numbers = read_card(find_model(DEFAULT_MODEL))["numbers"]
    own = numbers["in_source"]
    assert 0 < own["thumbnails"]["accuracy"] < own["accuracy"] < 1
    assert 0 <= own["expected_calibration_error"] < 0.1
    assert 0 <= numbers["healthy_adults"]["if_all_were_answered"]["covid19"] < 0.2
    assert numbers["unseen_sources"]
    for source, found in numbers["unseen_sources"].items():
        assert source in ("hannover", "cohen", "nih")
        assert set(found["unseen"]["thumbnails"]) == set(found["unseen"]["if_all_were_answered"])


def test_noise_and_one_bright_disc_get_no_class(classifier, rng):
    r, c = np.mgrid[0:200, 0:200] / 200
    pictures = [rng.random((200, 200)), (np.hypot(r - 0.5, c - 0.5) < 0.3).astype(float)]
    answers = classifier.answer(np.stack([classifier.recipe.make(p.astype(np.float32)) for p in pictures]))
    assert [a.prediction for a in answers] == ["none of these"] * 2


@pytest.mark.real
def test_real_films_get_classes_and_real_slices_none(classifier, real_data):
    """Training pictures may be among these: they only show that the weights and the way to them are right."""

    def ask(pattern):
        paths = sorted((real_data).glob(pattern))[:400:10]
        if not paths:
            pytest.skip(f"no {pattern} in {real_data}")
        pictures = [read_radiograph(path, least_side=classifier.least_side) for path in paths]
        answers = classifier.answer(np.stack([classifier.square(picture) for picture in pictures]))
        return {
            name: np.mean([a.prediction == name for a in answers]) for name in (*classifier.classes, "none of these")
        }

    assert ask("xray/nih-no-finding/*.jpg")["covid19"] < 0.15
    assert ask("xray/nih-no-finding/*.jpg")["normal"] > 0.7
    assert ask("xray/kermany/chest_xray/train/PNEUMONIA/*bacteria*")["bacterial"] > 0.75
    assert ask("xray/hannover-covid/*.jpg")["covid19"] > 0.75
    slices = ask("ct-slices/coronacases/*/ct/*.png")
    assert sum(slices[name] for name in classifier.classes) < 0.05


@pytest.mark.real
def test_real_films_of_full_size_get_nearly_the_same_answer_shrunk(classifier, real_data, tmp_path):
    import cv2

    paths = sorted((real_data / "xray" / "nih-no-finding").glob("*.jpg"))[:12]
    if not paths:
        pytest.skip(f"no radiographs in {real_data}; they belong into its folder xray")
    apart = []
    for number, path in enumerate(paths):
        grey = cv2.resize(cv2.imread(str(path), 0), (2000, 2430), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(grey + np.random.default_rng(number).normal(0, 3, grey.shape), 0, 255).astype(np.uint8)
        for suffix in ("jpg", "png"):
            cv2.imwrite(str(tmp_path / f"a.{suffix}"), noisy)
            whole, small = (
                read_radiograph(tmp_path / f"a.{suffix}", least_side=n) for n in (None, classifier.least_side)
            )
            assert small.pixels.size < whole.pixels.size / 5
            one, other = classifier.answer(np.stack([classifier.square(whole), classifier.square(small)]))
            apart.append(max(abs(one.probability[name] - other.probability[name]) for name in classifier.classes))
    assert max(apart) < 0.05
    assert np.mean(apart) < 0.01
