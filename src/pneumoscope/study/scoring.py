"""Every stage on every test set, once, after all trainings: a row per slice.

A stage's rows are written into its folder as soon as they are complete, with the checksum of the weights that made
them, so that a resumed study scores nothing twice and never keeps scores of other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.experiments.schema import Experiment
from pneumoscope.io.files import write_text
from pneumoscope.metrics.overlap import slice_scores
from pneumoscope.progress import Progress, silent
from pneumoscope.study.data import StudySet
from pneumoscope.study.matrix import PER_CASE_COLUMNS, per_case_rows
from pneumoscope.study.stages import StageJob, TrainedModel, new_model

UNTRAINED = "untrained"
"""Name of the network before any training; its scores are the baseline of forward transfer."""

CHUNK = 64
"""Slices whose probabilities are held at a time."""


@dataclass(frozen=True)
class Scorer:
    """What scoring needs beside a stage.

    Attributes:
        experiment: threshold and batch.
        sets: the sets by number.
        device: to predict on.
        progress: told after each test set.
    """

    experiment: Experiment
    sets: Mapping[int, StudySet]
    device: str = "auto"
    progress: Progress = silent

    def predict(self, model: TrainedModel, number: int, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Infiltrate found in slices of a set, (n, h, w) bool."""
        slices = self.sets[number].slices
        precision = self.experiment.training.precision
        found = [
            model.predict(slices.images[rows[start : start + CHUNK]], device=self.device, precision=precision)[:, 0]
            >= self.experiment.scoring.threshold
            for start in range(0, len(rows), CHUNK)
        ]
        return np.concatenate(found) if found else np.zeros((0, *slices.target.shape[1:]), bool)

    def stage(self, model: TrainedModel, folder: Path | None) -> pd.DataFrame:
        """The rows of per_case.csv of one stage, on all sets; kept in `folder` when one is given."""
        name = None if folder is None else f"scores-{model.sha256[:16]}.csv"
        if folder is not None and name is not None and (folder / name).is_file():
            return read_per_case(folder / name)
        parts = []
        for done, (number, study_set) in enumerate(sorted(self.sets.items()), start=1):
            rows = study_set.rows("test")
            scores = slice_scores(self.predict(model, number, rows), study_set.slices.target[rows] > 0)
            parts.append(per_case_rows(model.name, number, study_set.slices.table.iloc[rows], scores))
            self.progress(f"scoring {model.name}", done, len(self.sets), f"set {number}: {len(rows)} slices")
        table = pd.concat(parts, ignore_index=True)
        if folder is not None and name is not None:
            for old in folder.glob("scores-*.csv"):
                old.unlink()
            write_per_case(table, folder / name)
            return read_per_case(folder / name)
        return table

    def untrained(self) -> pd.DataFrame:
        """The same rows for the network as it is before the first training."""
        experiment = self.experiment
        job = StageJob(
            UNTRAINED,
            experiment.preprocessing.channels,
            experiment.network.out_channels,
            experiment.network.features,
            experiment.stages.first,
            None,
            "infiltrate",
        )
        model = TrainedModel(UNTRAINED, Path(), new_model(experiment, job), "", trained_now=False)
        return self.stage(model, None)


def write_per_case(table: pd.DataFrame, path: Path) -> None:
    """Write rows of per_case.csv, whole or not at all."""
    write_text(path, table[list(PER_CASE_COLUMNS)].to_csv(index=False, float_format="%.8g", lineterminator="\n"))


def read_per_case(path: Path) -> pd.DataFrame:
    """Read what `write_per_case` wrote; names stay text."""
    return pd.read_csv(path, dtype={"stage": str, "case": str, "patient": str}, keep_default_na=False)


def ranked_slice(rows: pd.DataFrame, percentile: float) -> int | None:
    """The row label of the slice with infiltrate that stands at `percentile` of F1; None when there is none.

    Chosen by rank, so that nobody picks the pictures; ties go by case and slice.
    """
    infected = rows[(rows["tp"] + rows["fn"]) > 0].sort_values(["f1", "case", "slice"], kind="stable")
    if infected.empty:
        return None
    return int(infected.index[round(percentile / 100 * (len(infected) - 1))])
