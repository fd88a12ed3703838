"""How the loop trains: every setting, and which of them must be equal when a run is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pneumoscope.errors import InputError

SCHEDULES = ("constant", "cosine", "cyclic", "plateau")
_PLATEAU = ("plateau_epochs", "plateau_factor", "plateau_of", "plateau_least", "plateau_rest", "plateau_floor")
_SINCE = ("plateau_of", "plateau_least", "plateau_rest", "plateau_floor")
"""Settings younger than the first checkpoints; at their defaults they are not part of a run's identity."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train."""

    max_epochs: int = 200  # passes over the training set at most
    batch_size: int = 45  # examples a step; the last step of an epoch may hold fewer
    learning_rate: float = 1e-4  # of the first step; see `schedule`
    optimiser: Literal["adam", "adamw"] = "adam"  # ``adam`` or ``adamw``
    weight_decay: float = 0.0  # L2 weight (decoupled for adamw)
    # ``constant``; ``cosine`` down to 1 % over max_epochs; ``cyclic``: one cycle over max_epochs, see `cycle`; or
    # ``plateau``: times `plateau_factor` whenever the loss has not got lower for `plateau_epochs` epochs. All after
    # `warmup_steps` of linear rise.
    schedule: Literal["constant", "cosine", "cyclic", "plateau"] = "constant"
    warmup_steps: int = 0  # steps of linear rise from 0
    # plateau_epochs, plateau_factor: of the schedule ``plateau`` only, and so are the next four
    plateau_epochs: int = 5
    plateau_factor: float = 0.1
    plateau_of: Literal["val_loss", "train_loss"] = "val_loss"  # ``val_loss`` or ``train_loss``
    plateau_least: float = 0.0  # a loss is lower when it is so by more than this
    plateau_rest: int = 0  # epochs after a drop that do not count
    plateau_floor: float = 0.0  # the rate never drops below this
    patience: int | None = None  # epochs without a better validation value after which training stops; None never stops
    # ``val_loss`` or ``train_loss`` (smaller is better), or ``val_<score>`` of the task (larger is better)
    monitor: str = "val_loss"
    # ``best`` returns the weights of the best epoch by `monitor`, ``last`` those of the last one; `patience` then
    # counts from there and never stops
    keep: Literal["best", "last"] = "best"
    ema: float = 0.0  # decay of an average of the weights that is validated and returned instead of them; 0 is none
    clip_norm: float = 0.0  # gradients are scaled down to this norm; 0 is none
    frozen: tuple[str, ...] = ()  # names of modules whose weights and normalisation statistics stay as they are
    seed: int = 0  # of order, augmentation and dropout
    device: str = "auto"  # ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``cuda*N`` for several
    # ``auto`` (bf16 where the processor computes in it, else fp32), ``fp32`` or ``bf16``
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_every_steps: int | None = None  # also save within an epoch; every epoch's end is saved in any case
    max_minutes: float | None = None  # stop after the epoch in which this much time of this process is spent

    def __post_init__(self) -> None:
        if self.max_epochs < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise InputError(
                "max_epochs and batch_size must be at least 1 and learning_rate positive, got "
                f"{self.max_epochs}, {self.batch_size}, {self.learning_rate}"
            )
        if self.optimiser not in ("adam", "adamw") or self.schedule not in SCHEDULES:
            raise InputError(
                f"unknown optimiser {self.optimiser!r} or schedule {self.schedule!r}; "
                f"known are adam, adamw and {', '.join(SCHEDULES)}"
            )
        if self.plateau_epochs < 1 or not 0 < self.plateau_factor < 1:
            raise InputError(
                "plateau_epochs must be at least 1 and plateau_factor between 0 and 1, got "
                f"{self.plateau_epochs}, {self.plateau_factor}"
            )
        if self.plateau_of not in ("val_loss", "train_loss") or min(self.plateau_least, self.plateau_rest) < 0:
            raise InputError(
                "plateau_of is val_loss or train_loss, plateau_least and plateau_rest are at least 0, got "
                f"{self.plateau_of!r}, {self.plateau_least}, {self.plateau_rest}"
            )
        if not self.monitor.startswith("val_") and self.monitor != "train_loss":
            raise InputError(
                f"monitor must be a validation value such as val_loss, or train_loss, got {self.monitor!r}"
            )

    def identity(self) -> dict[str, Any]:
        """Settings that must be equal for a resume, as JSON has them; those that change no weight are left out."""
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        default = TrainConfig()
        same = tuple(name for name in _SINCE if getattr(self, name) == getattr(default, name))
        unused = same if self.schedule == "plateau" else _PLATEAU
        for free in ("max_minutes", "device", "checkpoint_every_steps", *unused):
            settings.pop(free)
        return settings


CYCLE_RISE, CYCLE_START, CYCLE_END = 0.25, 1 / 25, 1e-5
"""One cycle as fastai's `fit_one_cycle` has it: share of the steps that rise, first and last rate as parts of the
highest (https://docs.fast.ai/callback.schedule.html)."""


def rate_at(config: TrainConfig, done: int, steps: int, history: Sequence[Mapping[str, float]]) -> float:
    """The learning rate of the next step.

    Args:
        done: steps made so far, over all epochs.
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

    After each plateau the count starts again, as in Keras' ReduceLROnPlateau.

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
