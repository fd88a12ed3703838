"""Label maps of other tools: what a label is called there, and which of ours it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pneumoscope.datasets.case import CaseFiles, LabelledScan
from pneumoscope.datasets.formats.labelled import load_case
from pneumoscope.datasets.public.covid19ctseg import with_sides
from pneumoscope.errors import DatasetError, Finding
from pneumoscope.volume import LUNG_LABEL, Mask

Meaning = Literal["right lung", "left lung", "lung", "ground-glass", "consolidation", "infiltrate", "ignore"]
"""What a label can be here. ``lung`` is lung of no side; ``ignore`` is read as background."""

MEANINGS: tuple[Meaning, ...] = (
    "right lung", "left lung", "lung", "ground-glass", "consolidation", "infiltrate", "ignore",
)  # fmt: skip

_SYNONYMS: Mapping[Meaning, str] = {
    "right lung": "right lung, lung right, lung r, r lung, rlung, rt lung, lungs right",
    "left lung": "left lung, lung left, lung l, l lung, llung, lt lung, lungs left",
    "lung": "lung, lungs, both lungs, whole lung, lung parenchyma",
    "ground-glass": "ground glass, ground glass opacity, ground glass opacities, groundglass, ggo, ggos",
    "consolidation": "consolidation, consolidations, consolidated lung",
    "infiltrate": (
        "infiltrate, infiltrates, infection, infections, infected, infected lung, covid, covid 19, covid19, "
        "covid lesion, covid 19 lesion, covid 19 infection, lung infection, lesion, lesions, pneumonia, opacity, "
        "opacities, lung lesion, lung covid infiltrate, infectious opacity"
    ),
    "ignore": (
        "background, clear, bg, unlabeled, unlabelled, ignore, pleural effusion, effusion, effusions, "
        "pleural effusions, trachea, airway, airways, heart, other, body"
    ),
}
SYNONYMS: Mapping[str, Meaning] = {
    name.strip(): meaning for meaning, names in _SYNONYMS.items() for name in names.split(",")
}
"""Names as `plain` writes them."""

_SIDES = {"right lung": 1, "left lung": 2, "lung": 1}


@dataclass(frozen=True)
class LabelMap:
    """Labels on disk by what they are here; see `CaseFiles`."""

    # as in `CaseFiles`; a label of nested regions may be in all
    lung_labels: Mapping[int, int]
    infiltrate_labels: Mapping[int, int]
    ignored_labels: frozenset[int]
    has_sides: bool  # whether right and left lung are distinguished

    def files(self, image: Path, mask: Path | None) -> CaseFiles:
        """The files of a case with this map; a mask without labels of one kind is no mask of that kind."""
        return CaseFiles(
            image,
            mask if self.lung_labels else None,
            mask if self.infiltrate_labels else None,
            self.lung_labels,
            self.infiltrate_labels,
            self.ignored_labels,
        )


def plain(name: str) -> str:
    """A name in lower case, with single blanks for everything that is no letter or digit."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def label_map(labels: Mapping[str, Sequence[int]], given: Mapping[str, str] | None, path: Path) -> LabelMap:
    """What the labels of a set are, by their names.

    A name may stand for several labels (regions that lie in each other: ``lung`` = 1, 2, 3 and ``infection`` = 3).

    Args:
        labels: name -> labels on disk; 0 is background whatever it is called.
        given: name -> one of `MEANINGS`, for names not known here or meant otherwise.

    Raises:
        DatasetError: a name without a meaning, a meaning that is none, or a label that is right and left lung at once.
    """
    own = {plain(name): meaning for name, meaning in (given or {}).items()}
    wrong = [meaning for meaning in own.values() if meaning not in MEANINGS]
    if wrong:
        raise DatasetError(f"a label cannot mean {wrong[0]!r}; expected one of {', '.join(MEANINGS)}", path=path)
    lungs: dict[int, int] = {}
    sided: dict[int, int] = {}
    kinds: dict[str, set[int]] = {}
    known: set[int] = set()
    for name, values in labels.items():
        numbers = {value for value in values if value}
        meaning = own.get(plain(name)) or SYNONYMS.get(plain(name))
        if not numbers:
            continue
        if meaning is None:
            which = ", ".join(map(str, sorted(numbers)))
            raise DatasetError(
                f"has a label {name!r} ({which}) that is not known here; say what it is, "
                f"labels={{{name!r}: 'infiltrate'}} or --label {name!r}=infiltrate, one of {', '.join(MEANINGS)}",
                path=path,
            )
        known |= numbers
        if meaning == "lung":
            lungs |= dict.fromkeys(numbers, 1)
        elif meaning in _SIDES:
            twice = sorted(n for n in numbers if sided.get(n, _SIDES[meaning]) != _SIDES[meaning])
            if twice:
                raise DatasetError(f"label {twice[0]} is right and left lung at once; say which (labels=)", path=path)
            sided |= dict.fromkeys(numbers, _SIDES[meaning])
        elif meaning != "ignore":
            kinds.setdefault(meaning, set()).update(numbers)
    infiltrate = _kinds(kinds)
    lungs = sided or lungs
    both = bool(lungs) and bool(infiltrate)  # one file for two masks: labels of one kind are passed over in the other
    ignored = known if both else known - set(lungs) - set(infiltrate)
    return LabelMap(lungs, infiltrate, frozenset(ignored), bool(sided))


def _kinds(kinds: Mapping[str, set[int]]) -> dict[int, int]:
    """1 = ground-glass and 2 = consolidation where nothing but these occurs; else 1 for every kind."""
    glass, dense = kinds.get("ground-glass", set()), kinds.get("consolidation", set())
    if "infiltrate" in kinds and not (kinds["infiltrate"] <= glass | dense):
        return dict.fromkeys(sorted(set().union(*kinds.values())), 1)
    return dict.fromkeys(sorted(glass), 1) | dict.fromkeys(sorted(dense), 2)


def load_with_names(case: str, files: CaseFiles, labels: LabelMap) -> LabelledScan:
    """A case of one label map, its lungs whole.

    In a map with one label per voxel the infiltrate cuts holes into the lungs. Each such voxel is given to the lung
    that is nearer (`datasets.public.covid19ctseg.with_sides`). Regions that lie in each other say themselves what
    is lung and are left as they are.

    Raises:
        DatasetError, ReadError: see `pneumoscope.datasets.formats.labelled.load_case`.
    """
    scan = load_case(case, files)
    lungs, volume, drawn = scan.lungs, scan.volume, scan.infiltrate
    if lungs is not None and not labels.has_sides:
        lungs = Mask(lungs.labels, lungs.grid, LUNG_LABEL)
    nested = set(files.lung_labels) & set(files.infiltrate_labels)
    if lungs is not None and drawn is not None and files.lungs == files.infiltrate and not nested:
        lungs, given = with_sides(lungs, drawn) if labels.has_sides else _joined(lungs, drawn)
        if given:
            note = f"{given} voxels of infiltrate had no lung label in the one mask; each was given to the nearer lung"
            volume = volume.with_findings(Finding("IN-SET-085", note, "info"))
    return replace(scan, volume=volume, lungs=lungs, infiltrate=drawn)


def _joined(lungs: Mask, infiltrate: Mask) -> tuple[Mask, int]:
    """Lungs of no side with the infiltrate, and how many voxels that added."""
    bare = infiltrate.any & ~lungs.any
    return Mask((lungs.any | bare).astype(np.uint8), lungs.grid, lungs.names), int(np.count_nonzero(bare))
