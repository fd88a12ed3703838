"""Every stage on every test set, after all trainings: a row per slice, kept cell by cell.

`study.scores.predictions` keeps them, `study.scores.matrix` makes the matrix of them. Scores are
made from the kept predictions of a stage; only slices that were not predicted (the rest of a set that is scored whole)
and the untrained network are asked again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.metrics.overlap import slice_scores
from pneumoscope.metrics.surface import surface_scores
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.analysis.appearance import LESION_COLUMNS, lesion_rows
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.learners.base import Predictor
from pneumoscope.study.learners.slices import StageJob, TrainedModel, new_model
from pneumoscope.study.scores.predictions import (
    Cell,
    cell_key,
    count_voxels,
    prediction_stamp,
    read_cell,
    read_predictions,
    write_cell,
)

SCORE_COLUMNS = ("accuracy", "precision", "recall", "f1", "iou", "tp", "fp", "fn", "tn")
SLICE_COLUMNS = ("stage", "test", "case", "slice", "patient", *SCORE_COLUMNS, "part", "contour_mm", "met_mm")
"""Columns of slices.csv and per_case.csv. ``part`` is the slice's part of the split; ``contour_mm`` the length of both
contours together and ``met_mm`` how much of it lies within the tolerance of the other (empty where the set has no pixel
size): their sums over a patient's slices make the patient's NSD."""

UNTRAINED = "untrained"  # Name of the network before any training; its scores are the baseline of forward transfer


@dataclass
class Scorer:
    """What scoring needs beside a stage."""

    experiment: Experiment  # threshold, tolerance, and which slices
    sets: Mapping[int, StudyDataset]  # the sets by number
    device: str = "auto"  # to predict on
    progress: Progress = silent  # called after each test set
    # (stage, set) of the cells that were computed and not taken from the folder
    computed: list[tuple[str, int]] = field(default_factory=list)

    def predict(self, model: Predictor, number: int, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Infiltrate found in slices of a set, (n, h, w) bool."""
        return np.asarray(self.probability(model, number, rows) >= 255 * self.experiment.scoring.threshold)

    def probability(self, model: Predictor, number: int, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Probability of infiltrate in slices of a set, (n, h, w), in steps of 1/255; kept ones are read."""
        slices = self.sets[number].slices
        result = np.zeros((len(rows), *slices.target.shape[1:]), np.uint8)
        asked = slices.table.iloc[rows]
        places = {name: n for n, name in enumerate(zip(asked["case"], asked["slice"].astype(int), strict=True))}
        missing = np.ones(len(rows), bool)
        for name, answer in self._kept(model, number):
            if name in places:
                result[places[name]] = answer
                missing[places[name]] = False
        for case in dict.fromkeys(asked["case"][missing]):
            chunk = np.flatnonzero(missing & (asked["case"] == case).to_numpy())
            precision = self.experiment.training.precision
            images = model.inputs(self.sets[number], rows[chunk])
            p, _ = model.predict_scan(images, site=number, device=self.device, precision=precision)
            result[chunk] = np.floor(p * 255 + 0.5).astype(np.uint8)
        return result

    def _kept(self, model: Predictor, number: int) -> list[tuple[tuple[str, int], NDArray[np.uint8]]]:
        """Kept predictions of these weights and data by case and slice; none where nothing was kept."""
        try:
            kept = read_predictions(model.folder, number)
        except InputError:
            return []
        if kept.stamp != prediction_stamp(self.experiment, model, self.sets[number]):
            return []
        names = zip(kept.case.tolist(), kept.slice.tolist(), strict=True)
        return list(zip(names, kept.probability, strict=True))

    def stage(self, model: Predictor, folder: Path | None) -> pd.DataFrame:
        """The rows of per_case.csv of one stage, on all sets; cells are kept in `folder` when one is given."""
        parts = []
        for done, number in enumerate(sorted(self.sets), start=1):
            before = len(self.computed)
            cell = self.cell(model, number, folder)
            parts.append(reported(cell.slices, self.scores_all(model.name, number)))
            if len(self.computed) > before:
                self.progress(f"scoring {model.name}", done, len(self.sets), f"set {number}: {len(parts[-1])} slices")
        return pd.concat(parts, ignore_index=True)

    def cell(self, model: Predictor, number: int, folder: Path | None = None) -> Cell:
        """One cell: from `folder` when its key still fits, else computed (and kept there)."""
        predictions = prediction_stamp(self.experiment, model, self.sets[number])
        key = cell_key(self.experiment, predictions, everything=self.scores_all(model.name, number))
        kept = None if folder is None else read_cell(folder, model.name, number, key)
        if kept is not None:
            return kept
        cell = self._compute(model, number, key)
        self.computed.append((model.name, number))
        if folder is None:
            return cell
        write_cell(folder, cell)
        return read_cell(folder, model.name, number, key) or cell

    def _compute(self, model: Predictor, number: int, key: str) -> Cell:
        study_set = self.sets[number]
        parts = ("train", "val", "test") if self.scores_all(model.name, number) else ("val", "test")
        rows = study_set.rows(*parts)
        part = np.full(len(rows), "", dtype=object)
        for name in parts:
            part[np.isin(rows, study_set.rows(name))] = name
        probability = self.probability(model, number, rows)
        found = np.asarray(probability >= 255 * self.experiment.scoring.threshold)
        truth, table = study_set.slices.target[rows] > 0, study_set.slices.table.iloc[rows]
        slices = slice_rows(model.name, number, table, found, truth)
        contours = contour_rows(found, truth, table, self.experiment.scoring.surface_tolerance_mm)
        slices = slices.assign(part=part).join(contours)[list(SLICE_COLUMNS)]
        test = np.flatnonzero(part == "test")
        lesions = pd.DataFrame(
            [
                {"stage": model.name, "test": number, **row}
                for row in lesion_rows(self.experiment, study_set, rows[test], found[test])
            ],
            columns=list(LESION_COLUMNS),
        )
        groups = list(zip(table["patient"].astype(str), part, strict=True))
        voxels = count_voxels(probability, truth, study_set.slices.lungs[rows] > 0, groups)
        return Cell(model.name, number, key, slices, lesions, voxels)

    def _seen(self, stage: str, number: int) -> bool:
        """Whether the stage or one before it was trained on the set."""
        if stage == UNTRAINED:
            return False
        return number in {s.site for s in self.experiment.lineage(stage)}

    def scores_all(self, stage: str, number: int) -> bool:
        """Whether the set is scored on all its slices with lung (2022a)."""
        return self.experiment.scoring.unseen == "all" and not self._seen(stage, number)

    def untrained(self) -> pd.DataFrame:
        """The same rows for the network as it is before the first training; test slices only."""
        network = new_model(self.experiment, StageJob.first(self.experiment, UNTRAINED))
        model = TrainedModel(UNTRAINED, Path(), network, "", trained_now=False)
        parts = []
        for number, study_set in sorted(self.sets.items()):
            rows = study_set.rows("test")
            found, truth = self.predict(model, number, rows), study_set.slices.target[rows] > 0
            slices = slice_rows(UNTRAINED, number, study_set.slices.table.iloc[rows], found, truth)
            parts.append(slices.assign(part="test", contour_mm=math.nan, met_mm=math.nan)[list(SLICE_COLUMNS)])
        return pd.concat(parts, ignore_index=True)


def slice_rows(
    stage: str, test: int, table: pd.DataFrame, found: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> pd.DataFrame:
    """Scores (n rows) of slices (n, h, w), with whose they are."""
    flat = [{**s.as_dict(), **s.counts.__dict__} for s in slice_scores(found, truth)]
    rows = table[["case", "slice", "patient"]].reset_index(drop=True).assign(stage=stage, test=test)
    return rows.join(pd.DataFrame(flat, columns=list(SCORE_COLUMNS), index=rows.index))


def reported(slices: pd.DataFrame, everything: bool) -> pd.DataFrame:
    """The rows of a cell that enter per_case.csv: test slices, or all."""
    return slices if everything else slices[slices["part"] == "test"].reset_index(drop=True)


def contour_rows(
    found: NDArray[np.bool_], truth: NDArray[np.bool_], table: pd.DataFrame, tolerance_mm: float
) -> pd.DataFrame:
    """``contour_mm`` and ``met_mm`` of each slice, see `SLICE_COLUMNS`; NaN without pixel size, 0 without contours."""
    steps = [table[c].to_numpy(float) if c in table else np.full(len(table), np.nan) for c in ("row_mm", "column_mm")]
    result = []
    for n, step in enumerate(zip(*steps, strict=True)):
        if not np.isfinite(step).all():
            result.append((math.nan, math.nan))
        elif not found[n].any() and not truth[n].any():
            result.append((0.0, 0.0))
        else:
            scores = surface_scores(found[n], truth[n], step, tolerance_mm)
            length = scores.prediction_size + scores.reference_size
            result.append((length, scores.nsd * length))
    return pd.DataFrame(result, columns=["contour_mm", "met_mm"])


def ranked_slice(rows: pd.DataFrame, percentile: float) -> int | None:
    """The row label of the slice with infiltrate that stands at `percentile` of F1; None when there is none.

    Chosen by rank, so that nobody picks the pictures; ties go by case and slice.
    """
    infected = rows[(rows["tp"] + rows["fn"]) > 0].sort_values(["f1", "case", "slice"], kind="stable")
    if infected.empty:
        return None
    return int(infected.index[round(percentile / 100 * (len(infected) - 1))])
