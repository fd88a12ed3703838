"""nnU-Net's ``splits_final.json``: a list of folds, each ``{"train": [case, ...], "val": [case, ...]}``.

What nnU-Net calls ``val`` is what a fold is scored on at the end, so it is our ``test``. It knows no third part: our
validation cases are written as training cases, and a file read here has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pneumoscope.datasets.folds import Fold
from pneumoscope.datasets.groups import Member
from pneumoscope.errors import DatasetError
from pneumoscope.io.files import read_json, write_json

FILE = "splits_final.json"


def write_nnunet_splits(folds: Sequence[Fold], path: str | Path) -> None:
    """Write folds of one data set, or of several whose case names differ.

    Raises:
        DatasetError: two cases of one name: nnU-Net knows cases by name only.
    """
    for fold in folds:
        names = [member.case for members in fold.parts.values() for member in members]
        if len(set(names)) < len(names):
            raise DatasetError("two data sets have a case of the same name; nnU-Net needs names that are unique")
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
    if not stored or not all(map(_is_fold, stored)):
        raise DatasetError('expected a list of folds like {"train": [case, ...], "val": [case, ...]}', path=path)
    by_case: dict[str, list[Member]] = {}
    for member in members:
        by_case.setdefault(member.case, []).append(member)
    folds = []
    for n, fold in enumerate(stored):
        for name in (*fold["train"], *fold["val"]):
            if len(by_case.get(name, ())) != 1:
                found = "two data sets have" if name in by_case else "the data do not hold"
                raise DatasetError(f"fold {n} names case {name!r}, which {found}", path=path)
        train, test = (tuple(by_case[name][0] for name in dict.fromkeys(fold[key])) for key in ("train", "val"))
        try:
            folds.append(Fold(train, test))
        except DatasetError as error:
            raise DatasetError(f"fold {n}: {error.message}", path=path) from error
    return folds


def _is_fold(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) and all(isinstance(name, str) for name in value[key])
        for key in ("train", "val")
    )
