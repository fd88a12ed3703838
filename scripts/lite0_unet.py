"""A 2D U-Net whose encoder is EfficientNet-Lite0, so that weights of ImageNet can start it.

Shapes: n slices, c channels, h rows, w columns. The encoder is Tan and Le 2019 (EfficientNet-B0) without squeeze and
excitation and with ReLU6, as Google's EfficientNet-Lite0, up to its 192 channels at a 32nd of the size; the decoder is
ours: transposed convolutions and pairs of 3 x 3 convolutions over the skip connections, and one convolution of the
input itself as the skip at full size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.errors import InputError

STEM = 32  # channels of the first convolution
STAGES = (
    # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
)
SKIPS = (0, 1, 2, 4)  # stages whose maps go to the decoder: those before a halving
STRIDE = 32


@dataclass(frozen=True)
class Lite0UNetConfig:
    """What fixes the network's shape."""

    in_channels: int = 5  # image channels
    out_channels: int = 1  # logit channels
    decoder: tuple[int, int, int, int, int] = (128, 64, 40, 24, 16)  # channels per level, coarsest first

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", tuple(int(f) for f in self.decoder))
        if len(self.decoder) != 5 or min(*self.decoder, self.in_channels, self.out_channels) < 1:
            raise InputError(
                "the network needs five positive decoder widths and positive channels, got "
                f"{self.decoder}, {self.in_channels} in and {self.out_channels} out"
            )


class _Bottleneck(nn.Module):
    """Expansion, depthwise convolution and projection, with the input added where shapes allow it."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        grown = _normed(inside, wide, 1) if expansion > 1 else []
        depthwise = _normed(wide, wide, kernel, stride=stride, groups=wide)
        self.layers = nn.Sequential(*grown, *depthwise, *_normed(wide, outside, 1)[:2])
        self.shortcut = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """(n, inside, h, w) to (n, outside, h / stride, w / stride)."""
        out: Tensor = self.layers(x)
        return x + out if self.shortcut else out


class Lite0UNet(nn.Module):
    """`forward` gives logits (n, out_channels, h, w), of which `torch.sigmoid` gives probabilities."""

    def __init__(self, config: Lite0UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(*_normed(config.in_channels, STEM, 3, stride=2))
        self.stages = nn.ModuleList()
        below, skips = STEM, []
        for number, (blocks, kernel, stride, expansion, channels) in enumerate(STAGES):
            inside = (below, *[channels] * (blocks - 1))
            steps = (stride, *[1] * (blocks - 1))
            parts = [_Bottleneck(i, channels, kernel, s, expansion) for i, s in zip(inside, steps, strict=True)]
            self.stages.append(nn.Sequential(*parts))
            below = channels
            skips += [channels] if number in SKIPS else []
        self.full = nn.Sequential(*_conv(config.in_channels, config.decoder[-1]))
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for skip, width in zip((*reversed(skips), config.decoder[-1]), config.decoder, strict=True):
            self.grow.append(nn.ConvTranspose2d(below, width, kernel_size=2, stride=2))
            self.up.append(nn.Sequential(*_conv(skip + width, width), *_conv(width, width)))
            below = width
        self.head = nn.Conv2d(below, config.out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of slices (n, in_channels, h, w) of any size, padded inside to a multiple of 32."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise InputError(
                f"the network takes (n, {self.config.in_channels}, h, w), got {tuple(x.shape)}; "
                "check the channels of the model's preprocessing"
            )
        h, w = (int(size) for size in x.shape[2:])
        if h % STRIDE or w % STRIDE:
            x = F.pad(x, (0, -w % STRIDE, 0, -h % STRIDE), mode="replicate")
        skips = [self.full(x)]
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            skips += [x] if number in SKIPS else []
        for grow, up in zip(self.grow, self.up, strict=True):
            x = up(torch.cat((skips.pop(), grow(x)), dim=1))
        logits: Tensor = self.head(x)
        return logits[..., :h, :w]


def _normed(inside: int, outside: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outside, eps=1e-3, momentum=0.01), nn.ReLU6()]


def _conv(inside: int, outside: int) -> list[nn.Module]:
    return [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
