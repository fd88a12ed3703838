"""Model cards: found by name or folder, read strictly, weights checked by their sum."""

import json

import pytest

from pneumoscope.errors import ModelError
from pneumoscope.io.files import sha256, write_json
from pneumoscope.models import cards

WEIGHTS = b"not really tensors"


@pytest.fixture
def root(tmp_path):
    for name in ("lungs", "infiltrate"):
        folder = tmp_path / "shipped" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        weights = {
            "file": "model.safetensors",
            "bytes": len(WEIGHTS),
            "sha256": sha256(folder / "model.safetensors"),
        }
        write_json(folder / "card.json", {"format": 1, "architecture": {"name": "unet"}, "weights": weights})
    return tmp_path / "shipped"


def change_card(folder, **entries):
    card = json.loads((folder / "card.json").read_text())
    write_json(folder / "card.json", {**card, **entries})


def test_shipped_models_are_listed_by_folder(root):
    assert cards.shipped_models(root) == ["infiltrate", "lungs"]


def test_no_shipped_models(tmp_path):
    assert cards.shipped_models(tmp_path / "absent") == []


def test_find_by_name_and_by_folder(root, tmp_path, monkeypatch):
    assert cards.find_model("lungs", root=root) == root / "lungs"
    assert cards.find_model(root / "lungs", root=tmp_path) == root / "lungs"


def test_an_existing_folder_goes_before_a_shipped_name(root, monkeypatch, tmp_path):
    own = tmp_path / "lungs"
    own.mkdir()
    (own / "card.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert cards.find_model("lungs", root=root).resolve() == own.resolve()


@pytest.mark.parametrize(
    ("name", "words"),
    [("nope", "infiltrate, lungs"), ("../lungs", "neither"), ("", "lungs"), ("bad\nname", "neither")],
)
def test_unknown_model_names_the_known_ones(root, name, words):
    with pytest.raises(ModelError, match=words):
        cards.find_model(name, root=root)


def test_unknown_model_where_none_is_shipped(tmp_path):
    with pytest.raises(ModelError, match="no model is shipped"):
        cards.find_model("lungs", root=tmp_path)


def test_a_folder_without_a_card_is_said_to_be_one(root, tmp_path):
    with pytest.raises(ModelError, match=r"without card\.json"):
        cards.find_model(tmp_path, root=root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "lacks format, architecture, weights"),
        ('{"format": 1, "architecture": {}}', "lacks weights"),
        ('{"format": 99, "architecture": {}, "weights": {}}', "update pneumoscope"),
        ('{"format": "x", "architecture": {}, "weights": {}}', "update pneumoscope"),
        ('{"format": 1, "architecture": {}, "weights": {"file": "a"}}', "SHA-256"),
        ('{"format": 1, "architecture": {}, "weights": {"file": "../a", "sha256": "0"}}', "outside"),
    ],
)
def test_cards_that_cannot_be_used(tmp_path, text, words):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        cards.read_card(tmp_path)


def test_absent_card(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        cards.read_card(tmp_path)


def test_whole_weights(root):
    report = cards.verify(root / "lungs")
    assert report.ok
    assert report.as_dict()["ok"] is True
    assert "whole" in report.sentence()


def test_one_flipped_bit_is_found(root):
    file = root / "lungs" / "model.safetensors"
    file.write_bytes(bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:])
    report = cards.verify(root / "lungs")
    assert not report.ok
    assert "damaged" in report.sentence()


def test_absent_weights(root):
    (root / "lungs" / "model.safetensors").unlink()
    report = cards.verify(root / "lungs")
    assert not report.ok
    assert "absent" in report.sentence()
    assert report.found_bytes is None


def test_card_and_saved_model_agree(tmp_path):
    unet, weights = pytest.importorskip("pneumoscope.models.unet"), pytest.importorskip("pneumoscope.models.weights")
    model = unet.UNet(unet.UNetConfig(in_channels=1, out_channels=1, features=(2, 4)))
    card = weights.save_model(tmp_path, model, {"licence": "CC0"})
    assert cards.read_card(tmp_path) == card
    assert cards.verify(tmp_path).ok


@pytest.mark.parametrize("name", cards.shipped_models())
def test_every_shipped_model_is_whole_and_says_what_it_is(name):
    card = cards.read_card(cards.find_model(name))
    assert cards.verify(cards.find_model(name)).ok
    assert card["licence"]
