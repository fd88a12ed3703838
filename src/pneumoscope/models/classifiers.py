"""Networks that classify radiographs: a small CNN, and the ResNet-50 of published ImageNet weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pneumoscope.errors import InputError


@dataclass(frozen=True)
class ChestCNNConfig:
    """What fixes the network's shape."""

    in_channels: int = 1  # picture channels
    classes: int = 3  # output logits
    features: tuple[int, ...] = (16, 32, 64, 128)  # channels per block; n blocks halve rows and columns n times
    dropout: float = 0.3  # probability before the dense layer

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(int(f) for f in self.features))
        if not self.features or min(self.features) < 1 or self.in_channels < 1 or self.classes < 2:
            raise InputError(
                "a chest CNN needs positive widths and channels and at least two classes, got "
                f"{self.features}, {self.in_channels}, {self.classes}"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")


class ChestCNN(nn.Module):
    """Logits of a radiograph: (n, c, h, w) in [0, 1] to (n, classes)."""

    def __init__(self, config: ChestCNNConfig | None = None) -> None:
        super().__init__()
        self.config = config or ChestCNNConfig()
        widths = (self.config.in_channels, *self.config.features)
        self.body = nn.Sequential(*(_block(a, b, first=i == 0) for i, (a, b) in enumerate(pairwise(widths))))
        self.dropout = nn.Dropout(self.config.dropout)
        self.head = nn.Linear(widths[-1], self.config.classes)

    def features(self, x: Tensor) -> Tensor:
        """(n, f, h / 2^blocks, w / 2^blocks): the last maps, before averaging; what Grad-CAM uses."""
        out: Tensor = self.body(x)
        return out

    def classify(self, maps: Tensor) -> Tensor:
        """Logits from the last maps."""
        out: Tensor = self.head(self.dropout(maps.mean(dim=(2, 3))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.classify(self.features(x))


def _block(inside: int, outside: int, *, first: bool) -> nn.Sequential:
    """Two convolutions, the first block only one (full resolution is where time goes), then halving."""
    convolutions = [(inside, outside)] if first else [(inside, outside), (outside, outside)]
    layers: list[nn.Module] = []
    for a, b in convolutions:
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2))


MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue: what the published weights expect."""

_BLOCKS = (3, 4, 6, 3)
_EXPANSION = 4


@dataclass(frozen=True)
class ResNetConfig:
    """What fixes the network's shape."""

    classes: int = 3  # output logits; 1000 in the published weights
    width: int = 64  # channels of the first layer; 64 in the published weights (smaller ones are for tests)
    in_channels: int = 1  # 1 (tripled inside) or 3

    def __post_init__(self) -> None:
        if self.classes < 2 or self.width < 1 or self.in_channels not in (1, 3):
            raise InputError(
                "a ResNet needs two classes, a positive width and 1 or 3 channels, got "
                f"{self.classes}, {self.width}, {self.in_channels}"
            )


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions and the shortcut around them."""

    def __init__(self, inside: int, planes: int, stride: int) -> None:
        super().__init__()
        outside = planes * _EXPANSION
        self.conv1 = nn.Conv2d(inside, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride=stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to (n, 4 planes, h / stride, w / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + shortcut)


class ResNet50(nn.Module):
    """Logits of a radiograph: (n, 1 or 3, h, w) in [0, 1] to (n, classes)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ResNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or ResNetConfig()
        width = self.config.width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inside = width
        for number, blocks in enumerate(_BLOCKS, start=1):
            planes = width * 2 ** (number - 1)
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(inside, planes, 2 if block == 0 and number > 1 else 1))
                inside = planes * _EXPANSION
            setattr(self, f"layer{number}", nn.Sequential(*layers))
        self.fc = nn.Linear(inside, self.config.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """(n, 32 width, h / 32, w / 32): the last maps, before averaging; what Grad-CAM uses."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = (x - self.mean) / self.deviation
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, len(_BLOCKS) + 1):
            x = getattr(self, f"layer{number}")(x)
        return x

    def classify(self, maps: Tensor) -> Tensor:
        """Logits from the last maps."""
        out: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.classify(self.features(x))

    def weighted_layers(self) -> list[str]:
        """Names of the convolutions and the dense layer in the order of the forward pass, the dense layer last.

        "The last 11 layers" of the paper (section 4.1) is taken to mean the last 11 of these; Keras, which the paper
        used, counts activations and additions too, and would then mean fewer weights.
        """
        return [n for n, m in self.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "downsample" not in n]
