"""The tables of a study on volumes, all made from `per_case.csv`: folds, matrix, the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.experiments.volumes import PaperValue, VolumeExperiment
from pneumoscope.models.cards import read_card
from pneumoscope.study.volumes_data import VALIDATION, ModelJob
from pneumoscope.study.volumes_score import LUNGS, METRICS

CELL = ["k", "setting", "test", "structure"]
ALL_CLASSES = "all classes"
"""The structure of Mueller's Figure 5: a loss and a mean Dice, both of boxes in training and not of scans."""
NETWORKS = ("full", "no-augmentation", "no-preprocessing", "plain")
ORDER = (*NETWORKS, "ensemble", "threshold")


def fold_medians(per_case: pd.DataFrame) -> pd.DataFrame:
    """Per model the median over its scans of every metric, ``k,fold,setting,test,structure,n_cases,<metrics>``.

    The structure ``lungs`` is the mean of the left and the right lung's medians, as the authors' program forms it.
    """
    groups = per_case.groupby(["k", "fold", "setting", "test", "structure"], sort=False)
    table = groups[list(METRICS)].median().reset_index()
    table.insert(5, "n_cases", groups["case"].nunique().to_numpy())
    return _sorted(pd.concat([table, _mean_of_sides(table, ["k", "fold", "setting", "test"])], ignore_index=True))


