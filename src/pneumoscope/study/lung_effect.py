"""What lung masks that the study supplied itself change: the same networks, the same slices, without the lung channel.

A set without lung masks gets those of the study's lung network. Whether they help is shown by asking every stage
about the test slices of that set once more with an empty lung channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.experiments.schema import Experiment
from pneumoscope.io.files import write_text
from pneumoscope.progress import Progress, silent
from pneumoscope.study.data import StudySet
from pneumoscope.study.predictions import read_predictions
from pneumoscope.study.stages import TrainedModel

LUNG_EFFECT_FILE = "supplied_lungs.csv"
COLUMNS = ("stage", "test", "n_patients", "dice_with", "dice_without", "difference")


def lung_effect(
    experiment: Experiment,
    models: Mapping[str, TrainedModel],
    sets: Mapping[int, StudySet],
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> pd.DataFrame:
    """One row per stage and set with supplied lungs: mean over patients of Dice with and without the lung channel.

    No rows where every set came with lung masks, or where networks see no lung channel. Patients without infiltrate
    are left out.
    """
    rows = []
    supplied = [number for number, study_set in sorted(sets.items()) if study_set.supplied]
    if experiment.preprocessing.lung_channel and supplied:
        for done, (name, model) in enumerate(models.items(), start=1):
            rows += [_row(experiment, name, model, number, sets[number], device) for number in supplied]
            progress("without supplied lungs", done, len(models), name)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def write_lung_effect(table: pd.DataFrame, folder: Path) -> None:
    """Write `supplied_lungs.csv`; an earlier one is removed when there is nothing to say."""
    path = folder / LUNG_EFFECT_FILE
    if table.empty:
        path.unlink(missing_ok=True)
    else:
        write_text(path, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))


def _row(
    experiment: Experiment, name: str, model: TrainedModel, number: int, study_set: StudySet, device: str
) -> dict[str, object]:
    rows = study_set.rows("test")
    images, truth = study_set.slices.images[rows].copy(), study_set.slices.target[rows] > 0
    images[:, len(experiment.preprocessing.windows_hu) :] = 0
    table = study_set.slices.table.iloc[rows]
    cases, patients = table["case"].to_numpy(str), table["patient"].to_numpy(str)
    without = np.zeros(truth.shape, bool)
    for case in dict.fromkeys(cases):
        here = cases == case
        p, _ = model.predict_scan(images[here], site=number, device=device, precision=experiment.training.precision)
        without[here] = p >= experiment.scoring.threshold
    with_lungs = read_predictions(model.folder, number).of("test").found(experiment.scoring.threshold)
    both = [mean_dice(found, truth, patients) for found in (with_lungs, without)]
    n = len(set(patients[np.asarray(truth.any(axis=(1, 2)))]))
    return dict(zip(COLUMNS, (name, number, n, *both, both[0] - both[1]), strict=True))


def mean_dice(found: NDArray[np.bool_], truth: NDArray[np.bool_], patients: NDArray[np.str_]) -> float:
    """Mean over patients with infiltrate of the Dice of all their slices together; NaN when there is none."""
    scores = []
    for patient in dict.fromkeys(patients):
        here = patients == patient
        if truth[here].any():
            hit = int((found[here] & truth[here]).sum())
            scores.append(2 * hit / (int(found[here].sum()) + int(truth[here].sum())))
    return float(np.mean(scores)) if scores else float("nan")
