"""The U-Net of both Maganaris papers: encoder, decoder, skip connections, a 1 x 1 output.

Shapes: n slices, c channels, h rows, w columns. Plain 3 x 3 convolutions with ReLU; what the papers leave open (width,
normalisation) is a field of `UNetConfig`. Written for channels-last memory, where it trains several times faster on a
CPU than MONAI's BasicUNet of the same width (see benchmarks/speed.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.errors import InputError

Norm = Literal["batch", "instance", "none"]


@dataclass(frozen=True)
class UNetConfig:
    """What fixes the network's shape.

    Attributes:
        in_channels: image channels, e.g. 4 for three Hounsfield windows and the lung mask.
        out_channels: logit channels, e.g. 2 for infiltrate and not infiltrate.
        features: channels per level from full resolution to the bottleneck; n entries give n - 1 halvings. The
            papers say four encoding and decoding levels and leave the widths to their missing figure.
        norm: normalisation after each convolution; the papers name none.
        dropout: probability at the bottleneck.
    """

    in_channels: int = 4
    out_channels: int = 2
    features: tuple[int, ...] = (16, 32, 64, 128, 256)
    norm: Norm = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(int(f) for f in self.features))
        if len(self.features) < 2 or min(self.features) < 1:
            raise InputError(f"a U-Net needs at least two positive widths, got features={self.features}")
        if min(self.in_channels, self.out_channels) < 1:
            raise InputError(f"channels must be positive, got {self.in_channels} in and {self.out_channels} out")
        if self.norm not in ("batch", "instance", "none"):
            raise InputError(f"norm must be batch, instance or none, got {self.norm!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def stride(self) -> int:
        """Rows and columns are padded inside to a multiple of this."""
        return int(2 ** (len(self.features) - 1))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `UNetConfig(**d)` gives the same configuration."""
        return {**asdict(self), "features": list(self.features)}


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


def _double_conv(c_in: int, c_out: int, norm: Norm) -> nn.Sequential:
    def half(a: int) -> Sequence[nn.Module]:
        conv = nn.Conv2d(a, c_out, kernel_size=3, padding=1, bias=norm == "none")
        return conv, _norm(norm, c_out), nn.ReLU(inplace=True)

    return nn.Sequential(*half(c_in), *half(c_out))


class UNet(nn.Module):
    """2D U-Net; `forward` gives logits, `torch.sigmoid` of them the probabilities the papers threshold."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.features
        self.down = nn.ModuleList(
            _double_conv(a, b, config.norm) for a, b in zip((config.in_channels, *widths[:-1]), widths, strict=True)
        )
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, kernel_size=2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_double_conv(2 * a, a, config.norm) for a in widths[:-1])
        self.dropout = nn.Dropout2d(config.dropout)
        self.head = nn.Conv2d(widths[0], config.out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, out_channels, h, w) of images (n, in_channels, h, w); any h and w of at least 1."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise InputError(
                f"the network takes (n, {self.config.in_channels}, h, w), got {tuple(x.shape)}; "
                "check the channels of the recipe's preprocessing"
            )
        h, w = x.shape[-2:]
        stride = self.config.stride
        x = F.pad(x, (0, -w % stride, 0, -h % stride), mode="replicate") if h % stride or w % stride else x
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)  # (n, widths[level], h / 2**level, w / 2**level)
            skips.append(x)
        x = self.dropout(skips.pop())
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat((skips.pop(), self.grow[level](x)), dim=1))
        return self.head(x)[..., :h, :w]


def parameter_count(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
