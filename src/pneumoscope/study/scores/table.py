"""The tidy table of scores, `scores.csv`: a row per stage, test, case, structure and metric; the rest are group-bys.

From it follow ``intervals.csv`` (means with intervals that draw patients), ``forgetting.csv`` (what retrained networks
lost on what was learned before) and `matrix.csv`, with the columns of each paper; beside it stands ``calibration.csv``.
`study compare` reads `scores.csv` of any study.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.errors import InputError
from pneumoscope.io.files import write_frame, write_json
from pneumoscope.metrics.classification import Reliability
from pneumoscope.metrics.intervals import Interval, bootstrap_interval, paired_difference
from pneumoscope.progress import NOTE, Progress
from pneumoscope.study.folder import read_if_there

SCORES_FILE, INTERVALS_FILE, CALIBRATION_FILE = "scores.csv", "intervals.csv", "calibration.csv"
INTERVAL_ROUNDS = 1000  # Draws of patients for an interval, where the experiment does not say
CELL = ["stage", "test", "structure", "metric"]
COLUMNS = ("stage", "test", "patient", "case", "structure", "metric", "value")
INTERVAL_COLUMNS = (*CELL, "n_patients", "n_values", "mean", "low", "high")
CALIBRATION_COLUMNS = ("stage", "test", "n", "ece", "brier", "overconfidence")

Lineages = Mapping[str, tuple[Sequence[str], Sequence[Any]]]
"""For each retrained stage those before it, and the tests of what those have learned."""


def tidy(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Rows of `COLUMNS` of a table with a column per metric; what was not measured has no row."""
    keys = [name for name in COLUMNS if name not in ("metric", "value")]
    long = table.assign(**{name: "" for name in keys if name not in table}).melt(keys, list(metrics), "metric", "value")
    return long.dropna(subset="value").astype({"value": float})[list(COLUMNS)].reset_index(drop=True)


def rounds_of(scoring: Any) -> dict[str, Any]:
    """Draws, seed and coverage of intervals, as the scoring settings of an experiment have them."""
    return {"n": scoring.interval_resamples, "seed": scoring.interval_seed, "level": scoring.interval_level}


def by_patient(cell: pd.DataFrame) -> dict[str, list[float]]:
    """The values of each patient."""
    return {str(name): part["value"].tolist() for name, part in cell.groupby("patient")}


