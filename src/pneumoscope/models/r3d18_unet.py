"""The 3D U-Net of Bressem et al. 2021: an 18-layer R3D video network as encoder, four upscaling blocks, a ResBlock.

Shapes: n volumes, c channels, d slices, h rows, w columns. The encoder (Tran et al. 2018) has the names and shapes of
torchvision's published ``r3d_18``, so that `carry_published(model.encoder, "r3d_18", file)` fills it; torchvision
itself is not used (decision 0004). The paper's section 2.3 and Figure 1 give the decoder's plan and no widths; what is
ours is marked "our choice".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.errors import InputError

KINETICS_MEAN, KINETICS_DEVIATION = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
"""Of Kinetics-400's red, green and blue in [0, 1]: what the published weights were trained on."""

GREY_MEAN = sum(KINETICS_MEAN) / 3
GREY_DEVIATION = sum(KINETICS_DEVIATION) / 3
"""Our choice for CT: grey has one mean and one deviation, so that the tripled picture stays without colour."""

ENCODER_PARTS = ("stem", "layer1", "layer2", "layer3", "layer4")
"""Parts of the encoder, first to last; ``encoder.<part>`` can be frozen one by one."""

_COLOURS = 3


@dataclass(frozen=True)
class R3D18UNetConfig:
    """What fixes the network's shape."""

    out_channels: int = 2  # logit channels; 2 for infiltrate and not infiltrate
    width: int = 64  # channels of the stem; 64 in the published weights (smaller ones are for tests)
    # channels that the four upscaling blocks give, deepest first; the paper names none (our choice)
    decoder: tuple[int, int, int, int] = (256, 128, 64, 32)
    # how the one channel of a CT meets a stem made for colour. ``triple`` feeds it three times, as the paper does;
    # ``sum`` sums the stem's weights over the colours and computes the same numbers with a third of the stem's work.
    # The tensors are the same either way.
    stem: Literal["triple", "sum"] = "triple"
    # shift and scale an input in [0, 1] as grey in Kinetics-400 (our choice; the paper clips to [-2000, 500] HU and
    # says no more)
    normalise: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "decoder", tuple(int(f) for f in self.decoder))
        if len(self.decoder) != 4 or min(*self.decoder, self.width, self.out_channels) < 1:
            raise InputError(
                "the network needs four positive decoder widths, a positive width and output channels, got "
                f"{self.decoder}, {self.width}, {self.out_channels}"
            )
        if self.stem not in ("triple", "sum"):
            raise InputError(f"stem must be triple or sum, got {self.stem!r}")

    @property
    def in_channels(self) -> int:
        """Channels of the input: Hounsfield units of one window."""
        return 1


class BasicBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions with batch normalisation and the shortcut around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv3d(inside, outside, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm3d(outside),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Sequential(nn.Conv3d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm3d(outside))
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv3d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm3d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, d, h, w) to (n, outside, d / stride, h / stride, w / stride), rounded up."""
        out = self.conv2(self.conv1(x))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class R3D18(nn.Module):
    """Residual network of 18 layers with 3D convolutions throughout, as published for video.

    Args:
        classes: of the dense layer ``fc``, 400 for Kinetics; None leaves the layer out.
        width: channels of the stem.
    """

    def __init__(self, classes: int | None = 400, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(_COLOURS, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1))
        self.fc = nn.Linear(8 * width, classes) if classes else None
        _initialise(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """Maps behind each of the four residual layers.

        Channels are 64, 128, 256, 512; depth is halved behind the first, rows and columns in the stem as well:
        (d, h/2, w/2), (d/2, h/4, w/4), (d/4, h/8, w/8), (d/8, h/16, w/16), each rounded up. An input of one channel
        counts as grey: the stem's weights are summed over its colours.
        """
        x = self._stem(x)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of colour clips (n, 3, d, h, w), normalised by `KINETICS_MEAN` and its deviation."""
        if self.fc is None:
            raise InputError("this network was built without its dense layer; use features")
        out: Tensor = self.fc(self.features(x)[-1].mean(dim=(2, 3, 4)))
        return out

    def _stem(self, x: Tensor) -> Tensor:
        parts: Any = self.stem
        if x.shape[1] == _COLOURS:
            out: Tensor = parts(x)
            return out
        convolution, norm, relu = parts
        grey = convolution.weight.sum(dim=1, keepdim=True)
        maps: Tensor = relu(norm(F.conv3d(x, grey, stride=convolution.stride, padding=convolution.padding)))
        return maps


