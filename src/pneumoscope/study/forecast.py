"""What a study will do, before it does it: which trainings there are, which wait for which, how many steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil

from pneumoscope.processes import peak_bytes
from pneumoscope.recipes.schema import Experiment, Stage
from pneumoscope.recipes.stages import ON_SLICES, split_external
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.learners.slices import two_channel_target

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.training.data import BatchSource
    from pneumoscope.training.tasks import Task

ONLY_KEPT = frozenset({"plain", "averaging", "adabn", "selector"})
"""Parts of a strategy that do not touch the training itself, only what is kept of it."""

FORWARD_SHARE = 1 / 3
"""What looking at a slice costs beside learning from it: one pass forward of one forward and two backward."""

TrainingKey = tuple[tuple[str, int, frozenset[str], frozenset[str]], ...]


def training_key(experiment: Experiment, name: str) -> TrainingKey:
    """Equal for stages whose trainings are the same, whatever they are called: one entry per stage of the lineage."""
    lineage = experiment.lineage(name)
    entries = []
    for stage in lineage:
        parts = experiment.strategy_of(stage.name)
        mixed = "averaging" in parts and stage is not lineage[-1]  # a later stage starts from the mix
        moved = parts & {"averaging", "selector"} if mixed else frozenset()
        entries.append((stage.system, stage.site, parts - ONLY_KEPT, moved))
    return tuple(entries)


def leader(experiment: Experiment, name: str) -> str:
    """The first stage of the chain with the training of `name`; itself when there is none before it."""
    key = training_key(experiment, name)
    return next(s.name for s in experiment.stages.chain if training_key(experiment, s.name) == key)


def needs(experiment: Experiment, name: str) -> list[str]:
    """Stages that must be made before `name`: those of its lineage, and the one that shares its training."""
    before = [stage.name for stage in experiment.lineage(name)[:-1]]
    first = leader(experiment, name)
    return before if first == name else [*before, *(s for s in (*needs(experiment, first), first) if s not in before)]


def on_slices(experiment: Experiment) -> list[Stage]:
    """The stages that are trained on slices, whose steps can be counted beforehand."""
    return [stage for stage in experiment.stages.chain if stage.system in ON_SLICES]


def epoch_length(experiment: Experiment, stage: Stage, train_slices: Mapping[int, int]) -> int:
    """Slices that an epoch of a stage shows."""
    return experiment.budget(stage).epoch_slices or train_slices[stage.site]


def count_steps(experiment: Experiment, train_slices: Mapping[int, int]) -> int:
    """Optimiser steps of all trainings on slices, at most: none stops early, each training counts once.

    `train_slices` are counted by set number.
    """
    total = 0
    for stage in on_slices(experiment):
        if leader(experiment, stage.name) != stage.name:
            continue
        steps = math.ceil(epoch_length(experiment, stage, train_slices) / experiment.training.batch_size)
        total += experiment.budget(stage).max_epochs * steps
    return total


def guard_steps(experiment: Experiment, train_slices: Mapping[int, int]) -> float:
    """What strategies compute beside the training steps, in steps of the same batch, forward and back.

    A teacher looks at every slice of every step (`FORWARD_SHARE` of a step); Fisher information is the work of
    training on each of its slices once, of every stage before.
    """
    total = 0.0
    for stage in on_slices(experiment):
        parts = experiment.strategy_of(stage.name)
        if leader(experiment, stage.name) != stage.name:
            continue
        if "lwf" in parts:
            length = epoch_length(experiment, stage, train_slices)
            steps = math.ceil(length / experiment.training.batch_size)
            total += FORWARD_SHARE * experiment.stages.retrain.max_epochs * steps
        if "ewc" in parts:
            before = experiment.lineage(stage.name)[:-1]
            slices = sum(min(experiment.strategy.ewc_slices, train_slices[s.site]) for s in before)
            total += slices / experiment.training.batch_size
    return total


STEPS = 3  # Steps that are timed, after one that warms up


@dataclass(frozen=True)
class Forecast:
    """What is to be expected."""

    steps: int  # optimiser steps of all trainings, if none stops early
    seconds_per_step: float  # as measured
    minutes: float  # of all trainings and their validation, with as many processes as asked for
    gigabytes: float  # peak memory of one process, sets and all
    jobs: int  # processes that fit
    not_counted: int = 0  # stages on volumes and thresholds, whose time is not foreseen

    def sentence(self) -> str:
        """One line for people."""
        memory = f"{self.gigabytes:.1f} GB" + (f" in each of {self.jobs} processes" if self.jobs > 1 else "")
        minutes = max(1, round(self.minutes))
        training = f"at most about {minutes} minute{'s' * (minutes > 1)} of training" if self.steps else "no training"
        text = f"{training}, {memory}" if self.steps or not self.not_counted else memory
        return f"{text}; {self.not_counted} stages on volumes are not counted" if self.not_counted else text


def forecast(
    experiment: Experiment, sets: Mapping[int, StudyDataset], *, device: str = "auto", jobs: int = 1
) -> Forecast:
    """Make a few steps on slices of the first set, and count up.

    The time is an upper bound where a stage may stop early.

    Args:
        jobs: processes asked for; fewer are named where memory does not hold them.
    """
    rows = {number: study_set.rows("train") for number, study_set in sets.items()}
    counted = on_slices(experiment)
    per_step = seconds_per_step(experiment, sets[counted[0].site], device) if counted else 0.0
    lengths = {number: len(found) for number, found in rows.items()}
    steps, beside = count_steps(experiment, lengths), guard_steps(experiment, lengths)
    looked_at = sum(experiment.budget(stage).max_epochs * len(sets[stage.site].rows("val")) for stage in counted)
    validation = looked_at / experiment.training.batch_size * per_step * FORWARD_SHARE
    peak = peak_bytes() / 1e9
    fitting = max(1, min(jobs, int(available_gigabytes() / max(peak, 0.1)) + 1))
    minutes = ((steps + beside) * per_step + validation) / 60 / fitting
    elsewhere = [stage for stage in experiment.stages.chain if split_external(stage.system)[0]]
    uncounted = len(experiment.stages.chain) - len(counted) - len(elsewhere)
    return Forecast(steps, round(per_step, 4), round(minutes, 1), round(peak, 2), fitting, uncounted)


def seconds_per_step(experiment: Experiment, study_set: StudyDataset, device: str) -> float:
    """Wall time of an optimiser step on this machine, the fastest of a few."""
    from pneumoscope.study.learners.slices import StageJob, make_augment, new_model
    from pneumoscope.training.data import ArraySource
    from pneumoscope.training.tasks import SegmentationTask

    job, plan = StageJob.first(experiment, "forecast"), experiment.training
    chosen = np.resize(study_set.rows("train"), plan.batch_size)
    target = two_channel_target(study_set.slices.target[chosen], experiment.network.out_channels)
    names = [str(row) for row in chosen]
    source = ArraySource(study_set.slices.images[chosen], target, names, make_augment(experiment, job))
    model, task = new_model(experiment, job), SegmentationTask(plan.loss)
    return sum(measure_step(model, task, source, plan.batch_size, device=device, precision=plan.precision))


def measure_step(
    model: nn.Module, task: Task, source: BatchSource, batch_size: int, *, device: str, precision: str,
    steps: int = STEPS,
) -> tuple[float, float]:  # fmt: skip
    """Seconds to make a batch and to learn from it: the fastest of a few steps on a copy of the network.

    One step more warms up; on a CUDA device the most memory seen is counted from here on.
    """
    import torch

    from pneumoscope.training.data import Batch
    from pneumoscope.training.devices import make_fabric

    fabric = make_fabric(device, precision)  # type: ignore[arg-type]
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    copy = deepcopy(model).train().to(fabric.device)
    rows, taken = np.resize(np.arange(len(source)), batch_size), []
    if all(weight.ndim < 5 for weight in copy.parameters()):
        copy = copy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped, optimiser = fabric.setup(copy, torch.optim.Adam(copy.parameters()))
    for step in range(steps + 1):
        since = time.perf_counter()
        made = source.batch(rows, np.random.default_rng(step))
        middle = time.perf_counter()
        batch = Batch(made.x.to(fabric.device), made.y.to(fabric.device), made.names)
        optimiser.zero_grad()
        fabric.backward(task.loss(wrapped(batch.x).float(), batch))
        optimiser.step()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        taken.append((middle - since, time.perf_counter() - middle))
    return min(t[0] for t in taken[1:]), min(t[1] for t in taken[1:])


def available_gigabytes() -> float:
    """Memory that is free for other processes."""
    return psutil.virtual_memory().available / 1e9
