"""Two folders of masks, scored: ``per_case.csv`` with one row per case and label, ``summary.json`` over the cases."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumoscope import __version__
from pneumoscope.errors import InputError, PneumoscopeError, RunError
from pneumoscope.io.files import prepare_folder, write_json, write_text
from pneumoscope.metrics.intervals import bootstrap_interval
from pneumoscope.metrics.labels import Side, comparable_labels
from pneumoscope.metrics.overlap import Counts, SliceScores, dice, mean_over_infected, score, slice_scores
from pneumoscope.metrics.pairs import Pair, find_pairs
from pneumoscope.metrics.surface import TOLERANCE_MM, surface_scores
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import Mask

FORMAT = 1
"""Layout of summary.json; grows when an entry changes its meaning."""

ANY = "any"
"""Row of all labels together, beside the rows of single labels."""

EMPTY_RULE = (
    "Both masks empty: Dice, IoU, precision and recall are 1.0 and the case is counted in n_both_empty; "
    "one of them empty: 0.0. Slice means use only slices whose reference is not empty. "
    "Surfaces: with both masks empty NSD and distances are left out; with one empty NSD is 0.0 and the distances are "
    "infinite: means of distances are over the other cases, n_infinite counts them, medians include them."
)

COLUMNS = (
    "case", "label", "dice", "iou", "precision", "recall", "specificity", "accuracy", "f1", "empty",
    "prediction_ml", "reference_ml", "slices", "slices_infected", "slice_accuracy", "slice_precision", "slice_recall",
    "slice_f1", "tp", "fp", "fn", "tn", "prediction", "reference", "nsd", "hd95", "msd", "surface_tolerance_mm",
    "note",
)  # fmt: skip
"""Columns of per_case.csv, in this order; new ones come at the end. hd95 and msd are mm, ``inf`` where one mask is
empty; they and nsd are empty cells where both are. note says why a case has the row `ANY` only."""


@dataclass(frozen=True)
class Evaluation:
    """What came out of scoring folders.

    Attributes:
        rows: one per case and label, by `COLUMNS`; slice means are NaN where no slice of the reference is marked.
        failures: cases that could not be scored: ``case``, ``kind`` (the error's class), ``message``.
        summary: counts of cases, and per label means, intervals and empty cases; as in summary.json.
    """

    rows: tuple[Mapping[str, Any], ...]
    failures: tuple[Mapping[str, str], ...]
    summary: Mapping[str, Any]

    def write(self, out: str | Path) -> None:
        """Write ``per_case.csv`` and ``summary.json`` into a folder."""
        stream = io.StringIO()
        table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows({k: _cell(v) for k, v in row.items()} for row in self.rows)
        write_text(Path(out) / "per_case.csv", stream.getvalue())
        write_json(Path(out) / "summary.json", dict(self.summary))


def score_folders(
    prediction: str | Path,
    reference: str | Path,
    *,
    structure: str = "infiltrate",
    spacing_mm: Sequence[float] | None = None,
    surface_tolerance_mm: float | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Score every mask of one folder against its partner in another; see `find_pairs` for which that is.

    A case that cannot be scored (no partner, unreadable, on another grid, labels of another meaning) is listed as a
    failure, and the others are scored.

    Args:
        prediction: a mask, or a folder of masks.
        reference: the same, held to be true.
        structure: ``infiltrate`` or ``lungs``, where one side has case folders and the other has not.
        spacing_mm: voxel size along (right, front, head) to use for volumes in ml and distances in mm instead of the
            files'.
        surface_tolerance_mm: how far a surface may be off and still count in NSD; None for `TOLERANCE_MM` by structure.
        progress: told after each case.

    Raises:
        InputError: as `find_pairs`, for a spacing that is not three positive numbers, and a tolerance below 0.
    """
    _check_spacing(spacing_mm)
    if surface_tolerance_mm is not None and not 0 <= surface_tolerance_mm < math.inf:
        raise InputError(f"a surface tolerance is a length in mm of at least 0, got {surface_tolerance_mm}")
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    slices: dict[str, dict[str, list[SliceScores]]] = {}
    pairs = find_pairs(prediction, reference, structure=structure)
    sides = (Side("prediction", [p.prediction for p in pairs]), Side("reference", [p.reference for p in pairs]))
    for done, pair in enumerate(pairs):
        progress("evaluate", done, len(pairs), pair.case)
        try:
            for row, per_slice in _score_pair(pair, sides, structure, spacing_mm, surface_tolerance_mm):
                rows.append(row)
                slices.setdefault(row["label"], {})[pair.case] = per_slice
        except PneumoscopeError as error:
            failures.append({"case": pair.case, "kind": type(error).__name__, "message": str(error)})
    progress("evaluate", len(pairs), len(pairs))
    summary = {
        "format": FORMAT,
        "kind": "evaluation",
        "software": {"name": "pneumoscope", "version": __version__},
        "prediction": str(prediction),
        "reference": str(reference),
        "empty_masks": EMPTY_RULE,
        "cases": len({row["case"] for row in rows}),
        "failed": len(failures),
        "failures": failures,
        "scored_as_one": {row["case"]: row["note"] for row in rows if row["note"]},
        "labels": {label: _summarise(label, rows, per_case) for label, per_case in sorted(slices.items())},
    }
    return Evaluation(tuple(rows), tuple(failures), summary)


def evaluate_folders(
    prediction: str | Path,
    reference: str | Path,
    out: str | Path,
    *,
    structure: str = "infiltrate",
    spacing_mm: Sequence[float] | None = None,
    surface_tolerance_mm: float | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """`score_folders`, written into a folder.

    Returns:
        What stands in ``summary.json``.

    Raises:
        InputError: as `score_folders`, and when `out` holds an evaluation and `overwrite` is not given.
        RunError: when any case failed; the others are written first.
    """
    folder = prepare_folder(out, marker="summary.json", overwrite=overwrite)
    result = score_folders(
        prediction,
        reference,
        structure=structure,
        spacing_mm=spacing_mm,
        surface_tolerance_mm=surface_tolerance_mm,
        progress=progress,
    )
    result.write(folder)
    if result.failures:
        first = result.failures[0]
        raise RunError(
            f"{len(result.failures)} of {len(result.failures) + result.summary['cases']} cases could not be scored, "
            f"first {first['case']}: {first['message']}; see failures in {folder / 'summary.json'}"
        )
    return dict(result.summary)


def score_masks(prediction: Mask, reference: Mask, *, label: int | None = None) -> tuple[Counts, list[SliceScores]]:
    """Counts over the volume, and the scores of its axial slices from the feet up; one label, or all together.

    Raises:
        GeometryError: when the masks lie on different grids.
    """
    reference.grid.require_same_space(prediction.grid, "the prediction")
    found, drawn = (mask.any if label is None else mask.of(label) for mask in (prediction, reference))
    per_slice = slice_scores(found.transpose(2, 1, 0), drawn.transpose(2, 1, 0))
    return sum((scores.counts for scores in per_slice), Counts()), per_slice


def _score_pair(
    pair: Pair,
    sides: tuple[Side, Side],
    structure: str,
    spacing_mm: Sequence[float] | None,
    tolerance_mm: float | None,
) -> list[tuple[dict[str, Any], list[SliceScores]]]:
    from pneumoscope.io import read_mask

    if pair.prediction is None or pair.reference is None:
        raise InputError(pair.missing)
    found, drawn = read_mask(pair.prediction), read_mask(pair.reference)
    drawn.grid.require_same_space(found.grid, f"the prediction {pair.prediction}")
    names_found = sides[0].names_of(found, drawn.names)
    labels, note = comparable_labels(names_found, sides[1].names_of(drawn, names_found))
    wanted: list[tuple[str, int | None]] = [(name, label) for label, name in labels.items()]
    if len(wanted) != 1:
        wanted.append((ANY, None))
    ml = drawn.grid.voxel_volume_ml if spacing_mm is None else math.prod(spacing_mm) / 1000
    results = []
    for name, label in wanted:
        names = [name] if label is not None else [*found.names.values(), *drawn.names.values()]
        counts, per_slice = score_masks(found, drawn, label=label)
        mean = mean_over_infected(per_slice)
        row = {
            "case": pair.case,
            "label": name,
            **score(counts).as_dict(),
            "prediction_ml": counts.predicted * ml,
            "reference_ml": counts.referenced * ml,
            "slices": len(per_slice),
            "slices_infected": mean.n_slices,
            **{f"slice_{key}": getattr(mean, key) for key in ("accuracy", "precision", "recall", "f1")},
            "prediction": pair.prediction.name,
            "reference": pair.reference.name,
            **_surface_columns(
                found, drawn, label, spacing_mm, _tolerance(names, structure) if tolerance_mm is None else tolerance_mm
            ),
            "note": note,
        }
        results.append(({column: row[column] for column in COLUMNS}, per_slice))
    return results


def _surface_columns(
    found: Mask, drawn: Mask, label: int | None, spacing_mm: Sequence[float] | None, tolerance_mm: float
) -> dict[str, float]:
    """Distances in the world of the file's grid; a scan of one slice is scored as a slice, by its contour."""
    steps = drawn.grid.affine[:3, :3] if spacing_mm is None else np.diag([float(s) for s in spacing_mm])
    wide = [axis for axis, n in enumerate(drawn.grid.shape) if n > 1]
    flat = tuple(0 if n == 1 else slice(None) for n in drawn.grid.shape) if len(wide) == 2 else ...
    pred, ref = ((mask.any if label is None else mask.of(label))[flat] for mask in (found, drawn))
    scores = surface_scores(pred, ref, steps[:, wide] if pred.ndim == 2 else steps, tolerance_mm)
    return {"nsd": scores.nsd, "hd95": scores.hd95_mm, "msd": scores.msd_mm, "surface_tolerance_mm": tolerance_mm}


def _tolerance(names: Sequence[str], structure: str) -> float:
    """That of lungs when every name says lung, or none says anything and lungs are scored; else that of infiltrate."""
    told = [name for name in names if not name.startswith("label ")]
    lungs = all("lung" in name.lower() for name in told) if told else structure == "lungs"
    return TOLERANCE_MM["lungs" if lungs else "infiltrate"]


def _summarise(
    label: str, rows: Sequence[Mapping[str, Any]], slices: Mapping[str, Sequence[SliceScores]]
) -> dict[str, Any]:
    """Means over cases and over slices of one label. Intervals take a case for a patient."""
    own = [row for row in rows if row["label"] == label]
    counts = sum((Counts(row["tp"], row["fp"], row["fn"], row["tn"]) for row in own), Counts())
    per_case = {
        name: asdict(bootstrap_interval({row["case"]: [row[name]] for row in own}))
        for name in ("dice", "iou", "precision", "recall")
    }
    infected = {case: [s.f1 for s in scores if s.infected] for case, scores in slices.items()}
    every = mean_over_infected([s for scores in slices.values() for s in scores])
    return {
        "cases": len(own),
        "n_both_empty": sum(row["empty"] == "both" for row in own),
        "n_missed": sum(row["empty"] == "prediction" for row in own),
        "n_false_alarms": sum(row["empty"] == "reference" for row in own),
        **{name: {key: value for key, value in mean.items() if key in _KEPT} for name, mean in per_case.items()},
        **_summarise_surfaces(own),
        "dice_median": float(np.median([row["dice"] for row in own])),
        "dice_pooled": dice(counts),
        "slice_mean": {**asdict(every), "f1_interval": _ends(asdict(bootstrap_interval(infected)))},
    }


def _summarise_surfaces(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of NSD and distances over cases with a surface, finite distances only; medians over all such cases."""
    scored = [row for row in rows if not math.isnan(row["nsd"])]
    tolerances = {row["surface_tolerance_mm"] for row in rows}
    summary: dict[str, Any] = {
        "surface_tolerance_mm": tolerances.pop() if len(tolerances) == 1 else None,
        "n_infinite": sum(math.isinf(row["hd95"]) for row in scored),
    }
    for name in ("nsd", "hd95", "msd"):
        values = {row["case"]: [row[name]] for row in scored if math.isfinite(row[name])}
        mean = asdict(bootstrap_interval(values))
        median = float(np.median([row[name] for row in scored])) if scored else math.nan
        summary[name] = {**{key: mean[key] for key in _KEPT}, "median": median}
    return summary


_KEPT = ("mean", "low", "high")


def _ends(interval: Mapping[str, Any]) -> list[float]:
    return [interval["low"], interval["high"]]


def _cell(value: Any) -> Any:
    """Numbers in at most 6 digits after the point, NaN as an empty cell, text kept from being taken as a formula."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}".rstrip("0").rstrip(".")
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value


def _check_spacing(spacing_mm: Sequence[float] | None) -> None:
    if spacing_mm is not None and (len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm)):
        raise InputError(f"a spacing is three positive numbers in mm, got {tuple(spacing_mm)}")
