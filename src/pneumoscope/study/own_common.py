"""What plans for slices and for volumes share: how long to train, on whom, and what the scans look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np

from pneumoscope.datasets.case import Case
from pneumoscope.errors import InputError

LOOKED_AT = 8
"""Scans that are loaded for a plan, evenly spaced over the list."""

WINDOW_HU = (-1000.0, 200.0)
MOST_GIGABYTES = 64.0
"""A plan does not count on more memory than this, whatever is free."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What every training on own data does; every field may be changed in the file.

    Attributes:
        batch_size: examples a step.
        epochs: at most.
        patience: epochs without a better validation Dice after which training stops.
        learning_rate: of Adam; falls along a cosine.
        augment: show examples moved, mirrored and in another light each time.
        validation_share: of the patients; the epoch is chosen on them.
        test_share: of the patients; scored once at the end, never used to choose anything. 0 keeps none apart.
        precision: ``auto``, ``fp32`` or ``bf16``.
        seed: of weights, order, augmentation and split.
        start: model folder or shipped model the weights begin with; what it was trained with is then kept.
        reasons: why each value is what it is; for the reader only.
    """

    dims: ClassVar[str] = ""

    batch_size: int = 8
    epochs: int = 60
    patience: int = 12
    learning_rate: float = 1e-3
    augment: bool = True
    validation_share: float = 0.25
    test_share: float = 0.0
    precision: str = "auto"
    seed: int = 0
    start: str | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.batch_size >= 1 and self.epochs >= 1 and self.patience >= 1):
            raise InputError(
                "a plan needs batch_size, epochs and patience of at least 1, got "
                f"{self.batch_size}, {self.epochs}, {self.patience}"
            )
        if not (0 < self.validation_share < 1 and self.learning_rate > 0):
            raise InputError(
                f"validation_share lies in (0, 1) and learning_rate is positive, got {self.validation_share}, "
                f"{self.learning_rate}"
            )
        if not (self.test_share >= 0 and self.validation_share + self.test_share < 1):
            raise InputError(
                f"test_share is at least 0 and leaves patients to train on beside validation_share, got "
                f"{self.test_share} and {self.validation_share}"
            )

    def step_gigabytes(self, batch: int | None = None) -> float:
        """About what a step holds."""
        raise NotImplementedError

    def advice(self) -> str:
        """What to change when memory runs out, in the words of the command line."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, as the file holds them."""
        return {"dims": self.dims, **asdict(self)}

    def shaping(self) -> dict[str, Any]:
        """Values that shape the weights; those that do not are left out. A resumed training must have the same."""
        values = {**asdict(self), "reasons": None}
        values.pop("test_share")  # it shows in the scans that are left for training
        return values if self.dims == "2d" else {"dims": self.dims, **values}


@dataclass(frozen=True)
class Survey:
    """The scans as far as a plan needs them: medians over those looked at.

    Attributes:
        scans: looked at.
        shape: voxels (i, j, k).
        spacing_mm: (i, j, k).
        finest_slice_mm: the slice distance that a tenth of the scans go below.
        field_mm: the longer side of the field of view within a slice.
        matrix: the longer side of a slice, pixels.
    """

    scans: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    finest_slice_mm: float
    field_mm: float
    matrix: int


def survey(cases: Sequence[Case]) -> Survey:
    """Load `LOOKED_AT` scans, one at a time, and look at their grids."""
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(LOOKED_AT, len(cases))).astype(int))
    grids = [cases[n].load().volume.grid for n in chosen]
    i, j, k = (int(n) for n in np.median([grid.shape for grid in grids], axis=0))
    x, y, z = (float(n) for n in np.median([grid.spacing_mm for grid in grids], axis=0))
    finest = float(np.percentile([grid.spacing_mm[2] for grid in grids], 10))
    fields = [max(g.shape[0] * g.spacing_mm[0], g.shape[1] * g.spacing_mm[1]) for g in grids]
    matrix = int(np.median([max(grid.shape[:2]) for grid in grids]))
    return Survey(len(grids), (i, j, k), (x, y, z), finest, float(np.median(fields)), matrix)


def memory_at_hand(device: str) -> float:
    """Gigabytes that a training may count on: free on the graphics card, else free on the machine."""
    from pneumoscope.study import forecast

    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info()[0]) / 1e9
    return forecast.available_gigabytes()
