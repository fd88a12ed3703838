"""What lung masks that the study supplied itself change: the same networks, the same slices, without the lung channel.

A set without lung masks gets those of the study's lung network. Whether they help is shown by asking every stage
about the test slices of that set once more with an empty lung channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.io.files import write_frame
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.learners.base import Predictor
from pneumoscope.study.scores.predictions import read_predictions

LUNG_EFFECT_FILE = "supplied_lungs.csv"
COLUMNS = ("stage", "test", "n_patients", "dice_with", "dice_without", "difference")


def lung_effect(
    experiment: Experiment,
    models: Mapping[str, Predictor],
    sets: Mapping[int, StudyDataset],
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> pd.DataFrame:
    """One row per stage and set with supplied lungs: mean over patients of Dice with and without the lung channel.

    Stages that are not shown it (on volumes) have none. No rows where every set came with lung masks, or where networks
    see no lung channel. Patients without infiltrate are left out.
    """
    rows = []
    supplied = [number for number, study_set in sorted(sets.items()) if study_set.supplied]
    if experiment.preprocessing.lung_channel and supplied:
        shown = {name: model for name, model in models.items() if model.sees_lungs}
        for done, (name, model) in enumerate(shown.items(), start=1):
            rows += [_row(experiment, name, model, number, sets[number], device) for number in supplied]
            progress("without supplied lungs", done, len(shown), name)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_lung_effect(table: pd.DataFrame, folder: Path) -> None:
    """Write `supplied_lungs.csv`; an earlier one is removed when there is nothing to say."""
    path = folder / LUNG_EFFECT_FILE
    if table.empty:
        path.unlink(missing_ok=True)
    else:
        write_frame(path, table)


def _row(
    experiment: Experiment, name: str, model: Predictor, number: int, study_set: StudyDataset, device: str
) -> dict[str, object]:
    emptied = _without_lungs(study_set, len(experiment.preprocessing.windows_hu))
    truth, table = emptied.slices.target > 0, emptied.slices.table
    cases, patients = table["case"].to_numpy(str), table["patient"].to_numpy(str)
    without = np.zeros(truth.shape, bool)
    for case in dict.fromkeys(cases):
        here = cases == case
        images = model.inputs(emptied, np.flatnonzero(here))
        p, _ = model.predict_scan(images, site=number, device=device, precision=experiment.training.precision)
        without[here] = p >= experiment.scoring.threshold
    with_lungs = read_predictions(model.folder, number).of("test").found(experiment.scoring.threshold)
    both = [mean_dice(found, truth, patients) for found in (with_lungs, without)]
    n = len(set(patients[np.asarray(truth.any(axis=(1, 2)))]))
    return dict(zip(COLUMNS, (name, number, n, *both, both[0] - both[1]), strict=True))


def _without_lungs(study_set: StudyDataset, windows: int) -> StudyDataset:
    """The test slices of a set alone, the channels behind the windows empty."""
    tested = study_set.slices.select(study_set.rows("test"))
    tested.images[:, windows:] = 0  # a copy of the set's
    return replace(study_set, slices=tested, split=study_set.split[study_set.split["part"] == "test"])


def mean_dice(found: NDArray[np.bool_], truth: NDArray[np.bool_], patients: NDArray[np.str_]) -> float:
    """Mean over patients with infiltrate of the Dice of all their slices together; NaN when there is none."""
    scores = []
    for patient in dict.fromkeys(patients):
        here = patients == patient
        if truth[here].any():
            scores.append(dice(count(found[here], truth[here])))
    return float(np.mean(scores)) if scores else float("nan")
