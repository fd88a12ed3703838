"""Pieces of infiltrate: how many there are and how large.

A piece is connected over faces, edges and corners (26 neighbours). Lesions that touch are one piece, so a count falls
when disease grows together; read it beside the volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMALLEST_ML = 0.1
"""Smaller pieces are counted apart as specks; the shipped infiltrate model drops them. Our choice."""

LISTED = 10


@dataclass(frozen=True)
class Lesions:
    """Connected pieces of infiltrate inside the lungs.

    Attributes:
        count: pieces of at least `smallest_ml`.
        specks: smaller pieces.
        specks_ml: their volume.
        largest_ml: the largest piece; None when there is none.
        median_ml: of the pieces counted; None when there is none.
        volumes_ml: of the ten largest, largest first.
        smallest_ml: the limit used.
        connectivity: neighbours a voxel has.
    """

    count: int
    specks: int
    specks_ml: float
    largest_ml: float | None
    median_ml: float | None
    volumes_ml: tuple[float, ...]
    smallest_ml: float = SMALLEST_ML
    connectivity: int = 26


def count_lesions(marked: NDArray[np.bool_], voxel_ml: float, smallest_ml: float = SMALLEST_ML) -> Lesions:
    """Pieces of a mask (i, j, k); all zero and None for an empty one."""
    sizes = np.zeros(0, np.int64)
    if marked.any():
        import cc3d

        pieces = cc3d.connected_components(marked, connectivity=26)
        sizes = np.bincount(pieces.ravel())[1:]
    volumes = np.sort(sizes * voxel_ml)[::-1]
    counted = volumes[volumes >= smallest_ml]
    specks = volumes[volumes < smallest_ml]
    return Lesions(
        count=len(counted),
        specks=len(specks),
        specks_ml=float(specks.sum()),
        largest_ml=float(counted[0]) if len(counted) else None,
        median_ml=float(np.median(counted)) if len(counted) else None,
        volumes_ml=tuple(float(v) for v in counted[:LISTED]),
        smallest_ml=smallest_ml,
    )
