"""Which predicted mask belongs to which reference mask: two files, or two folders matched by case name.

A name is the path below the folder without the image suffix (``case1``, ``case1/infiltrate``). The rules, in order:

1. Equal names belong together.
2. When only one folder has case folders (``case1/lungs``, ``case1/infiltrate``, as `segment` writes them), their
   infiltrate masks are matched with ``case1`` of the other, or the lung masks when asked for; the rest is passed over.
3. What is left is matched without endings such as ``_mask`` or ``_seg``, where that is unmistakable.

Whatever has no partner is reported, never passed over in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import InputError
from pneumoscope.io.contents import MASK_NAME
from pneumoscope.io.kinds import IMAGE_SUFFIXES, suffix_of

STRUCTURES = ("infiltrate", "lungs")
"""Masks that a case folder of ours holds."""

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