def with_ends(name: str, interval: Interval | None) -> dict[str, float]:
    """A mean and the ends of its interval as columns; NaN where there is none."""
    found = (interval.mean, interval.low, interval.high) if interval else (math.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def intervals(scores: pd.DataFrame, **rounds: Any) -> pd.DataFrame:
    """A row per cell with its mean and interval; NaN ends for one patient.

    Args:
        rounds: ``n``, ``seed`` and ``level`` of `bootstrap_interval`.
    """
    rows = []
    for cell, part in scores.groupby(CELL, sort=False):
        found = bootstrap_interval(by_patient(part), **rounds)
        rows.append((*cell, found.n_patients, found.n_values, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=list(INTERVAL_COLUMNS))


def forgetting(scores: pd.DataFrame, lineages: Lineages, metric: str, **rounds: Any) -> pd.DataFrame:
    """Rows of forgetting.csv: ``stage,test``, the mean now (named as the metric), ``best_before,forgetting,low,high``.

    ``best_before`` is the mean of the earlier stage of the lineage that was best on the test, on the cases that both
    have; ``forgetting`` is that minus the mean now, with an interval that draws patients (`n_patients`); above 0 is
    lost. NaN where one of them has no value.
    """
    asked = scores[scores["metric"] == metric]
    cells = {cell: part.set_index("case") for cell, part in asked.groupby(["stage", "test"], sort=False)}
    rows = []
    for stage, (earlier, tests) in lineages.items():
        for test in tests:
            now = cells.get((stage, test), asked.iloc[:0].set_index("case"))
            before = [cells[name, test] for name in earlier if (name, test) in cells]
            shared = [part for part in (p.loc[p.index.intersection(now.index)] for p in before) if len(part)]
            best = max(shared or before or [now.iloc[:0]], key=lambda part: float(part["value"].mean()))
            kept = now.loc[best.index] if shared else now
            gap = paired_difference(by_patient(best), by_patient(kept), **rounds) if shared else None
            ends = (gap.mean, gap.low, gap.high, gap.n_patients) if gap else (math.nan, math.nan, math.nan, 0)
            rows.append((stage, test, kept["value"].mean(), best["value"].mean(), *ends))
    columns = ("stage", "test", metric, "best_before", "forgetting", "low", "high", "n_patients")
    return pd.DataFrame(rows, columns=list(columns))


def calibration(cells: Mapping[tuple[str, str], Reliability]) -> pd.DataFrame:
    """Rows of calibration.csv: expected calibration error, Brier score and overconfidence by stage and test."""
    rows = [(*cell, r.n, r.ece, r.brier, r.overconfidence) for cell, r in cells.items() if r.n]
    return pd.DataFrame(rows, columns=list(CALIBRATION_COLUMNS))


@dataclass(frozen=True, eq=False)
class Scores:
    """What every study writes of its results."""

    table: pd.DataFrame  # tidy rows, see `COLUMNS`
    cells: Mapping[tuple[str, str], Reliability]  # calibration by stage and test
    forgetting: pd.DataFrame | None = None  # see `forgetting`; None where there is one test set
    # ``n``, ``seed`` and ``level`` of the intervals
    rounds: Mapping[str, Any] = field(default_factory=lambda: {"n": INTERVAL_ROUNDS})
    means: pd.DataFrame | None = None  # rows of `intervals`, where they are known already


def write_scores(folder: Path, scores: Scores) -> None:
    """Write `scores.csv` and what follows from it."""
    means = scores.means if scores.means is not None else intervals(scores.table, **scores.rounds)
    write_table(scores.table, folder / SCORES_FILE)
    write_table(means, folder / INTERVALS_FILE)
    if scores.cells:
        write_table(calibration(scores.cells), folder / CALIBRATION_FILE)


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


TEXT = (
    "stage", "case", "patient", "part", "kind", "structure", "metric", "setting", "model", "arm", "without", "group",
    "source", "label", "said",
)  # fmt: skip
"""Columns of tables of a study that are text, whatever stands in them."""


def kept_table(
    own: Path, name: str, wanted: str, make: Callable[[], tuple[pd.DataFrame, dict[str, Any]]], *, resume: bool,
    progress: Progress,
) -> pd.DataFrame:  # fmt: skip
    """The rows of a stage in `<name>.csv` of its folder: those kept under the stamp `wanted`, else made and kept.

    Args:
        name: of the table; what `make` says beside it stands in `<name>.json` with the stamp.
        wanted: stamp of the predictor, the data and the settings.
        make: gives the rows, and JSON values about them.
    """
    mark = own / f"{name}.json"
    before = read_if_there(mark).get("stamp") if resume else None
    if before == wanted and (own / f"{name}.csv").is_file():
        return read_table(own / f"{name}.csv")
    if before is not None:
        progress(NOTE, 1, 1, f"{own.name}: weights, data or settings changed; predictions and scores are made again")
    own.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    table, facts = make()
    write_frame(own / f"{name}.csv", table)
    write_json(mark, {"stamp": wanted, **facts})
    return read_table(own / f"{name}.csv")  # as a resumed study reads it


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all; what is not known is left empty."""
    write_frame(path, table, "%.8g")


def read_table(path: Path) -> pd.DataFrame:
    """Read such a table; names stay text, empty numbers become NaN."""
    names: dict[str, Any] = dict.fromkeys(TEXT, str)
    numbers = [c for c in pd.read_csv(path, nrows=0).columns if c not in names]
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values={name: [""] for name in numbers})
