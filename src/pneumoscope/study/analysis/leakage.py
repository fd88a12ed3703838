"""What a split by slices adds to a score: one training, scored on patients it has seen and on patients it has not.

The split holds a few patients out before slices are drawn (`pneumoscope.datasets.splits.draw`). A trained stage is then
scored on the test slices of patients whose other slices it was trained on, and on the slices of patients it has never
seen; "added" is the first mean less the second.

These are different patients, and one group may be harder by chance. So where some other stage was never trained on the
set, its scores on the same slices are taken off first, patient by patient: "added, corrected" is how much more the
training gained on seen patients than on unseen ones. The intervals draw patients within each group (stratified
bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.2). They hold for other
patients, not for another training.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.datasets.splits.draw import Exposure, exposure
from pneumoscope.errors import InputError
from pneumoscope.io.files import write_bytes
from pneumoscope.metrics.intervals import Interval, bootstrap_interval, unpaired_difference
from pneumoscope.reports.figures import new_figure, png
from pneumoscope.study.scores.matrix import PerPatient, values_by_patient
from pneumoscope.study.scores.table import with_ends

COMPARED = ("seen", "unseen", "added", "corrected")


@dataclass(frozen=True)
class Leakage:
    """One trained stage on one set it was trained on, by F1 per slice with infiltrate."""

    stage: str  # name of the stage
    test: int  # number of the set
    seen: Interval  # mean over patients who were also trained on; NaN with no patients
    unseen: Interval  # mean over patients who were not; NaN likewise
    added: Interval  # `seen` less `unseen`; ends are NaN with fewer than two patients on either side
    control: str | None = None  # a stage never trained on the set, or None
    # how much more than `control` the stage gained on seen than on unseen patients; None without control
    corrected: Interval | None = None


def leakage(
    rows: pd.DataFrame, split: pd.DataFrame, *, control: pd.DataFrame | None = None, n: int = 2000, seed: int = 0
) -> Leakage:
    """Compare the test slices of seen and of unseen patients of one stage on one set.

    Args:
        rows: per-slice scores of the stage on the test slices of the set, columns as in per_case.csv.
        split: the set's split table ``case,slice,patient,part``.
        control: the same slices scored by a stage that was never trained on the set.
        n: bootstrap rounds.
    """
    rows = rows.sort_values(["case", "slice"], kind="stable")
    sides, values = exposure(split), values_by_patient(rows, "f1")
    seen, unseen = (_side(values, sides, side) for side in ("seen", "unseen"))
    rounds: dict[str, Any] = {"n": n, "seed": seed}
    corrected, name = None, None
    if control is not None:
        other = rows[["case", "slice"]].merge(control, validate="one_to_one")
        assert len(other) == len(rows)  # all stages are scored on the same test slices
        name, before = str(other["stage"].iloc[0]), values_by_patient(other, "f1")
        gains = {p: [a - b for a, b in zip(values[p], before[p], strict=True)] for p in values}
        corrected = unpaired_difference(_side(gains, sides, "seen"), _side(gains, sides, "unseen"), **rounds)
    return Leakage(
        str(rows["stage"].iloc[0]), int(rows["test"].iloc[0]), bootstrap_interval(seen, **rounds),
        bootstrap_interval(unseen, **rounds), unpaired_difference(seen, unseen, **rounds), name, corrected,
    )  # fmt: skip


def _side(values: PerPatient, sides: Mapping[str, Exposure], side: str) -> PerPatient:
    return {patient: scores for patient, scores in values.items() if sides.get(patient) == side}


def study_leakage(
    per_case: pd.DataFrame, splits: Mapping[int, pd.DataFrame], trained_on: Mapping[str, Collection[int]],
    **rounds: int,
) -> list[Leakage]:  # fmt: skip
    """`leakage` for every stage on every set it was trained on and whose split holds patients out.

    The control is the first stage, in the order of `trained_on`, that has never seen the set.

    Args:
        per_case: rows of per_case.csv, of test slices.
        splits: split tables by number of the set; sets without one are passed over.
        trained_on: numbers of the sets that each stage, or a stage before it, was trained on; in the order of the
            chain.
        rounds: ``n`` and ``seed`` of `leakage`.

    Returns:
        In the order of stages and sets; empty when no split holds patients out.

    Raises:
        InputError: a stage or set without rows.
    """
    cells = dict(iter(per_case.groupby(["stage", "test"], sort=False)))
    found = []
    for stage, sets in trained_on.items():
        for test in sorted(sets):
            if test not in splits or set(exposure(splits[test]).values()) != {"seen", "unseen"}:
                continue
            name = next((other for other, seen in trained_on.items() if test not in seen), None)
            for wanted in {stage, name} - {None}:
                if (wanted, test) not in cells:
                    raise InputError(f"per_case.csv holds no rows of stage {wanted} on set {test}; score it first")
            control = None if name is None else cells[name, test]
            found.append(leakage(cells[stage, test], splits[test], control=control, **rounds))
    return found


def leakage_table(found: Sequence[Leakage]) -> pd.DataFrame:
    """One row per stage and set, for a CSV or a report; intervals as ``_low`` and ``_high`` columns."""
    rows = []
    for one in found:
        row = (one.stage, one.test, "f1", one.seen.n_patients, one.unseen.n_patients)
        ends = (value for name in COMPARED for value in with_ends(name, getattr(one, name)).values())
        rows.append((*row, *ends, one.control or ""))
    head = ["stage", "test", "measure", "seen_patients", "unseen_patients"]
    return pd.DataFrame(rows, columns=[*head, *(f"{a}{b}" for a in COMPARED for b in ("", "_low", "_high")), "control"])


def leakage_summary(found: Sequence[Leakage]) -> dict[str, Any]:
    """A sentence and rows for people, as `study report` shows them from ``leakage.json``; empty when there is nothing.

    Numbers stay numbers; intervals are texts.
    """
    rows = [
        {
            "stage": one.stage,
            "set": one.test,
            "f1_of_seen_patients": one.seen.mean,
            "f1_of_unseen_patients": one.unseen.mean,
            "patients": f"{one.seen.n_patients} and {one.unseen.n_patients}",
            "added": one.added.mean,
            "interval": _ends(one.added),
            "added_corrected": None if one.corrected is None else one.corrected.mean,
            "interval_corrected": "" if one.corrected is None else _ends(one.corrected),
        }
        for one in found
    ]
    return {"sentence": sentence(found), "rows": rows} if found else {}


def sentence(found: Sequence[Leakage]) -> str:
    """What was measured, in words, for the stage and set with the most unseen patients; the first among equals."""
    measured = [one for one in found if not math.isnan(one.added.mean)]
    if not measured:
        return "No test slice with infiltrate is left on one of the two sides: what the split adds cannot be measured."
    one = max(measured, key=lambda item: item.unseen.n_patients)
    best = one.added if one.corrected is None or math.isnan(one.corrected.mean) else one.corrected
    way = "" if best is one.added else f", corrected for how hard the patients are by stage {one.control}"
    if math.isnan(best.low):
        sure = "One patient on a side gives no interval."
    elif best.low > 0:
        sure = "The interval lies above 0: the split by slices flatters the score."
    elif best.high < 0:
        sure = "The interval lies below 0: nothing here says that the split by slices flatters the score."
    else:
        sure = "The interval holds 0: with these patients an effect cannot be distinguished from chance."
    return (
        f"Stage {one.stage} reaches a mean F1 of {one.seen.mean:.3f} on test slices of {one.seen.n_patients} "
        f"patients of set {one.test} whose other slices it was trained on, and {one.unseen.mean:.3f} on "
        f"{one.unseen.n_patients} patients it never saw. Having seen the patient adds {best.mean:+.3f} "
        f"({_ends(best) or 'no interval'}){way}. {sure}"
    )


def _ends(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"{interval.low:+.3f} to {interval.high:+.3f}"


def draw_leakage(found: Sequence[Leakage], path: str | Path) -> None:
    """A picture of seen against unseen patients, one line per stage and set, with intervals; PNG."""
    figure = new_figure(5.6, 1.1 + 0.45 * len(found))
    axes = figure.subplots()
    sides = (("seen", "seen in training", "#e8650a", 0.12), ("unseen", "never seen", "#0b6bcb", -0.12))
    for side, name, colour, lift in sides:
        for y, one in enumerate(found):
            interval: Interval = getattr(one, side)
            if not math.isnan(interval.low):
                axes.plot([interval.low, interval.high], [y + lift] * 2, color=colour, lw=1.6, alpha=0.6)
            label = f"patients {name}" if y == 0 else None
            axes.plot([interval.mean], [y + lift], "o", color=colour, ms=5, label=label)
    axes.set_yticks(range(len(found)), [f"{one.stage}, set {one.test}" for one in found], fontsize=8)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("mean F1")
    axes.grid(axis="x", color="#dde1e6", lw=0.6)
    figure.legend(loc="upper center", ncols=2, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    write_bytes(path, png(figure))
