"""Calibration of a stage's probabilities on a set, and whether a scan looks like those it was trained on.

Calibration is measured voxel by voxel inside the lungs, over the test slices with lung. A temperature is fitted on the
validation slices of the same set, one parameter (Guo et al. 2017, On Calibration of Modern Neural Networks, section
4.2), and changes no mask cut at 0.5.

The distance of a scan is the mean over its slices of the Mahalanobis distance of simple appearance features inside the
lungs to those of the training slices of the nearest set that the stage has seen. It follows Lee et al. 2018 (A Simple
Unified Framework for Detecting Out-of-Distribution Samples) and Gonzalez et al. 2022 (Distance-based detection of
out-of-distribution silent failures for Covid-19 lung lesion segmentation, Medical Image Analysis 82), who use
features of the network; ours need none, so that one table serves all stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.io.files import write_json
from pneumoscope.metrics.classification import log_loss, rescaled, roc
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.schema import Experiment, Scoring
from pneumoscope.study.analysis.appearance import appearance, features_of, missed_by_kind, unit_of
from pneumoscope.study.analysis.leakage import draw_leakage, leakage_summary, leakage_table, study_leakage
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.scores.matrix import Matrix
from pneumoscope.study.scores.predictions import LEVELS, Cell, read_cell, reliability_of
from pneumoscope.study.scores.table import write_table

COOLEST, HOTTEST = 0.05, 20.0  # Between these a temperature is looked for

QUARTER_STEP = 0.25 / (LEVELS - 1)
"""Kept probabilities of 0 and 1 are taken as a quarter of a step inside: they are rounded, not certain."""

SHRINKAGE = 0.1  # Share of the diagonal in a covariance: keeps it invertible with few slices
ABSTAIN_PERCENTILE = 95.0  # Scans farther than this percentile of the scans of known sets are not to be trusted


def levels() -> NDArray[np.float64]:
    """(256,) the probability that each kept level stands for."""
    return np.clip(np.arange(LEVELS) / (LEVELS - 1), QUARTER_STEP, 1 - QUARTER_STEP)


def fit_temperature(counts: NDArray[np.integer]) -> float:
    """The temperature with the smallest log-loss on counts (2, 256) of healthy and infiltrate; NaN when either is
    absent, for then any probability can be made certain."""
    from scipy.optimize import minimize_scalar

    if not counts[0].sum() or not counts[1].sum():
        return math.nan
    p = np.concatenate([levels(), levels()])
    truth = np.repeat([False, True], LEVELS)
    weight = np.concatenate([counts[0], counts[1]]).astype(np.float64)

    def loss(log_temperature: float) -> float:
        return log_loss(rescaled(p, math.exp(log_temperature)), truth, weight)

    found = minimize_scalar(loss, bounds=(math.log(COOLEST), math.log(HOTTEST)), method="bounded")
    return float(math.exp(found.x))


def has_probabilities(cell: Cell) -> bool:
    """Whether a stage gave more than labels: a voxel with a probability other than 0 and 1."""
    return bool(cell.voxels.total("test")[:, 1:-1].any())


def calibration_row(cell: Cell, scoring: Scoring) -> dict[str, Any]:
    """Calibration of one cell on its test slices, before and after a temperature fitted on its validation slices.

    Returns:
        ``stage, test, patients, voxels, ece, ece_low, ece_high, brier, brier_low, brier_high, overconfidence,
        temperature, ece_after, brier_after, log_loss, log_loss_after`` and, for the curve, ``confidence, frequency,
        share, frequency_after, confidence_after`` per bin. Numbers are NaN where there is nothing to count; intervals
        draw patients.
    """
    bins = scoring.calibration_bins
    test, by_patient = cell.voxels.total("test"), cell.voxels.by_patient("test")
    before = reliability_of(test, bins)
    temperature = fit_temperature(cell.voxels.total("val"))
    row: dict[str, Any] = {
        "stage": cell.stage,
        "test": cell.test,
        "patients": len(by_patient),
        "voxels": before.n,
        "ece": before.ece,
        "brier": before.brier,
        **_intervals(np.array(list(by_patient.values())), scoring),
        "overconfidence": before.overconfidence,
        "temperature": temperature,
        "log_loss": _log_loss(test, levels()),
        "confidence": before.confidence.tolist(),
        "frequency": before.frequency.tolist(),
        "share": (before.count / max(1, before.n)).tolist(),
    }
    if math.isnan(temperature):
        return {**row, "ece_after": math.nan, "brier_after": math.nan, "log_loss_after": math.nan}
    scaled = rescaled(levels(), temperature)
    after = reliability_of(test, bins, scaled)
    return {
        **row,
        "ece_after": after.ece,
        "brier_after": after.brier,
        "log_loss_after": _log_loss(test, scaled),
        "confidence_after": after.confidence.tolist(),
        "frequency_after": after.frequency.tolist(),
    }


def _log_loss(counts: NDArray[np.integer], p: NDArray[np.float64]) -> float:
    if not counts.sum():
        return math.nan
    return log_loss(np.concatenate([p, p]), np.repeat([False, True], LEVELS), counts.reshape(-1).astype(np.float64))


def _intervals(counts: NDArray[np.int64], scoring: Scoring) -> dict[str, float]:
    """Ends of the bootstrap intervals of ECE and Brier over patients, from counts (patients, 2, 256)."""
    ends = dict.fromkeys(("ece_low", "ece_high", "brier_low", "brier_high"), math.nan)
    if len(counts) < 2:
        return ends
    rng = np.random.default_rng(scoring.interval_seed)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), scoring.interval_resamples)
    sums = (drawn @ counts.reshape(len(counts), -1)).reshape(-1, 2, LEVELS)
    found = [(r.ece, r.brier) for r in (reliability_of(one, scoring.calibration_bins) for one in sums)]
    tails = [(1 - scoring.interval_level) / 2, (1 + scoring.interval_level) / 2]
    (ends["ece_low"], ends["brier_low"]), (ends["ece_high"], ends["brier_high"]) = np.quantile(found, tails, axis=0)
    return {name: float(value) for name, value in ends.items()}


def mahalanobis(rows: NDArray[np.float64], training: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each row (n, f) to the Gaussian of training rows (m, f), with `SHRINKAGE`; NaN for m < 2."""
    if len(training) < 2:
        return np.full(len(rows), np.nan)
    spread = np.cov(training, rowvar=False)
    spread = (1 - SHRINKAGE) * spread + SHRINKAGE * np.diag(np.diag(spread)) + 1e-9 * np.eye(len(spread))
    gap = rows - training.mean(axis=0)
    return np.sqrt(np.maximum(0, np.einsum("nf,nf->n", gap, np.linalg.solve(spread, gap.T).T)))


