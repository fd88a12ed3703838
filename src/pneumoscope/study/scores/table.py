"""The tidy table of scores, `scores.csv`: a row per stage, test, case, structure and metric; the rest are group-bys.

From it follow ``intervals.csv`` (means with intervals that draw patients), ``forgetting.csv`` (what retrained networks
lost on what was learned before) and `matrix.csv`, in the form of each paper; beside it stands ``calibration.csv``.
`study compare` reads `scores.csv` of any study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.errors import InputError
from pneumoscope.metrics.calibration import Reliability
from pneumoscope.metrics.intervals import bootstrap_interval, paired_difference
from pneumoscope.study.scores.cells import read_table, write_table

SCORES_FILE, INTERVALS_FILE, CALIBRATION_FILE = "scores.csv", "intervals.csv", "calibration.csv"
FORGETTING_FILE = "forgetting.csv"
INTERVAL_ROUNDS = 1000
"""Draws of patients for an interval, where the experiment does not say."""
CELL = ["stage", "test", "structure", "metric"]
COLUMNS = ("stage", "test", "patient", "case", "structure", "metric", "value")
INTERVAL_COLUMNS = (*CELL, "n_patients", "n_values", "mean", "low", "high")
FORGETTING_COLUMNS = ("stage", "test", "metric", "value", "best_before", "forgetting", "low", "high", "n_patients")
"""``best_before`` is the mean of the earlier stage of the lineage that was best on the test; ``forgetting`` is that
minus the mean now, on the cases that both have, with an interval that draws patients; above 0 is lost."""
CALIBRATION_COLUMNS = ("stage", "test", "n", "ece", "brier", "overconfidence")

Lineages = Mapping[str, tuple[Sequence[str], Sequence[str], Sequence[str]]]
"""For each retrained stage those before it, the tests of what those have learned, and the metrics to measure by."""


def tidy(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Rows of `COLUMNS` of a table with a column per metric; what was not measured has no row."""
    keys = [name for name in COLUMNS if name not in ("metric", "value")]
    long = table.assign(**{name: "" for name in keys if name not in table}).melt(keys, list(metrics), "metric", "value")
    return long.dropna(subset="value").astype({"value": float})[list(COLUMNS)].reset_index(drop=True)


def by_patient(cell: pd.DataFrame) -> dict[str, list[float]]:
    """The values of each patient."""
    return {str(name): part["value"].tolist() for name, part in cell.groupby("patient")}


