"""The standard 3D U-Net of Mueller et al. 2021: four halvings, 32 to 512 maps, transposed convolutions, softmax.

Shapes: n volumes, c channels, d slices, h rows, w columns. Section 2.5 and Figure 3 of the paper give the layers; what
they leave open is a field of `UNet3DConfig` or said where it stands. Checked layer by layer against plain functional
calls in tests/models/test_models_unet3d.py.
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
Order = Literal["conv-relu-norm", "conv-norm-relu"]

MUELLER_LABELS = ("background", "left lung", "right lung", "infection")
"""What the four output channels mean (Mueller et al. 2021, section 2.5)."""


@dataclass(frozen=True)
class UNet3DConfig:
    """What fixes the network's shape; the defaults are those of Mueller et al. 2021.

    Attributes:
        in_channels: image channels; the paper's one holds normalised Hounsfield units.
        out_channels: logit channels; the paper's four are `MUELLER_LABELS`.
        features: channels per level from full resolution to the bottleneck; n entries give n - 1 halvings.
        norm: normalisation beside each 3 x 3 x 3 convolution; the paper's is batch.
        order: where it stands. The paper says "after each convolutional block, batch normalization was applied", and
            the program it was made with puts it behind the ReLU.
        dropout: probability at the bottleneck; the paper has none.
    """

    in_channels: int = 1
    out_channels: int = 4
    features: tuple[int, ...] = (32, 64, 128, 256, 512)
    norm: Norm = "batch"
    order: Order = "conv-relu-norm"
    dropout: float = 0.0

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
        """Slices, rows and columns are padded inside to a multiple of this."""
        return int(2 ** (len(self.features) - 1))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `UNet3DConfig(**d)` gives the same configuration."""
        return {**asdict(self), "features": list(self.features)}


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    return nn.Identity()


def _double_conv(c_in: int, c_out: int, config: UNet3DConfig) -> nn.Sequential:
    """Two 3 x 3 x 3 convolutions, each with ReLU and normalisation in the configured order."""
    behind = config.order == "conv-relu-norm"

    def half(a: int) -> Sequence[nn.Module]:
        conv = nn.Conv3d(a, c_out, kernel_size=3, padding=1, bias=behind or config.norm == "none")
        norm, relu = _norm(config.norm, c_out), nn.ReLU(inplace=True)
        return (conv, relu, norm) if behind else (conv, norm, relu)

    return nn.Sequential(*half(c_in), *half(c_out))


class UNet3D(nn.Module):
    """3D U-Net; `forward` gives logits, whose softmax over the channels are the class probabilities."""

    def __init__(self, config: UNet3DConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNet3DConfig()
        widths = config.features
        self.down = nn.ModuleList(
            _double_conv(a, b, config) for a, b in zip((config.in_channels, *widths[:-1]), widths, strict=True)
        )
        self.grow = nn.ModuleList(nn.ConvTranspose3d(b, a, kernel_size=2, stride=2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_double_conv(2 * a, a, config) for a in widths[:-1])
        self.dropout = nn.Dropout3d(config.dropout)
        self.head = nn.Conv3d(widths[0], config.out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, out_channels, d, h, w) of volumes (n, in_channels, d, h, w); any size of at least 1.

        In training mode, batch and instance normalisation need more than one voxel at the bottleneck; torch says so.
        """
        if x.ndim != 5 or x.shape[1] != self.config.in_channels:
            raise InputError(
                f"the network takes (n, {self.config.in_channels}, d, h, w), got {tuple(x.shape)}; "
                "check the channels of the recipe's preprocessing"
            )
        d, h, w = (int(size) for size in x.shape[-3:])
        short = tuple(-size % self.config.stride for size in (w, h, d))
        x = F.pad(x, (0, short[0], 0, short[1], 0, short[2]), mode="replicate") if any(short) else x
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool3d(x, 2) if level else x)  # (n, widths[level], d / 2**level, ...)
            skips.append(x)
        x = self.dropout(skips.pop())
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat((skips.pop(), self.grow[level](x)), dim=1))
        return self.head(x)[..., :d, :h, :w]
