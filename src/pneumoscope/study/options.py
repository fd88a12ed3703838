"""Options of studies and of trainings on own data, each once; a file of their own, so that help loads nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from pneumoscope.errors import InputError
from pneumoscope.options import REQUIRED, named, option, sides
from pneumoscope.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Which values of a recipe are changed; arguments of `recipes.registry.build_any`."""

    settings: Sequence[str] = option(
        (), "Change one value; the keys are those of `study show`. May be repeated.", metavar="KEY=VALUE",
        flags=("--set",),
    )  # fmt: skip
    seed: int | None = None
    precision: str = "auto"


@dataclass(frozen=True, kw_only=True)
class _Run:
    """How a study is run."""

    trust: bool = option(False, "Read models of other programs whose format can run code.")
    labels: tuple[str, ...] = option(
        (), "What a label of models and masks made elsewhere is, of all rows or of NAME's. Repeatable.",
        metavar="[NAME:]LABEL=MEANING", flags=("--label",),
    )  # fmt: skip
    accept_if_forgetting_below: float | None = option(
        None, "Refuse retrained models that lost as much F1 on an earlier set, or more: their cards say so, and the "
        "exit code is 1.", metavar="F1",
    )  # fmt: skip
    # continue the study in the folder; what was made of the same data, settings and weights is kept, the rest is made
    # again and named in ``notes`` of `run.json`
    resume: bool = False
    overwrite: bool = False  # remove the study in the folder and start again
    device: str = "auto"  # ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``
    progress: Progress = silent  # called about every part


@dataclass(frozen=True, kw_only=True)
class StudyOptions(_Run, RecipeOptions):
    """How an experiment is run.

    Attributes:
        data, lungs: dataset name or number -> folder.
        jobs: processes for stages that do not wait for each other; fewer where memory does not hold them.
    """

    data: Mapping[str, str | Path] = option(
        dict, "The folder of a dataset of the recipe, by its name or number. May be repeated.", metavar="NAME=ROOT",
        parse=named, many=True, file=True,
    )  # fmt: skip
    synthetic: bool = option(False, "Run on synthetic scans instead of --data; tables, figures and page say so.")
    lungs: Mapping[str, str | Path] = option(
        dict, "Lung masks made elsewhere for a set that has none (a file per case, or case folders of segment). "
        "Without any, lung.supply decides: a network trained on the other sets, or the shipped one.",
        metavar="NAME=DIR", parse=named, many=True, file=True,
    )  # fmt: skip
    seeds: int | None = option(
        None, "Trainings of a study of radiographs, each with its own draw and split.", metavar="N", low=1
    )
    jobs: int = 1


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(_Run):
    """What is scored on which sets, without training."""

    data: Mapping[str, str | Path] = option(
        REQUIRED, "A test set: a reader of `data list`, or READER:LABEL. May be repeated.", metavar="SET=ROOT",
        parse=named, many=True, file=True,
    )  # fmt: skip
    models: Mapping[str, str | Path] = option(
        dict, "A row: what `segment --model` takes. May be repeated.", metavar="NAME=MODEL", flags=("--model",),
        parse=named, many=True, file=True,
    )  # fmt: skip
    predictions: Mapping[str, str | Path] = option(
        dict, "A row: a folder with a mask per case. May be repeated.", metavar="NAME=DIR", parse=named, many=True,
        file=True,
    )  # fmt: skip
    trained_on: Mapping[str, str] = option(
        dict, "Sets that a row was trained on, in order. With those of an earlier row and one more it is that row "
        "retrained: forgetting is measured. May be repeated.", metavar="NAME=SET,...", parse=named, many=True,
    )  # fmt: skip


class StudyKeywords(TypedDict, total=False):
    """Fields of `StudyOptions` as keywords of a call, for editors and type checkers."""

    data: Mapping[str, str | Path]
    synthetic: bool
    settings: Sequence[str]
    seed: int | None
    seeds: int | None
    precision: str
    device: str
    jobs: int
    lungs: Mapping[str, str | Path]
    labels: tuple[str, ...]
    trust: bool
    accept_if_forgetting_below: float | None
    resume: bool
    overwrite: bool
    progress: Progress


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