def intervals(scores: pd.DataFrame, **rounds: Any) -> pd.DataFrame:
    """A row per cell with its mean and interval; NaN ends for one patient.

    Args:
        scores: tidy rows.
        rounds: ``n``, ``seed`` and ``level`` of `bootstrap_interval`.
    """
    rows = []
    for cell, part in scores.groupby(CELL, sort=False):
        found = bootstrap_interval(by_patient(part), **rounds)
        rows.append((*cell, found.n_patients, found.n_values, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=list(INTERVAL_COLUMNS))


def forgetting(scores: pd.DataFrame, lineages: Lineages, **rounds: Any) -> pd.DataFrame:
    """Rows of forgetting.csv, see `FORGETTING_COLUMNS`; none where nothing is retrained."""
    rows = []
    for stage, (earlier, tests, metrics) in lineages.items():
        asked = scores[scores["test"].isin(tests) & scores["metric"].isin(metrics)]
        for (test, _, metric), part in asked.groupby(CELL[1:], sort=False):
            now = part[part["stage"] == stage].set_index("case")
            before = {name: part[part["stage"] == name].set_index("case") for name in earlier}
            both = {name: table.loc[table.index.intersection(now.index)] for name, table in before.items()}
            both = {name: table for name, table in both.items() if len(table)}
            if not both:
                continue
            best = max(both.values(), key=lambda table: float(table["value"].mean()))
            kept = now.loc[best.index]
            gap = paired_difference(by_patient(best), by_patient(kept), **rounds)
            ends = (float(kept["value"].mean()), float(best["value"].mean()), gap.mean, gap.low, gap.high)
            rows.append((stage, test, metric, *ends, gap.n_patients))
    return pd.DataFrame(rows, columns=list(FORGETTING_COLUMNS))


def calibration(cells: Mapping[tuple[str, str], Reliability]) -> pd.DataFrame:
    """Rows of calibration.csv: expected calibration error, Brier score and overconfidence by stage and test."""
    rows = [(*cell, r.n, r.ece, r.brier, r.overconfidence) for cell, r in cells.items() if r.n]
    return pd.DataFrame(rows, columns=list(CALIBRATION_COLUMNS))


@dataclass(frozen=True, eq=False)
class Scores:
    """What every study writes of its results.

    Attributes:
        table: tidy rows, see `COLUMNS`.
        cells: calibration by stage and test.
        lineages: of the retrained stages; None where the modality writes forgetting.csv in the form of its papers.
        rounds: ``n``, ``seed`` and ``level`` of the intervals.
        means: rows of `intervals`, where they are known already.
    """

    table: pd.DataFrame
    cells: Mapping[tuple[str, str], Reliability]
    lineages: Lineages | None = field(default_factory=dict)
    rounds: Mapping[str, Any] = field(default_factory=lambda: {"n": INTERVAL_ROUNDS})
    means: pd.DataFrame | None = None


def write_scores(folder: Path, scores: Scores) -> None:
    """Write `scores.csv` and what follows from it."""
    means = scores.means if scores.means is not None else intervals(scores.table, **scores.rounds)
    write_table(scores.table, folder / SCORES_FILE)
    write_table(means, folder / INTERVALS_FILE)
    write_table(calibration(scores.cells), folder / CALIBRATION_FILE)
    if scores.lineages is not None:
        write_table(forgetting(scores.table, scores.lineages, **scores.rounds), folder / FORGETTING_FILE)


def read_scores(folder: Path) -> pd.DataFrame:
    """The tidy table of a study.

    Raises:
        InputError: the study has none.
    """
    if not (folder / SCORES_FILE).is_file():
        raise InputError(f"holds a study without {SCORES_FILE}; make it with study run --resume", path=folder)
    return read_table(folder / SCORES_FILE).astype({"test": str})[list(COLUMNS)]


def compare_scores(tables: Mapping[str, pd.DataFrame], metrics: Sequence[str], **rounds: Any) -> list[dict[str, Any]]:
    """Runs side by side: a row per run, stage, test, structure and metric; differences are to the first run.

    A difference is taken over the cases that both runs have, patient by patient; NaN where they share none.
    """
    (_, first), *_ = tables.items()
    cells = {cell: part.set_index("case") for cell, part in first.groupby(CELL, sort=False)}
    rows = []
    for run, scores in tables.items():
        for cell, part in scores[scores["metric"].isin(metrics)].groupby(CELL, sort=False):
            found = bootstrap_interval(by_patient(part), **rounds)
            row = {"run": run, **dict(zip(CELL, cell, strict=True)), "n_patients": found.n_patients}
            row |= {"mean": found.mean, "mean_low": found.low, "mean_high": found.high}
            row |= dict.fromkeys(("difference", "difference_low", "difference_high"), math.nan)
            other = cells.get(cell)
            if scores is not first and other is not None:
                mine = part.set_index("case")
                shared = mine.index.intersection(other.index)
                if len(shared) and mine.index.is_unique and other.index.is_unique:
                    gap = paired_difference(by_patient(mine.loc[shared]), by_patient(other.loc[shared]), **rounds)
                    row |= {"difference": gap.mean, "difference_low": gap.low, "difference_high": gap.high}
            rows.append(row)
    return rows


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for a page; what is not known is None."""
    plain = table.astype(object).where(table.notna(), None)
    return [dict(zip(plain.columns, row, strict=True)) for row in plain.to_numpy()]


def read_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a table of a study for its page; none where it was not written."""
    path = folder / f"{name}.csv"
    return rows_of(pd.read_csv(path, keep_default_na=False, na_values=[""])) if path.is_file() else []