def _mean_of_sides(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The mean of the rows of the left and the right lung; none where a side is missing."""
    sides = table[table["structure"].isin(("left lung", "right lung"))]
    if sides.empty:
        return sides
    numbers = [name for name in table.columns if name not in (*keys, "structure")]
    both = sides.groupby(keys, sort=False)[numbers].mean().reset_index()
    return both.assign(structure=LUNGS, n_cases=both["n_cases"].astype(int))[list(table.columns)]


def volume_matrix(per_case: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """One row per k, setting, test set, structure and metric.

    Columns: ``n_models, n_cases``; ``fold_mean, fold_sd`` of the models' medians; over the scans of all models together
    ``median, mean, sd, lowest, highest``. Deviations divide by the number (population); a single model has 0.
    """
    lungs = _lungs_per_case(per_case)
    rows = []
    for cell, part in pd.concat([per_case, lungs], ignore_index=True).groupby(CELL, sort=False):
        match = (folds[CELL] == pd.Series(dict(zip(CELL, cell, strict=True)))).all(axis=1)
        for metric in METRICS:
            values, medians = part[metric].to_numpy(float), folds.loc[match, metric].to_numpy(float)
            measured = values[np.isfinite(values)]
            row = dict(zip(CELL, cell, strict=True))
            row |= {"metric": metric, "n_models": int(match.sum()), "n_cases": part["case"].nunique()}
            row |= {"fold_mean": _or_nan(np.mean, medians), "fold_sd": _or_nan(np.std, medians)}
            each = (("median", np.median), ("mean", np.mean), ("sd", np.std), ("lowest", np.min), ("highest", np.max))
            row |= {name: _or_nan(of, measured) for name, of in each}
            rows.append(row)
    return _sorted(pd.DataFrame(rows))


def _lungs_per_case(per_case: pd.DataFrame) -> pd.DataFrame:
    sides = per_case[per_case["structure"].isin(("left lung", "right lung"))]
    keys = ["stage", "k", "fold", "setting", "test", "case", "patient"]
    return sides.groupby(keys, sort=False)[list(METRICS)].mean().reset_index().assign(structure=LUNGS)


def _or_nan(of: Callable[[NDArray[np.float64]], Any], values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(of(finite)) if len(finite) else float("nan")


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    rank = {name: place for place, name in enumerate(ORDER)}
    keys = [name for name in ("k", "setting", "test", "structure", "metric", "fold") if name in table]
    order = table.assign(setting=table["setting"].map(rank)).sort_values(keys, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def kept_epochs(stages: Path, jobs: Sequence[ModelJob]) -> pd.DataFrame:
    """Validation loss and the mean of all classes' Dice on the fixed boxes at the epoch whose weights were kept.

    Columns ``k,setting,fold,loss,dice``; models of several phases are left out.
    """
    rows = []
    for job in jobs:
        own = stages / job.name
        if (own / "history.csv").is_file() and (own / "card.json").is_file():
            history = pd.read_csv(own / "history.csv").set_index("epoch")
            kept: Any = history.loc[read_card(own)["training"]["best_epoch"]]
            dice = [float(value) for name, value in kept.items() if str(name).startswith("val_dice_")]
            rows.append({"k": job.k, "setting": job.setting, "fold": job.fold, "loss": float(kept["val_loss"]),
                         "dice": float(np.mean(dice))})  # fmt: skip
    return pd.DataFrame(rows, columns=["k", "setting", "fold", "loss", "dice"])


def paper_table(
    experiment: VolumeExperiment, matrix: pd.DataFrame, folds: pd.DataFrame, kept: pd.DataFrame
) -> pd.DataFrame:
    """Every printed number with ours beside it; `kept` as `kept_epochs` gives it.

    Columns: ``table,k,setting,fold,test,structure,metric,paper,paper_sd,ours,ours_sd``. Validation: the median over all
    scans (Table 1), or of one fold or the mean over folds (Table 2). Test sets: the mean over the models of their
    medians. Metrics with ``_mean``, ``_lowest``, ``_highest`` are of the scans (Bressem).
    Empty where this study has no such cell.
    """
    rows = []
    for value in experiment.paper:
        ours, spread = _ours(value, matrix, folds, kept)
        rows.append(
            {
                "table": value.table, "k": value.k, "setting": value.setting, "fold": value.fold, "test": value.test,
                "structure": value.structure, "metric": value.metric, "paper": value.value,
                "paper_sd": value.deviation, "ours": ours, "ours_sd": spread,
            }
        )  # fmt: skip
    columns = ["table", "k", "setting", "fold", "test", "structure", "metric", "paper", "paper_sd", "ours", "ours_sd"]
    return pd.DataFrame(rows, columns=columns)


def _ours(value: PaperValue, matrix: pd.DataFrame, folds: pd.DataFrame, kept: pd.DataFrame) -> tuple[float, float]:
    if value.structure == ALL_CLASSES:
        epochs = kept.loc[(kept["k"] == value.k) & (kept["setting"] == value.setting), value.metric].to_numpy(float)
        return _or_nan(np.mean, epochs), _or_nan(np.std, epochs)
    cell = {"k": value.k, "setting": value.setting, "test": value.test, "structure": value.structure}
    metric, _, kind = value.metric.partition("_")
    if value.fold:
        found = folds[(folds[[*cell, "fold"]] == pd.Series({**cell, "fold": value.fold})).all(axis=1)]
        return (float(found[metric].iloc[0]) if len(found) else float("nan")), float("nan")
    found = matrix[(matrix[[*cell, "metric"]] == pd.Series({**cell, "metric": metric})).all(axis=1)]
    if found.empty:
        return float("nan"), float("nan")
    row: Any = found.iloc[0]
    if kind:
        return float(row[kind]), float(row["sd"]) if kind == "mean" else float("nan")
    pooled = value.test == VALIDATION and value.table == "1"
    return (float(row["median"]), float(row["sd"])) if pooled else (float(row["fold_mean"]), float(row["fold_sd"]))


def subject_of(table: pd.DataFrame) -> str:
    """What a study is about, from the structures of its table: infection, or lungs where no infection is a class."""
    return "infection" if (table["structure"] == "infection").any() else LUNGS


def headline(matrix: pd.DataFrame) -> list[dict[str, object]]:
    """The Dice and surface Dice of `subject_of` per k, setting and test set, for the first table of the page."""
    rows = []
    for cell, part in matrix[matrix["structure"] == subject_of(matrix)].groupby(["k", "setting", "test"], sort=False):
        by: Any = part.set_index("metric")
        rows.append(
            dict(zip(("k", "setting", "test"), cell, strict=True))
            | {"n_models": int(by["n_models"].iloc[0]), "n_cases": int(by["n_cases"].iloc[0])}
            | {f"{metric}_{kind}": float(by.loc[metric, kind]) for metric in ("dice", "nsd")
               for kind in ("median", "mean", "sd", "lowest", "highest", "fold_mean", "fold_sd")}
            | {metric: float(by.loc[metric, "median"]) for metric in ("sensitivity", "specificity", "iou")}
        )  # fmt: skip
    return rows
