"""Systems side by side: what each reaches after its last stage, and what it cost; `systems.csv` and a picture.

A row per system and set, and one for the mean over the sets. Costs are those of all stages of the system's longest
lineage, measured where each was made (`study.folder`): a resumed stage has the time of its last process
only, and says so in ``resumed``. What was made elsewhere goes by the name of its stage and has no costs of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.errors import ModelError
from pneumoscope.io.files import write_bytes
from pneumoscope.metrics.intervals import over_seeds_and_sets
from pneumoscope.models.cards import read_card
from pneumoscope.recipes.schema import Experiment, Stage
from pneumoscope.recipes.stages import THRESHOLD, split_external
from pneumoscope.reports.figures import new_figure, png
from pneumoscope.study.folder import read_cost
from pneumoscope.study.scores.matrix import Matrix
from pneumoscope.study.scores.table import rounds_of, rows_of, with_ends, write_table

SYSTEMS_FILE, PICTURE = "systems.csv", "systems.png"
MEAN = "mean"
COLUMNS = (
    "system", "stage", "test", "n_patients", "dice", "dice_low", "dice_high", "f1", "nsd", "training_seconds",
    "training_cpu_seconds", "seconds_per_scan", "training_peak_gb", "training_extra_gb", "prediction_peak_gb",
    "prediction_extra_gb", "device_gb", "parameters", "resumed",
)  # fmt: skip
"""Columns of systems.csv. ``test`` is the set's number or ``mean``. ``training_seconds``: wall time of all stages of
the lineage, preparation of scans included; ``training_cpu_seconds``: of the processor, all threads together.
``seconds_per_scan``: median over the validation and test scans of the set, without reading the file and, for systems
on slices, without finding lungs and cutting windows, which the study does once for all. ``_peak_gb`` is
the most the process held, ``_extra_gb`` how much more than when the stage began. ``device_gb``: the most on a CUDA
device."""


def main_stage(experiment: Experiment, system: str) -> Stage:
    """The stage of a system with the longest lineage; the first of the chain among equals."""
    own = [stage for stage in experiment.stages.chain if stage.system == system]
    return max(own, key=lambda stage: len(experiment.lineage(stage.name)))


def systems_of(experiment: Experiment) -> list[str]:
    """The systems of a study in the order of the chain."""
    return list(dict.fromkeys(stage.system for stage in experiment.stages.chain))


def systems_table(cells: Matrix, folder: Path) -> pd.DataFrame:
    """The table of `systems.csv` of a scored study; see `COLUMNS`."""
    experiment = cells.experiment
    matrix = cells.table(common=True).set_index(["stage", "test"])
    rows: list[dict[str, Any]] = []
    for system in systems_of(experiment):
        stage = main_stage(experiment, system).name
        given = split_external(system)[0]
        about = {"system": stage, "stage": stage} if given else (
            {"system": system, "stage": stage, **_training(experiment, folder, stage)}
        )  # fmt: skip
        per_set = []
        for test in cells.tests:
            cell: Any = matrix.loc[stage, test]
            scores = {name: cell[name] for name in ("n_patients", "dice", "dice_low", "dice_high", "f1", "nsd")}
            per_set.append({**about, "test": test, **scores, **_prediction(folder / "stages" / stage, test)})
        rows += [*per_set, {**about, "test": MEAN, **_mean(cells, stage, per_set)}]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _mean(cells: Matrix, stage: str, per_set: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row over all sets: every set counts alike, the interval draws patients within each."""
    values = [[cells.scores(stage, test, "dice", common=True) for test in cells.tests]]
    dice = over_seeds_and_sets(values, **rounds_of(cells.experiment.scoring))
    row: dict[str, Any] = {name: _mean_of([r[name] for r in per_set]) for name in ("f1", "nsd", "seconds_per_scan")}
    row |= {name: max(r[name] for r in per_set) for name in ("prediction_peak_gb", "prediction_extra_gb")}
    return {**row, "n_patients": dice.n_patients, **with_ends("dice", dice)}


