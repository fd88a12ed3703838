"""A dataset split into folds and written down: what `pneumoscope data split` does.

The folder::

    split.json                       how it was drawn, and what leaks
    folds.csv                        fold,dataset,case,patient,group,part: one row per fold and case
    splits/fold_0/<dataset>.csv      case,slice,patient,part: one row per slice, as a study folder holds them
    splits_final.json                nnU-Net's file, when asked for instead of the slice tables

nnU-Net's file is a list of folds, each ``{"train": [case, ...], "val": [case, ...]}``. What nnU-Net calls ``val`` is
what a fold is scored on at the end, so it is our ``test``. It knows no third part: our validation cases are written as
training cases, and a file read here has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope._version import __version__
from pneumoscope.datasets.case import Case
from pneumoscope.datasets.options import SplitOptions
from pneumoscope.datasets.public.covid19ctseg import ma_folds
from pneumoscope.datasets.registry import read_dataset
from pneumoscope.datasets.splits.draw import PARTS, leaking, write_split
from pneumoscope.datasets.splits.folds import (
    SUSPECTED,
    Fold,
    Link,
    Member,
    as_table,
    group_folds,
    group_members,
    leaking_groups,
    members_of,
    read_links,
    slice_folds,
    untied,
)
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import prepare_folder, read_json, write_frame, write_json
from pneumoscope.options import made_of
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import RAS

NNUNET_FILE = "splits_final.json"
FORMAT = 1  # Layout of split.json; grows when an entry changes its meaning


def split_dataset(
    name: str, root: str | Path, out: str | Path, *, overwrite: bool = False, progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Split a dataset, with further ones if `options` (fields of `SplitOptions`) name them, as `write_folds` does.

    Raises:
        InputError: see `write_folds`; a dataset named twice.
    """
    plan = made_of(SplitOptions, options)
    if name in plan.others:
        raise InputError(f"{name} is given twice; --with names other datasets")
    cases = [
        replace(case, dataset=dataset)
        for dataset, folder in {name: root, **plan.others}.items()
        for case in read_dataset(dataset, folder)
    ]
    return write_folds(cases, plan, out, overwrite=overwrite, progress=progress)


def draw_folds(
    cases: Sequence[Case], plan: SplitOptions, links: Sequence[Link]
) -> tuple[list[Fold], dict[Member, str]]:
    """The folds of a plan by patient, of the published split or of a file, and the group of every case.

    Raises:
        DatasetError: too few patients, cases that the plan does not fit, an unusable file.
    """
    members = members_of(cases)
    groups = group_members(members, links)
    if plan.splits_file is not None:
        return read_nnunet_splits(plan.splits_file, members), groups
    if plan.by == "ma":
        return ma_folds(members, plan.ma_task), groups
    return group_folds(groups, plan.folds, plan.seed, validation=plan.validation), groups


