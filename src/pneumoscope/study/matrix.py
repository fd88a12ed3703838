"""The transfer matrix: every stage on every test set, from the per-slice table alone.

One cell averages as the paper does (per slice, over slices whose reference holds infiltrate) and beside it gives the
mean over patients of the Dice of all their test slices together; both with an interval that draws patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pneumoscope.errors import InputError
from pneumoscope.experiments.schema import Experiment, Scoring
from pneumoscope.metrics.intervals import Interval, bootstrap_interval
from pneumoscope.metrics.overlap import Counts, SliceScores, dice

COLUMNS = (
    "name", "stage", "test", "n_patients", "n_slices", "accuracy", "precision", "recall", "f1", "f1_low", "f1_high",
    "dice", "dice_low", "dice_high", "nsd", "paper_accuracy", "paper_precision", "paper_recall", "paper_f1",
)  # fmt: skip
"""Columns of matrix.csv. `n_slices` counts the slices averaged over (those with infiltrate), `n_patients` the patients
they come from; `nsd` stays empty until surfaces are scored."""

SCORE_COLUMNS = ("accuracy", "precision", "recall", "f1", "iou", "tp", "fp", "fn", "tn")
PER_CASE_COLUMNS = ("stage", "test", "case", "slice", "patient", *SCORE_COLUMNS)
"""Columns of per_case.csv: one row per stage, test set and test slice."""


def per_case_rows(stage: str, test: int, table: pd.DataFrame, scores: Sequence[SliceScores]) -> pd.DataFrame:
    """The rows of per_case.csv for one stage on one test set.

    Args:
        stage: name of the stage.
        test: number of the test set.
        table: ``case, slice, patient`` of the slices scored, in the order of `scores`.
        scores: one per slice.
    """
    flat = [{**s.as_dict(), **{k: getattr(s.counts, k) for k in ("tp", "fp", "fn", "tn")}} for s in scores]
    rows = table[["case", "slice", "patient"]].reset_index(drop=True)
    values = pd.DataFrame(flat, columns=list(SCORE_COLUMNS), index=rows.index)
    return rows.assign(stage=stage, test=test).join(values)[list(PER_CASE_COLUMNS)]


def build_matrix(per_case: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """One row per stage and test set, in the order of the chain; see `COLUMNS`.

    Raises:
        InputError: a cell has no rows at all. A cell without infiltrate is kept, with empty scores.
    """
    cells: dict[Any, pd.DataFrame] = dict(iter(per_case.groupby(["stage", "test"], sort=False)))
    rows = []
    for stage in experiment.stages.chain:
        for site in experiment.data.sites:
            if (stage.name, site.number) not in cells:
                raise InputError(
                    f"per_case.csv holds no rows of stage {stage.name} on set {site.number}; score it first"
                )
            rows.append(_row(experiment, stage.name, site.number, cells[stage.name, site.number]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(experiment: Experiment, stage: str, test: int, slices: pd.DataFrame) -> dict[str, Any]:
    paper = experiment.paper_row(stage, test)
    printed = {f"paper_{k}": getattr(paper, k) if paper else None for k in ("accuracy", "precision", "recall", "f1")}
    return {
        "name": experiment.row_name(stage, test),
        "stage": stage,
        "test": test,
        **cell_scores(slices, experiment.scoring),
        "nsd": None,
        **printed,
    }


def cell_scores(slices: pd.DataFrame, scoring: Scoring) -> dict[str, Any]:
    """The numbers of one cell from its slices.

    Patients whose test slices hold no infiltrate have no Dice and are left out, as slices without infiltrate are. With
    no infiltrate at all every score is NaN and both counts are 0; with one patient the intervals are NaN.
    """
    infected = slices[(slices["tp"] + slices["fn"]) > 0]
    per_slice = {str(name): group["f1"].tolist() for name, group in infected.groupby("patient")}
    summed = slices.groupby("patient")[["tp", "fp", "fn", "tn"]].sum()
    per_patient = {
        str(name): [dice(Counts(*(int(v) for v in counts)))]
        for name, counts in zip(summed.index, summed.to_numpy(), strict=True)
        if counts[0] + counts[2] > 0
    }
    f1, volume_dice = _interval(per_slice, scoring), _interval(per_patient, scoring)
    means = {
        k: float(infected[k].mean()) if len(infected) else float("nan") for k in ("accuracy", "precision", "recall")
    }
    return {
        "n_patients": f1.n_patients,
        "n_slices": f1.n_values,
        **means,
        "f1": f1.mean,
        "f1_low": f1.low,
        "f1_high": f1.high,
        "dice": volume_dice.mean,
        "dice_low": volume_dice.low,
        "dice_high": volume_dice.high,
    }


def _interval(values: dict[str, list[float]], scoring: Scoring) -> Interval:
    return bootstrap_interval(
        values, n=scoring.interval_resamples, seed=scoring.interval_seed, level=scoring.interval_level
    )


def untrained_f1(per_case: pd.DataFrame) -> dict[int, float]:
    """Mean F1 over slices with infiltrate for each test set, of rows like per_case.csv (one stage)."""
    infected = per_case[(per_case["tp"] + per_case["fn"]) > 0]
    return {int(test): float(infected.loc[infected["test"] == test, "f1"].mean()) for test in per_case["test"].unique()}


def best_stage(matrix: pd.DataFrame) -> dict[int, str]:
    """For each test set the stage with the highest F1; sets without a score are left out."""
    scored = matrix.dropna(subset=["f1"])
    best = scored.sort_values("f1", ascending=False, kind="stable").drop_duplicates("test")
    return {int(test): str(stage) for test, stage in zip(best["test"], best["stage"], strict=True)}
