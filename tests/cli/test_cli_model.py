"""`pneumoscope model`: shipped and own models."""

import json

import pytest

from pneumoscope.io.files import sha256
from pneumoscope.models import cards


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """One shipped model, called lungs."""
    folder = tmp_path / "shipped" / "lungs"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"tensors")
    weights = {"file": "model.safetensors", "bytes": 7, "sha256": sha256(folder / "model.safetensors")}
    card = {
        "format": cards.FORMAT, "architecture": {"name": "unet"}, "licence": "CC BY 4.0", "task": "lungs",
        "weights": weights,
    }  # fmt: skip
    cards.write_card(folder, card)
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "shipped")
    return folder


def test_list(cli, shipped):
    assert "lungs" in cli("model", "list").out
    [row] = cli("model", "list", "--json").json
    assert row["name"] == "lungs"
    assert row["licence"] == "CC BY 4.0"


def test_list_without_models(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "SHIPPED", tmp_path)
    assert cli("model", "list", "--json").json == []


@pytest.mark.parametrize("by", ["name", "folder"])
def test_info_is_the_card(cli, shipped, by):
    ran = cli("model", "info", "lungs" if by == "name" else shipped, "--json")
    assert ran.json["weights"] == json.loads((shipped / "card.json").read_text())["weights"]
    assert "licence: CC BY 4.0" in cli("model", "info", "lungs").out


def test_info_of_an_unknown_model(cli, shipped):
    cli("model", "info", "heart").refused("heart", "lungs")


def test_verify_all_or_named(cli, shipped):
    assert cli("model", "verify").out.startswith("lungs: ok")
    assert cli("model", "verify", shipped, "--json").json[0]["ok"] is True


def test_verify_finds_a_card_edited_by_hand(cli, shipped):
    text = (shipped / "card.json").read_text()
    (shipped / "card.json").write_text(text.replace("CC BY 4.0", "CC0"))
    ran = cli("model", "verify")
    ran.refused("1 of 1", "lungs", code=1)
    assert "lungs: FAILED: card.json was changed" in ran.out
    cli("model", "info", "lungs").refused("card.json", "changed")


def test_verify_finds_damage_and_fails(cli, shipped):
    (shipped / "model.safetensors").write_bytes(b"tensorz")
    ran = cli("model", "verify")
    ran.refused("1 of 1", "lungs", code=1)
    assert "damaged" in ran.out
    ran = cli("model", "verify", "--json")
    assert ran.code == 1
    assert ran.json[0]["ok"] is False


def test_export_writes_a_graph_and_says_what_it_is(cli, tmp_path):
    pytest.importorskip("onnx")
    ran = cli("model", "export", "lungs", "--to", "onnx", "-o", tmp_path / "out", "--size", "16x24x32", "--json")
    assert ran.json["files"] == ["card.json", "model.onnx"]
    assert ran.json["size"] == [16, 24, 32]
    assert json.loads((tmp_path / "out" / "card.json").read_text())["export"]["size"] == [16, 24, 32]
    cli("model", "export", "lungs", "--to", "onnx", "-o", tmp_path / "out").refused("--overwrite")
    assert "for pictures of 56 x 40 x 56" in cli("model", "export", "lungs", "--to", "bundle", "-o", tmp_path / "b").out


@pytest.mark.parametrize("size", ["32", "0x8", "axb", "1x2x3x4"])
def test_export_refuses_what_is_no_size(cli, tmp_path, size):
    ran = cli("model", "export", "lungs", "--to", "onnx", "-o", tmp_path / "out", "--size", size)
    assert ran.code == 2
    assert not (tmp_path / "out").exists()
