"""Calibration, distance and appearance of a scored study, written into `shift/` of its folder.

Everything comes from the sets and the kept cells; no network is asked. `shift/shift.json` holds it all,
`shift/calibration.csv`, `shift/distances.csv`, `shift/abstention.csv`, `shift/lesions.csv` and `shift/appearance.csv`
the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.experiments.schema import Experiment
from pneumoscope.io.files import write_json
from pneumoscope.progress import Progress, silent
from pneumoscope.study.appearance import appearance, features_of, missed_by_kind, unit_of
from pneumoscope.study.calibration import abstention, all_rows, calibration_row, distance_table
from pneumoscope.study.cells import Cell, read_cell, write_table
from pneumoscope.study.data import StudySet
from pneumoscope.study.leakage import draw_leakage, leakage_summary, leakage_table, study_leakage
from pneumoscope.study.matrix import Matrix

FOLDER = "shift"
LEAKAGE_FILE = "leakage.json"
"""What slices of one patient on both sides of a split add to the scores; where the split holds patients out."""

CURVES = ("confidence", "frequency", "share", "confidence_after", "frequency_after", "false_positive", "true_positive")
"""Entries of rows that are lists: in the JSON only."""


def write_shift(
    matrix: Matrix, folder: Path, sets: Mapping[int, StudySet], progress: Progress = silent
) -> dict[str, Any]:
    """Measure and write; see the head of the module. Returns what stands in `shift.json`."""
    experiment = matrix.experiment
    cells = study_cells(experiment, folder)
    progress("shift", 0, 3, "calibration")
    calibration = [calibration_row(cell, experiment.scoring) for cell in cells]
    progress("shift", 1, 3, "appearance")
    features = {n: features_of(experiment, study_set, all_rows(study_set)) for n, study_set in sets.items()}
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


def _write_leakage(matrix: Matrix, folder: Path, sets: Mapping[int, StudySet]) -> None:
    """Write `leakage.json`, `shift/leakage.csv` and a picture where the split holds patients out; see `leakage`."""
    experiment = matrix.experiment
    splits = {number: study_set.split for number, study_set in sets.items()}
    learnt = {s.name: {e.site for e in experiment.lineage(s.name)} for s in experiment.stages.chain}
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