def write_folds(
    cases: Sequence[Case], plan: SplitOptions, out: str | Path, *, overwrite: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Draw folds and write them; the content depends on the cases and the plan alone.

    Returns:
        What stands in ``split.json``.

    Raises:
        DatasetError: as `draw_folds`; an empty dataset.
        InputError: `out` holds a split and `overwrite` is not given.
    """
    if not cases:
        raise DatasetError("there is no case to split")
    links = [*(read_links(plan.links) if plan.links else ()), *(SUSPECTED if plan.link_suspected else ())]
    folds, groups = draw_folds(cases, plan, links) if plan.by != "slice" else ([], group_members(members_of(cases)))
    counts = slice_counts(cases, progress) if plan.to == "csv" else {}
    tables = _slice_tables(cases, plan, folds, counts)
    folder = prepare_folder(out, marker="split.json", overwrite=overwrite)
    if folds:
        write_frame(folder / "folds.csv", _fold_table(folds, groups))
    if plan.to == "nnunet":
        write_nnunet_splits(folds, folder / NNUNET_FILE)
    for n, by_dataset in enumerate(tables):
        for dataset, table in by_dataset.items():
            write_split(table, folder / "splits" / f"fold_{n}" / f"{dataset}.csv")
    summary = {**_summary(plan, folds, groups, tables), "links": [asdict(link) for link in links]}
    write_json(folder / "split.json", summary)
    return summary


def slice_counts(cases: Sequence[Case], progress: Progress = silent) -> dict[str, dict[str, int]]:
    """Axial slices of each case by dataset; from a NIfTI file's header where there is one, else the scan is loaded."""
    counts: dict[str, dict[str, int]] = {}
    for done, case in enumerate(cases, start=1):
        from_header = _slices_in_header(case)
        own = counts.setdefault(case.dataset, {})
        own[case.case] = case.load().volume.grid.shape[2] if from_header is None else from_header
        progress("counting slices", done, len(cases), case.case)
    return counts


def _slices_in_header(case: Case) -> int | None:
    if case.files is not None and case.files.part is not None:
        return 1
    path = None if case.files is None else case.files.image
    if path is None or not path.is_file() or not path.name.lower().endswith((".nii", ".nii.gz")):
        return None
    import nibabel as nib

    try:
        image = nib.load(path)
        return Grid(image.shape[:3], image.affine).reorient(RAS).shape[2]  # type: ignore[attr-defined]
    except Exception:  # whatever is wrong with it, the reader says it better
        return None


def _slice_tables(
    cases: Sequence[Case], plan: SplitOptions, folds: Sequence[Fold], counts: Mapping[str, Mapping[str, int]]
) -> list[dict[str, pd.DataFrame]]:
    """Per fold, the split table of each dataset."""
    if plan.to != "csv":
        return []
    if plan.by != "slice":
        return [{name: as_table(fold, name, own) for name, own in sorted(counts.items())} for fold in folds]
    tables: list[dict[str, pd.DataFrame]] = [{} for _ in range(plan.folds)]
    for name, own in sorted(counts.items()):
        rows = [
            (c.case, n, c.patient) for c in sorted(cases, key=lambda c: c.case) if c.dataset == name
            for n in range(own[c.case])
        ]  # fmt: skip
        whole = pd.DataFrame(rows, columns=["case", "slice", "patient"])
        for table, fold in zip(
            tables, slice_folds(whole, plan.folds, plan.seed, validation=plan.validation), strict=True
        ):
            table[name] = fold
    return tables


def _fold_table(folds: Sequence[Fold], groups: Mapping[Member, str]) -> pd.DataFrame:
    rows = [
        (n, m.dataset, m.case, m.patient, groups[m], part)
        for n, fold in enumerate(folds)
        for part, members in fold.parts.items()
        for m in members
    ]
    table = pd.DataFrame(rows, columns=["fold", "dataset", "case", "patient", "group", "part"])
    return table.sort_values(["fold", "dataset", "case"], kind="stable")


def _summary(
    plan: SplitOptions,
    folds: Sequence[Fold],
    groups: Mapping[Member, str],
    tables: Sequence[Mapping[str, pd.DataFrame]],
) -> dict[str, Any]:
    if folds:
        sizes = [{part: len(members) for part, members in fold.parts.items()} for fold in folds]
        leaks = [leaking_groups(fold, groups) for fold in folds]
    else:
        sizes = [
            {part: int(sum((t["part"] == part).sum() for t in by_dataset.values())) for part in PARTS}
            for by_dataset in tables
        ]
        leaks = [
            [f"{name}:{p}" for name, t in by_dataset.items() for p in leaking(t["part"], t["patient"])]
            for by_dataset in tables
        ]
    drawn = plan.by if plan.splits_file is None else "file"
    return {
        "format": FORMAT,
        "kind": "split",
        "software": {"name": "pneumoscope", "version": __version__},
        "by": drawn,
        "ma_task": plan.ma_task if drawn == "ma" else None,
        "seed": plan.seed if drawn in ("patient", "slice") else None,
        "validation": plan.validation if drawn in ("patient", "slice") else False,
        "unit": "cases" if folds else "slices",
        "cases": len(groups),
        "groups": len(set(groups.values())),
        "suspected_overlaps_not_tied": [asdict(link) for link in untied(sorted(groups), groups)],
        "folds": [{**size, "leaking_groups": leak} for size, leak in zip(sizes, leaks, strict=True)],
    }


def write_nnunet_splits(folds: Sequence[Fold], path: str | Path) -> None:
    """Write folds of one dataset, or of several whose case names differ.

    Raises:
        DatasetError: two cases of one name: nnU-Net knows cases by name only.
    """
    for fold in folds:
        names = [member.case for members in fold.parts.values() for member in members]
        if len(set(names)) < len(names):
            raise DatasetError("two datasets have a case of the same name; nnU-Net needs names that are unique")
    write_json(path, [
        {"train": sorted(m.case for m in (*fold.train, *fold.val)), "val": sorted(m.case for m in fold.test)}
        for fold in folds
    ])  # fmt: skip


def read_nnunet_splits(path: str | Path, members: Sequence[Member]) -> list[Fold]:
    """Read folds; every name must be a case of `members`. Cases that the file does not name take no part.

    Raises:
        DatasetError: the file cannot be read, has another layout, names a case that is not there or that two data
            sets have, or puts a case on both sides of a fold.
    """
    stored = read_json(path, expected=list, error=DatasetError, remedy="write nnU-Net's splits again")
    if not stored or not all(map(_is_nnunet_fold, stored)):
        raise DatasetError('expected a list of folds like {"train": [case, ...], "val": [case, ...]}', path=path)
    by_case: dict[str, list[Member]] = {}
    for member in members:
        by_case.setdefault(member.case, []).append(member)
    folds = []
    for n, fold in enumerate(stored):
        for name in (*fold["train"], *fold["val"]):
            if len(by_case.get(name, ())) != 1:
                found = "two datasets have" if name in by_case else "the data do not hold"
                raise DatasetError(f"fold {n} names case {name!r}, which {found}", path=path)
        train, test = (tuple(by_case[name][0] for name in dict.fromkeys(fold[key])) for key in ("train", "val"))
        try:
            folds.append(Fold(train, test))
        except DatasetError as error:
            raise DatasetError(f"fold {n}: {error.message}", path=path) from error
    return folds


def _is_nnunet_fold(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) and all(isinstance(name, str) for name in value[key])
        for key in ("train", "val")
    )
