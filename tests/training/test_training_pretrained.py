"""The network of scripts/train_pretrained.py: any size, and the published weights where they belong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train_pretrained import GREY, STAGES, STEM, Lite0UNet, start_from_imagenet

CHANNELS, DECODER = GREY + 2, (8, 6, 5, 4, 3)


@pytest.mark.parametrize("size", [(32, 64), (33, 47), (5, 3)])
def test_any_size_comes_back_at_its_size_and_moves_every_parameter(size):
    torch.manual_seed(0)
    network = Lite0UNet(CHANNELS, DECODER).eval()
    out = network(torch.rand(2, CHANNELS, *size))
    assert out.shape == (2, 1, *size)
    out.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def published():
    """Tensors as EfficientNet-Lite0 is published: convolution and normalisation in turn, then what we leave behind."""
    torch.manual_seed(1)
    state = {"_conv_stem.weight": torch.rand(STEM, 3, 3, 3)}

    def norm(name, width):
        for field in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{field}"] = torch.rand(width) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    norm("_bn0", STEM)
    below, number = STEM, 0
    for blocks, kernel, _, expansion, channels in STAGES:
        for _ in range(blocks):
            wide = below * expansion
            parts = [("_expand_conv", (wide, below, 1, 1))] if expansion > 1 else []
            parts += [("_depthwise_conv", (wide, 1, kernel, kernel)), ("_project_conv", (channels, wide, 1, 1))]
            for name, shape in parts:
                state[f"_blocks.{number}.{name}.weight"] = torch.rand(shape) / shape[1]
                norm(f"_blocks.{number}.{name}_bn", shape[0])
            below, number = channels, number + 1
    state["_fc.bias"] = torch.zeros(1000)
    return state


def test_the_stem_sees_the_equalised_slice_as_the_published_one_sees_grey():
    network, state = Lite0UNet(CHANNELS, DECODER).eval(), published()
    start_from_imagenet(network, state)
    grey = torch.rand(1, 1, 16, 16)
    x = torch.rand(1, CHANNELS, 16, 16)
    x[:, GREY] = grey[:, 0]
    colour = (255 * grey - 127).expand(1, 3, 16, 16) / 128
    wanted = nn.functional.conv2d(colour, state["_conv_stem.weight"], stride=2, padding=1)
    wanted = wanted - state["_bn0.running_mean"][:, None, None]
    seen = network.stem[0](x) - network.stem[1].running_mean[:, None, None]
    assert torch.allclose(seen[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], atol=1e-4)
    last = network.stages[-1][-1].layers
    assert torch.equal(last[0].weight, state["_blocks.14._expand_conv.weight"])
    assert torch.equal(last[-1].running_var, state["_blocks.14._project_conv_bn.running_var"])
