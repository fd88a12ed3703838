"""What every stage can be asked, whatever system made it: a scan of a set in, a probability per slice out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.preprocess.slices import resize_nearest, to_slices
from pneumoscope.volume import Volume

if TYPE_CHECKING:
    from pneumoscope.study.data import StudySet


class StageModel(Protocol):
    """A finished stage."""

    @property
    def name(self) -> str:
        """Of the stage."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    @property
    def sha256(self) -> str:
        """Of all that its answers depend on beside the scan: kept answers of another sum are made anew."""

    @property
    def trained_now(self) -> bool:
        """False when it was taken from a study that is resumed."""

    @property
    def loads_scans(self) -> bool:
        """Whether its inputs are whole scans and not the slices of the set."""

    @property
    def sees_lungs(self) -> bool:
        """Whether the lung channel of the slices is part of what it is shown."""

    def inputs(self, study_set: StudySet, rows: NDArray[np.intp]) -> Any:
        """What it is shown of slices of one scan; loads the scan where it needs it."""

    def predict_scan(self, images: Any, *, site: int, device: str, precision: str) -> tuple[NDArray[np.float32], int]:
        """Probability of infiltrate (n, h, w) of such inputs, and the set whose network answered (0: the only one)."""


@dataclass(frozen=True, eq=False)
class ScanSlices:
    """A scan, and the slices of it that are asked for.

    Attributes:
        volume: the scan.
        slices: (n) indices k from the feet up.
        size: (h, w) of the answers.
    """

    volume: Volume
    slices: NDArray[np.int64]
    size: tuple[int, int]

    def cut(self, probability: NDArray[Any]) -> NDArray[np.float32]:
        """(n, h, w) of a probability (i, j, k) on the scan's grid, made smaller just as the study's targets are."""
        assert probability.shape == self.volume.grid.shape  # a system answers on the grid it was given
        return np.asarray(resize_nearest(to_slices(probability)[self.slices], self.size), dtype=np.float32)


def scan_of(study_set: StudySet, rows: NDArray[np.intp]) -> ScanSlices:
    """The scan that rows of a set are slices of, loaded."""
    table = study_set.slices.table.iloc[rows]
    names = table["case"].unique()
    assert len(names) == 1  # answers are made scan by scan
    height, width = study_set.slices.target.shape[1:]
    scan = study_set.scans[str(names[0])].load()
    return ScanSlices(scan.volume, table["slice"].to_numpy(np.int64), (height, width))
