"""What slice networks of a study see: slices, alone or with their neighbours, of one dataset or several mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.systems import NEIGHBOURS

if TYPE_CHECKING:
    from pneumoscope.study.data import StudyDataset
    from pneumoscope.study.learners.slices import Slices, StageJob
    from pneumoscope.training.augment import SliceAugment
    from pneumoscope.training.data import BatchSource


@dataclass(frozen=True)
class Neighbours:
    """How far a network sees along the scan.

    Attributes:
        windows: channels of a slice beside its lung mask.
        reach: slices on each side.
    """

    windows: int
    reach: int

    @property
    def image_channels(self) -> int:
        """Channels that hold grey values: the slice's own first, then those below and above, the nearest first."""
        return self.windows * (2 * self.reach + 1)

    def rows(self, study_set: StudyDataset, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """(n, 1 + 2 reach) rows of the set: the slice itself, one below, one above, two below ...

        Only slices of the set's split count, which all show lung. Where the next one is absent, the last one that is
        there is repeated; a scan never lends its slices to another.
        """
        table = study_set.slices.table
        known = np.sort(np.concatenate([study_set.rows(part) for part in ("train", "val", "test")]))
        names = zip(table["case"].to_numpy()[known], table["slice"].to_numpy(int)[known], strict=True)
        place = {(case, int(k)): int(row) for (case, k), row in zip(names, known, strict=True)}
        found = np.empty((len(rows), 1 + 2 * self.reach), np.intp)
        for n, row in enumerate(rows):
            case, k = table["case"].iloc[row], int(table["slice"].iloc[row])
            below = above = found[n, 0] = int(row)
            for step in range(1, self.reach + 1):
                below, above = place.get((case, k - step), below), place.get((case, k + step), above)
                found[n, 2 * step - 1], found[n, 2 * step] = below, above
        return found

    def images(self, study_set: StudyDataset, rows: NDArray[np.intp]) -> NDArray[Any]:
        """(n, image channels + lung channel, h, w): the grey values of all, the lung mask of the slice itself."""
        stored = study_set.slices.images
        seen = self.rows(study_set, rows)
        grey = [stored[seen[:, place], : self.windows] for place in range(seen.shape[1])]
        return np.concatenate([*grey, stored[rows, self.windows :]], axis=1)


def neighbours_of(experiment: Experiment, system: str) -> Neighbours | None:
    """What a system sees beside a slice; None for single slices."""
    if system != NEIGHBOURS:
        return None
    return Neighbours(len(experiment.preprocessing.windows_hu), experiment.preprocessing.neighbours)


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
    from pneumoscope.training.data import ArraySource, MixedSource
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
