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
from typing import Any, Literal

import pandas as pd

from pneumoscope.datasets.splits.draw import Exposure, exposure
from pneumoscope.errors import InputError
from pneumoscope.io.files import write_bytes
from pneumoscope.metrics.intervals import Interval, bootstrap_interval, unpaired_difference
from pneumoscope.study.scores.matrix import PerPatient, values_by_patient

Measure = Literal["f1", "dice", "nsd"]
NAMES: Mapping[str, str] = {"f1": "F1", "dice": "Dice", "nsd": "NSD"}


@dataclass(frozen=True)
class Leakage:
    """One trained stage on one set it was trained on."""

    stage: str  # name of the stage
    test: int  # number of the set
    measure: Measure  # ``f1`` per slice with infiltrate, ``dice`` or ``nsd`` per patient
    seen: Interval  # mean over patients who were also trained on; NaN with no patients
    unseen: Interval  # mean over patients who were not; NaN likewise
    added: Interval  # `seen` less `unseen`; ends are NaN with fewer than two patients on either side
    control: str | None = None  # a stage never trained on the set, or None
    # how much more than `control` the stage gained on seen than on unseen patients; None without control
    corrected: Interval | None = None


def leakage(
    rows: pd.DataFrame,
    split: pd.DataFrame,
    *,
    measure: Measure = "f1",
    control: pd.DataFrame | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Leakage:
    """Compare the test slices of seen and of unseen patients of one stage on one set.

    Args:
        rows: per-slice scores of the stage on the set, columns as in per_case.csv; only test slices count.
        split: the set's split table ``case,slice,patient,part``.
        measure: what is averaged.
        control: the same slices scored by a stage that was never trained on the set.
        n: bootstrap rounds.

    Raises:
        InputError: no rows, rows of several stages or sets, slices that the split does not test, or a control that
            was scored on other slices.
    """
    rows, stage, test = _one_cell(rows)
    sides = exposure(split)
    _require_tested(rows, split)
    values = values_by_patient(rows, measure)
    seen, unseen = (_side(values, sides, side) for side in ("seen", "unseen"))
    rounds: dict[str, Any] = {"n": n, "seed": seed}
    corrected, name = None, None
    if control is not None:
        control, name, other = _one_cell(control)
        if other != test:
            raise InputError(f"the control {name} was scored on set {other}, the stage on set {test}")
        gains = _gains(rows, control, measure)
        corrected = unpaired_difference(_side(gains, sides, "seen"), _side(gains, sides, "unseen"), **rounds)
    return Leakage(
        stage,
        test,
        measure,
        bootstrap_interval(seen, **rounds),
        bootstrap_interval(unseen, **rounds),
        unpaired_difference(seen, unseen, **rounds),
        name,
        corrected,
    )


def study_leakage(
    per_case: pd.DataFrame,
    splits: Mapping[int, pd.DataFrame],
    trained_on: Mapping[str, Collection[int]],
    *,
    measure: Measure = "f1",
    n: int = 2000,
    seed: int = 0,
) -> list[Leakage]:
    """`leakage` for every stage on every set it was trained on and whose split holds patients out.

    The control is the first stage, in the order of `trained_on`, that has never seen the set.

    Args:
        per_case: rows of per_case.csv.
        splits: split tables by number of the set; sets without one are passed over.
        trained_on: numbers of the sets that each stage, or a stage before it, was trained on; in the order of the
            chain.
        measure: what is averaged.
        n: bootstrap rounds.

    Returns:
        In the order of stages and sets; empty when no split holds patients out.

    Raises:
        InputError: a stage or set without rows; as `leakage`.
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
            found.append(leakage(cells[stage, test], splits[test], measure=measure, control=control, n=n, seed=seed))
    return found


def leakage_table(found: Sequence[Leakage]) -> pd.DataFrame:
    """One row per stage and set, for a CSV or a report; intervals as ``_low`` and ``_high`` columns."""
    rows = []
    for one in found:
        row: dict[str, Any] = {
            "stage": one.stage,
            "test": one.test,
            "measure": one.measure,
            "seen_patients": one.seen.n_patients,
            "unseen_patients": one.unseen.n_patients,
        }
        for name in ("seen", "unseen", "added", "corrected"):
            interval: Interval | None = getattr(one, name)
            row |= {
                name: interval.mean if interval else math.nan,
                f"{name}_low": interval.low if interval else math.nan,
                f"{name}_high": interval.high if interval else math.nan,
            }
        rows.append({**row, "control": one.control or ""})
    columns = [f"{a}{b}" for a in ("seen", "unseen", "added", "corrected") for b in ("", "_low", "_high")]
    head = ["stage", "test", "measure", "seen_patients", "unseen_patients"]
    return pd.DataFrame(rows, columns=[*head, *columns, "control"])


def leakage_summary(found: Sequence[Leakage]) -> dict[str, Any]:
    """A sentence and rows for people, as `study report` shows them from ``leakage.json``; empty when there is nothing.

    Numbers stay numbers; intervals are texts.
    """
    if not found:
        return {}
    rows = [
        {
            "stage": one.stage,
            "set": one.test,
            f"{one.measure}_of_seen_patients": one.seen.mean,
            f"{one.measure}_of_unseen_patients": one.unseen.mean,
            "patients": f"{one.seen.n_patients} and {one.unseen.n_patients}",
            "added": one.added.mean,
            "interval": _ends(one.added),
            "added_corrected": None if one.corrected is None else one.corrected.mean,
            "interval_corrected": "" if one.corrected is None else _ends(one.corrected),
        }
        for one in found
    ]
    return {"sentence": sentence(found), "rows": rows}


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
    name = NAMES[one.measure]
    return (
        f"Stage {one.stage} reaches a mean {name} of {one.seen.mean:.3f} on test slices of {one.seen.n_patients} "
        f"patients of set {one.test} whose other slices it was trained on, and {one.unseen.mean:.3f} on "
        f"{one.unseen.n_patients} patients it never saw. Having seen the patient adds {best.mean:+.3f} "
        f"({_ends(best) or 'no interval'}){way}. {sure}"
    )


def draw_leakage(found: Sequence[Leakage], path: str | Path) -> None:
    """A picture of seen against unseen patients, one line per stage and set, with intervals; PNG."""
    from pneumoscope.reports.figures import new_figure, png

    if not found:
        raise InputError("there is nothing to draw: no split of the study holds patients out")
    figure = new_figure(5.6, 1.1 + 0.45 * len(found))
    axes = figure.subplots()
    sides = (("seen", "seen in training", "#e8650a", 0.12), ("unseen", "never seen", "#0b6bcb", -0.12))
    for side, name, colour, lift in sides:
        for y, one in enumerate(found):
            interval: Interval = getattr(one, side)
            if not math.isnan(interval.low):
                axes.plot([interval.low, interval.high], [y + lift] * 2, color=colour, lw=1.6, alpha=0.6)
            axes.plot(
                [interval.mean], [y + lift], "o", color=colour, ms=5, label=f"patients {name}" if y == 0 else None
            )
    axes.set_yticks(range(len(found)), [f"{one.stage}, set {one.test}" for one in found], fontsize=8)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel(f"mean {NAMES[found[0].measure]}")
    axes.grid(axis="x", color="#dde1e6", lw=0.6)
    figure.legend(loc="upper center", ncols=2, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    write_bytes(path, png(figure))


def _one_cell(rows: pd.DataFrame) -> tuple[pd.DataFrame, str, int]:
    """Test rows of one stage on one set, sorted, and which they are."""
    rows = rows[rows["part"] == "test"] if "part" in rows else rows
    names = {(str(s), int(t)) for s, t in zip(rows["stage"], rows["test"], strict=True)}
    if len(names) != 1:
        raise InputError(f"leakage is measured for one stage on one set at a time, got rows of {sorted(names)}")
    ((stage, test),) = names
    return rows.sort_values(["case", "slice"], kind="stable"), stage, test


def _require_tested(rows: pd.DataFrame, split: pd.DataFrame) -> None:
    tested = split[split["part"] == "test"]
    known = set(zip(tested["case"].astype(str), tested["slice"].astype(int), strict=True))
    for case, n in zip(rows["case"].astype(str), rows["slice"].astype(int), strict=True):
        if (case, n) not in known:
            raise InputError(f"slice {n} of case {case} was scored and is no test slice of the split given")


def _side(values: PerPatient, sides: Mapping[str, Exposure], side: str) -> PerPatient:
    return {patient: scores for patient, scores in values.items() if sides.get(patient) == side}


def _gains(rows: pd.DataFrame, control: pd.DataFrame, measure: Measure) -> PerPatient:
    """Scores less those of the control, value by value; both tables are sorted by case and slice."""
    places = [list(zip(t["case"].astype(str), t["slice"].astype(int), strict=True)) for t in (rows, control)]
    if places[0] != places[1]:
        raise InputError("the control was scored on other slices than the stage; score both on the same test set")
    own, other = (values_by_patient(table, measure) for table in (rows, control))
    return {p: [a - b for a, b in zip(own[p], other[p], strict=True)] for p in own}


def _ends(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"{interval.low:+.3f} to {interval.high:+.3f}"