def distance_table(sets: Mapping[int, StudyDataset], features: Mapping[int, NDArray[np.float64]]) -> pd.DataFrame:
    """How far every tested patient lies from the training slices of every set.

    A patient with slices in the training part of a set is left out of that set's Gaussian when its own distance is
    taken, so that slice-wise splits do not make known sets look nearer than they are.

    Args:
        features: per set (n, f) features of all its slices; rows with NaN are left out.

    Returns:
        ``test, patient, slices`` and a column ``to_<set>`` per set; one row per patient with a test slice.
    """
    train, test = {}, {}
    for number, study_set in sorted(sets.items()):
        rows = study_set.rows()
        known = ~np.isnan(features[number]).any(axis=1)
        patients = study_set.slices.table["patient"].to_numpy(str)[rows]
        drawn = np.isin(rows, study_set.rows("train", "val"))
        tested = np.isin(rows, study_set.rows("test"))
        train[number] = (features[number][known & drawn], patients[known & drawn])
        test[number] = (features[number][known & tested], patients[known & tested])
    result = []
    for number, (values, patients) in test.items():
        for patient in sorted(set(patients)):
            own = values[patients == patient]
            row: dict[str, Any] = {"test": number, "patient": patient, "slices": len(own)}
            for other, (learnt, names) in train.items():
                keep = names != patient if other == number else np.ones(len(names), bool)
                row[f"to_{other}"] = float(np.mean(mahalanobis(own, learnt[keep])))
            result.append(row)
    return pd.DataFrame(result, columns=["test", "patient", "slices", *(f"to_{n}" for n in train)])


def abstention(matrix: Matrix, distances: pd.DataFrame) -> list[dict[str, Any]]:
    """What the distance is worth for each stage that was trained here: telling scans of sets never seen, and of those
    it segments badly.

    Returns:
        Per stage ``stage, sites, auc, low, high, known, strangers`` (AUC of the distance for scans of sets that no
        stage of the lineage was trained on), ``limit`` (`ABSTAIN_PERCENTILE` of the known), ``refused`` (share of
        strangers beyond it), ``dice_kept, dice_refused`` (mean Dice of all tested patients within and beyond it) and
        ``rank_correlation`` of distance and Dice (Spearman; below 0: farther is worse).
    """
    experiment: Experiment = matrix.experiment
    result = []
    for stage in experiment.stages.chain:
        sites = list(dict.fromkeys(experiment.trained_on(stage.name)))
        if not sites:
            continue
        near = distances[[f"to_{n}" for n in sites]].min(axis=1).to_numpy(float)
        strange = ~distances["test"].isin(sites).to_numpy()
        use = np.isfinite(near)
        curve = roc(near[use], strange[use], level=experiment.scoring.interval_level)
        known = near[use & ~strange]
        limit = float(np.percentile(known, ABSTAIN_PERCENTILE)) if known.size else math.nan
        dice = _dice(matrix, stage.name, distances)
        scored = use & np.isfinite(dice)
        result.append(
            {
                "stage": stage.name,
                "sites": sites,
                "auc": curve.auc,
                "low": curve.low,
                "high": curve.high,
                "known": curve.n_others,
                "strangers": curve.n_marked,
                "limit": limit,
                "refused": _mean(near[use & strange] > limit),
                "dice_kept": _mean(dice[scored & (near <= limit)]),
                "dice_refused": _mean(dice[scored & (near > limit)]),
                "rank_correlation": _spearman(near[scored], dice[scored]),
                "false_positive": curve.false_positive.tolist(),
                "true_positive": curve.true_positive.tolist(),
            }
        )
    return result


