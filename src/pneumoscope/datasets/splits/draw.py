"""Which slices and radiographs train, validate and test: the papers' draws, and splits that keep patients whole.

A split of slices is a table with one row per slice and the columns ``case,slice,patient,part``. Of radiographs it
gives a part for each picture; what stays together there is a *group*: a patient, joined with every patient who shares
a picture with him (`datasets.audit.duplicates.patient_groups`). A part is ``train``, ``val`` or ``test``. Everything
here is a function of its input and the seed alone, whatever the order. Folds over cases are in `splits.folds`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import XrayCase
from pneumoscope.errors import DatasetError
from pneumoscope.io.files import write_csv, write_frame

COLUMNS = ("case", "slice", "patient", "part")
PARTS = ("train", "val", "test")
XRAY_COLUMNS = (*COLUMNS, "dataset", "label", "source", "group")  # Of a split file of radiographs; `slice` is 0

LARGEST_DRAWN_SHARE = 0.75
"""The proportional fallback never takes more than this share of either kind of slice away from the test set.

The paper's own largest share is 250 of the 340 infiltrate-free slices of its first set, 0.735 (2022b, Table 1).
"""

Shortage = Literal["error", "proportional"]
Exposure = Literal["seen", "unseen"]


def balanced_draw(
    table: pd.DataFrame, n_train: int = 440, n_val: int = 60, seed: int = 0, *, shortage: Shortage = "error"
) -> pd.DataFrame:
    """Training and validation slices drawn half with, half without infiltrate; every other lung slice is test.

    This is the selection of Maganaris et al. 2022b, section 3.1 and Table 1 (440 + 60). Slices without lung take no
    part. It goes by slices, so a patient's neighbouring slices may stand in training and test: the paper says so
    itself; use `patient_split` where that must not be. (For the first set the paper tests on 214 slices where 713
    with lung leave 213: it keeps a slice without lung that carries a false annotation. This returns 213.)

    Args:
        table: one row per slice with ``case, slice, patient, has_infiltrate`` and optionally ``has_lung``.
        n_train: training slices; an odd number gives the extra one to the slices with infiltrate.
        n_val: validation slices, likewise.
        shortage: what to do when a kind has too few slices. ``error`` raises; ``proportional`` shrinks training and
            validation by one common factor, still half and half, so that at most `LARGEST_DRAWN_SHARE` of either
            kind is taken.

    Returns:
        The split table, sorted by case and slice.

    Raises:
        DatasetError: too few slices of one kind (or, when proportional, fewer than two per kind).
    """
    _require(table, ("case", "slice", "patient", "has_infiltrate"))
    if n_train < 2 or n_val < 0:
        raise DatasetError(f"a balanced draw needs n_train >= 2 and n_val >= 0, got {n_train} and {n_val}")
    rows = _sorted(table)
    if "has_lung" in rows:
        rows = rows[rows["has_lung"].astype(bool)].reset_index(drop=True)
    infected = rows["has_infiltrate"].to_numpy(dtype=bool)
    if shortage == "proportional":
        n_train, n_val = _shrunk(n_train, n_val, infected)
    rng = np.random.default_rng(seed)
    part = np.full(len(rows), "test", dtype=object)
    for kind, wanted in ((True, (n_train - n_train // 2, n_val - n_val // 2)), (False, (n_train // 2, n_val // 2))):
        where = rng.permutation(np.flatnonzero(infected == kind))
        _require_enough(len(where), sum(wanted), kind, (n_train, n_val))
        part[where[: wanted[0]]] = "train"
        part[where[wanted[0] : sum(wanted)]] = "val"
    return _with_part(rows, part)


def _require_enough(found: int, wanted: int, infected: bool, sizes: tuple[int, int]) -> None:
    if found < max(wanted, 1):
        raise DatasetError(
            f"a balanced draw of {sizes[0]} + {sizes[1]} slices needs {wanted} lung slices "
            f"{'with' if infected else 'without'} infiltrate, the set has {found}; ask for fewer slices, or use "
            "--set split.shortage=proportional"
        )


def _shrunk(n_train: int, n_val: int, infected: NDArray[np.bool_]) -> tuple[int, int]:
    """The largest draw of the same proportions that leaves enough of both kinds for testing."""
    wanted = (n_train - n_train // 2) + (n_val - n_val // 2)
    scarce = min(np.count_nonzero(infected), np.count_nonzero(~infected))
    factor = min(1.0, LARGEST_DRAWN_SHARE * scarce / wanted)
    if factor == 1.0:
        return n_train, n_val
    train, val = 2 * int(n_train * factor / 2), 2 * int(n_val * factor / 2)
    if train < 2:
        raise DatasetError(
            f"only {scarce} slices of the scarcer kind (with or without infiltrate): too few even for a "
            "proportional draw; use more patients"
        )
    return train, (val if val or not n_val else 2 * int(scarce - train // 2 >= 2))


def patient_split(table: pd.DataFrame, fractions: Mapping[str, float], seed: int = 0) -> pd.DataFrame:
    """Whole patients to parts, e.g. ``{"train": 0.7, "val": 0.1, "test": 0.2}``.

    Patients are shuffled and assigned by the largest remainder of their number; every part with a fraction above zero
    gets at least one patient. Fractions are of patients, not of slices.

    Raises:
        DatasetError: unknown parts, fractions that do not add up to 1, or fewer patients than parts.
    """
    _require(table, ("case", "slice", "patient"))
    if not set(fractions) <= set(PARTS) or abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) < 0:
        raise DatasetError(f"fractions of {PARTS} must be >= 0 and add up to 1, got {dict(fractions)}")
    rows = _sorted(table)
    patients = np.array(sorted(rows["patient"].astype(str).unique()), dtype=object)
    names = [part for part in PARTS if fractions.get(part, 0) > 0]
    if len(patients) < len(names):
        raise DatasetError(f"{len(patients)} patients cannot fill the parts {names}; use more patients or fewer parts")
    shuffled = np.random.default_rng(seed).permutation(patients)
    sizes = _largest_remainder(len(patients), [fractions[name] for name in names])
    part_of = dict(zip(shuffled, np.repeat(names, sizes), strict=True))
    return _with_part(rows, rows["patient"].astype(str).map(part_of).to_numpy(dtype=object))


def _largest_remainder(total: int, shares: list[float]) -> list[int]:
    exact = np.asarray(shares) * total
    sizes = np.maximum(np.floor(exact + 1e-9).astype(int), 1)
    while sizes.sum() > total:
        sizes[int(np.argmax(np.where(sizes > 1, sizes - exact, -np.inf)))] -= 1
    while sizes.sum() < total:
        sizes[int(np.argmax(exact - sizes))] += 1
    return [int(n) for n in sizes]


def leaking(parts: Iterable[str], groups: Iterable[str]) -> list[str]:
    """Groups (or patients) that stand in more than one part, sorted; empty for a split that keeps them whole."""
    found: dict[str, set[str]] = defaultdict(set)
    for part, group in zip(parts, groups, strict=True):
        found[str(group)].add(part)
    return sorted(group for group, where in found.items() if len(where) > 1)


def write_split(split: pd.DataFrame, path: str | Path) -> None:
    """Write ``case,slice,patient,part`` as CSV, whole or not at all."""
    _require(split, COLUMNS)
    write_frame(path, _sorted(split)[list(COLUMNS)])


def _require(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise DatasetError(f"a slice table needs the columns {','.join(columns)}; {missing} are missing")
    if table.duplicated(["case", "slice"]).any():
        raise DatasetError("a slice stands in the table twice; case and slice must name it uniquely")


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["case", "slice"], kind="stable").reset_index(drop=True)


def _with_part(rows: pd.DataFrame, part: NDArray[np.object_]) -> pd.DataFrame:
    return rows[["case", "slice", "patient"]].assign(part=part).reset_index(drop=True)


def held_out_draw(
    table: pd.DataFrame,
    share: float,
    n_train: int = 440,
    n_val: int = 60,
    seed: int = 0,
    *,
    shortage: Shortage = "error",
) -> pd.DataFrame:
    """`balanced_draw` over all but a share of the patients; every slice with lung of the others is a test slice.

    The patients held out are sampled from those with infiltrate, the only ones on whom F1 is defined. The draw among
    the remaining patients is `balanced_draw` with the same seed.

    Args:
        share: of all patients, in (0, 1); at least one is held out and at least one with infiltrate is left.

    Returns:
        The split table ``case,slice,patient,part``, sorted by case and slice; see `exposure`.

    Raises:
        DatasetError: a share outside (0, 1), fewer than two patients with infiltrate, or as `balanced_draw`.
    """
    if not 0 < share < 1:
        raise DatasetError(f"the share of patients held out lies between 0 and 1, got {share}")
    rows = table[table["has_lung"].astype(bool)] if "has_lung" in table else table
    patient = rows["patient"].astype(str)
    infected = np.array(sorted(patient[rows["has_infiltrate"].astype(bool)].unique()), dtype=object)
    if len(infected) < 2:
        raise DatasetError(
            f"holding patients out needs at least two with infiltrate, the set has {len(infected)}; use more patients"
        )
    wanted = min(max(1, round(share * patient.nunique())), len(infected) - 1)
    held_out = set(np.random.default_rng([seed, 1]).permutation(infected)[:wanted])
    held = patient.isin(held_out)
    drawn = balanced_draw(rows[~held], n_train, n_val, seed, shortage=shortage)
    whole = rows.loc[held, ["case", "slice", "patient"]].assign(part="test")
    split = pd.concat([drawn, whole], ignore_index=True)[list(COLUMNS)]
    return split.sort_values(["case", "slice"], kind="stable").reset_index(drop=True)


def exposure(split: pd.DataFrame) -> dict[str, Exposure]:
    """Of each patient with test slices, whether others of their slices were trained on or chose the epoch.

    Validation slices count as seen: they decided which weights were kept.
    """
    patient = split["patient"].astype(str)
    used = set(patient[split["part"].isin(("train", "val"))])
    tested = sorted(set(patient[split["part"] == "test"]))
    return {name: "seen" if name in used else "unseen" for name in tested}


MIN_GROUPS = 3  # Groups a class needs to stand in all three parts


@dataclass(frozen=True, eq=False)
class Selection:
    """Radiographs that take part."""

    rows: NDArray[np.int64]  # indices into the list of cases, ascending (n,)
    labels: NDArray[np.int64]  # class number of each (n,)
    classes: tuple[str, ...]  # their names
    notes: tuple[str, ...]  # classes with fewer pictures than asked for


def select_radiographs(
    cases: Sequence[XrayCase],
    classes: Sequence[str],
    counts: Sequence[int | None],
    seed: int,
    *,
    shortage: Literal["all", "error"] = "all",
) -> Selection:
    """So many pictures of each class, at random; None takes all.

    Args:
        cases: to draw from; those of other classes are passed over.
        classes: names of `XrayCase.label`, in the order of their numbers.
        counts: pictures per class; the paper's Dataset_1 has 544, 500 and 456 (section 3.2).
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
        found = sorted((i for i, c in enumerate(cases) if c.label == name), key=lambda i: _key(cases[i]))
        if not found:
            raise DatasetError(f"class {name} has no picture in the datasets given; expected {wanted or 'some'}")
        if wanted is not None and wanted > len(found):
            text = f"class {name} has {len(found)} pictures, {wanted} were asked for"
            if shortage == "error":
                raise DatasetError(f"{text}; give more data, ask for fewer, or use --set data.shortage=all")
            notes.append(f"{text}: all were taken")
        size = len(found) if wanted is None else min(wanted, len(found))
        taken += [(found[int(i)], number) for i in rng.permutation(len(found))[:size]]
    taken.sort()
    rows, labels = (np.array(values, np.int64) for values in zip(*taken, strict=True))
    return Selection(rows, labels, tuple(classes), tuple(notes))


