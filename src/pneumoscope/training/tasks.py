"""What differs between tasks: how outputs become a loss and scores. The loop is the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pneumoscope.errors import InputError
from pneumoscope.jobs.stamp import content_of_arrays, stamp
from pneumoscope.metrics.classification import score_confusion
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
    """Sigmoid segmentation; `channel` is the one whose Dice is reported (pooled over the validation pixels)."""

    loss_name: str = "cross_entropy"  # see `training.losses.LOSSES`
    channel: int = 0  # output channel scored; 0 is infiltrate in the papers' two-channel target
    threshold: float = 0.5  # probability from which a pixel counts as found

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


@dataclass(frozen=True)
class ClassificationTask:
    """Categorical cross-entropy over logits (n, classes): Katsamenis et al. 2020, section 4.1, J_CCE.

    ``batch.y`` is the class as a number (n,) or (n, 1), or as shares that add up to 1 (n, classes). A row with a
    negative number is not stated: it costs nothing and is not counted; a batch without a stated row costs exactly 0.
    """

    classes: tuple[str, ...]  # their names, at least two

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise InputError(f"a classification needs two classes or more of different names, got {self.classes}")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean over stated rows."""
        target = self._shares(output, batch)
        stated = target.sum(dim=1) > 0
        each = -(target * F.log_softmax(output.float(), dim=1)).sum(dim=1)
        return each.sum() / stated.sum().clamp(min=1)

    def counts(self, output: Tensor, batch: Batch) -> Tensor:
        """The confusion matrix, rows truth, flat (classes * classes,)."""
        target = self._shares(output, batch)
        stated = target.sum(dim=1) > 0
        size = len(self.classes)
        cell = target.argmax(dim=1) * size + output.argmax(dim=1)
        return torch.bincount(cell[stated], minlength=size * size).double()

    def scores(self, counts: Tensor) -> Mapping[str, float]:
        """Accuracy and macro F1; NaN without a stated row."""
        size = len(self.classes)
        found = score_confusion(counts.cpu().numpy().astype(np.int64).reshape(size, size), self.classes)
        return {"accuracy": found.accuracy, "f1": found.f1}

    def _shares(self, output: Tensor, batch: Batch) -> Tensor:
        """(n, classes) target shares; rows of zeros where nothing is stated."""
        size = len(self.classes)
        if output.ndim != 2 or output.shape[1] != size:
            raise InputError(f"the network gives {tuple(output.shape)}, expected (n, {size}) logits")
        y = batch.y
        if y.ndim == 2 and y.shape[1] == size:
            return y.clamp(min=0)
        number = y.reshape(len(y), -1)[:, 0].long()
        if int(number.max()) >= size:
            raise InputError(f"a class {int(number.max())} among {size} classes (0 to {size - 1})")
        return F.one_hot(number.clamp(min=0), size).float() * (number >= 0).float()[:, None]


@dataclass(frozen=True, eq=False)
class PictureSource:
    """Rows of an array of pictures, with a class each; a row may stand in several times."""

    pictures: NDArray[np.uint8]  # (all, h, w) uint8, in memory or mapped from a file; only the rows of a batch are read
    rows: NDArray[np.int64]  # which of them, in order (n,)
    labels: NDArray[np.int64]  # class number of each (n,)
    names: Sequence[str]  # of each (n,), for messages
    pictures_content: str = ""  # sum over the pictures of `rows`; without one they are summed here

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.labels) == len(self.names):
            raise InputError(
                f"rows, classes and names differ in number: {len(self.rows)}, {len(self.labels)}, {len(self.names)}"
            )
        if not len(self.rows):
            raise InputError("there is no picture to train on; check data and split")

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `BatchSource.batch`: x (n, 1, h, w) in [0, 1], y (n,). Nothing is augmented, as in the paper."""
        picked = np.asarray(self.pictures[self.rows[indices]], np.float32)[:, None] / np.float32(255)
        y = torch.from_numpy(self.labels[indices].astype(np.float32))
        return Batch(torch.from_numpy(picked), y, tuple(self.names[int(i)] for i in indices))

    @cached_property
    def content(self) -> str:
        """See `BatchSource.content`: of names, classes and the sum over the pictures, which are not read again."""
        labels = [int(label) for label in self.labels]
        pictures = self.pictures_content or content_of_arrays(self.pictures[self.rows])
        return stamp("pictures", revision=1, names=list(self.names), labels=labels, pictures=pictures)
