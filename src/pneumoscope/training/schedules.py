"""The learning rate of every step: a function of the settings, the step and the history, so a resume needs no more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pneumoscope.training.config import TrainConfig

CYCLE_RISE, CYCLE_START, CYCLE_END = 0.25, 1 / 25, 1e-5
"""One cycle as fastai's `fit_one_cycle` has it: share of the steps that rise, first and last rate as parts of the
highest (https://docs.fast.ai/callback.schedule.html)."""


def rate_at(config: TrainConfig, done: int, steps: int, history: Sequence[Mapping[str, float]]) -> float:
    """The learning rate of the next step.

    Args:
        config: see `TrainConfig.schedule`.
        done: steps made so far, over all epochs.
        steps: steps of an epoch.
        history: rows of the epochs done.
    """
    rise = min(1.0, (done + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * rise
    if config.schedule == "plateau":
        losses = [row[config.plateau_of] for row in history]
        drops = plateaus(losses, config.plateau_epochs, config.plateau_least, config.plateau_rest)
        return max(config.learning_rate * config.plateau_factor**drops, config.plateau_floor) * rise
    share = done / max(1, config.max_epochs * steps)
    if config.schedule == "cyclic":
        return config.learning_rate * rise * cycle(share)
    return config.learning_rate * rise * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def plateaus(losses: Sequence[float], epochs: int, least: float = 0.0, rest: int = 0) -> int:
    """How often a list of losses has stood still: `epochs` in a row that are not below the best before.

    After each plateau the count begins anew, as in Keras' ReduceLROnPlateau.

    Args:
        losses: one per epoch, from the first.
        epochs: how long is standing still.
        least: below means by more than this (Keras' min_delta).
        rest: epochs after a plateau that do not count (Keras' cooldown).
    """
    best, waited, resting, found = math.inf, 0, 0, 0
    for loss in losses:
        if resting:
            resting, waited = resting - 1, 0
        if loss < best - least:
            best, waited = loss, 0
        elif not resting:
            waited += 1
            if waited >= epochs:
                found, waited, resting = found + 1, 0, rest
    return found


def cycle(share: float) -> float:
    """Part of the highest rate at a share of a training in [0, 1): a cosine up over a quarter, a cosine down after.

    One cycle after Smith 2017 as fastai runs it; the momentum, which fastai moves the other way, stays.
    """
    if share < CYCLE_RISE:
        begin, end, share = CYCLE_START, 1.0, share / CYCLE_RISE
    else:
        begin, end, share = 1.0, CYCLE_END, (share - CYCLE_RISE) / (1 - CYCLE_RISE)
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