def _key(case: XrayCase) -> tuple[str, str]:
    return case.dataset, case.case


def split_radiographs(
    selection: Selection,
    cases: Sequence[XrayCase],
    groups: Sequence[str],
    *,
    by: Literal["group", "image"],
    test_share: float,
    validation_share: float,
    seed: int,
) -> NDArray[np.str_]:
    """``train``, ``val`` or ``test`` for each selected picture, class by class.

    Args:
        cases, groups: of all pictures, by place.
        by: ``group`` keeps patients and copies whole; ``image`` is the paper's, by picture.
        test_share: of the pictures; the paper: 0.2.
        validation_share: of the rest; the paper: 0.125.

    Raises:
        DatasetError: a class with fewer than `MIN_GROUPS` groups (or pictures).
    """
    units = [f"{_key(cases[int(row)])}" if by == "image" else groups[int(row)] for row in selection.rows]
    label_of: dict[str, int] = {}
    for unit, label in sorted(zip(units, selection.labels.tolist(), strict=True)):
        label_of.setdefault(unit, int(label))  # a group of several classes goes where its first class goes
    sizes = Counter(units)
    part_of: dict[str, str] = {}
    for number, name in enumerate(selection.classes):
        members = sorted(unit for unit, label in label_of.items() if label == number)
        if len(members) < MIN_GROUPS:
            what = "pictures" if by == "image" else "patients (groups of patients who share no picture)"
            raise DatasetError(
                f"class {name} has {len(members)} {what}; training, validation and test need at least {MIN_GROUPS}: "
                "give more data of that class"
            )
        rng = np.random.default_rng([seed, 12, number])
        order = [members[int(i)] for i in rng.permutation(len(members))]
        part_of |= _share_out(order, sizes, test_share, validation_share)
    return np.array([part_of[unit] for unit in units])


def _share_out(order: Sequence[str], sizes: Mapping[str, int], test: float, validation: float) -> dict[str, str]:
    """Units to parts in their order: each part takes units until its share is nearest; no part stays empty."""
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


def write_radiograph_split(
    path: str | Path, cases: Sequence[XrayCase], groups: Sequence[str], parts: Sequence[str]
) -> None:
    """Write a split as CSV with `XRAY_COLUMNS`; cases, groups and parts of the same pictures."""
    rows = [
        (f"{case.dataset}/{case.case}", 0, case.patient, part, case.dataset, case.label, case.source, group)
        for case, group, part in sorted(zip(cases, groups, parts, strict=True), key=lambda row: _key(row[0]))
    ]
    write_csv(path, XRAY_COLUMNS, rows)
