"""Extra terms of the loss that hold the network near what it was: weights that mattered, or answers it gave.

They act in training only: validation measures the task itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.training.data import Batch, BatchSource
from pneumoscope.training.losses import cross_entropy
from pneumoscope.training.tasks import Task


class Penalty(Protocol):
    """A scalar to be added to the loss of a training step."""

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """The term, from the network's logits and the batch they answer."""


@dataclass(frozen=True)
class PenalisedTask:
    """A task whose training loss carries penalties; validation loss and scores are the task's own."""

    task: Task  # the task itself
    penalties: tuple[Penalty, ...] = field(repr=False)  # the terms
    note: str  # names the penalties and their numbers; a run is resumed only with the same note

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Task.loss`."""
        loss = self.task.loss(output, batch)
        if torch.is_grad_enabled():
            for penalty in self.penalties:
                loss = loss + penalty(output, batch)
        return loss

    def counts(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Task.counts`."""
        return self.task.counts(output, batch)

    def scores(self, counts: Tensor) -> Mapping[str, float]:
        """See `Task.scores`."""
        return self.task.scores(counts)


# -- elastic weight consolidation ------------------------------------------------------------------------------


def fisher_diagonal(model: nn.Module, source: BatchSource, rows: np.ndarray) -> dict[str, Tensor]:
    """How much each weight mattered: mean squared gradient of the cross-entropy, slice by slice, scaled to a sum of 1.

    Kirkpatrick et al. 2017, Overcoming catastrophic forgetting in neural networks, PNAS 114, 3521-3526, section 2.1:
    the diagonal of the Fisher information, here with the drawn labels (the empirical Fisher). The scaling is ours: it
    makes one weight of the penalty serve networks and pictures of any size. A network that is never wrong gives zeros.

    Args:
        model: as it was after training on the earlier set; runs in eval mode, its weights stay.
        source: that set's training slices.
        rows: which of them to use.
    """
    device = next(model.parameters()).device
    wanted = dict(model.named_parameters())
    had = {name: p.requires_grad for name, p in wanted.items()}
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in wanted.items()}
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    for row in rows:
        batch = source.batch(np.asarray([row], dtype=np.int64), None)
        loss = cross_entropy(model(batch.x.to(device)), batch.y.to(device))
        for (name, _), gradient in zip(wanted.items(), torch.autograd.grad(loss, list(wanted.values())), strict=True):
            total[name] += gradient.detach() ** 2
    for name, parameter in wanted.items():
        parameter.requires_grad_(had[name])
    whole = sum(float(value.sum()) for value in total.values())
    return {name: value / whole if whole else value for name, value in total.items()}


@dataclass(frozen=True, eq=False)
class WeightConsolidation:
    """Elastic weight consolidation: weights that mattered for an earlier set are drawn back to where they were.

    weight / 2 * sum_i F_i (w_i - w*_i)^2, Kirkpatrick et al. 2017, equation 3; one such term per earlier set.
    """

    model: nn.Module  # the network being trained
    fisher: Mapping[str, Tensor]  # of the earlier set, see `fisher_diagonal`
    anchor: Mapping[str, Tensor]  # the weights as they were then
    weight: float  # lambda

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Penalty`."""
        total = output.new_zeros(())
        for name, parameter in self.model.named_parameters():
            fisher, anchor = self.fisher[name].to(parameter.device), self.anchor[name].to(parameter.device)
            total = total + (fisher * (parameter - anchor) ** 2).sum()
        return self.weight / 2 * total


# -- learning without forgetting -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Distillation:
    """Learning without forgetting: on the new images, answer as the network before did.

    Li and Hoiem 2016, Learning without Forgetting, arXiv 1606.09282, equations 2 and 3, for one output per pixel:
    cross-entropy between both answers softened by a temperature T, times T^2 so that gradients keep their size.
    It is smallest, and its gradient 0, where both networks agree.
    """

    teacher: nn.Module  # the network before; it does not learn
    weight: float  # lambda_o
    temperature: float  # T

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Penalty`."""
        self.teacher.to(output.device).eval()
        with torch.no_grad():
            before = torch.sigmoid(self.teacher(batch.x) / self.temperature)
        softened = F.binary_cross_entropy_with_logits(output / self.temperature, before)
        return self.weight * self.temperature**2 * softened
