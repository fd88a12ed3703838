"""Pictures that are the same, or the same taken from another file: found by content, across datasets too.

Public collections feed each other, so that a picture of one set's training part lies in another set's test part under
another name, size and compression. Two pictures are the same when their 8-bit pixels agree, and nearly the same when,
cut to what is not border and shrunk to 32 x 32, they correlate above `SAME_CORRELATION`. Two chests of different people
correlate less: normal chests are alike, which is why the bar is so high.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.splits.folds import joined
from pneumoscope.datasets.xray.case import XrayCase
from pneumoscope.errors import ReadError
from pneumoscope.volume import Radiograph

SIDE = 32
SAME_CORRELATION = 0.995
_CHUNK = 512


@dataclass(frozen=True)
class Pair:
    """Two pictures that are one."""

    # places in the list of cases, a before b
    a: int
    b: int
    correlation: float  # correlation of the shrunken pictures; 1.0 for equal pixels
    equal: bool  # whether the pixels are the same


@dataclass(frozen=True, eq=False)
class Prints:
    """What is compared of a list of pictures."""

    digests: tuple[str, ...]  # SHA-256 of the 8-bit pixels and their size; "" for pictures that cannot be read
    # (n, SIDE * SIDE) float32, each with mean 0 and length 1; zeros where there is nothing to compare
    small: NDArray[np.float32]
    unreadable: dict[int, str]  # place -> why


def take_prints(cases: Sequence[XrayCase], progress: Callable[[int, int], None] | None = None) -> Prints:
    """Read every picture once; holds one at a time."""
    digests, unreadable = [], {}
    small = np.zeros((len(cases), SIDE * SIDE), np.float32)
    for place, case in enumerate(cases):
        try:
            picture = case.load()
            digests.append(digest(picture))
            small[place] = shrink(picture)
        except ReadError as error:
            digests.append("")
            unreadable[place] = str(error)
        if progress is not None:
            progress(place + 1, len(cases))
    return Prints(tuple(digests), small, unreadable)


def digest(picture: Radiograph) -> str:
    """SHA-256 of size and 8-bit pixels."""
    grey = np.rint(picture.pixels * 255).astype(np.uint8)
    return hashlib.sha256(repr(grey.shape).encode() + grey.tobytes()).hexdigest()


def shrink(picture: Radiograph) -> NDArray[np.float32]:
    """(SIDE * SIDE,) mean 0 and length 1, borders of one grey level cut off; zeros for a picture of one level."""
    import cv2

    pixels = trim(picture.pixels)
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    length = float(np.linalg.norm(small))
    return (small / length).astype(np.float32) if length > 1e-6 else np.zeros_like(small)


def trim(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without rows and columns at the edges that hold one level (black bars, white margins)."""
    busy = np.ptp(pixels, axis=1) > 0.08, np.ptp(pixels, axis=0) > 0.08
    rows, columns = (np.flatnonzero(b) for b in busy)
    if rows.size < 8 or columns.size < 8:
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def find_pairs(prints: Prints, least: float = SAME_CORRELATION) -> list[Pair]:
    """Every pair of pictures that are one, exact ones first.

    Compares all with all in chunks: 6 000 pictures take about a second and 25 MB.
    """
    pairs: list[Pair] = []
    known: set[tuple[int, int]] = set()
    first: dict[str, list[int]] = {}
    for place, name in enumerate(prints.digests):
        if name:
            for earlier in first.setdefault(name, []):
                pairs.append(Pair(earlier, place, 1.0, True))
                known.add((earlier, place))
            first[name].append(place)
    for start in range(0, len(prints.small), _CHUNK):
        part = prints.small[start : start + _CHUNK]
        alike = part @ prints.small[start:].T  # (chunk, rest)
        for i, j in np.argwhere(alike >= least):
            a, b = start + int(i), start + int(j)
            if a < b and (a, b) not in known:
                pairs.append(Pair(a, b, float(alike[i, j]), False))
    return pairs


def patient_groups(cases: Sequence[XrayCase], pairs: Iterable[Pair]) -> list[str]:
    """A group per picture: patients, joined wherever pictures of two of them are one."""
    ties = [(cases[pair.a].patient, cases[pair.b].patient) for pair in pairs]
    group_of = joined((case.patient for case in cases), ties)
    return [group_of[case.patient] for case in cases]
