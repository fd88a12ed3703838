"""Which predicted mask belongs to which reference mask: two files, or two folders matched by case name.

A name is the path below the folder without the image suffix (``case1``, ``case1/infiltrate``). The rules, in order:

1. Equal names belong together.
2. When only one folder has case folders (``case1/lungs``, ``case1/infiltrate``, as `segment` writes them), their
   infiltrate masks are matched with ``case1`` of the other, or the lung masks when asked for; the rest is passed over.
3. What is left is matched without endings such as ``_mask`` or ``_seg``, where that is unmistakable.

Whatever has no partner is reported, never passed over in silence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.io.contents import MASK_NAME
from pneumoscope.io.kinds import IMAGE_SUFFIXES, suffix_of
from pneumoscope.volume import Mask

STRUCTURES = ("infiltrate", "lungs")  # Masks that a case folder of ours holds

NO_MASKS = ("probability", "registration", "uncertainty-entropy", "uncertainty-variance")
"""Images in a case folder of ours that are no masks."""


@dataclass(frozen=True)
class Pair:
    """A case and its two files; one of them is None when it has no partner."""

    case: str
    prediction: Path | None
    reference: Path | None

    @property
    def missing(self) -> str:
        """What is missing, as a sentence; empty when nothing is."""
        if self.prediction is None:
            return f"no prediction for the reference {self.reference}"
        return "" if self.reference is not None else f"no reference for the prediction {self.prediction}"


def find_pairs(prediction: str | Path, reference: str | Path, *, structure: str = "infiltrate") -> list[Pair]:
    """The pairs of two files or two folders, sorted by case, those without a partner included.

    Raises:
        InputError: a path that does not exist, a file against a folder, a folder without masks, two files of one
            name, or two folders without a single name in common.
    """
    if structure not in STRUCTURES:
        raise InputError(f"a structure is one of {', '.join(STRUCTURES)}, got {structure!r}")
    sides = (Path(prediction), Path(reference))
    for side in sides:
        if not side.exists():
            raise InputError("does not exist, expected a mask or a folder of masks", path=side)
    if sides[0].is_file() != sides[1].is_file():
        raise InputError(
            f"is a {_kind(sides[0])}, the reference a {_kind(sides[1])}; give two of a kind", path=sides[0]
        )
    if sides[0].is_file():
        return [Pair(_name(Path(sides[1].name)), *sides)]
    found, drawn = (_masks(side) for side in sides)
    if _nested(found) != _nested(drawn):
        found, drawn = (_only(side, structure) for side in (found, drawn))
    pairs = _match(found, drawn)
    if not any(pair.missing == "" for pair in pairs):
        raise InputError(
            f"has no case in common with {sides[1]}: {_some(found)} against {_some(drawn)}; name masks alike",
            path=sides[0],
        )
    return pairs


def _match(found: Mapping[str, Path], drawn: Mapping[str, Path]) -> list[Pair]:
    pairs = [Pair(name, found[name], drawn[name]) for name in found.keys() & drawn.keys()]
    single, lonely = ({n: p for n, p in a.items() if n not in b} for a, b in ((found, drawn), (drawn, found)))
    bare, wanted = (_bare(names) for names in (single, lonely))
    for name in sorted(bare.keys() & wanted.keys()):
        pairs.append(Pair(name, single.pop(bare[name]), lonely.pop(wanted[name])))
    pairs += [Pair(name, path, None) for name, path in single.items()]
    pairs += [Pair(name, None, path) for name, path in lonely.items()]
    return sorted(pairs, key=lambda pair: pair.case)


def _bare(names: Mapping[str, Path]) -> dict[str, str]:
    """Names without mask endings to full names, where only one has that bare name."""
    bare = {name: MASK_NAME.sub("", name) for name in names}
    often = Counter(bare.values())
    return {short: name for name, short in bare.items() if often[short] == 1}


def _masks(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file() or suffix_of(path) not in IMAGE_SUFFIXES:
            continue
        name = _name(path.relative_to(folder))
        if name.rsplit("/", 1)[-1] in NO_MASKS:
            continue
        if name in found:
            raise InputError(f"has the same case name as {found[name].name} beside it; keep one of them", path=path)
        found[name] = path
    if not found:
        raise InputError(f"holds no masks, expected {', '.join(IMAGE_SUFFIXES)}", path=folder)
    return found


def _name(path: Path) -> str:
    name = path.as_posix()
    return name[: len(name) - len(suffix_of(path))]


def _nested(masks: Mapping[str, Path]) -> bool:
    return any("/" in name and name.rsplit("/", 1)[1] in STRUCTURES for name in masks)


def _only(masks: Mapping[str, Path], structure: str) -> dict[str, Path]:
    """Case folders reduced to the one structure, named by case; other masks as they are."""
    reduced = {}
    for name, path in masks.items():
        case, _, last = name.rpartition("/")
        if case and last in STRUCTURES:
            if last == structure:
                reduced[case] = path
        else:
            reduced[name] = path
    return reduced


def _kind(path: Path) -> str:
    return "file" if path.is_file() else "folder"


def _some(names: Mapping[str, Path]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (" ..." if len(names) > len(first) else "")


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
        from pneumoscope.io.read import read_mask

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
