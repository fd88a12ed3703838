"""What differs between tasks: how outputs become a loss and scores. The loop is the same for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pneumoscope.training.data import Batch
from pneumoscope.training.losses import make_loss


class Task(Protocol):
    """One kind of learning problem."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The number to make small, a scalar."""

    def counts(self, output: Tensor, batch: Batch) -> Tensor:
        """Additive counts (float64 vector) from which `scores` are made at the end of a pass."""

    def scores(self, counts: Tensor) -> Mapping[str, float]:
        """Named validation scores from the summed counts, e.g. ``{"dice": 0.7}``."""


@dataclass(frozen=True)
class SegmentationTask:
    """Sigmoid segmentation; `channel` is the one whose Dice is reported (pooled over the validation pixels).

    Attributes:
        loss_name: see `training.losses.LOSSES`.
        channel: output channel scored; 0 is infiltrate in the papers' two-channel target.
        threshold: probability from which a pixel counts as found.
    """

    loss_name: str = "cross_entropy"
    channel: int = 0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        make_loss(self.loss_name)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Task.loss`."""
        return make_loss(self.loss_name)(output, batch.y)

    def counts(self, output: Tensor, batch: Batch) -> Tensor:
        """(tp, fp, fn) over stated pixels of the scored channel."""
        truth = batch.y[:, self.channel]
        found = (torch.sigmoid(output[:, self.channel].float()) >= self.threshold) & (truth >= 0)
        real = truth > 0.5
        return torch.stack([(found & real).sum(), (found & ~real).sum(), (~found & real).sum()]).double()

    def scores(self, counts: Tensor) -> Mapping[str, float]:
        """Pooled Dice; 1.0 when there is nothing to find and nothing was found."""
        tp, fp, fn = counts.tolist()
        total = 2 * tp + fp + fn
        return {"dice": 2 * tp / total if total else 1.0}


def train_mode(model: nn.Module, frozen: frozenset[str] = frozenset()) -> None:
    """`model.train()` in which modules named in `frozen` keep eval mode: their running statistics stay."""
    model.train()
    for name, module in model.named_modules():
        if any(name == f or name.startswith(f + ".") for f in frozen):
            module.training = False
