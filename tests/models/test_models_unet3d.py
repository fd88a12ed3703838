"""The 3D U-Net: any size, counts by hand, every layer against plain functional calls."""

import pytest
import torch
from torch.nn import functional as F

from pneumoscope.models.unet import MUELLER_LABELS, UNet3D, UNet3DConfig

SMALL = UNet3DConfig(2, 3, (2, 4, 6))


def net(config=SMALL, seed=0) -> UNet3D:
    torch.manual_seed(seed)
    model = UNet3D(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):  # as after training: no statistic at its neutral value
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def test_the_papers_network_counted_by_hand():
    def double(a, b):  # two convolutions with bias, and scale and shift of their normalisation
        return (27 * a * b + b) + (27 * b * b + b) + 4 * b

    down = double(1, 32) + double(32, 64) + double(64, 128) + double(128, 256) + double(256, 512)
    grow = sum(8 * 2 * a * a + a for a in (32, 64, 128, 256))
    up = sum(double(2 * a, a) for a in (32, 64, 128, 256))
    head = 32 * 4 + 4
    with torch.device("meta"):
        model = UNet3D()
    assert sum(p.numel() for p in model.parameters()) == down + grow + up + head == 22_581_316
    assert model.config.stride == 16
    assert model.config.out_channels == len(MUELLER_LABELS)
    patch = torch.zeros(2, 1, 80, 160, 160, device="meta")  # the paper's batch of two patches
    assert model(patch).shape == (2, 4, 80, 160, 160)


@pytest.mark.parametrize("order", ["conv-relu-norm", "conv-norm-relu"])
def test_the_network_computes_what_its_parts_say(order):
    """One halving by hand: the skip goes first, the grown map second, the normalisation where `order` says."""
    model = net(UNet3DConfig(1, 2, (2, 3), order=order))
    w = model.state_dict()
    at = {"conv-relu-norm": (2, 5), "conv-norm-relu": (1, 4)}[order]

    def double(x, name):
        for conv, norm in zip((0, 3), at, strict=True):
            x = F.conv3d(x, w[f"{name}.{conv}.weight"], w.get(f"{name}.{conv}.bias"), padding=1)
            scale, shift = w[f"{name}.{norm}.weight"], w[f"{name}.{norm}.bias"]
            mean, var = w[f"{name}.{norm}.running_mean"], w[f"{name}.{norm}.running_var"]
            x = F.relu(x) if order == "conv-relu-norm" else x
            x = (x - mean.view(-1, 1, 1, 1)) / torch.sqrt(var.view(-1, 1, 1, 1) + 1e-5)
            x = x * scale.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)
            x = F.relu(x) if order == "conv-norm-relu" else x
        return x

    x = torch.randn(1, 1, 4, 6, 2)
    top = double(x, "down.0")
    low = double(F.max_pool3d(top, 2), "down.1")
    grown = F.conv_transpose3d(low, w["grow.0.weight"], w["grow.0.bias"], stride=2)
    expected = F.conv3d(double(torch.cat((top, grown), 1), "up.0"), w["head.weight"], w["head.bias"])
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_an_odd_size_is_the_padded_one_cut():
    model = net()
    x = torch.randn(1, 2, 5, 6, 7)
    padded = F.pad(x, (0, 1, 0, 2, 0, 3), mode="replicate")
    assert torch.allclose(model(x), model(padded)[..., :5, :6, :7], atol=1e-6)


def test_channels_last_changes_nothing():
    model, x = net(), torch.randn(2, 2, 8, 9, 10)
    expected = model(x)
    again = net().to(memory_format=torch.channels_last_3d)(x.to(memory_format=torch.channels_last_3d))
    assert torch.allclose(again, expected, atol=1e-5)
