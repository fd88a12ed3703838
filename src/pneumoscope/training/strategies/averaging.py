"""Mixing the weights before and after a training, by as much as validation wants.

WiSE-FT: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, CVPR, arXiv 2109.01903, section 3:
(1 - share) * before + share * after, for every weight and running statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def mix_weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weights at `share` of the way; counters (whole numbers) are those of `after`."""
    return {
        name: torch.lerp(before[name].to(value), value, share) if value.is_floating_point() else value.clone()
        for name, value in after.items()
    }


def best_mix(
    model: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    shares: Sequence[float],
    score: Callable[[nn.Module], float],
) -> tuple[float, dict[float, float]]:
    """Load the best of several mixes into `model`; ties go to the larger share of the new weights.

    Args:
        model: is left holding the best mix, in eval mode.
        before: weights before the training.
        after: weights after it.
        shares: of the new weights to try.
        score: larger is better; must not use test patients.

    Returns:
        The share taken, and the score of every share tried.
    """
    tried = {}
    for share in shares:
        model.load_state_dict(mix_weights(before, after, share))
        tried[share] = score(model.eval())
    best = max(sorted(tried, reverse=True), key=lambda share: tried[share])
    model.load_state_dict(mix_weights(before, after, best))
    model.eval()
    return best, tried
