"""Who belongs together: scans of one patient, and scans of datasets that share patients.

A split must not put one person on two sides. Within a dataset patient ids do; across datasets nothing does, so
links are declared: pairs of patterns ``dataset:case``. Everything that is tied, directly or through others, is one
group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.splits.draw import COLUMNS, leaking
from pneumoscope.errors import DatasetError
from pneumoscope.io.files import read_csv


@dataclass(frozen=True, order=True)
class Member:
    """A case as a split sees it."""

    dataset: str  # name of the dataset
    case: str  # unique within it
    patient: str  # the dataset's own patient; cases that share it are one person

    @property
    def ref(self) -> str:
        """``dataset:case``, unique across datasets."""
        return f"{self.dataset}:{self.case}"


@dataclass(frozen=True)
class Link:
    """Cases that are, or may be, of the same people."""

    a: str  # pattern of ``dataset:case`` with ``*`` and ``?``
    b: str  # likewise; everything that fits it is tied to everything that fits `a`
    reason: str = ""  # why, for the record
    same_name: bool = False  # tie only cases of equal names, one by one

    def __post_init__(self) -> None:
        for pattern in (self.a, self.b):
            dataset, colon, case = pattern.partition(":")
            if not (dataset and colon and case):
                raise DatasetError(
                    f"a link ties patterns like medseg:* or covid19ctseg:radiopaedia_4*; got {pattern!r}"
                )

    def pairs(self, members: Sequence[Member]) -> list[tuple[list[Member], list[Member]]]:
        """What is tied to what: the members that fit `a` and those that fit `b`, where there are both."""
        left, right = ([m for m in members if fnmatchcase(m.ref, pattern)] for pattern in (self.a, self.b))
        if not self.same_name:
            return [(left, right)] if left and right else []
        named = {m.case: m for m in right}
        return [([m], [named[m.case]]) for m in left if m.case in named]


SUSPECTED: tuple[Link, ...] = (
    Link(
        "medseg:*",
        "covid19ctseg:radiopaedia*",
        "both took COVID-19 cases from Radiopaedia; which of them are the same is not published",
    ),
    Link("covid1920:*", "an2020:*", "the challenge's scans come from that collection, under other names"),
    Link("slices:coronacases*", "covid19ctseg:*", "8-bit pictures of the same scans", same_name=True),
    Link("slices:radiopaedia*", "covid19ctseg:*", "8-bit pictures of the same scans", same_name=True),
    Link("slices:radiopaedia*", "medseg:*", "both took COVID-19 cases from Radiopaedia; the pairs are not published"),
    Link("slices:medseg*", "medseg-slices:*", "pictures of the same slices, under other names"),
)
"""Datasets that share patients, or very probably do: by whole sets where the pairs are not known."""


def members_of(cases: Iterable[Case]) -> list[Member]:
    """The cases as members, sorted.

    Raises:
        DatasetError: a case that occurs twice in one dataset.
    """
    members = sorted(Member(case.dataset, case.case, case.patient) for case in cases)
    for before, after in pairwise(members):
        if before.ref == after.ref:
            raise DatasetError(f"case {after.ref} occurs twice; case names must be unique within a dataset")
    return members


def group_members(members: Sequence[Member], links: Sequence[Link] = ()) -> dict[Member, str]:
    """The group of each member; a group is named after its first member's ``dataset:patient``.

    The result does not depend on the order of members or links. A link that fits nothing ties nothing.
    """
    ordered = sorted(members)
    first: dict[tuple[str, str], Member] = {}
    ties = [(first.setdefault((member.dataset, member.patient), member), member) for member in ordered]
    for link in links:
        ties += [(left[0], other) for left, right in link.pairs(ordered) for other in (*left, *right)]
    return {member: f"{root.dataset}:{root.patient}" for member, root in joined(ordered, ties).items()}


Item = TypeVar("Item", Member, str)


def joined(items: Iterable[Item], ties: Iterable[tuple[Item, Item]]) -> dict[Item, Item]:
    """The smallest item of the connected component of each item, whatever the order of items and ties."""
    parent = {item: item for item in items}

    def root(item: Item) -> Item:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in ties:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return {item: root(item) for item in parent}


def untied(members: Sequence[Member], groups: Mapping[Member, str]) -> list[Link]:
    """Suspected links of which both sides are here and not in one group: a split of these may leak."""
    return [
        link
        for link in SUSPECTED
        if any(len({groups[m] for m in left + right}) > 1 for left, right in link.pairs(sorted(members)))
    ]


def read_links(path: str | Path) -> list[Link]:
    """Links from a CSV ``a,b[,reason]``, each side a pattern of ``dataset:case``.

    Raises:
        DatasetError: the file is missing, is not such a table, or a side is no pattern.
    """
    rows = read_csv(path, ("a", "b"), error=DatasetError)
    try:
        return [Link(row["a"], row.get("b", ""), row.get("reason", "")) for row in rows]
    except DatasetError as error:
        raise DatasetError(error.message, path=path) from error


@dataclass(frozen=True)
class Fold:
    """One way to split; the parts share no case, and are sorted.

    Raises:
        DatasetError: nothing to train on or to test on, or a case in two parts.
    """

    train: tuple[Member, ...]  # cases to train on
    test: tuple[Member, ...]  # cases to test on, once, at the end
    val: tuple[Member, ...] = ()  # cases to choose the best epoch by; empty where the split has none

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


def _shuffled(groups: Mapping[Member, str], seed: int) -> tuple[dict[str, list[Member]], list[str]]:
    """The cases of each group, and the groups in random order."""
    cases: dict[str, list[Member]] = {}
    for member in sorted(groups):
        cases.setdefault(groups[member], []).append(member)
    return cases, [str(g) for g in np.random.default_rng(seed).permutation(np.array(sorted(cases), dtype=object))]


def group_folds(groups: Mapping[Member, str], n_folds: int, seed: int = 0, *, validation: bool = True) -> list[Fold]:
    """Folds that keep groups whole.

    Groups are shuffled, and assigned largest first to the fold that holds the fewest cases, so that folds are as
    even as groups allow. Fold f tests on deal f; with `validation` it chooses on deal f + 1 and trains on the others.

    Args:
        n_folds: at least 2, with `validation` at least 3.
        validation: set a validation part apart.

    Raises:
        DatasetError: fewer groups than folds, or too few folds.
    """
    least = 3 if validation else 2
    if n_folds < least:
        raise DatasetError(f"cross-validation {'with' if validation else 'without'} validation parts needs at least "
                           f"{least} folds, got {n_folds}")  # fmt: skip
    cases, names = _shuffled(groups, seed)
    if len(cases) < n_folds:
        raise DatasetError(
            f"{n_folds} folds need at least {n_folds} patients that are not linked to each other, the data hold "
            f"{len(cases)} ({len(groups)} cases); ask for fewer folds or use more data"
        )
    deals: list[list[Member]] = [[] for _ in range(n_folds)]
    for name in sorted(names, key=lambda name: -len(cases[name])):  # stable: the shuffle breaks ties
        min(deals, key=len).extend(cases[name])
    return _rotate(deals, validation=validation)


def share_fold(groups: Mapping[Member, str], share: float, seed: int = 0) -> Fold:
    """One split that keeps groups whole, with as near to `share` of the cases in its test part as groups allow.

    Groups are shuffled and taken in turn. Each part holds at least one group.

    Args:
        share: above 0 and below 1.

    Raises:
        DatasetError: a share out of bounds, or fewer than two groups.
    """
    if not 0 < share < 1:
        raise DatasetError(f"a share of the cases lies above 0 and below 1, got {share}")
    cases, names = _shuffled(groups, seed)
    if len(cases) < 2:
        raise DatasetError(f"a split that keeps patients whole needs at least 2 of them, the data hold {len(cases)}")
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

    Returns:
        A split table ``case,slice,patient,part`` per fold, sorted by case and slice.

    Raises:
        DatasetError: fewer slices than folds, or too few folds.
    """
    rows = table.sort_values(["case", "slice"], kind="stable").reset_index(drop=True)
    if n_folds < 2 + validation or len(rows) < n_folds:
        raise DatasetError(f"{len(rows)} slices do not fill {n_folds} folds (at least {2 + validation})")
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
    """One fold as the split table of one dataset, ``case,slice,patient,part``: every slice of each of its cases.

    Args:
        fold: the fold; cases of other datasets are left out.
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
    """`leaking` groups of a fold; empty for folds of `group_folds`."""
    placed = [(part, groups[member]) for part, members in fold.parts.items() for member in members]
    return leaking(*zip(*placed, strict=True))
