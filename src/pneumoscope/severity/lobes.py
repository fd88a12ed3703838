"""Five lobes and their CT severity score, when a lobe mask is given.

Score of a lobe, by the share of it that is affected: 0 none; 1 below 5 %; 2 from 5 % to 25 %; 3 above 25 % and below
50 %; 4 from 50 % to 75 %; 5 above 75 %. The total is their sum, 0 to 25.

Source: Pan F. et al., "Time Course of Lung Changes at Chest CT during Recovery from Coronavirus Disease 2019
(COVID-19)", Radiology 2020;295:715-721, doi 10.1148/radiol.2020200370. Readers there estimate by eye. Later papers
quote its class 2 as "25 %" or "5-25 %", 3 as "26-49 %" and 4 as "50-75 %"; we close the gaps between whole percents
as written above. (Francone et al., Eur Radiol 2020, doi 10.1007/s00330-020-07033-y, cut at 26-50 % and 51-75 %.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.severity.tally import LungPart
from pneumoscope.volume import Mask

LOBES = ("right_upper_lobe", "right_middle_lobe", "right_lower_lobe", "left_upper_lobe", "left_lower_lobe")

LUNGMASK_ORDER: Mapping[int, str] = {
    1: "left_upper_lobe",
    2: "left_lower_lobe",
    3: "right_upper_lobe",
    4: "right_middle_lobe",
    5: "right_lower_lobe",
}
"""What 1 to 5 mean in a file without names: the order of lungmask's lobe model."""

TOTALSEGMENTATOR_ORDER: Mapping[int, str] = {
    10: "left_upper_lobe",
    11: "left_lower_lobe",
    12: "right_upper_lobe",
    13: "right_middle_lobe",
    14: "right_lower_lobe",
}
"""What 10 to 14 mean in a file without names: TotalSegmentator's class numbers."""


@dataclass(frozen=True)
class LobeScores:
    """The five lobes.

    Attributes:
        parts: per lobe, as for lungs; a lobe that is not in the mask has no share.
        scores: per lobe 0 to 5; None for a lobe that is not in the mask.
        total: 0 to 25; None unless all five lobes are there.
    """

    parts: Mapping[str, LungPart]
    scores: Mapping[str, int | None]
    total: int | None


def lobe_score(share_percent: float | None) -> int | None:
    """Score 0 to 5 of one lobe; None without a share. See the module for the limits and their source."""
    if share_percent is None:
        return None
    if share_percent <= 0:
        return 0
    above = (share_percent >= 5, share_percent > 25, share_percent >= 50, share_percent > 75)
    return 1 + sum(above)


def lobe_lookup(lobes: Mask) -> NDArray[np.uint8]:
    """For each of the 256 labels of a lobe mask the number of the lobe (1 to 5 in the order of `LOBES`), or 0.

    Names are told apart by their words (``right upper lobe``, ``lung_upper_lobe_right``, ...). Without names, 1 to 5
    are taken in lungmask's order and 10 to 14 in TotalSegmentator's.

    Raises:
        InputError: no label is a lobe, or two labels are the same one.
    """
    unnamed = all(name == f"label {label}" for label, name in lobes.names.items())
    meaning = {label: lobe_of(name) for label, name in lobes.names.items()}
    if unnamed:
        known = TOTALSEGMENTATOR_ORDER if set(lobes.names) & set(TOTALSEGMENTATOR_ORDER) else LUNGMASK_ORDER
        meaning = {label: known.get(label) for label in lobes.names}
    found = [name for name in meaning.values() if name]
    if not found or len(set(found)) < len(found):
        expected = "right/left, upper/middle/lower and lobe in each name, or 1 to 5 in lungmask's order"
        raise InputError(f"a lobe mask has the labels {dict(lobes.names)}, expected {expected}; name the labels so")
    lookup = np.zeros(256, np.uint8)
    for label, lobe in meaning.items():
        if lobe:
            lookup[label] = 1 + LOBES.index(lobe)
    return lookup


def lobe_of(name: str) -> str | None:
    """Which of `LOBES` a name is by its words, or None."""
    words = set(name.lower().replace("_", " ").replace("-", " ").split())
    side = [s for s in ("right", "left") if s in words]
    level = [v for v in ("upper", "middle", "lower") if v in words]
    lobe = f"{side[0]}_{level[0]}_lobe" if len(side) == 1 and len(level) == 1 else ""
    return lobe if lobe in LOBES else None


def scores_of(parts: Mapping[str, LungPart]) -> LobeScores:
    """Scores of measured lobes."""
    scores = {name: lobe_score(part.share_percent) for name, part in parts.items()}
    known = [score for score in scores.values() if score is not None]
    return LobeScores(dict(parts), scores, sum(known) if len(known) == len(LOBES) else None)