class UpBlock(nn.Module):
    """Transposed convolution, then two convolutions over it and the skip; a ReLU behind each convolution.

    The features from the encoder are instance-normalised before they are joined ("lower layer features"; that these are
    the encoder's is our reading). Kernel and stride of the transposed convolution are equal, it halves the channels
    (our choice), and what it makes too long at an odd size is cut off.
    """

    def __init__(self, below: int, skip: int, outside: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        grown = max(1, below // 2)
        self.grow = nn.ConvTranspose3d(below, grown, kernel_size=stride, stride=stride)
        self.norm = nn.InstanceNorm3d(skip, affine=True)
        self.convolutions = _double_conv(grown + skip, outside)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(n, below, ...) and the skip (n, skip, d, h, w) to (n, outside, d, h, w)."""
        d, h, w = (int(size) for size in skip.shape[-3:])
        grown = torch.relu(self.grow(x))[..., :d, :h, :w]
        # The skip of one voxel has no variance to divide by; torch would refuse it.
        normed = self.norm(skip) if d * h * w > 1 else skip
        out: Tensor = self.convolutions(torch.cat((grown, normed), dim=1))
        return out


class FinalBlock(nn.Module):
    """A residual block without dilation, then a 1 x 1 x 1 convolution to the classes."""

    def __init__(self, inside: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inside, inside, 3, padding=1)
        self.conv2 = nn.Conv3d(inside, inside, 3, padding=1)
        self.head = nn.Conv3d(inside, classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes, d, h, w)."""
        out: Tensor = self.head(torch.relu(x + self.conv2(torch.relu(self.conv1(x)))))
        return out


class R3D18UNet(nn.Module):
    """U-Net on the R3D-18 encoder; `forward` gives logits at the input's size.

    Skips: three of the four residual layers feed the upscaling blocks and the last one feeds the double convolution at
    the bottom. The paper has a fourth upscaling block to full size and says nothing of its skip: it gets the input
    picture (our choice, after fastai's U-Net, on which the paper's program is built).
    """

    def __init__(self, config: R3D18UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or R3D18UNetConfig()
        width = config.width
        self.encoder = R3D18(None, width)
        self.bottom = _double_conv(8 * width, 8 * width)
        below, skips = (8 * width, *config.decoder[:3]), (4 * width, 2 * width, width, 1)
        strides = ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
        self.up = nn.ModuleList(
            UpBlock(a, b, c, s) for a, b, c, s in zip(below, skips, config.decoder, strides, strict=True)
        )
        self.final = FinalBlock(config.decoder[-1], config.out_channels)
        for part in (self.bottom, self.up, self.final):
            _initialise(part)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, out_channels, d, h, w) of volumes (n, 1, d, h, w) in [0, 1]; any size of at least 1."""
        if x.ndim != 5 or x.shape[1] != 1:
            raise InputError(
                f"the network takes (n, 1, d, h, w), got {tuple(x.shape)}; "
                "check the channels of the recipe's preprocessing"
            )
        if self.config.normalise:
            x = (x - GREY_MEAN) / GREY_DEVIATION
        colours = x.expand(-1, _COLOURS, -1, -1, -1) if self.config.stem == "triple" else x
        skips = self.encoder.features(colours)
        out = self.bottom(skips.pop())
        for block, skip in zip(self.up, (*reversed(skips), x), strict=True):
            out = block(out, skip)
        logits: Tensor = self.final(out)
        return logits

    def frozen_parts(self, upto: str = "layer4") -> tuple[str, ...]:
        """Names for `TrainConfig.frozen`: the encoder's parts from the stem to `upto`, as the paper's first 10 epochs.

        Raises:
            InputError: no such part.
        """
        if upto not in ENCODER_PARTS:
            raise InputError(f"the encoder has no part {upto!r}; it has {', '.join(ENCODER_PARTS)}")
        return tuple(f"encoder.{part}" for part in ENCODER_PARTS[: ENCODER_PARTS.index(upto) + 1])


def _double_conv(inside: int, outside: int) -> nn.Sequential:
    layers: Sequence[nn.Module] = (
        nn.Conv3d(inside, outside, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv3d(outside, outside, 3, padding=1),
        nn.ReLU(inplace=True),
    )
    return nn.Sequential(*layers)


def _initialise(part: nn.Module) -> None:
    """He's initialisation for the convolutions (our choice for the decoder), as that of the published encoder."""
    for module in part.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
