"""One cell of the transfer matrix: everything that is kept of one stage on one set.

A cell lies below its stage, `stages/<stage>/cells/set-<number>/`, as

- ``slices.csv``: a row per scored slice, see `SLICE_COLUMNS`;
- ``lesions.csv``: a row per lesion and false alarm of the test slices, see `study.analysis.appearance`;
- ``voxels.npz``: how often each probability was said of infiltrate and of healthy lung, per patient;
- ``done.json``: its stamp, written last, of the predictions (weights, slices, masks, split) and the settings of
  scoring: a cell whose stamp still fits is taken as it is, any other is computed again.

So a new stage costs its own cells and a new set one cell per stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.io.files import atomic_path, read_json, write_frame, write_json
from pneumoscope.jobs.stamp import mark_done, mark_started, read_done, stamp
from pneumoscope.metrics.classification import Reliability
from pneumoscope.progress import NOTE, Progress
from pneumoscope.recipes.schema import Experiment

SCORE_COLUMNS = ("accuracy", "precision", "recall", "f1", "iou", "tp", "fp", "fn", "tn")
SLICE_COLUMNS = ("stage", "test", "case", "slice", "patient", *SCORE_COLUMNS, "part", "contour_mm", "met_mm")
"""Columns of slices.csv and per_case.csv. ``part`` is the slice's part of the split; ``contour_mm`` the length of both
contours together and ``met_mm`` how much of it lies within the tolerance of the other (empty where the set has no pixel
size): their sums over a patient's slices make the patient's NSD."""

TEXT = (
    "stage", "case", "patient", "part", "kind", "structure", "metric", "setting", "model", "arm", "without", "group",
    "source", "label", "said",
)  # fmt: skip
"""Columns of tables of a study that are text, whatever stands in them."""

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
        truth: infiltrate.
        lungs: where to look.
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


def kept_table(
    own: Path, name: str, wanted: str, make: Callable[[], tuple[pd.DataFrame, dict[str, Any]]], *, resume: bool,
    progress: Progress,
) -> pd.DataFrame:  # fmt: skip
    """The rows of a stage in `<name>.csv` of its folder: those kept under the stamp `wanted`, else made and kept.

    Args:
        own: folder of the stage.
        name: of the table; what `make` says beside it stands in `<name>.json` with the stamp.
        wanted: stamp of the predictor, the data and the settings.
        make: gives the rows, and JSON values about them.
        resume: take what is there.
        progress: called when rows of another stamp are made again.
    """
    mark = own / f"{name}.json"
    before = _stamp_in(mark) if resume else None
    if before == wanted and (own / f"{name}.csv").is_file():
        return read_table(own / f"{name}.csv")
    if before is not None:
        progress(NOTE, 1, 1, f"{own.name}: weights, data or settings changed; predictions and scores are made again")
    own.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    table, facts = make()
    write_frame(own / f"{name}.csv", table)
    write_json(mark, {"stamp": wanted, **facts})
    return read_table(own / f"{name}.csv")  # as a resumed study reads it


def _stamp_in(path: Path) -> str | None:
    try:
        return str(read_json(path)["stamp"])
    except (InputError, KeyError):
        return None


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all; what is not known is left empty."""
    write_frame(path, table, "%.8g")


def read_table(path: Path) -> pd.DataFrame:
    """Read such a table; names stay text, empty numbers become NaN."""
    names: dict[str, Any] = dict.fromkeys(TEXT, str)
    numbers = [c for c in pd.read_csv(path, nrows=0).columns if c not in names]
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values={name: [""] for name in numbers})
