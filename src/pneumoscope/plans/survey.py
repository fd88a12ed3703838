"""What plans for slices and for volumes share: how long to train, on whom, and what the scans look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, get_type_hints

import msgspec
import numpy as np

from pneumoscope.datasets.case import Case
from pneumoscope.errors import InputError
from pneumoscope.recipes.settings import MAX_SEED
from pneumoscope.study import forecast

EXAMINED = 8  # Scans that are loaded for a plan, evenly spaced over the list

WINDOW_HU = (-1000.0, 200.0)
MOST_GIGABYTES = 64.0  # A plan does not count on more memory than this, whatever is free


PRECISIONS = ("auto", "fp32", "bf16")

_KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def require(name: str, holds: bool, value: Any, wanted: str) -> None:
    """Refuse a value of a plan.

    Raises:
        InputError: it does not hold; names the value and what was expected.
    """
    if not holds:
        raise InputError(f"{name} is {value!r} in the plan, expected {wanted}")


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What every training on own data does; every field may be changed in the file."""

    dims: ClassVar[str] = ""

    batch_size: int = 8  # examples a step
    epochs: int = 60  # at most
    patience: int = 12  # epochs without a better validation Dice after which training stops
    learning_rate: float = 1e-3  # of Adam; falls along a cosine
    augment: bool = True  # show examples moved, mirrored and in another light each time
    validation_share: float = 0.25  # of the patients; the epoch is chosen on them
    # of the patients; scored once at the end, never used to choose anything. 0 keeps none apart.
    test_share: float = 0.0
    precision: str = "auto"  # ``auto``, ``fp32`` or ``bf16``
    seed: int = 0  # of weights, order, augmentation and split
    # model folder or shipped model the weights begin with; what it was trained with is then kept
    start: str | None = None
    reasons: dict[str, str] = field(default_factory=dict)  # why each value is what it is; for the reader only

    def __post_init__(self) -> None:
        self._require_types()
        for name in ("batch_size", "epochs", "patience"):
            require(name, getattr(self, name) >= 1, getattr(self, name), "at least 1")
        require("learning_rate", self.learning_rate > 0, self.learning_rate, "above 0")
        require("validation_share", 0 < self.validation_share < 1, self.validation_share, "above 0 and below 1")
        require("test_share", 0 <= self.test_share < 1, self.test_share, "from 0 to below 1")
        both = self.validation_share + self.test_share
        require("validation_share + test_share", both < 1, both, "below 1, to leave patients to train on")
        require("precision", self.precision in PRECISIONS, self.precision, f"one of {', '.join(PRECISIONS)}")
        require("seed", 0 <= self.seed <= MAX_SEED, self.seed, f"from 0 to {MAX_SEED}")

    def _require_types(self) -> None:
        """Whole numbers, finite numbers, text, true and false, and tuples of them: as declared."""
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            try:
                sound = name == "dims" or msgspec.convert(value, kind) == value
            except (msgspec.ValidationError, OverflowError):
                sound = False
            numbers = np.ravel(value) if sound and isinstance(value, (float, tuple)) else ()
            wanted = _KINDS.get(kind, "a value as `train --plan-only` writes it")
            require(name, sound and bool(np.isfinite(numbers).all()), value, wanted)

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
    """The scans as far as a plan needs them: medians over those examined."""

    scans: int  # examined
    shape: tuple[int, int, int]  # voxels (i, j, k)
    spacing_mm: tuple[float, float, float]  # (i, j, k)
    finest_slice_mm: float  # the slice distance that a tenth of the scans go below
    field_mm: float  # the longer side of the field of view within a slice
    matrix: int  # the longer side of a slice, pixels


def survey(cases: Sequence[Case]) -> Survey:
    """Load `EXAMINED` scans, one at a time, and look at their grids."""
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(EXAMINED, len(cases))).astype(int))
    grids = [cases[n].load().volume.grid for n in chosen]
    i, j, k = (int(n) for n in np.median([grid.shape for grid in grids], axis=0))
    x, y, z = (float(n) for n in np.median([grid.spacing_mm for grid in grids], axis=0))
    finest = float(np.percentile([grid.spacing_mm[2] for grid in grids], 10))
    fields = [max(g.shape[0] * g.spacing_mm[0], g.shape[1] * g.spacing_mm[1]) for g in grids]
    matrix = int(np.median([max(grid.shape[:2]) for grid in grids]))
    return Survey(len(grids), (i, j, k), (x, y, z), finest, float(np.median(fields)), matrix)


def memory_at_hand(device: str) -> float:
    """Gigabytes that a training may count on: free on the graphics card, else free on the machine."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info()[0]) / 1e9
    return forecast.available_gigabytes()
