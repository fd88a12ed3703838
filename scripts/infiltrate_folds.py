"""Patient-wise folds over the slices and scans at hand, and the scores of a fold: shared by both infiltrate recipes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.slices import SliceStack, read_slice_folder
from pneumoscope.metrics.intervals import Interval, paired_difference
from pneumoscope.metrics.overlap import count, dice

FOLDS = 3
SLICE_SETS = ("coronacases", "radiopaedia", "medseg")
SCAN_FOLD: Mapping[str, int] = {"LIDC-0050": 0, "ACRIN-FLT-001": 1, "CPTAC-C3N-00247": 2, "LUNG1-001": 1}
"""Which fold leaves a whole scan out. `normal002` and `P002` are in no training at all."""

Predict = Callable[[SliceStack], NDArray[np.bool_]]


def stacks(data: Path) -> list[SliceStack]:
    """All stacks of the three slice sets."""
    return [stack for name in SLICE_SETS for stack in read_slice_folder(data / "ct-slices", name)]


def folds_of(all_stacks: Iterable[SliceStack]) -> dict[str, int]:
    """Fold of each patient: the patients of a set in natural order, dealt out in turn."""
    out: dict[str, int] = {}
    for name in SLICE_SETS:
        patients = list(dict.fromkeys(stack.patient for stack in all_stacks if stack.source == name))
        out |= {patient: place % FOLDS for place, patient in enumerate(patients)}
    return out


def score_fold(recipe: str, fold: int, held_out: Iterable[SliceStack], predict: Predict, table: Path) -> None:
    """Dice of each held-out scan over all its slices (MedSeg: of each slice), on the scan's own pixels, into a CSV."""
    rows = []
    for stack in held_out:
        assert stack.infiltrate is not None
        counted = count(stack.infiltrate > 0, predict(stack))
        rows.append((recipe, fold, stack.source, stack.case, len(stack.images), round(dice(counted), 4)))
    kept = [row for row in read_rows(table) if (row[0], row[1]) != (recipe, str(fold))]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("recipe", "fold", "source", "case", "slices", "dice"), *kept, *rows])


def read_rows(table: Path) -> list[list[str]]:
    """Rows of the table without its head; none when it is absent."""
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return list(csv.reader(file))[1:]


def summary(table: Path) -> dict[str, dict[str, tuple[float, int, int]]]:
    """Mean Dice by recipe and source, the number of scans and of folds behind it."""
    out: dict[str, dict[str, tuple[float, int, int]]] = {}
    rows = read_rows(table)
    for recipe in dict.fromkeys(row[0] for row in rows):
        for source in SLICE_SETS:
            own = [row for row in rows if row[0] == recipe and row[2] == source]
            if own:
                mean = float(np.mean([float(row[5]) for row in own]))
                out.setdefault(recipe, {})[source] = (round(mean, 4), len(own), len({row[1] for row in own}))
    return out


def gains(table: Path, after: str, before: str) -> dict[str, Interval]:
    """By source, what one recipe has more than the other on the scans that both were scored on; patients are drawn."""
    scored: dict[str, dict[tuple[str, str], float]] = {after: {}, before: {}}
    for recipe, _, source, case, _, value in read_rows(table):
        if recipe in scored:
            scored[recipe][source, case] = float(value)
    out = {}
    for source in SLICE_SETS:
        both = sorted(case for name, case in scored[after].keys() & scored[before].keys() if name == source)
        sides: list[dict[str, list[float]]] = [{}, {}]
        for side, recipe in zip(sides, (after, before), strict=True):
            for case in both:
                side.setdefault("_".join(case.split("_")[:2]), []).append(scored[recipe][source, case])
        if both:
            out[source] = paired_difference(*sides)
    return out
