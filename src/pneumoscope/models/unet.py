"""The U-Nets: of both Maganaris papers on slices, of Mueller et al. 2021 on volumes.

Shapes: n slices or volumes, c channels, d slices, h rows, w columns. Encoder and decoder of pairs of 3 x 3 (x 3)
convolutions, skip connections, transposed convolutions, a 1 x 1 output. What the papers leave open is a field of the
configuration. The 2D network is written for channels-last memory, where it trains several times faster on a CPU than
MONAI's BasicUNet of the same width (benchmarks/speed.py); the 3D one is checked layer by layer against plain functional
calls in tests/models/test_models_unet3d.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.errors import InputError

Norm = Literal["batch", "instance", "none"]
Order = Literal["conv-relu-norm", "conv-norm-relu"]

MUELLER_LABELS = ("background", "left lung", "right lung", "infection")
"""What the four output channels mean (Mueller et al. 2021, section 2.5)."""


class _Config:
    """What both configurations have in common."""

    in_channels: int
    out_channels: int
    features: tuple[int, ...]
    norm: Norm
    order: Order
    dropout: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(int(f) for f in self.features))
        if len(self.features) < 2 or min(self.features) < 1:
            raise InputError(f"a U-Net needs at least two positive widths, got features={self.features}")
        if min(self.in_channels, self.out_channels) < 1:
            raise InputError(f"channels must be positive, got {self.in_channels} in and {self.out_channels} out")
        if self.norm not in ("batch", "instance", "none"):
            raise InputError(f"norm must be batch, instance or none, got {self.norm!r}")
        if self.order not in ("conv-relu-norm", "conv-norm-relu"):
            raise InputError(f"order must be conv-relu-norm or conv-norm-relu, got {self.order!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def stride(self) -> int:
        """Every axis is padded inside to a multiple of this."""
        return int(2 ** (len(self.features) - 1))


@dataclass(frozen=True)
class UNetConfig(_Config):
    """What fixes the shape of the 2D network."""

    order: ClassVar[Order] = "conv-norm-relu"  # type: ignore[misc]

    in_channels: int = 4  # image channels, e.g. 4 for three Hounsfield windows and the lung mask.
    out_channels: int = 2  # logit channels, e.g. 2 for infiltrate and not infiltrate.
    # channels per level from full resolution to the bottleneck; n entries give n - 1 halvings. The papers say four
    # encoding and decoding levels and leave the widths to their missing figure.
    features: tuple[int, ...] = (16, 32, 64, 128, 256)
    norm: Norm = "batch"  # normalisation after each convolution; the papers name none
    dropout: float = 0.0  # probability at the bottleneck


@dataclass(frozen=True)
class UNet3DConfig(_Config):
    """What fixes the shape of the 3D network; the defaults are those of Mueller et al. 2021."""

    in_channels: int = 1  # image channels; the paper's one holds normalised Hounsfield units
    out_channels: int = 4  # logit channels; the paper's four are `MUELLER_LABELS`
    # channels per level from full resolution to the bottleneck; n entries give n - 1 halvings
    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    norm: Norm = "batch"  # normalisation beside each 3 x 3 x 3 convolution; the paper's is batch
    # where it stands. The paper says "after each convolutional block, batch normalization was applied", and the program
    # it was made with puts it behind the ReLU.
    order: Order = "conv-relu-norm"
    dropout: float = 0.0  # probability at the bottleneck; the paper has none


class _UNet(nn.Module):
    def __init__(self, config: _Config, dims: Literal[2, 3]) -> None:
        super().__init__()
        self.config, self._dims = config, dims
        widths = config.features
        grow: Any = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        self.down = nn.ModuleList(
            _double_conv(a, b, config, dims) for a, b in zip((config.in_channels, *widths[:-1]), widths, strict=True)
        )
        self.grow = nn.ModuleList(grow(b, a, kernel_size=2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_double_conv(2 * a, a, config, dims) for a in widths[:-1])
        self.dropout = nn.Dropout2d(config.dropout) if dims == 2 else nn.Dropout3d(config.dropout)
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        self.head = conv(widths[0], config.out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, out_channels, ...) of slices or volumes (n, in_channels, ...); any size of at least 1.

        In training mode, batch and instance normalisation need more than one voxel at the bottleneck; torch says so.
        """
        if x.ndim != self._dims + 2 or x.shape[1] != self.config.in_channels:
            axes = ("d, " if self._dims == 3 else "") + "h, w"
            raise InputError(
                f"the network takes (n, {self.config.in_channels}, {axes}), got {tuple(x.shape)}; "
                "check the channels of the recipe's preprocessing"
            )
        sizes = [int(size) for size in x.shape[2:]]
        short = [n for size in reversed(sizes) for n in (0, -size % self.config.stride)]
        x = F.pad(x, short, mode="replicate") if any(short) else x
        pool = F.max_pool2d if self._dims == 2 else F.max_pool3d
        skips = []
        for level, block in enumerate(self.down):
            x = block(pool(x, 2) if level else x)  # (n, widths[level], sizes / 2**level)
            skips.append(x)
        x = self.dropout(skips.pop())
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat((skips.pop(), self.grow[level](x)), dim=1))
        logits = self.head(x)
        return logits[(..., *(slice(size) for size in sizes))] if any(short) else logits


class UNet(_UNet):
    """2D U-Net; `forward` gives logits, `torch.sigmoid` of them the probabilities the papers threshold."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, 2)


class UNet3D(_UNet):
    """3D U-Net; `forward` gives logits, whose softmax over the channels are the class probabilities."""

    config: UNet3DConfig

    def __init__(self, config: UNet3DConfig | None = None) -> None:
        super().__init__(config or UNet3DConfig(), 3)


def _double_conv(c_in: int, c_out: int, config: _Config, dims: Literal[2, 3]) -> nn.Sequential:
    """Two convolutions, each with ReLU and normalisation in the configured order."""
    behind = config.order == "conv-relu-norm"
    conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d

    def half(a: int) -> list[nn.Module]:
        norm, relu = _norm(config.norm, c_out, dims), nn.ReLU(inplace=True)
        first = conv(a, c_out, kernel_size=3, padding=1, bias=behind or config.norm == "none")
        return [first, relu, norm] if behind else [first, norm, relu]

    return nn.Sequential(*half(c_in), *half(c_out))


def _norm(kind: Norm, channels: int, dims: Literal[2, 3]) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
    if kind == "instance":
        return (nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d)(channels, affine=True)
    return nn.Identity()
