"""What every stage says about every slice of the validation and test parts, kept so that no score needs a network.

One file per stage and set, `stages/<stage>/predictions/set-<number>.npz`, with

- ``probability`` (n, h, w) uint8: ``floor(255 p + 0.5)`` of the infiltrate channel, at the size the network sees;
- ``case`` and ``patient`` (n) text, ``slice`` (n) int64, ``part`` (n) text (``val``, ``test``): rows of the split,
  in the order of the set's slices;
- ``expert`` (n) int64: number of the set whose network answered (0 where the stage has one network for all);
- ``stamp`` (): of weights, data and settings; a file of another stamp is made again.

Validation rows serve what is chosen afterwards, such as a calibration; test rows are for the one final scoring.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.io.files import write_bytes
from pneumoscope.jobs.stamp import stamp
from pneumoscope.progress import NOTE, Progress, silent
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.folder import Meter, note_cost

if TYPE_CHECKING:
    from pneumoscope.study.learners.base import Predictor

PARTS = ("val", "test")  # The parts of the split that are predicted
FOLDER = "predictions"  # Below the folder of a stage


ARRAYS = ("probability", "case", "slice", "patient", "part", "expert")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of one stage on one set; see the head of the module for the arrays."""

    probability: NDArray[np.uint8]
    case: NDArray[np.str_]
    slice: NDArray[np.int64]
    patient: NDArray[np.str_]
    part: NDArray[np.str_]
    expert: NDArray[np.int64]
    stamp: str

    def of(self, part: str) -> Predictions:
        """The rows of one part of the split; may be none."""
        keep = self.part == part
        return replace(self, **{name: getattr(self, name)[keep] for name in ARRAYS})

    def found(self, threshold: float) -> NDArray[np.bool_]:
        """(n, h, w) where the probability reaches the threshold; exact for 0.5, to within 1/510 elsewhere."""
        return np.asarray(self.probability >= 255 * threshold)


def prediction_file(stage_folder: str | Path, number: int) -> Path:
    """Where the answers of a stage on a set lie."""
    return Path(stage_folder) / FOLDER / f"set-{number}.npz"


def read_predictions(stage_folder: str | Path, number: int) -> Predictions:
    """Read what `predict_stage` wrote.

    Raises:
        InputError: the file is absent or is not such a file.
    """
    path = prediction_file(stage_folder, number)
    try:
        kept = _load(path)
        return Predictions(**{name: kept[name] for name in ARRAYS}, stamp=str(kept["stamp"]))
    except _UNREADABLE as problem:
        raise InputError(f"holds no predictions ({problem}); resume the study with --resume", path=path) from problem


_UNREADABLE = (OSError, ValueError, KeyError, BadZipFile)


def _load(path: Path) -> dict[str, Any]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
        return dict(kept)


def predict_stage(
    experiment: Experiment,
    model: Predictor,
    sets: Mapping[int, StudyDataset],
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> None:
    """Write the predictions of a stage on all sets; files of the same stamp are left as they are."""
    stale = []
    for done, (number, study_set) in enumerate(sorted(sets.items()), start=1):
        path, wanted = prediction_file(model.folder, number), prediction_stamp(experiment, model, study_set)
        if not _is_of(path, wanted):
            stale += [str(number)] if path.exists() else []
            with Meter() as meter:
                answers, seconds = _predict(experiment, model, number, study_set, device, wanted)
            write_bytes(path, answers)
            each = round(float(np.median(seconds)), 4) if seconds else None
            cost = {**meter.as_dict(), "scans": len(seconds), "seconds_per_scan": each}
            note_cost(model.folder, "prediction", {str(number): cost})
        progress(f"predicting {model.name}", done, len(sets), f"set {number}")
    if stale:
        progress(NOTE, 1, 1, f"{model.name}: weights, data or settings changed; predictions and scores of set "
                             f"{', '.join(stale)} are made again")  # fmt: skip


def prediction_stamp(experiment: Experiment, model: Predictor, study_set: StudyDataset) -> str:
    """What the predictions of a stage on a set are made of: its weights, the slices (or scans), and the settings."""
    scans = sorted(study_set.scans) if model.loads_scans else []
    return stamp(
        "predictions",
        revision=1,
        model=model.sha256,
        data=study_set.content,
        scans={case: study_set.scan_content(case) for case in scans},
        site=study_set.site.number,
        precision=experiment.training.precision,
    )


def _is_of(path: Path, wanted: str) -> bool:
    try:
        return str(_load(path)["stamp"]) == wanted
    except _UNREADABLE:
        return False


def _predict(
    experiment: Experiment, model: Predictor, number: int, study_set: StudyDataset, device: str, made: str
) -> tuple[bytes, list[float]]:
    """The file, and the seconds that each scan took without reading it."""
    rows = {part: study_set.rows(part) for part in PARTS}
    order = np.sort(np.concatenate(list(rows.values())))
    table = study_set.slices.table.iloc[order]
    answers, expert, seconds = [], [], []
    for chunk in _chunks(table["case"].to_numpy(str)):
        images = model.inputs(study_set, order[chunk])
        started = time.perf_counter()
        p, who = model.predict_scan(images, site=number, device=device, precision=experiment.training.precision)
        seconds.append(time.perf_counter() - started)
        answers.append(np.floor(p * 255 + 0.5).astype(np.uint8))
        expert.append(np.full(len(chunk), who))
    size = study_set.slices.target.shape[1:]
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        probability=np.concatenate(answers) if answers else np.zeros((0, *size), np.uint8),
        case=table["case"].to_numpy(str),
        slice=table["slice"].to_numpy(np.int64),
        patient=table["patient"].to_numpy(str),
        part=np.where(np.isin(order, rows["test"]), "test", "val"),
        expert=np.concatenate(expert).astype(np.int64) if expert else np.zeros(0, np.int64),
        stamp=np.array(made),
    )
    return packed.getvalue(), seconds


def _chunks(cases: NDArray[np.str_]) -> list[NDArray[np.intp]]:
    """Indices of the slices of one scan each."""
    return [np.flatnonzero(cases == case) for case in dict.fromkeys(cases)]
