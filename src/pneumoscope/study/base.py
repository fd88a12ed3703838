"""One run of an experiment: the order of its parts, the same for every kind of study.

A kind of study says how its data are read, how its models are made and scored, and what its page needs; everything
else, from the folder to the notes of a resumed run, stands here once.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from pneumoscope.errors import InputError, RunError
from pneumoscope.io.files import write_json
from pneumoscope.jobs.machines import current
from pneumoscope.objects import Tabled
from pneumoscope.progress import Noted, Progress, silent
from pneumoscope.reports.figures import marked
from pneumoscope.study.folder import SYNTHETIC, mark_tables, start, write_environment, write_run
from pneumoscope.study.report import write_report


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How an experiment is run.

    Attributes:
        data: dataset name or number -> folder.
        synthetic: run on synthetic scans instead; every table, figure and page then says so.
        resume: continue the study in the folder; what was made of the same data, settings and weights is kept, the rest
            is made again and named in ``notes`` of `run.json`.
        overwrite: remove the study in the folder and start again.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        jobs: processes for stages that do not wait for each other; fewer where memory does not hold them.
        lungs: dataset name or number -> folder of lung masks made elsewhere, for sets without their own.
        accept_if_forgetting_below: refuse retrained models that lost as much F1 on an earlier set, or more.
        trust: read models of other programs whose format can run code.
        progress: called about every part.
    """

    data: Mapping[str, str | Path] = field(default_factory=dict)
    synthetic: bool = False
    resume: bool = False
    overwrite: bool = False
    device: str = "auto"
    jobs: int = 1
    lungs: Mapping[str, str | Path] = field(default_factory=dict)
    accept_if_forgetting_below: float | None = None
    trust: bool = False
    progress: Progress = silent


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


class Study(ABC):
    """One run of an experiment of one kind.

    Attributes:
        takes: options that only some kinds understand and this one does: ``lungs``, ``synthetic``,
            ``accept_if_forgetting_below``.
        experiment, options: what is run and how.
        folder: the study folder, once it is open.
        processes: how many make stages at a time.
        left_out: what is not run, and why.
    """

    takes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, experiment: Any, options: StudyOptions) -> None:
        self.experiment, self.options = experiment, options
        self.device, self.resume, self.processes = options.device, options.resume, options.jobs
        self.progress = Noted(options.progress)
        self.folder = Path()
        self.left_out: list[str] = []
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot be run before anything is written."""

    @abstractmethod
    def prepare(self) -> None:
        """Read the data and split them."""

    @abstractmethod
    def mark(self) -> str:
        """What tables and figures say of the data: empty for real ones."""

    @abstractmethod
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Every stage in the order in which one process makes them, with those that must be made before it."""

    @abstractmethod
    def make_stage(self, name: str) -> None:
        """Train a stage, or take it from its folder; those it needs are made."""

    def open(self, folder: Path) -> None:
        """Read the data of a study that lies in a folder, as a worker does."""
        self.folder = folder
        self.check()
        self.prepare()

    def make(self) -> None:
        """Make all stages; with several jobs each as soon as those it needs are there."""
        if self.processes > 1 or current().remote:
            from pneumoscope.study.parallel import make_in_parallel

            make_in_parallel(self, self.processes)
            self.resume = True  # all of them are there
        for name in self.stages():
            self.make_stage(name)

    @abstractmethod
    def score(self) -> dict[str, pd.DataFrame]:
        """Write tables and figures; the tables of `StudyResult`."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What `study.json` says of data and models beside the tables."""

    @abstractmethod
    def shown(self, tables: Mapping[str, pd.DataFrame]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """Columns and rows for a terminal; numbers as they are."""

    def judge(self) -> str:
        """Judge retrained models by the limit on forgetting, if there is one; why they are refused, else empty."""
        return ""

    def run(self, out: str | Path) -> StudyResult:
        """Run everything into `out`.

        Raises:
            InputError: the folder holds another study, data are missing, or an option is of another kind of study.
            RunError: a training failed; the study can be resumed.
        """
        self._require_understood()
        self.check()
        self.folder = start(self.experiment, out, resume=self.resume, overwrite=self.options.overwrite)
        self._note_environment()
        self.prepare()
        self.lap("reading")
        with marked(self.mark()):
            self.make()
            tables = self.score()
        self.lap("tables and figures")
        if "synthetic" in self.takes:
            mark_tables(self.folder, self.mark() or "real")
        for line in self.left_out:
            self.progress("left out", 1, 1, line)
        facts = {"synthetic": self.mark() == SYNTHETIC, "mark": self.mark(), "left_out": self.left_out}
        summary = {**self.summary(), **facts, "notes": self.progress.notes, "seconds": self.seconds}
        write_json(self.folder / "study.json", summary)
        write_run(self.folder, self.progress.notes, resumed=self.resume, synthetic=bool(self.mark()))
        refusal = self.judge()
        report = write_report(self.folder)
        return StudyResult(
            self.folder,
            self.experiment,
            tables,
            self.shown(tables),
            report,
            dict(self.seconds),
            tuple(self.left_out),
            refusal,
        )

    def lap(self, part: str) -> None:
        """Note the wall time since the last lap under a name."""
        now = time.perf_counter()
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self._since, 2)
        self._since = now

    def _require_understood(self) -> None:
        options = self.options
        given = {
            "lungs": bool(options.lungs),
            "accept_if_forgetting_below": options.accept_if_forgetting_below is not None,
            "synthetic": options.synthetic,
        }
        for name, there in given.items():
            if there and name not in self.takes:
                raise InputError(f"{name} is not for {self.experiment.recipe}, a study of another kind; leave it out")

    def _note_environment(self) -> None:
        import torch

        from pneumoscope.training.devices import pick_device, pick_precision

        device = pick_device(self.device)
        precision = pick_precision(self.experiment.training.precision, device)
        write_environment(self.folder, device=device.type, precision=precision, threads=torch.get_num_threads())
