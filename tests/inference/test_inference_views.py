"""The view classifier: what is not frontal gets no class, whatever the classifier thinks of it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from xray_models import SIDE, chest, make_model

from pneumoscope.datasets.phantom.folder import make_phantom
from pneumoscope.errors import ModelError
from pneumoscope.inference.out_of_distribution import REASONS, VIEWS_FILE, Views, read_views, shrunk
from pneumoscope.inference.radiographs import RadiographClassifier
from pneumoscope.io.formats.radiograph import read_radiograph
from pneumoscope.models.cards import read_card, verify, write_card


def projection(hu, spacing_mm, axis):
    """A radiograph (rows, columns) computed from a scan (x, y, z) in RAS+: sums of attenuation along an axis."""
    sums = np.clip(hu / 1000 + 1, 0, None).sum(axis=axis).T[::-1, ::-1]
    columns = np.flatnonzero(sums.max(axis=0) > 0.15 * sums.max())
    sums = np.ascontiguousarray(sums[:, columns[0] : columns[-1] + 1], np.float32)
    film = cv2.resize(sums, (sums.shape[1], round(len(sums) * spacing_mm[2] / spacing_mm[1 - axis])))
    low, high = np.percentile(film, (1, 99.5))
    return np.clip((film - low) / (high - low), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def shipped():
    return RadiographClassifier("xray", device="cpu")


@pytest.mark.parametrize("site", ["A", "B", "C"])
def test_projections_of_a_synthetic_chest_are_told_apart(shipped, site):
    scan = make_phantom(site, 40, seed=3, size="small").volume
    films = [projection(scan.hu, scan.spacing_mm, axis) for axis in (1, 0)]
    films += [films[1][:, ::-1].copy()]
    frontal, left, right = shipped.views.probability(np.stack([shipped.recipe.make(f) for f in films]))
    assert shipped.views.reason(frontal) == ""
    assert shipped.views.reason(left) == shipped.views.reason(right) == REASONS["lateral"]


def test_slices_of_a_synthetic_chest_are_no_films(shipped):
    scan = make_phantom("B", 41, seed=3, size="small").volume
    middle = scan.hu[:, :, scan.hu.shape[2] // 2].T[::-1, ::-1]
    grey = np.clip((middle + 1350) / 1500, 0, 1).astype(np.float32)
    answer = shipped.answer(shipped.recipe.make(grey)[None])[0]
    assert answer.prediction == "none of these"
    assert answer.scores["frontal"] < 0.5


class Fixed(torch.nn.Module):
    """Always the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([logits]))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_the_view_decides_before_the_class_and_a_turned_film_stays_one(tmp_path, rng):
    classifier = RadiographClassifier(make_model(tmp_path), device="cpu")
    film = chest(rng, 64)
    squares = np.stack([classifier.recipe.make(p) for p in (film, np.rot90(film, 2).copy())])
    assert [a.answered for a in classifier.answer(squares)] == [True, False]
    turned = classifier.answer(squares)[1].reason
    for logits, reason in (((0.0, 2.0, 1.0), REASONS["lateral"]), ((0.0, 0.6, 0.5), REASONS["other"])):
        classifier.views = Views(Fixed(logits), 16, {"lateral": 0.3, "other": 0.4})
        first, second = classifier.answer(squares)
        assert (first.prediction, first.reason) == ("none of these", reason)
        assert (second.prediction, second.reason) == ("none of these", turned)
        assert first.scores["frontal"] == pytest.approx(np.exp(logits[0]) / np.exp(logits).sum())
    classifier.views = replace(classifier.views, limits={"lateral": 0.3, "other": 0.3})
    assert classifier.answer(squares)[0].answered


def test_no_square_gives_no_row():
    views = Views(Fixed((0.0, 0.0, 0.0)), 16, {"lateral": 0.5, "other": 0.5})
    assert views.probability(np.zeros((0, SIDE, SIDE), np.uint8)).shape == (0, 3)
    assert shrunk(np.zeros((2, SIDE, SIDE), np.uint8), 16).shape == (2, 16, 16)


@pytest.mark.parametrize(
    "change",
    [
        {"side": "x"}, {"limits": {"lateral": 0.5}}, {"limits": {"lateral": 0.5, "other": float("nan")}},
        {"classes": ["frontal"]}, {"file": "../a"},
        {"architecture": {"name": "chest_cnn", "classes": 3, "features": [4]}},
    ],
)  # fmt: skip
def test_an_entry_that_does_not_fit_is_refused(shipped, change):
    with pytest.raises(ModelError):
        read_views(shipped.folder, {**shipped.card["views"], **change})


def test_a_damaged_network_fails_verification_and_loading(shipped, tmp_path):
    for path in shipped.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = bytearray((tmp_path / VIEWS_FILE).read_bytes())
    raw[-3] ^= 1
    (tmp_path / VIEWS_FILE).write_bytes(raw)
    assert verify(tmp_path).changed == (VIEWS_FILE,)
    with pytest.raises(ModelError, match=VIEWS_FILE):
        RadiographClassifier(tmp_path, device="cpu")


def test_a_model_without_the_entry_is_asked_without(shipped, tmp_path):
    for path in shipped.folder.iterdir():
        if path.name != VIEWS_FILE:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    card = json.loads((tmp_path / "card.json").read_text())
    del card["views"]
    write_card(tmp_path, card)
    classifier = RadiographClassifier(tmp_path, device="cpu")
    assert classifier.views is None
    assert "frontal" not in classifier.answer(np.zeros((1, 160, 160), np.uint8))[0].scores


def test_the_card_names_data_and_what_was_never_used(shipped):
    entry = read_card(shipped.folder)["views"]
    assert all(data["licence"] for data in entry["training_data"])
    chosen = [entry["numbers"]["chosen_on"][f"films of {name}"] for name in ("Cohen", "Hannover")]
    assert sum(n["pictures"] * (1 - n["frontal"]) for n in chosen) <= 0.01 * sum(n["pictures"] for n in chosen)
    assert len(entry["numbers"]["never_used"]) > 5


@pytest.mark.real
def test_real_lateral_films_get_no_class(shipped, real_data):
    paths = sorted((real_data / "xray" / "lateral").glob("*.*"))
    if not paths:
        pytest.skip(f"no lateral films in {real_data}; they belong into its folder xray/lateral")
    answers = shipped.answer(np.stack([shipped.square(read_radiograph(path)) for path in paths]))
    assert [a.prediction for a in answers] == ["none of these"] * len(paths)
