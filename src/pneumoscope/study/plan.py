"""What a study will do, before it does it: which trainings there are, which wait for which, how many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pneumoscope.experiments.schema import Experiment, Stage
from pneumoscope.experiments.systems import ON_SLICES

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
    budget = experiment.stages.first if stage.start is None else experiment.stages.retrain
    return budget.epoch_slices or train_slices[stage.site]


def count_steps(experiment: Experiment, train_slices: Mapping[int, int]) -> int:
    """Optimiser steps of all trainings on slices, at most: none stops early, each training counts once.

    Args:
        experiment: the study.
        train_slices: training slices by set number.
    """
    total = 0
    for stage in on_slices(experiment):
        if leader(experiment, stage.name) != stage.name:
            continue
        budget = experiment.stages.first if stage.start is None else experiment.stages.retrain
        length = epoch_length(experiment, stage, train_slices)
        total += budget.max_epochs * math.ceil(length / experiment.training.batch_size)
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
