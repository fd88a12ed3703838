"""What is kept of one stage on one set, so that no later number needs a network: predictions, and a cell of the matrix.

`stages/<stage>/predictions/set-<number>.npz` holds what the stage says of the slices of the validation and test parts:

- ``probability`` (n, h, w) uint8: ``floor(255 p + 0.5)`` of the infiltrate channel, at the size the network sees;
- ``case`` and ``patient`` (n) text, ``slice`` (n) int64, ``part`` (n) text (``val``, ``test``): rows of the split,
  in the order of the set's slices;
- ``expert`` (n) int64: number of the set whose network answered (0 where the stage has one network for all);
- ``stamp`` (): of weights, data and settings; a file of another stamp is made again.

Validation rows serve what is chosen afterwards, such as a calibration; test rows are for the one final scoring.

`stages/<stage>/cells/set-<number>/` holds its scores, made of the predictions:

- ``slices.csv``: a row per scored slice, see `slices.SLICE_COLUMNS`;
- ``lesions.csv``: a row per lesion and false alarm of the test slices, see `study.analysis.appearance`;
- ``voxels.npz``: how often each probability was said of infiltrate and of healthy lung, per patient;
- ``done.json``: its stamp, written last, of the predictions (weights, slices, masks, split) and the settings of
  scoring: a cell whose stamp still fits is taken as it is, any other is computed again.

So a new stage costs its own cells and a new set one cell per stage.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.io.files import atomic_path, write_bytes
from pneumoscope.jobs.stamp import mark_done, mark_started, read_done, stamp
from pneumoscope.metrics.classification import Reliability
from pneumoscope.progress import NOTE, Progress, silent
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.folder import Meter, note_cost
from pneumoscope.study.scores.table import read_table, write_table

if TYPE_CHECKING:
    from pneumoscope.study.learners.base import Predictor

LEVELS = 256  # Probabilities are kept as ``floor(255 p + 0.5)``


@dataclass(frozen=True, eq=False)
class VoxelCounts:
    """Probabilities inside the lungs as counts, per patient and part of the split."""

    patient: NDArray[np.str_]  # (g) names
    part: NDArray[np.str_]  # (g) ``val``, ``test`` or ``train``
    # (g, 2, 256) voxels of healthy lung (0) and infiltrate (1) by probability in steps of 1/255
    counts: NDArray[np.int64]

    def total(self, part: str) -> NDArray[np.int64]:
        """(2, 256) over all patients of a part; zeros when there is none."""
        return np.asarray(self.counts[self.part == part].sum(axis=0))

    def by_patient(self, part: str) -> dict[str, NDArray[np.int64]]:
        """(2, 256) of each patient of a part."""
        return {str(self.patient[g]): self.counts[g] for g in np.flatnonzero(self.part == part)}


@dataclass(frozen=True, eq=False)
class Cell:
    """What is kept of one stage on one set; tables as described at the head of the module."""

    stage: str
    test: int
    key: str
    slices: pd.DataFrame
    lesions: pd.DataFrame
    voxels: VoxelCounts


def reliability_of(counts: NDArray[np.integer], bins: int, levels: NDArray[np.floating] | None = None) -> Reliability:
    """The `Reliability` of counts (2, 256).

    Args:
        counts: healthy and infiltrate by level.
        bins: bins of equal width.
        levels: (256,) the probability each level stands for; by default level / 255. A temperature changes it.
    """
    p = np.arange(LEVELS) / (LEVELS - 1) if levels is None else np.asarray(levels, np.float64)
    place = np.minimum((p * bins).astype(np.intp), bins - 1)
    healthy, ill = counts
    both = healthy + ill
    return Reliability(
        np.bincount(place, weights=both, minlength=bins).astype(np.int64),
        np.bincount(place, weights=both * p, minlength=bins).astype(np.float64),
        np.bincount(place, weights=ill, minlength=bins).astype(np.int64),
        float((healthy * p**2 + ill * (1 - p) ** 2).sum()),
    )


def count_voxels(
    probability: NDArray[np.uint8],
    truth: NDArray[np.bool_],
    lungs: NDArray[np.bool_],
    groups: Sequence[tuple[str, str]],
) -> VoxelCounts:
    """Counts of slices (n, h, w) by (patient, part); a slice without lung counts whole.

    Args:
        probability: in steps of 1/255.
        groups: patient and part of each slice.
    """
    names = sorted(set(groups))
    counts = np.zeros((len(names), 2, LEVELS), np.int64)
    for n, group in enumerate(groups):
        inside = lungs[n] if lungs[n].any() else np.ones_like(lungs[n])
        level = probability[n][inside].astype(np.intp) + LEVELS * truth[n][inside]
        counts[names.index(group)] += np.bincount(level, minlength=2 * LEVELS).reshape(2, LEVELS)
    patient, part = zip(*names, strict=True) if names else ((), ())
    return VoxelCounts(np.array(patient, dtype=np.str_), np.array(part, dtype=np.str_), counts)


def cell_key(experiment: Experiment, predictions: str, *, everything: bool) -> str:
    """The stamp of a cell.

    Args:
        experiment: the settings of scoring.
        predictions: stamp of the predictions that are scored; it covers weights and data.
        everything: whether all slices of the set are scored, and not only its test part.
    """
    scoring = experiment.scoring
    return stamp(
        "cell",
        revision=2,
        predictions=predictions,
        threshold=scoring.threshold,
        tolerance_mm=scoring.surface_tolerance_mm,
        everything=everything,
        windows_hu=experiment.preprocessing.windows_hu,
        intensity=experiment.preprocessing.intensity,
    )


def cell_folder(stage_folder: Path, test: int) -> Path:
    """Where the cell of a stage on a set lies."""
    return stage_folder / "cells" / f"set-{test}"


def read_cell(stage_folder: Path, stage: str, test: int, key: str | None = None) -> Cell | None:
    """The cell on disk; None when there is none, it cannot be read, or its stamp is not `key` (where one is given)."""
    folder = cell_folder(stage_folder, test)
    try:
        kept = str(read_done(folder)["stamp"])
        if key is not None and kept != key:
            return None
        with np.load(folder / "voxels.npz", allow_pickle=False) as arrays:
            voxels = VoxelCounts(arrays["patient"], arrays["part"], arrays["counts"])
        return Cell(stage, test, kept, read_table(folder / "slices.csv"), read_table(folder / "lesions.csv"), voxels)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_cell(stage_folder: Path, cell: Cell) -> None:
    """Write a cell; a killed writer leaves no cell rather than a mixed one."""
    folder = cell_folder(stage_folder, cell.test)
    folder.mkdir(parents=True, exist_ok=True)
    mark_started(folder)
    write_table(cell.slices, folder / "slices.csv")
    write_table(cell.lesions, folder / "lesions.csv")
    with atomic_path(folder / "voxels.npz") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, patient=cell.voxels.patient, part=cell.voxels.part, counts=cell.voxels.counts)
    mark_done(folder, cell.key)


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
        kept = None
        with suppress(*_UNREADABLE):
            kept = str(_load(path)["stamp"])
        if kept != wanted:
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


def _predict(
    experiment: Experiment, model: Predictor, number: int, study_set: StudyDataset, device: str, made: str
) -> tuple[bytes, list[float]]:
    """The file, and the seconds that each scan took without reading it."""
    order = study_set.rows(*PARTS)
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
        part=np.where(np.isin(order, study_set.rows("test")), "test", "val"),
        expert=np.concatenate(expert).astype(np.int64) if expert else np.zeros(0, np.int64),
        stamp=np.array(made),
    )
    return packed.getvalue(), seconds


def _chunks(cases: NDArray[np.str_]) -> list[NDArray[np.intp]]:
    """Indices of the slices of one scan each."""
    return [np.flatnonzero(cases == case) for case in dict.fromkeys(cases)]
