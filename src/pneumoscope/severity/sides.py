"""Which labels of a lung mask are the right and which the left lung, and whether they lie where they should."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pneumoscope.severity.lobes import LOBES, TOTALSEGMENTATOR_ORDER
from pneumoscope.volume import LUNG_LABELS, Mask

EXCHANGED_SHARE = 0.05
"""More than this part of the lungs with right and left exchanged is a state; a lobe may reach behind the other lung."""


def sides_of(names: Mapping[int, str]) -> NDArray[np.uint8]:
    """For each of the 256 labels of a lung mask the side it belongs to: 0 none, 1 right (or any lung), 2 left.

    A name with ``lung`` or ``lobe`` in it and one of ``right`` and ``left`` has that side, as in
    ``lung_upper_lobe_left``. Without names, 10 to 14 are TotalSegmentator's lobes. Where no label has a side, every
    label is lung.
    """
    if all(name == f"label {label}" for label, name in names.items()) and set(names) <= set(TOTALSEGMENTATOR_ORDER):
        names = {label: TOTALSEGMENTATOR_ORDER[label] for label in names}
    sides = np.zeros(256, np.uint8)
    for label, name in names.items():
        words = set(name.casefold().replace("_", " ").replace("-", " ").split())
        if words & {"lung", "lobe"} and len(words & {"right", "left"}) == 1:
            sides[label] = 1 if "right" in words else 2
    if not sides.any():
        sides[1:] = 1
    return sides


def with_house_labels(lungs: Mask) -> Mask:
    """A mask that tells sides, in any labels, as 1 = right and 2 = left lung; another mask as it is."""
    sides = sides_of(lungs.names)
    if dict(lungs.names) == dict(LUNG_LABELS) or 2 not in sides:
        return lungs
    return Mask(sides[lungs.labels], lungs.grid, dict(LUNG_LABELS), lungs.native)


def exchanged_slices(labels: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Slices (k,) on which right (1) lies on the patient's left of left (2), and slices that show both.

    `labels` are (i, j, k) RAS+: i grows towards the patient's right.
    """
    right, left = (_middle(labels == side) for side in (1, 2))
    both = np.isfinite(right) & np.isfinite(left)
    with np.errstate(invalid="ignore"):
        return both & (right < left), both


def are_exchanged(labels: NDArray[np.uint8]) -> bool:
    """Whether right and left are exchanged on slices that hold more than `EXCHANGED_SHARE` of the lungs they show."""
    wrong, both = exchanged_slices(labels)
    voxels = np.count_nonzero((labels == 1) | (labels == 2), axis=(0, 1))
    return bool(voxels[wrong].sum() > EXCHANGED_SHARE * voxels[both].sum())


def are_lobes_exchanged(lobes: NDArray[np.uint8]) -> bool:
    """Whether right and left lobes, or upper and lower ones, lie where the others should.

    Args:
        lobes: (i, j, k) RAS+, numbers in the order of `LOBES`.
    """
    counts = np.stack([np.count_nonzero(lobes == number, axis=(0, 1)) for number in range(1, len(LOBES) + 1)])
    with np.errstate(invalid="ignore"):  # NaN for a lobe that is not there
        upper_right, _, lower_right, upper_left, lower_left = counts @ np.arange(lobes.shape[2]) / counts.sum(axis=1)
    sides = np.array([0, 1, 1, 1, 2, 2], np.uint8)[lobes]
    return are_exchanged(sides) or bool(upper_right < lower_right or upper_left < lower_left)


def _middle(side: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean index i of a side per slice (k,), NaN where the slice does not show it."""
    per_column = side.sum(axis=1)  # (i, k)
    total = per_column.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((np.arange(side.shape[0])[:, None] * per_column).sum(axis=0) / np.where(total, total, np.nan))
