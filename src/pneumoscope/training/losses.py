"""Losses for sigmoid segmentation: logits and targets in, one number out, every empty case stated.

Shapes: logits and target (n, c, h, w). Target values are 0 and 1; **-1 means "not stated"** (a structure the reader
did not draw, such as lungs in a set without lung masks): such pixels cost nothing, and a batch with nothing stated
costs exactly 0.

Empty masks: a slice without infiltrate is a full citizen. Cross-entropy punishes each false pixel. Dice and Tversky
add `SMOOTH` pixels to numerator and denominator: both empty costs 0, a false lesion on an empty slice costs up to 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pneumoscope.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]

SMOOTH = 1.0  # Pixels added above and below in Dice and Tversky; small beside any lesion, decisive on empty slices


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of the sigmoid over stated pixels and channels.

    The papers name sigmoid outputs against a two-channel binary target and no loss; this is the one that goes with it.
    """
    stated = target >= 0
    each = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0), reduction="none")
    return (each * stated).sum() / stated.sum().clamp(min=1)


def tversky(logits: Tensor, target: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """1 - Tversky index, per slice and channel, averaged over those that are stated.

    TI = (TP + s) / (TP + alpha FP + beta FN + s) with soft counts (Salehi et al. 2017, arXiv 1706.05721, eq. 3);
    alpha = beta = 0.5 is Dice.
    """
    stated = target >= 0
    p = torch.sigmoid(logits) * stated
    t = target.clamp(min=0)
    area = (-2, -1)
    tp, fp, fn = (p * t).sum(area), (p * (1 - t)).sum(area), ((1 - p) * t * stated).sum(area)  # (n, c)
    index = (tp + SMOOTH) / (tp + alpha * fp + beta * fn + SMOOTH)
    weight = stated.any(-1).any(-1).to(index.dtype)
    return ((1 - index) * weight).sum() / weight.sum().clamp(min=1)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice, per slice and channel: `tversky` with equal weights."""
    return tversky(logits, target)


def dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Dice plus cross-entropy, equal weights (the common pair, e.g. nnU-Net)."""
    return dice(logits, target) + cross_entropy(logits, target)


def pooled_dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of the whole batch per channel: a false lesion on an empty slice counts as many pixels as it has.

    Softer on empty and tiny slices than `dice`, which lets one pixel on an empty slice cost half a slice.
    """
    stated = target >= 0
    p = torch.sigmoid(logits) * stated
    t = target.clamp(min=0)
    batch = (0, -2, -1)
    overlap = 2 * (p * t).sum(batch) + SMOOTH
    return (1 - overlap / ((p + t * stated).sum(batch) + SMOOTH)).mean()


def pooled_dice_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """`pooled_dice` plus cross-entropy, equal weights."""
    return pooled_dice(logits, target) + cross_entropy(logits, target)


def tversky_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Tversky (alpha = beta = 0.5) plus cross-entropy, the pair Mueller 2021 trains with."""
    return tversky(logits, target) + cross_entropy(logits, target)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "dice_cross_entropy": dice_cross_entropy,
    "pooled_dice": pooled_dice,
    "pooled_dice_cross_entropy": pooled_dice_cross_entropy,
    "tversky": tversky,
    "tversky_cross_entropy": tversky_cross_entropy,
}


def make_loss(name: str) -> Loss:
    """A loss by name.

    Raises:
        InputError: with the known names.
    """
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}; known are {', '.join(LOSSES)}")
    return LOSSES[name]
