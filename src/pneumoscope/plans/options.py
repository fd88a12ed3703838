"""Options of `train`, `finetune` and `crossval`, each once; a file of their own, so that help loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pneumoscope.errors import InputError
from pneumoscope.options import option, sides


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What trainings on own data have in common; None leaves a value to the plan.

    Raises:
        InputError: a `patch` that is not SLICESxROWSxCOLUMNS.
    """

    plan: Path | None = option(
        None, "A plan to follow; without one that of the folder, or a new one.", metavar="FILE", file=True
    )
    plan_only: bool = option(False, "Print and write the plan, train nothing.")
    epochs: int | None = option(None, "At most so many epochs.", metavar="N", low=1)
    patience: int | None = option(None, "Stop after N without gain.", metavar="N", low=1)
    max_minutes: float | None = option(None, "Stop after about so long.", metavar="M", low=0)
    batch_size: int | None = option(None, "Slices, or boxes, a step.", metavar="N", low=1)
    patch: tuple[int, ...] | None = option(
        None, "3d: voxels of the box it sees.", metavar="SLICESxROWSxCOLUMNS", parse=sides
    )

    def __post_init__(self) -> None:
        if self.patch is not None and len(self.patch) != 3:
            raise InputError(f"{self.patch} is no box; expected SLICESxROWSxCOLUMNS, e.g. 48x64x64")

    def values(self) -> dict[str, Any]:
        """Arguments of `plans.data.plan_for` beside the data, the folder and the common options."""
        apart = ("plan_only", "max_minutes", "folds")
        return {name: value for name, value in vars(self).items() if name not in apart}


@dataclass(frozen=True, kw_only=True)
class NewOptions(PlanOptions):
    """Of networks with new weights."""

    dims: Literal["auto", "2d", "3d"] = option(
        "auto", "A network on slices or on volumes. auto: slices, unless there is a graphics card and the scans are "
        "thin and deep; the plan says why.",
    )  # fmt: skip
    size: int | None = option(None, "2d: edge of the slices the network sees.", metavar="PX", low=8)


@dataclass(frozen=True, kw_only=True)
class _Tested(PlanOptions):
    test_share: float | None = option(
        None, "Hold out this share of the patients: scored once at the end, nothing is chosen on them.",
        metavar="SHARE", low=0, high=0.5,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOptions(_Tested, NewOptions):
    """Of `train`."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(_Tested):
    """Of `finetune`."""

    start: str = option(
        "infiltrate", "A shipped model's name or a model folder to start from.", metavar="NAME|DIR", flags=("--from",)
    )


@dataclass(frozen=True, kw_only=True)
class CrossvalOptions(NewOptions):
    """Of `crossval`."""

    folds: int = option(5, "Folds; each holds out other patients.", metavar="K", low=2)
