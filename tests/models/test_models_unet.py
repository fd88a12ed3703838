import dataclasses
import json

import numpy as np
import pytest
import torch

from pneumoscope.errors import ModelError
from pneumoscope.io.files import sha256
from pneumoscope.models.cards import read_card, seal, write_card
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.models.weights import load_into, load_model, save_model

SMALL = UNetConfig(3, 2, (4, 8, 12))


def net(config=SMALL, seed=0) -> UNet:
    torch.manual_seed(seed)
    return UNet(config).eval()


def test_parameter_count_by_hand():
    config = UNetConfig(1, 1, (2, 3), norm="none")
    down = (9 * 1 * 2 + 2) + (9 * 2 * 2 + 2) + (9 * 2 * 3 + 3) + (9 * 3 * 3 + 3)
    grow = 4 * 3 * 2 + 2
    up = (9 * 4 * 2 + 2) + (9 * 2 * 2 + 2)
    assert sum(p.numel() for p in UNet(config).parameters()) == down + grow + up + (2 + 1)


def test_the_papers_input_and_output():
    model = net(UNetConfig(4, 2, (4, 8, 16, 32, 64)))
    assert model.config.stride == 16  # four encoding levels
    assert model(torch.zeros(1, 4, 64, 64)).shape == (1, 2, 64, 64)


def test_half_precision_storage_is_half_the_size_and_close(tmp_path):
    model = net()
    full = save_model(tmp_path / "full", model)["weights"]["bytes"]
    half = save_model(tmp_path / "half", model, half=True)["weights"]["bytes"]
    assert half < 0.7 * full
    x = torch.randn(1, 3, 16, 16)
    assert torch.allclose(load_model(tmp_path / "half")[0](x), model(x), atol=2e-2)


def test_every_flipped_byte_is_noticed(tmp_path):
    save_model(tmp_path, net())
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 25).astype(int):
        bad = bytearray(whole)
        bad[position] ^= 1
        path.write_bytes(bad)
        with pytest.raises(ModelError, match="damaged"):
            load_model(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "text", "type"])
def test_damaged_weights_with_a_right_sum_are_refused(tmp_path, damage):
    """The sums say that the files are as they were written, not that they are right."""
    save_model(tmp_path, net())
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({
        "cut": data[:-7], "header": b"\xff" * 8 + data[8:], "empty": b"", "text": b"not tensors at all",
        "type": data.replace(b'"F32"', b'"X32"', 1),
    }[damage])  # fmt: skip
    card = read_card(tmp_path)
    card["weights"] |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_card(tmp_path, card)
    with pytest.raises(ModelError, match=r"model\.safetensors: is not a complete safetensors file"):
        load_model(tmp_path)


def test_a_card_edited_by_hand_is_not_loaded(tmp_path):
    save_model(tmp_path, net(), {"threshold": 0.5})
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card))  # other blanks, the same values
    load_model(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps(card | {"threshold": 0.01}))
    with pytest.raises(ModelError, match=r"card\.json: was changed after it was written"):
        load_model(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({k: v for k, v in card.items() if k != "card_sha256"}))
    with pytest.raises(ModelError, match="its own SHA-256"):
        load_model(tmp_path)
    assert seal(card) == card["card_sha256"]


def test_weights_of_another_shape_are_listed_with_both_shapes():
    source = net(dataclasses.replace(SMALL, out_channels=3)).state_dict()
    source["extra"] = torch.zeros(2)
    model = net(seed=1)
    before = model.head.weight.clone()
    report = load_into(model, source)
    assert report.mismatched["head.weight"] == ((3, 4, 1, 1), (2, 4, 1, 1))
    assert report.unused == ("extra",)
    assert not report.complete
    assert "head.weight has shape (3, 4, 1, 1) in the source, (2, 4, 1, 1) here" in report.sentence()
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model.down[0][0].weight, source["down.0.0.weight"])


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = net()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    save_model(tmp_path, model)
    with pytest.raises(ModelError, match="NaN"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "vnet"}, "vnet"),
        ({"name": ["unet"]}, "known are"),
        ({"width": 3}, "not a unet"),
        ({"features": [4, 8, 16]}, "do not fit"),
        ({"features": [1_000_000, 1_000_000]}, "do not fit"),  # terabytes, which are never allocated
        ({"features": [4, -8]}, "not a unet"),
        ({"features": 7}, "not a unet"),
        ({"features": {"a": 1}}, "not a unet"),
        ({"in_channels": "3"}, "not a unet"),
        ({"in_channels": 10**18}, "not a unet"),
        ({"dropout": None}, "not a unet"),
    ],
)
def test_a_card_that_lies_about_the_network_is_refused(tmp_path, change, says):
    save_model(tmp_path, net())
    card = read_card(tmp_path)
    card["architecture"] |= change
    write_card(tmp_path, card)
    with pytest.raises(ModelError, match=says):
        load_model(tmp_path)


def test_own_u_net_computes_what_its_parts_say():
    """One level by hand with torch's functional layers: the skip goes first, the grown map second."""
    model = net(UNetConfig(1, 1, (2, 3), norm="none"))
    x = torch.randn(1, 1, 4, 4)
    f = torch.nn.functional
    w = model.state_dict()
    top = f.relu(f.conv2d(x, w["down.0.0.weight"], w["down.0.0.bias"], padding=1))
    top = f.relu(f.conv2d(top, w["down.0.3.weight"], w["down.0.3.bias"], padding=1))
    low = f.relu(f.conv2d(f.max_pool2d(top, 2), w["down.1.0.weight"], w["down.1.0.bias"], padding=1))
    low = f.relu(f.conv2d(low, w["down.1.3.weight"], w["down.1.3.bias"], padding=1))
    grown = f.conv_transpose2d(low, w["grow.0.weight"], w["grow.0.bias"], stride=2)
    up = f.relu(f.conv2d(torch.cat((top, grown), 1), w["up.0.0.weight"], w["up.0.0.bias"], padding=1))
    up = f.relu(f.conv2d(up, w["up.0.3.weight"], w["up.0.3.bias"], padding=1))
    expected = f.conv2d(up, w["head.weight"], w["head.bias"])
    assert torch.allclose(model(x), expected, atol=1e-6)