def _mean_of(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _training(experiment: Experiment, folder: Path, name: str) -> dict[str, Any]:
    lineage = [folder / "stages" / stage.name for stage in experiment.lineage(name)]
    costs = [read_cost(own).get("training", {}) for own in lineage]
    peaks = [(cost.get("peak_gigabytes", math.nan), cost.get("held_gigabytes", math.nan)) for cost in costs]
    return {
        "training_seconds": sum(cost.get("seconds", math.nan) for cost in costs),
        "training_cpu_seconds": sum(cost.get("cpu_seconds", math.nan) for cost in costs),
        "training_peak_gb": max(peak for peak, _ in peaks),
        "training_extra_gb": max(peak - held for peak, held in peaks),
        "device_gb": max(cost.get("device_gigabytes", math.nan) for cost in costs),
        "parameters": _parameters(experiment.stage(name), lineage[-1]),
        "resumed": any(cost.get("resumed", False) for cost in costs),
    }


def _prediction(own: Path, test: int) -> dict[str, float]:
    cost = read_cost(own).get("prediction", {}).get(str(test), {})
    peak, held = cost.get("peak_gigabytes", math.nan), cost.get("held_gigabytes", math.nan)
    seconds = cost.get("seconds_per_scan")
    return {"seconds_per_scan": math.nan if seconds is None else seconds,
            "prediction_peak_gb": peak, "prediction_extra_gb": peak - held}  # fmt: skip


def _parameters(stage: Stage, own: Path) -> int:
    """Numbers that were fitted: two of a threshold; 0 where the card is gone."""
    if stage.system == THRESHOLD:
        return 2
    try:
        return int(read_card(own)["parameters"])
    except ModelError:
        return 0


def write_systems(cells: Matrix, folder: Path) -> None:
    """Write `systems.csv` and its picture where a study has several systems."""
    (folder / SYSTEMS_FILE).unlink(missing_ok=True)
    if len(systems_of(cells.experiment)) < 2:
        return
    table = systems_table(cells, folder)
    write_table(table, folder / SYSTEMS_FILE)
    (folder / "figures").mkdir(exist_ok=True)
    write_bytes(folder / "figures" / PICTURE, systems_png(table))


def read_systems(folder: Path) -> list[dict[str, Any]]:
    """The rows of `systems.csv` for the report, one per system, with those of the sets in ``sets``; none without it.

    What is not known is None.
    """
    if not (folder / SYSTEMS_FILE).is_file():
        return []
    rows = rows_of(pd.read_csv(folder / SYSTEMS_FILE, dtype={"test": str}))
    return [{**row, "sets": [r for r in rows if r["system"] == row["system"] and r["test"] != MEAN]}
            for row in rows if row["test"] == MEAN]  # fmt: skip


def systems_png(table: pd.DataFrame) -> bytes:
    """Left the Dice of every system on every set with intervals, right the time of trainings, where there are any."""
    systems = list(dict.fromkeys(table["system"]))
    figure = new_figure(8.6, 1.4 + 0.42 * len(systems))
    seconds = table[table["test"].astype(str) == MEAN].set_index("system").reindex(systems)["training_seconds"]
    panels = 2 if seconds.notna().any() else 1
    left, *more = figure.subplots(1, panels, width_ratios=(2.2, 1)[:panels], sharey=True, squeeze=False)[0]
    tests = [test for test in dict.fromkeys(table["test"].astype(str)) if test != MEAN]
    colours = ("#0b6bcb", "#e8650a", "#2e8540", "#8a5fbf", "#b58a3c")
    for number, test in enumerate([*tests, MEAN]):
        part = table[table["test"].astype(str) == test].set_index("system").reindex(systems)
        lift = (number - len(tests) / 2) * 0.16
        colour = "#14181d" if test == MEAN else colours[number % len(colours)]
        places = [y + lift for y in range(len(systems))]
        left.hlines(places, part["dice_low"], part["dice_high"], color=colour, lw=1.4, alpha=0.6)
        shape, name = ("D", "mean of the sets") if test == MEAN else ("o", f"set {test}")
        left.plot(part["dice"], places, shape, ms=4.5, color=colour, label=name)
    left.set_yticks(range(len(systems)), systems, fontsize=8)
    left.set_ylim(len(systems) - 0.4, -0.6)
    left.set_xlim(-0.02, 1.02)
    staged = bool((table["system"] != table["stage"]).any())  # what was made elsewhere has no stages
    left.set_xlabel("Dice per patient after the last stage" if staged else "Dice per patient")
    left.grid(axis="x", color="#dde1e6", lw=0.6)
    for right in more:
        right.barh(range(len(systems)), seconds.clip(lower=0.1), color="#8a98a8", height=0.5)
        right.set_xscale("log")
        right.set_xlabel("training, s")
    figure.legend(
        *left.get_legend_handles_labels(), loc="upper center", ncols=len(tests) + 1, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0, 1, 0.91))
    return png(figure)
