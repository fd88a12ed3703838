"""Model cards: found by name or folder, read strictly, weights checked by their sum."""

import json
import shutil

import pytest

from pneumoscope.errors import ModelError
from pneumoscope.io.files import sha256
from pneumoscope.models import cards

WEIGHTS = b"not really tensors"


@pytest.fixture
def root(tmp_path):
    for name in ("lungs", "infiltrate"):
        folder = tmp_path / "shipped" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        weights = {"file": "model.safetensors", "bytes": len(WEIGHTS), "sha256": sha256(folder / "model.safetensors")}
        cards.write_card(folder, {"format": cards.FORMAT, "architecture": {"name": "unet"}, "weights": weights})
    return tmp_path / "shipped"


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
    [
        ("nope", "infiltrate, lungs"),
        ("../lungs", "there is no model"),
        ("", "lungs"),
        ("bad\nname", r"there is no model 'bad\\nname'"),
    ],
)
def test_unknown_model_names_the_known_ones(root, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=words):
        cards.find_model(name, root=root)


def test_unknown_model_where_none_is_shipped(tmp_path):
    with pytest.raises(ModelError, match=r"there is no model 'lungs'; known are none"):
        cards.find_model("lungs", root=tmp_path)


def test_a_folder_without_a_card_is_said_to_be_one(root, tmp_path):
    with pytest.raises(ModelError, match=r"without card\.json"):
        cards.find_model(tmp_path, root=root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged"),
        ("[]", "expected an object"),
        ("[" * 100_000, "is damaged"),
        ('{"format": 2, "threshold": 1' + "0" * 400 + "}", "is damaged"),
        ('{"format": 2, "architecture": {}}', "lacks weights"),
        ('{"format": 99, "architecture": {}, "weights": {}}', "update pneumoscope"),
        ('{"format": 1, "architecture": {}, "weights": {}}', "train the model again"),
        ('{"format": "x", "architecture": {}, "weights": {}}', "train the model again"),
        ('{"format": 2, "architecture": {}, "weights": {"file": "a"}}', "SHA-256"),
        ('{"format": 2, "architecture": {}, "weights": {"file": "../a", "sha256": "0"}}', "outside"),
        ('{"format": 2, "architecture": [], "weights": {"file": "a", "sha256": "0"}}', "architecture"),
        ('{"format": 2, "architecture": {}, "weights": {"file": "a", "sha256": "0"}}', "its own SHA-256"),
        ('{"format": 2, "architecture": {}, "card_sha256": 7, "weights": {"file": "a", "sha256": "0"}}', "its own"),
        ('{"format": 2, "architecture": {}, "card_sha256": "0", "weights": {"file": "a", "sha256": "0"}}', "changed"),
    ],
)
def test_cards_that_cannot_be_used(tmp_path, text, words):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ModelError, match=words) as refused:
        cards.read_card(tmp_path)
    assert str(tmp_path / "card.json") in str(refused.value)


@pytest.mark.parametrize("shipped", cards.shipped_models())
def test_a_threshold_edited_by_hand_fails(tmp_path, shipped):
    folder = tmp_path / shipped
    shutil.copytree(cards.find_model(shipped), folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"threshold": 0.01}))
    report = cards.verify(folder)
    assert not report.ok
    assert "card.json was changed" in report.sentence()
    assert report.as_dict()["changed"] == ("card.json",)


def test_other_files_that_the_card_names_are_verified(tmp_path):
    shutil.copytree(cards.find_model("xray"), tmp_path / "xray")
    assert cards.verify(tmp_path / "xray").ok
    with (tmp_path / "xray" / "familiar.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"x")
    assert cards.verify(tmp_path / "xray").changed == ("familiar.safetensors",)


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
