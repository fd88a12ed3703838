"""Options of `data split`, `convert` and `phantom`, each once; read by help without what is heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pneumoscope.errors import InputError
from pneumoscope.options import REQUIRED, named, option, require_choices


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How a dataset is split.

    Raises:
        InputError: values that do not exist or do not go together.
    """

    folds: int = option(5, "How many folds; the published ones are five.", metavar="K", low=2)
    by: Literal["patient", "slice", "ma"] = option(
        "patient", "By patient; by slice, which leaks; or take the published folds of covid19ctseg."
    )
    ma_task: Literal["20/80", "80/20"] = option("20/80", "With --by ma: the share trained on and the share tested on.")
    validation: bool = option(
        True, "Set a validation part apart in each fold; published folds and those of a file have none."
    )
    others: Mapping[str, str | Path] = option(
        dict, "Another dataset split together with it; may be repeated.", metavar="NAME=ROOT", flags=("--with",),
        parse=named, many=True,
    )  # fmt: skip
    links: Path | None = option(
        None, "Cases that are of one person: a,b[,reason] of DATASET:CASE.", metavar="CSV", file=True
    )
    link_suspected: bool = option(False, "Keep datasets that very probably share patients on one side of a split.")
    splits_file: Path | None = option(
        None, "Take the folds from nnU-Net's splits_final.json.", metavar="JSON", flags=("--from",), file=True
    )
    to: Literal["csv", "nnunet"] = option("csv", "Slice tables, or splits_final.json.")
    seed: int = 0

    def __post_init__(self) -> None:
        require_choices(self)
        if self.by == "slice" and (self.to == "nnunet" or self.splits_file):
            raise InputError("nnU-Net splits cases, not slices; use --by patient, or --to csv without a file")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How a dataset is written for another tool.

    Raises:
        InputError: a layout that does not exist.
    """

    to: Literal["nnunet", "slices", "manifest"] = option(REQUIRED, "The layout to write.")
    labels: Mapping[str | int, str] = option(
        dict, "What a label of nnunet, decathlon or miscnn is: right lung, left lung, lung, ground-glass, "
        "consolidation, infiltrate or ignore. May be given several times.",
        metavar="NAME=MEANING", flags=("--label",), parse=named, many=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        require_choices(self)


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """Which synthetic scans are made.

    Raises:
        InputError: no such format, no patient, or a negative seed.
    """

    site: str = option(REQUIRED, "Which synthetic hospital.", metavar="A|B|C")
    patients: int = option(REQUIRED, "How many patients.", metavar="N", low=1)
    format: Literal["nifti", "dicom"] = option("nifti", "How the scans are stored.")
    size: str = option("full", "full is as large as patients' scans; tiny is for tests.", metavar="full|small|tiny")
    seed: int = 0

    def __post_init__(self) -> None:
        require_choices(self)
        if self.patients < 1 or self.seed < 0:
            raise InputError(f"needs one patient or more and a seed of 0 or more, got {self.patients} and {self.seed}")
