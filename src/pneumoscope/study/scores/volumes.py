"""What models on volumes say about a scan, on the scan's own grid, and how it is scored, one row per structure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.tensors import VolumeRecipe, prepare_image
from pneumoscope.geometry import Grid
from pneumoscope.inference.windows3d import WindowPlan, slide
from pneumoscope.metrics.classification import Reliability, empty_reliability, reliability
from pneumoscope.metrics.overlap import accuracy, count, dice, iou, precision, recall, specificity
from pneumoscope.metrics.surface import surface_scores
from pneumoscope.models.cards import read_card
from pneumoscope.preprocess.slices import from_slices
from pneumoscope.preprocess.spatial import Resample
from pneumoscope.recipes.volumes import PaperValue, Phase, VolumeExperiment
from pneumoscope.study.scores.table import tidy
from pneumoscope.study.volumes_data import VALIDATION, ModelJob
from pneumoscope.volume import Volume

if TYPE_CHECKING:
    from torch import nn

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Labelled = tuple[NDArray[np.uint8], NDArray[np.float32] | None]
"""Classes (i, j, k) of a scan, and the probability (i, j, k) of the last of them; None of what knows no probability."""
BINS = 15  # Of the probability, for calibration
METRICS = ("dice", "iou", "sensitivity", "specificity", "accuracy", "precision", "nsd")
LUNGS = "lungs"  # Both lungs together: a class of its own, or the mean of the two sides
KEYS = ("stage", "k", "fold", "setting", "test", "case", "patient", "structure")
COLUMNS = (*KEYS, *METRICS, "reference_ml", "predicted_ml", "seconds")
"""Of `per_case.csv`. ``seconds`` is the prediction of the whole scan, the same in each row of it."""


def predictor(model: nn.Module, device: str, precision: str) -> Predict:
    """Boxes (n, 1, d, h, w) to class probabilities (n, c, d, h, w), in the precision of the training."""
    import torch

    from pneumoscope.training.devices import make_fabric

    fabric = make_fabric(device, precision)  # type: ignore[arg-type]
    model.to(fabric.device).eval()

    def predict(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode(), fabric.autocast():
            logits = model(torch.from_numpy(boxes).to(fabric.device))
        found: NDArray[np.float32] = torch.softmax(logits.float(), 1).cpu().numpy()
        return found

    return predict


def windows_of(experiment: VolumeExperiment, phase: Phase) -> WindowPlan:
    """The windows (d, h, w) that a phase is scored with."""
    (i, j, k), (a, b, c) = phase.size, experiment.scoring.overlap
    return WindowPlan((k, j, i), (c, b, a))


def predict_labels(volume: Volume, members: Sequence[Predict], recipe: VolumeRecipe, plan: WindowPlan) -> Labelled:
    """Classes on the scan's grid: the mean of the members' probabilities, carried back, the largest wins.

    Args:
        members: one or several networks that share recipe and box.
        recipe: how the scan is prepared.
        plan: of the windows.
    """
    found, grid = _slid(volume, members, recipe, plan)
    best = np.zeros(volume.grid.shape, np.float32)
    labels = np.zeros(volume.grid.shape, np.uint8)
    for number in range(len(found)):
        there = from_slices(found[number])
        if grid != volume.grid:
            there, _ = Resample(volume.grid, fill_hu=float(number == 0)).move(there, grid)
        wins = there > best
        labels[wins] = number
        np.maximum(best, there, out=best)
    return labels, there


def infection_probability(
    volume: Volume, members: Sequence[Predict], recipe: VolumeRecipe, plan: WindowPlan
) -> NDArray[np.float32]:
    """Probability (i, j, k) of the last class, infection, on the scan's grid; arguments as `predict_labels`.

    Outside of what the network was shown it is 0.
    """
    found, grid = _slid(volume, members, recipe, plan)
    there = from_slices(found[-1])
    return there if grid == volume.grid else Resample(volume.grid, fill_hu=0.0).move(there, grid)[0]


def _slid(
    volume: Volume, members: Sequence[Predict], recipe: VolumeRecipe, plan: WindowPlan
) -> tuple[NDArray[np.float32], Grid]:
    """Class probabilities (c, d, h, w) of the prepared scan, and its grid."""
    image, grid = prepare_image(volume, recipe)
    found: NDArray[np.float32] | None = None
    for slab in slide(image[None], members, plan):
        if found is None:
            found = np.empty((slab.probability.shape[0], *image.shape), np.float32)
        found[:, slab.start : slab.start + slab.probability.shape[1]] = slab.probability
    assert found is not None  # a scan has slices
    return found, grid


def structures(scan: LabelledScan, labels: NDArray[np.uint8] | None, classes: str) -> dict[str, Any]:
    """Name to (predicted, reference) boolean masks; lungs only where they are predicted and drawn."""
    if classes == "lungs":
        assert scan.lungs is not None  # `has_mask` was asked
        return {LUNGS: (np.zeros(scan.lungs.labels.shape, bool) if labels is None else labels == 1, scan.lungs.any)}
    assert scan.infiltrate is not None  # `has_mask` was asked
    infected = scan.infiltrate.labels > 0
    if labels is None:
        return {"infection": (np.zeros(infected.shape, bool), infected)}
    if classes == "infiltrate":
        return {"infection": (labels == 1, infected)}
    pairs = {"infection": (labels == 3, infected)}
    if scan.lungs is not None:  # as the paper's labels: infected lung is infection and not lung
        for name, label, side in (("left lung", 1, 2), ("right lung", 2, 1)):
            pairs[name] = (labels == label, (scan.lungs.labels == side) & ~infected)
    return pairs


def score_pair(
    found: NDArray[np.bool_], real: NDArray[np.bool_], affine: NDArray[np.float64], tolerance_mm: float
) -> dict[str, float]:
    """Overlap and surface scores of two masks (i, j, k) on a grid with this affine. Empty masks: see metrics."""
    counts = count(found, real)
    steps = np.asarray(affine[:3, :3])
    voxel_ml = float(abs(np.linalg.det(steps))) / 1000
    return {
        "dice": dice(counts),
        "iou": iou(counts),
        "sensitivity": recall(counts),
        "specificity": specificity(counts),
        "accuracy": accuracy(counts),
        "precision": precision(counts),
        "nsd": surface_scores(found, real, steps, tolerance_mm).nsd,
        "reference_ml": counts.referenced * voxel_ml,
        "predicted_ml": counts.predicted * voxel_ml,
    }


def score_cases(
    experiment: VolumeExperiment,
    cases: Sequence[Case],
    labels_of: Callable[[Volume], Labelled],
    about: dict[str, Any],
    progress: Callable[[int, int], None],
) -> tuple[pd.DataFrame, Reliability]:
    """Predict and score scans one after the other; each is loaded once and let go.

    Args:
        labels_of: classes of a scan on its own grid.
        about: stage, k, fold, setting, test.

    Returns:
        The rows, and how well the probability of the last class is calibrated, inside the lungs where they are known.
    """
    rows, calibrated = [], empty_reliability(BINS)
    tolerances, classes = experiment.scoring, experiment.preparation.classes
    for done, case in enumerate(cases, start=1):
        scan = case.load()
        since = time.perf_counter()
        labels, probability = labels_of(scan.volume)
        seconds = time.perf_counter() - since
        pairs = structures(scan, labels, classes)
        for name, (found, real) in pairs.items():
            tolerance = tolerances.lesion_tolerance_mm if name == "infection" else tolerances.lung_tolerance_mm
            scores = score_pair(found, real, scan.volume.grid.affine, tolerance)
            rows.append({**about, "case": case.case, "patient": case.patient, "structure": name, **scores,
                         "seconds": seconds})  # fmt: skip
        if probability is not None:
            inside = scan.lungs.any if scan.lungs is not None and classes != "lungs" else np.ones(labels.shape, bool)
            _, real = pairs.get("infection") or pairs[LUNGS]
            calibrated += reliability(np.clip(probability[inside], 0, 1), real[inside], BINS)
        progress(done, len(cases))
    return pd.DataFrame(rows, columns=list(COLUMNS)), calibrated


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


def method_scores(per_case: pd.DataFrame) -> pd.DataFrame:
    """Tidy rows, see `scores.table`: of each method (``full-k5``) the mean over its models for every scan."""
    methods = per_case["setting"] + "-k" + per_case["k"].astype(str)
    keys = ["stage", "test", "patient", "case", "structure"]
    means = per_case.assign(stage=methods).groupby(keys, sort=False)[list(METRICS)].mean().reset_index()
    return tidy(means, METRICS)


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
