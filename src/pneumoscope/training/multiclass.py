"""Softmax segmentation into several classes: losses of the 3D papers, and scores per class.

Shapes: logits (n, c, d, h, w) or (n, c, h, w); target (n, 1, ...) with class numbers 0 .. c - 1, or -1 for "not
stated": such voxels cost nothing and are not counted.

Empty classes: a class that a box does not hold costs its full share (1) in `tversky_cross_entropy` as soon as anything
at all is said to be of it, as in MIScnn; see each loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pneumoscope.errors import InputError
from pneumoscope.training.data import Batch

MulticlassLoss = Callable[[Tensor, Tensor], Tensor]
MISCNN_SMOOTH = 1e-6  # Added above and below the Tversky index by MIScnn; next to nothing
MOST_WEIGHT = 20.0  # See `dice_balanced_cross_entropy`


def one_hot(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(n, c, ...) 0 and 1, and the (n, 1, ...) voxels that are stated; unstated ones are 0 in every class."""
    stated = (target >= 0).float()
    hot = F.one_hot(target[:, 0].clamp(min=0).long(), classes).movedim(-1, 1).float()
    return hot * stated, stated


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean categorical cross-entropy over stated voxels (Mueller 2021, eq. 7); 0 when none is."""
    each = F.cross_entropy(logits, target[:, 0].clamp(min=0).long(), reduction="none")
    stated = target[:, 0] >= 0
    return (each * stated).sum() / stated.sum().clamp(min=1)


def tversky_sum(logits: Tensor, target: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """Number of classes less the sum of their Tversky indices, per box, averaged over boxes (Mueller 2021, eq. 6).

    TI = TP / (TP + alpha FN + beta FP) with soft counts, background included; 1e-6 above and below as in MIScnn.
    """
    classes = logits.shape[1]
    hot, stated = one_hot(target, classes)
    p = torch.softmax(logits, 1) * stated
    area = tuple(range(2, logits.ndim))
    tp, fp, fn = (p * hot).sum(area), (p * (1 - hot)).sum(area), ((stated - p) * hot).sum(area)
    index = (tp + MISCNN_SMOOTH) / (tp + alpha * fn + beta * fp + MISCNN_SMOOTH)
    return (classes - index.sum(1)).mean()


def tversky_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """`tversky_sum` with alpha = beta = 0.5 plus `cross_entropy` (Mueller 2021, eq. 5); 0 at best, and above c."""
    return tversky_sum(logits, target) + cross_entropy(logits, target)


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of the foreground classes plus `cross_entropy` (Bressem 2021, section 2.4).

    Dice as Milletari et al. 2016 write it, with squares below: 2 sum(p g) / (sum(p^2) + sum(g^2)), per box and class.
    One voxel is added above and below: both empty costs 0.
    """
    return (1 - _dice(logits, target)[0]).mean() + cross_entropy(logits, target)


def _dice(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Dice (n, c - 1) of each box and foreground class as `dice_cross_entropy` has it, and whether the box holds it."""
    hot, stated = one_hot(target, logits.shape[1])
    p = (torch.softmax(logits, 1) * stated)[:, 1:]
    hot, area = hot[:, 1:], tuple(range(2, logits.ndim))
    size = hot.sum(area)
    return (2 * (p * hot).sum(area) + 1) / ((p * p).sum(area) + size + 1), size > 0


def dice_balanced_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of the classes that a box holds, and cross-entropy weighted by one over the root of a class's share.

    Over all classes, as in `dice_cross_entropy`, the first voxel of a class in a box without it costs as much as a
    class missed: one that most boxes lack (pleural fluid) is never predicted.

    Shares are those of the batch's stated voxels; weights are scaled to a mean of 1 over them, and none is above
    `MOST_WEIGHT` times the least. Classes of a few hundred voxels (airways among lungs) drown in plain means.
    """
    hot, stated = one_hot(target, logits.shape[1])
    area = (0, *range(2, logits.ndim))
    share = hot.sum(area) / stated.sum().clamp(min=1)
    weight = share.clamp(min=1e-12).rsqrt()
    weight = weight.clamp(max=MOST_WEIGHT * float(weight.min()))
    weight = weight / (weight * share).sum().clamp(min=1e-12)
    each = F.cross_entropy(logits, target[:, 0].clamp(min=0).long(), weight=weight, reduction="none") * stated[:, 0]
    dice, held = _dice(logits, target)
    return ((1 - dice) * held).sum() / held.sum().clamp(min=1) + each.sum() / stated.sum().clamp(min=1)


def held_dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of the classes that a box holds plus `cross_entropy`: `dice_balanced_cross_entropy` without weights.

    Weights make a class of a small share larger than it is; a training ends with this loss where shares shall be right.
    """
    dice, held = _dice(logits, target)
    return ((1 - dice) * held).sum() / held.sum().clamp(min=1) + cross_entropy(logits, target)


LOSSES: dict[str, MulticlassLoss] = {
    "tversky_cross_entropy": tversky_cross_entropy,
    "dice_cross_entropy": dice_cross_entropy,
    "dice_balanced_cross_entropy": dice_balanced_cross_entropy,
    "held_dice_cross_entropy": held_dice_cross_entropy,
    "cross_entropy": cross_entropy,
}


@dataclass(frozen=True)
class MulticlassTask:
    """Softmax segmentation; see `training.tasks.Task`."""

    names: tuple[str, ...]  # of the classes, background first
    loss_name: str = "tversky_cross_entropy"  # a key of `LOSSES`

    def __post_init__(self) -> None:
        if self.loss_name not in LOSSES:
            raise InputError(f"unknown loss {self.loss_name!r}; known are {', '.join(LOSSES)}")
        if len(self.names) < 2:
            raise InputError(f"a softmax needs at least two classes, got {self.names}")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """See `Task.loss`."""
        if output.shape[1] != len(self.names):
            raise InputError(f"the network gives {output.shape[1]} channels for {len(self.names)} classes")
        return LOSSES[self.loss_name](output.float(), batch.y)

    def counts(self, output: Tensor, batch: Batch) -> Tensor:
        """tp, fp, fn of each class over stated voxels, (3 c,)."""
        truth = batch.y[:, 0]
        found = output.argmax(1)
        each = []
        for number in range(len(self.names)):
            here, real = (found == number) & (truth >= 0), truth == number
            each += [(here & real).sum(), (here & ~real).sum(), (~here & real).sum()]
        return torch.stack(each).double()

    def scores(self, counts: Tensor) -> Mapping[str, float]:
        """Pooled Dice per class, ``dice_<name>``, and ``dice`` of the last class, the infection.

        1.0 where there is nothing to find and nothing was found.
        """
        result = {}
        for name, (tp, fp, fn) in zip(self.names, counts.view(-1, 3).tolist(), strict=True):
            total = 2 * tp + fp + fn
            result[f"dice_{name.replace(' ', '_')}"] = 2 * tp / total if total else 1.0
        return {"dice": list(result.values())[-1], **result}
