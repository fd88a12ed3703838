"""What a study is asked and gives, and what a modality has to say for `engine.Study` to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from pneumoscope.errors import RunError
from pneumoscope.objects import Tabled
from pneumoscope.progress import Noted
from pneumoscope.study.analysis.comparison import Compared, compare_cells
from pneumoscope.study.folder import start
from pneumoscope.study.learners.base import StudyContext
from pneumoscope.study.options import StudyOptions
from pneumoscope.study.scores.table import Scores


@dataclass(frozen=True, eq=False, repr=False)
class StudyResult(Tabled):
    """What a study found, and where it lies.

    Attributes:
        folder: the study folder.
        experiment: as it was run.
        tables: the tables that matter most, by the name of their file without ``.csv``; ``matrix`` is always there.
        shown: columns and rows for a terminal.
        report: the page to open.
        seconds: wall time by part.
        left_out: what was not run, and why.
        refusal: why retrained models are refused; empty where they are not.
        case_folder: the case that the demo segments after the study.
    """

    folder: Path
    experiment: Any
    tables: Mapping[str, pd.DataFrame]
    shown: tuple[Sequence[str], Sequence[Sequence[Any]]]
    report: Path
    seconds: Mapping[str, float]
    left_out: tuple[str, ...] = ()
    refusal: str = ""
    case_folder: Path | None = None

    def __repr__(self) -> str:
        return f"StudyResult({self.experiment.recipe!r}, {len(self.matrix)} cells, {str(self.folder)!r})"

    def _numbers(self) -> dict[str, str]:
        return {"recipe": self.experiment.recipe, "cells": str(len(self.matrix)), "report": str(self.report)}

    def _draw(self, axes: Sequence[Any]) -> None:
        scores = [name for name in ("dice", "f1", "accuracy", "auc") if name in self.matrix]
        score = next(name for name in scores if self.matrix[name].notna().any())
        cells = self.matrix.pivot_table(index="stage", columns="test", values=score, sort=False)
        axes[0].imshow(cells, vmin=0, vmax=1, aspect="auto")
        axes[0].set_xticks(range(cells.shape[1]), cells.columns.astype(str))
        axes[0].set_yticks(range(cells.shape[0]), cells.index.astype(str))
        for (row, column), value in np.ndenumerate(cells.to_numpy()):
            axes[0].text(column, row, f"{value:.2f}", ha="center", color="white" if value < 0.6 else "black")
        axes[0].set(title=score, xlabel="tested on", ylabel="stage")

    def to_frame(self) -> pd.DataFrame:
        """The table of `matrix.csv`; the others are in `tables`."""
        return self.matrix

    def as_dict(self) -> dict[str, Any]:
        """Where it lies and its tables, by name, as lists of rows."""
        tables = {name: table.to_dict(orient="records") for name, table in self.tables.items()}
        where = {"folder": self.folder, "report": self.report, "case": self.case_folder}
        return {**where, **tables, "left_out": list(self.left_out), "seconds": dict(self.seconds)}

    @property
    def matrix(self) -> pd.DataFrame:
        """The table of `matrix.csv`."""
        return self.tables["matrix"]

    def require_accepted(self) -> None:
        """Raise RunError where retrained models were refused; everything is written by then."""
        if self.refusal:
            raise RunError(self.refusal, path=self.folder)


class Modality(ABC):
    """What is particular to the data and the models of an experiment: how they are read, made and scored.

    `engine.Study` calls the methods in the order in which they stand here; the folder, jobs, tables and the page of a
    study are its own.

    Attributes:
        takes: options that only some modalities understand and this one does: ``lungs``, ``synthetic``,
            ``accept_if_forgetting_below``.
        title: of the page; empty where the modality has none.
        measures: what `study compare` compares cells by.
        experiment, options: what is run and how.
        folder: the study folder, once it is open.
        resume: take what is finished from the folder.
        by_workers: the stages were made by workers of this run, and nothing is left to train.
        left_out: what is not run, and why.
    """

    takes: ClassVar[frozenset[str]] = frozenset()
    title: ClassVar[str] = ""
    measures: ClassVar[tuple[str, ...]]

    def __init__(self, experiment: Any, options: StudyOptions) -> None:
        self.experiment, self.options = experiment, options
        self.device, self.resume, self.folder = options.device, options.resume, Path()
        self.progress, self.by_workers = Noted(options.progress), False
        self.left_out: list[str] = []

    @property
    def context(self) -> StudyContext:
        """What learners work with."""
        return StudyContext(
            self.experiment, {}, self.folder, self.device, self.resume, self.progress, trust=self.options.trust,
            labels=self.options.labels,
        )  # fmt: skip

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot be run before anything is written."""

    def open(self, out: str | Path) -> Path:
        """Start or resume the folder, or refuse it."""
        return start(self.experiment, out, resume=self.resume, overwrite=self.options.overwrite)

    @abstractmethod
    def read(self) -> None:
        """Read the data and split them."""

    def mark(self) -> str:
        """What tables and figures say of the data: empty for real ones."""
        return ""

    def side_by_side(self, jobs: int) -> int:
        """How many stages are made at a time where `jobs` were asked for."""
        return jobs

    @abstractmethod
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Every stage in the order in which one process makes them, with those that must be made before it."""

    def stage_folder(self, name: str) -> Path:
        """Where a stage lies."""
        return self.folder / "stages" / name

    @abstractmethod
    def train(self, name: str) -> None:
        """Train a stage, or take it from its folder; those it needs are made."""

    @abstractmethod
    def score(self, name: str) -> pd.DataFrame:
        """What a stage, made before, predicts of its tests and how well: its rows of per_case.csv.

        Kept in the stage's folder and taken from there while weights, data and settings are the same.
        """

    @abstractmethod
    def tables(self, per_case: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """The tables of this modality by name, ``matrix`` among them, from the rows of all stages.

        What else explains the results, such as figures, is written here.
        """

    @abstractmethod
    def scores(self, per_case: pd.DataFrame) -> Scores:
        """The tidy table of every study, and what follows from it."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What `study.json` says of data and models beside the tables."""

    @abstractmethod
    def shown(self, tables: Mapping[str, pd.DataFrame]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """Columns and rows for a terminal; numbers as they are."""

    def facts(self) -> dict[str, Any]:
        """What `run.json` says beside the notes."""
        return {}

    def judge(self) -> str:
        """Judge retrained models by the limit on forgetting, if there is one; why they are refused, else empty."""
        return ""

    @classmethod
    def compare(cls, folders: Sequence[Path]) -> Compared:
        """Finished studies of this modality side by side."""
        return compare_cells(folders, cls.measures)

    @staticmethod
    def page(experiment: Any, folder: Path) -> dict[str, Any]:
        """What the page of a study shows beside the common parts; ``section`` names its template."""
        raise NotImplementedError  # asked only where there is a `title`
