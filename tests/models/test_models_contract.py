"""What every U-Net keeps: any size, every parameter moved, refusals in words, settings and weights there and back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from pneumoscope.errors import InputError
from pneumoscope.models.r3d18_unet import R3D18UNet, R3D18UNetConfig
from pneumoscope.models.unet import UNet, UNet3D, UNet3DConfig, UNetConfig
from pneumoscope.models.weights import load_model, save_model

SMALL = {
    "unet": (UNet, UNetConfig(3, 2, (4, 8, 12))), "unet3d": (UNet3D, UNet3DConfig(2, 3, (2, 4, 6))),
    "r3d18_unet": (R3D18UNet, R3D18UNetConfig(2, 4, (8, 6, 5, 3))),
}  # fmt: skip
PLANES, BOXES = [(16, 16), (17, 23), (5, 4), (1, 1)], [(8, 8, 8), (5, 9, 7), (1, 1, 1), (3, 16, 2), (16, 32, 48)]
IMPOSSIBLE = {"features": [(4,), (0, 4)], "in_channels": [0], "norm": ["layer"], "dropout": [1.0], "order": ["x"],
              "decoder": [(1, 2, 3)], "width": [0], "stem": ["mean"], "out_channels": [0]}  # fmt: skip


def channels(config):
    return getattr(config, "in_channels", 1)


@pytest.fixture(params=SMALL)
def name(request):
    return request.param


@pytest.fixture
def net(name):
    kind, config = SMALL[name]
    torch.manual_seed(0)
    return kind(config).eval()


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_any_size_comes_back_at_its_size_and_moves_every_parameter(name, norm):
    kind, config = SMALL[name]
    if name == "r3d18_unet" and norm != "batch":
        pytest.skip("its normalisation is no setting")
    torch.manual_seed(0)
    model = kind(config if name == "r3d18_unet" else dataclasses.replace(config, norm=norm)).eval()
    for size in PLANES if name == "unet" else BOXES:
        lonely = set(size) == {1}  # a single voxel has no variance, and of R3D-18 the skips go round the norms
        if lonely and norm == "instance":
            continue
        model.zero_grad(set_to_none=True)
        out = model(torch.rand(2, channels(config), *size))
        assert out.shape == (2, model.config.out_channels, *size)
        out.square().sum().backward()
        moved = {n: p.grad is not None and bool(torch.isfinite(p.grad).all()) for n, p in model.named_parameters()}
        assert all(ok for n, ok in moved.items() if not (lonely and ".norm." in n)), size


def test_wrong_channels_are_named(net):
    side = [8] * (2 if isinstance(net, UNet) else 3)
    wanted = channels(net.config)
    with pytest.raises(InputError, match=rf"\(n, {wanted}, .*got \(1, {wanted + 1}, 8"):
        net(torch.zeros(1, wanted + 1, *side))


def test_impossible_configurations_are_refused(name):
    config = SMALL[name][1]
    fields = {field.name for field in dataclasses.fields(config)}
    tried = [(field, value) for field in fields & set(IMPOSSIBLE) for value in IMPOSSIBLE[field]]
    assert len(tried) >= 4
    for field, value in tried:
        with pytest.raises(InputError):
            dataclasses.replace(config, **{field: value})


def test_settings_and_weights_come_back_from_disk(name, net, tmp_path):
    assert type(net.config)(**json.loads(json.dumps(dataclasses.asdict(net.config)))) == net.config
    card = save_model(tmp_path, net, {"task": "infiltrate", "licence": "CC0-1.0"})
    again, read = load_model(tmp_path)
    assert read == card
    assert card["architecture"]["name"] == name
    assert not again.training
    x = torch.rand(1, channels(net.config), *[9] * (2 if isinstance(net, UNet) else 3))
    assert torch.equal(net(x), again(x))
    first = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    save_model(tmp_path, again, {"task": "infiltrate", "licence": "CC0-1.0"})
    assert first == [path.read_bytes() for path in sorted(tmp_path.iterdir())]
