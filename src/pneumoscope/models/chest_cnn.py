"""The small CNN of the X-ray study, for radiographs of one channel.

Katsamenis et al. 2020 name a "simple CNN" and show it in Figure 3, which is missing from the text; widths and depth are
our choice: blocks of two 3 x 3 convolutions with batch normalisation and halving, then global averaging and one dense
layer. `body` is everything below the dense layer: what the paper freezes first, and carries to another data set.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pneumoscope.errors import InputError


@dataclass(frozen=True)
class ChestCNNConfig:
    """What fixes the network's shape.

    Attributes:
        in_channels: picture channels.
        classes: output logits.
        features: channels per block; n blocks halve rows and columns n times.
        dropout: probability before the dense layer.
    """

    in_channels: int = 1
    classes: int = 3
    features: tuple[int, ...] = (16, 32, 64, 128)
    dropout: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(int(f) for f in self.features))
        if not self.features or min(self.features) < 1 or self.in_channels < 1 or self.classes < 2:
            raise InputError(
                "a chest CNN needs positive widths and channels and at least two classes, got "
                f"{self.features}, {self.in_channels}, {self.classes}"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `ChestCNNConfig(**d)` gives the same configuration."""
        return {**asdict(self), "features": list(self.features)}


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
        """(n, f, h / 2^blocks, w / 2^blocks): the last maps, before averaging; what Grad-CAM looks at."""
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
