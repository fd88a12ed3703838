"""2.5D: slices shown together with their neighbours of the same scan, as further channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.experiments.schema import Experiment
from pneumoscope.experiments.systems import NEIGHBOURS

if TYPE_CHECKING:
    from pneumoscope.study.data import StudySet


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

    def rows(self, study_set: StudySet, rows: NDArray[np.intp]) -> NDArray[np.intp]:
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

    def images(self, study_set: StudySet, rows: NDArray[np.intp]) -> NDArray[Any]:
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
