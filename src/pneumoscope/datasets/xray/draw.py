"""Which radiographs take part, and in which part they stand: the paper's undersampling, and splits that do not leak.

A *group* is what must stay on one side: a patient, joined with every patient who shares a picture with him
(`duplicates.patient_groups`). The paper splits pictures and does not speak of patients; that way is here too, and says
how many groups it tears apart. Everything is a function of the cases and the seed, whatever their order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.xray.case import XrayCase
from pneumoscope.errors import DatasetError
from pneumoscope.io.files import write_text

PARTS = ("train", "val", "test")
COLUMNS = ("case", "slice", "patient", "part", "dataset", "label", "source", "group")
"""Of a split file; `slice` is 0, a radiograph being one picture."""

MIN_GROUPS = 3
"""Groups a class needs to stand in all three parts."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Pictures that take part.

    Attributes:
        rows: places in the list of cases, ascending (n,).
        labels: class number of each (n,).
        classes: their names.
        notes: what was asked for and was not there.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def draw(
    cases: Sequence[XrayCase],
    classes: Sequence[str],
    counts: Sequence[int | None],
    seed: int,
    *,
    shortage: Literal["all", "error"] = "all",
) -> Drawn:
    """So many pictures of each class, at random; None takes all.

    Args:
        cases: to draw from; those of other classes are passed over.
        classes: names of `XrayCase.label`, in the order of their numbers.
        counts: pictures per class; the paper's Dataset_1 has 544, 500 and 456 (section 3.2).
        seed: of the draw.
        shortage: when a class has fewer, take ``all`` and note it, or raise an ``error``.

    Raises:
        DatasetError: a class without a picture, or with too few of them.
    """
    if len(classes) != len(counts):
        raise DatasetError(f"{len(classes)} classes and {len(counts)} numbers of pictures; give one number per class")
    rng = np.random.default_rng([seed, 11])
    taken: list[tuple[int, int]] = []
    notes = []
    for number, (name, wanted) in enumerate(zip(classes, counts, strict=True)):
        there = sorted((i for i, c in enumerate(cases) if c.label == name), key=lambda i: _key(cases[i]))
        if not there:
            raise DatasetError(f"class {name} has no picture in the data sets given; expected {wanted or 'some'}")
        if wanted is not None and wanted > len(there):
            text = f"class {name} has {len(there)} pictures, {wanted} were asked for"
            if shortage == "error":
                raise DatasetError(f"{text}; give more data, ask for fewer, or use --set data.shortage=all")
            notes.append(f"{text}: all were taken")
        size = len(there) if wanted is None else min(wanted, len(there))
        taken += [(there[int(i)], number) for i in rng.permutation(len(there))[:size]]
    taken.sort()
    rows, labels = (np.array(values, np.int64) for values in zip(*taken, strict=True))
    return Drawn(rows, labels, tuple(classes), tuple(notes))


def _key(case: XrayCase) -> tuple[str, str]:
    return case.dataset, case.case


def split(
    drawn: Drawn,
    cases: Sequence[XrayCase],
    groups: Sequence[str],
    *,
    by: Literal["group", "image"],
    test_share: float,
    validation_share: float,
    seed: int,
) -> NDArray[np.str_]:
    """``train``, ``val`` or ``test`` for each drawn picture, class by class.

    Args:
        drawn: the pictures.
        cases, groups: of all pictures, by place.
        by: ``group`` keeps patients and copies whole; ``image`` is the paper's, by picture.
        test_share: of the pictures; the paper: 0.2.
        validation_share: of the rest; the paper: 0.125.
        seed: of the split.

    Raises:
        DatasetError: a class with fewer than `MIN_GROUPS` groups (or pictures).
    """
    units = [f"{_key(cases[int(row)])}" if by == "image" else groups[int(row)] for row in drawn.rows]
    home: dict[str, int] = {}
    for unit, label in sorted(zip(units, drawn.labels.tolist(), strict=True)):
        home.setdefault(unit, int(label))  # a group of several classes goes where its first class goes
    sizes = Counter(units)
    part_of: dict[str, str] = {}
    for number, name in enumerate(drawn.classes):
        own = sorted(unit for unit, label in home.items() if label == number)
        if len(own) < MIN_GROUPS:
            what = "pictures" if by == "image" else "patients (groups of patients who share no picture)"
            raise DatasetError(
                f"class {name} has {len(own)} {what}; training, validation and test need at least {MIN_GROUPS}: "
                "give more data of that class"
            )
        rng = np.random.default_rng([seed, 12, number])
        order = [own[int(i)] for i in rng.permutation(len(own))]
        part_of |= _share_out(order, sizes, test_share, validation_share)
    return np.array([part_of[unit] for unit in units])


def _share_out(order: Sequence[str], sizes: Mapping[str, int], test: float, validation: float) -> dict[str, str]:
    """Units in a random order to parts: each part takes units until its share is nearest; no part stays empty."""
    total = sum(sizes[unit] for unit in order)
    wanted = {"test": test * total, "val": validation * (1 - test) * total}
    parts: dict[str, list[str]] = {"test": [], "val": [], "train": []}
    held = {"test": 0, "val": 0}
    for unit in order:
        for name in ("test", "val"):
            # in as far as it brings the part nearer to its share; a first unit in any case
            if not parts[name] or held[name] + sizes[unit] / 2 <= wanted[name]:
                parts[name].append(unit)
                held[name] += sizes[unit]
                break
        else:
            parts["train"].append(unit)
    if not parts["train"]:
        largest = max(("test", "val"), key=lambda name: (len(parts[name]), name))
        parts["train"].append(parts[largest].pop())
    return {unit: name for name, units in parts.items() for unit in units}


def torn_groups(parts: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Groups with pictures in more than one part, sorted: empty is what a split should be."""
    seen: dict[str, set[str]] = defaultdict(set)
    for part, group in zip(parts, groups, strict=True):
        seen[group].add(part)
    return sorted(group for group, where in seen.items() if len(where) > 1)


def write_split(path: str | Path, cases: Sequence[XrayCase], groups: Sequence[str], parts: Sequence[str]) -> None:
    """Write a split as CSV with `COLUMNS`; cases, groups and parts of the same pictures."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case, group, part in sorted(zip(cases, groups, parts, strict=True), key=lambda row: _key(row[0])):
        writer.writerow(
            [f"{case.dataset}/{case.case}", 0, case.patient, part, case.dataset, case.label, case.source, group]
        )
    write_text(path, text.getvalue())
