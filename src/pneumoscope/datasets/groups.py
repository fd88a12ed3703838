"""Who belongs together: scans of one patient, and scans of data sets that share patients.

A split must not put one person on two sides. Patient ids tell within a data set; across data sets nothing does, so
links are declared: pairs of patterns ``dataset:case``. Everything that is tied, directly or through others, is one
group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.errors import DatasetError

if TYPE_CHECKING:
    from pneumoscope.datasets.case import Case


@dataclass(frozen=True, order=True)
class Member:
    """A case as a split sees it.

    Attributes:
        dataset: name of the data set.
        case: unique within it.
        patient: the data set's own patient; cases that share it are one person.
    """

    dataset: str
    case: str
    patient: str

    @property
    def ref(self) -> str:
        """``dataset:case``, unique across data sets."""
        return f"{self.dataset}:{self.case}"


@dataclass(frozen=True)
class Link:
    """Cases that are, or may be, of the same people.

    Attributes:
        a: pattern of ``dataset:case`` with ``*`` and ``?``.
        b: likewise; everything that fits it is tied to everything that fits `a`.
        reason: why, for the record.
        same_name: tie only cases of equal names, one by one.
    """

    a: str
    b: str
    reason: str = ""
    same_name: bool = False

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
"""Data sets that share patients, or very probably do: by whole sets where the pairs are not known."""


def members_of(cases: Iterable[Case]) -> list[Member]:
    """The cases as members, sorted.

    Raises:
        DatasetError: a case that occurs twice in one data set.
    """
    members = sorted(Member(case.dataset, case.case, case.patient) for case in cases)
    for before, after in pairwise(members):
        if before.ref == after.ref:
            raise DatasetError(f"case {after.ref} occurs twice; case names must be unique within a data set")
    return members


def group_members(members: Sequence[Member], links: Sequence[Link] = ()) -> dict[Member, str]:
    """The group of each member; a group is named after its first member's ``dataset:patient``.

    The result does not depend on the order of members or links. A link that fits nothing ties nothing.
    """
    ordered = sorted(members)
    parent: dict[Member, Member] = {member: member for member in ordered}

    def root(member: Member) -> Member:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    def tie(first: Member, others: Iterable[Member]) -> None:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low  # the smallest is the root, whatever the order of ties

    by_patient: dict[tuple[str, str], list[Member]] = {}
    for member in ordered:
        by_patient.setdefault((member.dataset, member.patient), []).append(member)
    for people in by_patient.values():
        tie(people[0], people[1:])
    for link in links:
        for left, right in link.pairs(ordered):
            tie(left[0], left + right)
    return {member: f"{root(member).dataset}:{root(member).patient}" for member in ordered}


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
    import csv

    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            if not {"a", "b"} <= set(table.fieldnames or ()):
                raise DatasetError("a table of links has the columns a,b[,reason]", path=path)
            return [Link((row["a"] or "").strip(), (row["b"] or "").strip(), row.get("reason") or "") for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"cannot be read as a table of links: {error}", path=path) from error
    except DatasetError as error:
        raise DatasetError(error.message, path=path) from error
