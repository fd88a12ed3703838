"""Which labels of a prediction and a reference are compared one by one, and which masks only as a whole.

A number means something only together with the others: label 1 beside 2 is a right lung, alone it is both lungs. Masks
that tell different parts apart (sides against none, lobes against sides, kinds of infiltrate against none) are
therefore scored with all labels together, and the result says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.volume import Mask

Names = Mapping[int, str]


class Side:
    """Predictions or references of one run: what the numbers of files without label names may be.

    A file without names shows only the labels that occur in it. Whether a case of one label tells parts apart is
    known from the other files of its folder, which are read once, when a case needs it.

    Args:
        what: ``prediction`` or ``reference``, for messages.
        paths: every mask of the side.
    """

    def __init__(self, what: str, paths: Iterable[Path | None]) -> None:
        self.what = what
        self._paths = [path for path in paths if path is not None]

    def names_of(self, mask: Mask, other: Names) -> Names:
        """Label numbers and names that this mask can hold; those of the `other` where the whole side is empty."""
        if not self.needs_others(mask, other):
            return mask.names
        every = sorted(self.numbers | set(mask.names) if mask.labels.any() else self.numbers)
        return {number: f"label {number}" for number in every} or other

    def needs_others(self, mask: Mask, other: Names) -> bool:
        """Whether the names of this mask depend on the other files of its side."""
        return not (is_named(mask.names) or set(mask.names) == set(other))

    @cached_property
    def numbers(self) -> set[int]:
        """Labels that occur in the files without names."""
        from pneumoscope.io import read_mask

        found: set[int] = set()
        for path in self._paths:
            try:
                mask = read_mask(path)
            except PneumoscopeError:  # reported when the case is scored
                continue
            if mask.labels.any() and not is_named(mask.names):
                found |= set(mask.names)
        return found


def is_named(names: Names) -> bool:
    """Whether a file says what its labels mean."""
    return any(not name.startswith("label ") for name in names.values())


def comparable_labels(found: Names, drawn: Names) -> tuple[dict[int, str], str]:
    """Numbers and names to compare one by one.

    Args:
        found: labels that the predictions tell apart.
        drawn: labels that the references tell apart.

    Returns:
        The labels, none where only all labels together can be compared, and then why.

    Raises:
        InputError: both sides name equally many labels, and name a number differently.
    """
    common = found.keys() & drawn.keys()
    sides = [names for names in (drawn, found) if is_named(names)]
    clash = [n for n in sorted(common) if len(sides) == 2 and _words(found[n]) != _words(drawn[n])]
    if clash and len(found) == len(drawn) > 1:
        raise InputError(
            f"label {clash[0]} is {found[clash[0]]!r} in the prediction, {drawn[clash[0]]!r} in the reference; "
            "relabel one"
        )
    if clash or not (found.keys() == drawn.keys() or _same_parts(found, drawn)):
        return {}, f"the prediction holds {_text(found)}, the reference {_text(drawn)}: scored as one structure only"
    return {n: next((s[n] for s in sides if n in s), f"label {n}") for n in sorted({*found, *drawn})}, ""


def _same_parts(found: Names, drawn: Names) -> bool:
    """Whether labels that only one side has are further ones, and not parts of what the other side calls by a number.

    Parts of a lung nest in each other (a lobe, a side, both lungs); kinds of infiltrate do not.
    """
    few, many = sorted((found, drawn), key=len)
    if is_named(few) and is_named(many):
        return {_words(name) for name in few.values()} <= {_words(name) for name in many.values()}
    named = " ".join(name.lower() for names in (few, many) if is_named(names) for name in names.values())
    return len(few) > 1 and named != "" and "lung" not in named and "lobe" not in named


def _words(name: str) -> frozenset[str]:
    """``right lung``, ``Right_Lung`` and ``lung-right`` are one name."""
    return frozenset(re.findall(r"[^\W_]+", name.lower()))


def _text(names: Names) -> str:
    listed = ", ".join(f"{n}" if name == f"label {n}" else f"{n} = {name}" for n, name in sorted(names.items())[:6])
    return listed + (", ..." if len(names) > 6 else "")