def _dice(matrix: Matrix, stage: str, distances: pd.DataFrame) -> NDArray[np.float64]:
    """Dice of each row's patient under a stage; NaN without infiltrate."""
    by_set = {test: matrix.scores(stage, test, "dice", common=True) for test in matrix.tests}
    pairs = zip(distances["test"], distances["patient"], strict=True)
    return np.array([by_set[test].get(patient, [math.nan])[0] for test, patient in pairs])


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    from scipy.stats import rankdata

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


FOLDER = "shift"
LEAKAGE_FILE = "leakage.json"
"""What slices of one patient on both sides of a split add to the scores; where the split holds patients out."""

CURVES = ("confidence", "frequency", "share", "confidence_after", "frequency_after", "false_positive", "true_positive")
"""Entries of rows that are lists: in the JSON only."""


def write_shift(
    matrix: Matrix, folder: Path, sets: Mapping[int, StudyDataset], progress: Progress = silent
) -> dict[str, Any]:
    """Measure and write; see the head of the module. Returns what stands in `shift.json`."""
    experiment = matrix.experiment
    cells = study_cells(experiment, folder)
    progress("shift", 0, 3, "calibration")
    calibration = [calibration_row(cell, experiment.scoring) for cell in cells if has_probabilities(cell)]
    progress("shift", 1, 3, "appearance")
    features = {n: features_of(experiment, study_set, study_set.rows()) for n, study_set in sets.items()}
    looks = appearance(experiment, sets, features)
    distances = distance_table(sets, features)
    lesions = [cell.lesions for cell in cells if len(cell.lesions)]
    progress("shift", 2, 3, "lesions")
    missed = missed_by_kind(pd.concat(lesions), unit_of(experiment), experiment.scoring) if lesions else pd.DataFrame()
    found = {
        "calibration": calibration,
        "abstention": abstention(matrix, distances),
        "appearance": looks,
        "lesions": missed.to_dict(orient="records"),
    }
    out = folder / FOLDER
    out.mkdir(exist_ok=True)
    tables = {"calibration": calibration, "abstention": found["abstention"], "appearance": looks["sets"]}
    for name, rows in tables.items():
        flat = [{key: value for key, value in row.items() if key not in CURVES} for row in rows]
        write_table(pd.DataFrame(flat), out / f"{name}.csv")
    write_table(distances, out / "distances.csv")
    write_table(missed, out / "lesions.csv")
    write_json(out / "shift.json", found)
    _write_leakage(matrix, folder, sets)
    progress("shift", 3, 3)
    return found


def _write_leakage(matrix: Matrix, folder: Path, sets: Mapping[int, StudyDataset]) -> None:
    """Write `leakage.json`, `shift/leakage.csv` and a picture where the split holds patients out; see `leakage`."""
    experiment = matrix.experiment
    splits = {number: study_set.split for number, study_set in sets.items()}
    learnt = {s.name: set(experiment.trained_on(s.name)) for s in experiment.stages.chain}
    scoring = experiment.scoring
    rows = matrix.per_case[matrix.per_case["part"] == "test"]
    found = study_leakage(rows, splits, learnt, n=scoring.interval_resamples, seed=scoring.interval_seed)
    (folder / LEAKAGE_FILE).unlink(missing_ok=True)
    if found:
        write_json(folder / LEAKAGE_FILE, leakage_summary(found))
        write_table(leakage_table(found), folder / FOLDER / "leakage.csv")
        draw_leakage(found, folder / "figures" / "leakage.png")


def study_cells(experiment: Experiment, folder: Path) -> list[Cell]:
    """The kept cells of a study, in the order of the matrix; those that cannot be read are left out."""
    cells = [
        read_cell(folder / "stages" / stage.name, stage.name, site.number)
        for stage in experiment.stages.chain
        for site in experiment.data.sites
    ]
    return [cell for cell in cells if cell is not None]
