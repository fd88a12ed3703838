"""Two folders of masks, scored: ``per_case.csv`` with one row per case and label, ``summary.json`` over the cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope._version import __version__
from pneumoscope.errors import InputError, RunError
from pneumoscope.io.files import prepare_folder, require_no_other_run, write_csv, write_json
from pneumoscope.jobs.lock import locks
from pneumoscope.jobs.machines import current, part_of
from pneumoscope.jobs.run import Job, JobRun, Outcome, Step, job_folder
from pneumoscope.jobs.stamp import content_of_files
from pneumoscope.metrics.intervals import summarise
from pneumoscope.metrics.options import EvaluateOptions
from pneumoscope.metrics.overlap import Counts, SliceScores, mean_over_infected, score, scores_of, slice_scores
from pneumoscope.metrics.pairs import Pair, Side, comparable_labels, find_pairs
from pneumoscope.metrics.surface import TOLERANCE_MM, surface_scores
from pneumoscope.objects import Tabled
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import Mask

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1  # Layout of summary.json; grows when an entry changes its meaning
ANY = "any"  # Row of all labels together, beside the rows of single labels

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


@dataclass(frozen=True, repr=False)
class Evaluation(Tabled):
    """What came out of scoring folders.

    Attributes:
        rows: one per case and label, by `COLUMNS`; slice means are NaN where no slice of the reference is marked.
        failures: cases that could not be scored: ``case``, ``kind`` (the error's class), ``message``.
        summary: counts of cases, and per label means, intervals and empty cases; as in summary.json.
    """

    rows: tuple[Mapping[str, Any], ...]
    failures: tuple[Mapping[str, str], ...]
    summary: Mapping[str, Any]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value}" for name, value in self._numbers().items())
        return f"Evaluation({len(self.rows)} rows, {len(self.failures)} failures, {shown})"

    def _numbers(self) -> dict[str, str]:
        means = {label: found["dice"]["mean"] for label, found in self.summary["labels"].items()}
        return {f"Dice of {label}": "-" if mean is None else f"{mean:.3f}" for label, mean in means.items()}

    def _draw(self, axes: Sequence[Any]) -> None:
        labels = sorted({str(row["label"]) for row in self.rows})
        for number, label in enumerate(labels):
            values = [row["dice"] for row in self.rows if str(row["label"]) == label]
            axes[0].plot([number] * len(values), values, "o", alpha=0.6)
        axes[0].set_xticks(range(len(labels)), labels)
        axes[0].set_ylabel("Dice")
        axes[0].set_ylim(0, 1)

    def to_frame(self) -> pd.DataFrame:
        """A row per case and label, as in ``per_case.csv``."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(COLUMNS))

    def as_dict(self) -> dict[str, Any]:
        """What stands in ``summary.json``."""
        return dict(self.summary)

    def write(self, out: str | Path) -> None:
        """Write ``per_case.csv`` and ``summary.json`` into a folder."""
        rows = ({k: _cell(v) for k, v in row.items()} for row in self.rows)
        write_csv(Path(out) / "per_case.csv", COLUMNS, rows)
        write_json(Path(out) / "summary.json", dict(self.summary))


class CasesFailedError(RunError):
    """Some cases could not be scored; the others are written."""

    summary: Mapping[str, Any] = MappingProxyType({})  # what stands in ``summary.json``


def score_folders(
    prediction: str | Path,
    reference: str | Path,
    options: EvaluateOptions | None = None,
    *,
    progress: Progress = silent,
) -> Evaluation:
    """Score every mask of one folder against its partner in another; see `find_pairs` for which that is.

    A case that cannot be scored (no partner, unreadable, on another grid, labels of another meaning) is listed as a
    failure, and the others are scored.

    Args:
        prediction: a mask, or a folder of masks.
        reference: the same, of reference masks.
        progress: called after each case.

    Raises:
        InputError: as `find_pairs`.
    """
    jobs, step = _jobs(prediction, reference, options or EvaluateOptions(), Path())

    def reported() -> Iterator[Job]:
        for number, job in enumerate(jobs):
            progress("evaluate", number, len(jobs), job.name)
            yield job

    outcomes = list(step.one_by_one(reported(), silent))
    progress("evaluate", len(jobs), len(jobs))
    return _evaluation(prediction, reference, outcomes)


@locks("out")
def evaluate_folders(
    prediction: str | Path,
    reference: str | Path,
    out: str | Path,
    options: EvaluateOptions | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """`score_folders`, written into a folder as cases end.

    Args:
        prediction, reference, options, progress: see `score_folders`.
        out: refused when it holds an evaluation, unless `overwrite` or `resume`.
        overwrite: score every case again.
        resume: keep the cases that are scored and whose masks and options are unchanged.

    Returns:
        What stands in ``summary.json``.

    Raises:
        InputError: as `score_folders`, and when `out` is in use.
        CasesFailedError: when any case failed; the others are written first.
        RunError: the disk is full.
    """
    options = options or EvaluateOptions()
    every, step = _jobs(prediction, reference, options, Path(out))
    jobs = part_of(every)
    require_no_other_run(out, "summary.json")
    folder = prepare_folder(out, marker="summary.json", overwrite=overwrite, resume=resume)

    def write(outcomes: Sequence[Outcome], finished: bool) -> None:
        _evaluation(prediction, reference, outcomes, finished=finished).write(folder)

    outcomes = JobRun(
        jobs, step, write, opener=partial(_open, prediction, reference, options), side_by_side=current().jobs or 1,
        resume=resume, what="evaluate", progress=progress,
    ).run()  # fmt: skip
    result = _evaluation(prediction, reference, outcomes)
    if result.failures:
        first = result.failures[0]
        problem = CasesFailedError(
            f"{len(result.failures)} of {len(jobs)} cases could not be scored, "
            f"first {first['case']}: {first['message']}; see failures in {folder / 'summary.json'}"
        )
        problem.summary = result.summary
        raise problem
    return dict(result.summary)


def _open(prediction: str | Path, reference: str | Path, options: EvaluateOptions, jobs: int) -> Step:
    return _jobs(prediction, reference, options, Path())[1]


def _jobs(prediction: str | Path, reference: str | Path, options: EvaluateOptions, out: Path) -> tuple[list[Job], Step]:
    """A job for each pair, and how it is scored."""
    pairs = find_pairs(prediction, reference, structure=options.structure)
    sides = (Side("prediction", [p.prediction for p in pairs]), Side("reference", [p.reference for p in pairs]))

    def made_of(pair: Pair) -> dict[str, Any]:
        files = {"prediction": pair.prediction, "reference": pair.reference}
        return {**{what: path and content_of_files([path]) for what, path in files.items()}, "options": asdict(options)}

    def work(job: Job, progress: Progress) -> Outcome:
        return Outcome(job.name, facts=_score_pair(job.item, sides, options))

    def still(pair: Pair, facts: Mapping[str, Any]) -> str:
        labels = zip(sides, facts["side_labels"], strict=True)
        return "labels of the other files" if any(n is not None and n != sorted(s.numbers) for s, n in labels) else ""

    return [Job(p.case, p, job_folder(out, p.case)) for p in pairs], Step("evaluate", 1, made_of, work, still)


def _evaluation(
    prediction: str | Path, reference: str | Path, outcomes: Sequence[Outcome], *, finished: bool = True
) -> Evaluation:
    """Rows and summary of what was scored."""
    done = [outcome for outcome in outcomes if outcome.status == "done"]
    failures = [
        {"case": outcome.name, "kind": outcome.kind, "message": outcome.error or ""}
        for outcome in outcomes
        if outcome.status == "failed"
    ]
    rows: list[dict[str, Any]] = []
    slices: dict[str, dict[str, list[SliceScores]]] = {}
    for outcome in done:
        for row, per_slice in zip(outcome.facts["rows"], outcome.facts["slices"], strict=True):
            rows.append({name: _number(value) for name, value in row.items()})
            slices.setdefault(row["label"], {})[outcome.name] = scores_of(Counts(*counts) for counts in per_slice)
    summary = {
        "format": FORMAT,
        "kind": "evaluation",
        "software": {"name": "pneumoscope", "version": __version__},
        "finished": finished,
        "results": len(done),
        "prediction": str(prediction),
        "reference": str(reference),
        "empty_masks": EMPTY_RULE,
        "cases": len(done),
        "failed": len(failures),
        "failures": failures,
        "scored_as_one": {row["case"]: row["note"] for row in rows if row["note"]},
        "labels": {label: summarise(label, rows, per_case) for label, per_case in sorted(slices.items())},
    }
    return Evaluation(tuple(rows), tuple(failures), summary)


def score_masks(prediction: Mask, reference: Mask, *, label: int | None = None) -> tuple[Counts, list[SliceScores]]:
    """Counts over the volume, and the scores of its axial slices from the feet up; one label, or all together.

    Raises:
        GeometryError: when the masks lie on different grids.
    """
    reference.grid.require_same_space(prediction.grid, "the prediction")
    found, drawn = (mask.any if label is None else mask.of(label) for mask in (prediction, reference))
    per_slice = slice_scores(found.transpose(2, 1, 0), drawn.transpose(2, 1, 0))
    return sum((scores.counts for scores in per_slice), Counts()), per_slice


def _score_pair(pair: Pair, sides: tuple[Side, Side], options: EvaluateOptions) -> dict[str, Any]:
    """Rows and, of each, the counts of its slices, as JSON values; and labels of other files that had a say."""
    from pneumoscope.io.read import read_mask_or_probability

    if pair.prediction is None or pair.reference is None:
        raise InputError(pair.missing)
    drawn = read_mask_or_probability(pair.reference, options.threshold)
    found = read_mask_or_probability(pair.prediction, options.threshold, scan=drawn.grid)
    drawn.grid.require_same_space(found.grid, f"the prediction {pair.prediction}")
    names_found = sides[0].names_of(found, drawn.names)
    labels, note = comparable_labels(names_found, sides[1].names_of(drawn, names_found))
    wanted: list[tuple[str, int | None]] = [(name, label) for label, name in labels.items()]
    if len(wanted) != 1:
        wanted.append((ANY, None))
    spacing_mm, tolerance_mm = options.spacing_mm, options.surface_tolerance_mm
    ml = drawn.grid.voxel_volume_ml if spacing_mm is None else math.prod(spacing_mm) / 1000
    rows, slices = [], []
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
                found,
                drawn,
                label,
                spacing_mm,
                _tolerance(names, options.structure) if tolerance_mm is None else tolerance_mm,
            ),
            "note": note,
        }
        rows.append({column: _text(row[column]) for column in COLUMNS})
        slices.append([list(astuple(scores.counts)) for scores in per_slice])
    depends = sides[0].needs_others(found, drawn.names), sides[1].needs_others(drawn, names_found)
    numbers = [sorted(side.numbers) if needed else None for side, needed in zip(sides, depends, strict=True)]
    return {"rows": rows, "slices": slices, "side_labels": numbers}


_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _text(value: Any) -> Any:
    """JSON has no NaN and no infinity; they are kept as text."""
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


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
    """That of lungs when every name says lung, or none has a meaning and lungs are scored; else that of infiltrate."""
    named = [name for name in names if not name.startswith("label ")]
    lungs = all("lung" in name.lower() for name in named) if named else structure == "lungs"
    return TOLERANCE_MM["lungs" if lungs else "infiltrate"]


def _cell(value: Any) -> Any:
    """Numbers in at most 6 digits after the point, NaN as an empty cell, text kept from being taken as a formula."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}".rstrip("0").rstrip(".")
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value
