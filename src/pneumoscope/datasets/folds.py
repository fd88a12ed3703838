"""Cross-validation: k ways to split cases into training, validation and test, every case tested exactly once.

Groups (patients, or people shared between data sets, see `pneumoscope.datasets.groups`) stay whole. Everything here is
a function of the cases, the groups and the seed alone, whatever their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pneumoscope.datasets.groups import Member
from pneumoscope.datasets.splits import COLUMNS
from pneumoscope.errors import DatasetError


@dataclass(frozen=True)
class Fold:
    """One way to split; the parts share no case, and are sorted.

    Attributes:
        train: cases to train on.
        test: cases to test on, once, at the end.
        val: cases to choose the best epoch by; empty where the split has none.

    Raises:
        DatasetError: nothing to train on or to test on, or a case in two parts.
    """

    train: tuple[Member, ...]
    test: tuple[Member, ...]
    val: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        often = Counter((*self.train, *self.val, *self.test))
        twice = [member.ref for member, n in sorted(often.items()) if n > 1]
        if twice:
            raise DatasetError(f"{len(twice)} cases stand in two parts of one fold, first {twice[0]}")
        if not self.train or not self.test:
            raise DatasetError(f"a fold needs training and test cases, got {len(self.train)} and {len(self.test)}")
        for name in ("train", "val", "test"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))

    @property
    def parts(self) -> dict[str, tuple[Member, ...]]:
        """``train``, ``val``, ``test`` and their cases."""
        return {"train": self.train, "val": self.val, "test": self.test}


def group_folds(groups: Mapping[Member, str], n_folds: int, seed: int = 0, *, validation: bool = True) -> list[Fold]:
    """Folds that keep groups whole.

    Groups are shuffled, and dealt largest first to the fold that holds the fewest cases, so that folds are as even as
    groups allow. Fold f tests on deal f; with `validation` it chooses on deal f + 1 and trains on the others.

    Args:
        groups: the group of each case, of `group_members`.
        n_folds: at least 2, with `validation` at least 3.
        seed: of the shuffle.
        validation: set a validation part apart.

    Raises:
        DatasetError: fewer groups than folds, or too few folds.
    """
    least = 3 if validation else 2
    if n_folds < least:
        raise DatasetError(f"cross-validation {'with' if validation else 'without'} validation parts needs at least "
                           f"{least} folds, got {n_folds}")  # fmt: skip
    cases: dict[str, list[Member]] = {}
    for member in sorted(groups):
        cases.setdefault(groups[member], []).append(member)
    if len(cases) < n_folds:
        raise DatasetError(
            f"{n_folds} folds need at least {n_folds} patients that are not linked to each other, the data hold "
            f"{len(cases)} ({len(groups)} cases); ask for fewer folds or use more data"
        )
    names = [str(name) for name in np.random.default_rng(seed).permutation(np.array(sorted(cases), dtype=object))]
    deals: list[list[Member]] = [[] for _ in range(n_folds)]
    for name in sorted(names, key=lambda name: -len(cases[name])):  # stable: the shuffle breaks ties
        min(deals, key=len).extend(cases[name])
    return _rotate(deals, validation=validation)


def share_fold(groups: Mapping[Member, str], share: float, seed: int = 0) -> Fold:
    """One split that keeps groups whole, with as near to `share` of the cases in its test part as groups allow.

    Groups are shuffled and taken in turn. Each part holds at least one group.

    Args:
        groups: the group of each case, of `group_members`.
        share: above 0 and below 1.
        seed: of the shuffle.

    Raises:
        DatasetError: a share out of bounds, or fewer than two groups.
    """
    if not 0 < share < 1:
        raise DatasetError(f"a share of the cases lies above 0 and below 1, got {share}")
    cases: dict[str, list[Member]] = {}
    for member in sorted(groups):
        cases.setdefault(groups[member], []).append(member)
    if len(cases) < 2:
        raise DatasetError(f"a split that keeps patients whole needs at least 2 of them, the data hold {len(cases)}")
    names = [str(name) for name in np.random.default_rng(seed).permutation(np.array(sorted(cases), dtype=object))]
    held = np.cumsum([len(cases[name]) for name in names])[:-1]
    last = int(np.argmin(np.abs(held - share * len(groups)))) + 1
    test, train = ([m for name in part for m in cases[name]] for part in (names[:last], names[last:]))
    return Fold(tuple(train), tuple(test))


def _rotate(deals: Sequence[Sequence[Member]], *, validation: bool) -> list[Fold]:
    folds = []
    for n, test in enumerate(deals):
        chosen = (n + 1) % len(deals) if validation else None
        val = () if chosen is None else tuple(deals[chosen])
        train = [member for m, deal in enumerate(deals) if m not in (n, chosen) for member in deal]
        folds.append(Fold(tuple(train), tuple(test), val))
    return folds


def slice_folds(table: pd.DataFrame, n_folds: int, seed: int = 0, *, validation: bool = True) -> list[pd.DataFrame]:
    """Folds over slices, whoever they are of: the split whose leakage the patient-wise one is there to avoid.

    Args:
        table: ``case, slice, patient``, one row per slice.
        n_folds: as for `group_folds`.
        seed: of the shuffle.
        validation: as for `group_folds`.

    Returns:
        A split table ``case,slice,patient,part`` per fold, sorted by case and slice.

    Raises:
        DatasetError: fewer slices than folds, or too few folds.
    """
    rows = table.sort_values(["case", "slice"], kind="stable").reset_index(drop=True)
    if n_folds < 2 + validation or len(rows) < n_folds:
        raise DatasetError(f"{len(rows)} slices cannot be dealt to {n_folds} folds (at least {2 + validation})")
    deal = np.random.default_rng(seed).permutation(np.arange(len(rows)) % n_folds)
    folds = []
    for n in range(n_folds):
        part = np.full(len(rows), "train", dtype=object)
        part[deal == n] = "test"
        if validation:
            part[deal == (n + 1) % n_folds] = "val"
        folds.append(rows[["case", "slice", "patient"]].assign(part=part))
    return folds


def as_table(fold: Fold, dataset: str, slices: Mapping[str, int]) -> pd.DataFrame:
    """One fold as the split table of one data set, ``case,slice,patient,part``: every slice of each of its cases.

    Args:
        fold: the fold; cases of other data sets are left out.
        dataset: whose table.
        slices: how many axial slices each case has.

    Raises:
        DatasetError: a case of which the number of slices is not known.
    """
    rows = []
    for part, members in fold.parts.items():
        for member in members:
            if member.dataset != dataset:
                continue
            if member.case not in slices:
                raise DatasetError(f"the number of slices of {member.ref} is not known")
            rows += [(member.case, n, member.patient, part) for n in range(slices[member.case])]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["case", "slice"], kind="stable").reset_index(drop=True)


def leaking_groups(fold: Fold, groups: Mapping[Member, str]) -> list[str]:
    """Groups with cases in more than one part of a fold, sorted; empty for folds of `group_folds`."""
    parts: dict[str, set[str]] = {}
    for part, members in fold.parts.items():
        for member in members:
            parts.setdefault(groups[member], set()).add(part)
    return sorted(name for name, found in parts.items() if len(found) > 1)
