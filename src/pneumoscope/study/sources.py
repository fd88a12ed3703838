"""What the loop of a stage draws its batches from: the new set, alone or mixed with earlier ones, varied or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pneumoscope.experiments.schema import Experiment

if TYPE_CHECKING:
    from pneumoscope.study.stages import Slices, StageJob
    from pneumoscope.training.augment import SliceAugment
    from pneumoscope.training.data import BatchSource

STRONG: Mapping[str, Any] = {
    "rotate_deg": 20.0,
    "scale": (0.7, 1.6),
    "shift": 0.12,
    "gamma": (0.5, 2.0),
    "contrast": (0.5, 1.6),
    "brightness": 0.15,
    "noise": 0.06,
    "blur": 0.3,
}
"""What `training.augment=strong` asks of `training.augment.SliceAugment`: other sizes and other looks."""


def sources_of(experiment: Experiment, job: StageJob, train: Slices, val: Slices) -> tuple[BatchSource, BatchSource]:
    """What the loop draws training and validation batches from."""
    from pneumoscope.training.data import ArraySource
    from pneumoscope.training.mixture import MixedSource
    from pneumoscope.training.strategies.rehearsal import equal_shares

    augment = make_augment(experiment, job)
    parts = [ArraySource(*part, augment) for part in (train, *job.guard.earlier)]
    length = job.budget.epoch_slices or len(parts[0])
    if len(parts) == 1 and job.budget.epoch_slices is None:
        return parts[0], ArraySource(*val)
    shares = equal_shares(len(parts) - 1, job.guard.earlier_share)
    return MixedSource(parts, shares, max(length, len(parts))), ArraySource(*val)


def make_augment(experiment: Experiment, job: StageJob) -> SliceAugment | None:
    """How training slices are varied; None when they are shown as they are."""
    from pneumoscope.training.augment import SliceAugment

    training = experiment.training
    if training.augment == "none":
        return None
    grey = job.image_channels(experiment)
    values = dict(STRONG) if training.augment == "strong" else {}
    hides = (grey, training.hide_lung) if job.in_channels > grey and training.hide_lung else None
    return SliceAugment(**values, image_channels=grey, drop_channel=hides)
