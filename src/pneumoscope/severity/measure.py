"""How much of the lungs is affected: millilitres and shares, with every doubtful state said aloud.

A share is None, never 0, when there is no lung to divide by. A share of 0.0 means: lung was there, and no infiltrate
was marked in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.volume import LUNG_LABELS, Mask, Volume

CONSOLIDATION_FROM_HU = -300.0
"""Infiltrate at or above this density counts as consolidation, below as ground-glass.

Readers disagree on the limit; of the eight compared in "Quantitative CT for detecting COVID-19 pneumonia in suspected
cases" (BMC Infectious Diseases 2021, doi 10.1186/s12879-021-06556-z) this one told patients apart best.
"""

OUTSIDE_TOLERANCE = 0.05
"""More than this part of the infiltrate outside the lungs is reported as a state."""

STATES: Mapping[str, str] = {
    "no_lung_found": "No lung was found. There are no shares; volumes of infiltrate count only what lies outside.",
    "one_lung_only": "Only one lung was found. Shares refer to that lung.",
    "lungs_not_sided": "The lung mask does not tell right from left. Only totals are given.",
    "lung_incomplete": "The lungs reach the edge of the scan and may be cut off. Volumes and shares "
    "refer to the part that was scanned.",
    "no_infiltrate_found": "No infiltrate was found in this scan.",
    "infiltrate_outside_lungs": f"More than {OUTSIDE_TOLERANCE:.0%} of the infiltrate lies outside the lung mask and "
    "is in no share. The lung mask may leave out dense lung, or the infiltrate mask may be wrong.",
}
"""What each state means, in a sentence for reports."""

_EDGES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
_SLAB_VOXELS = 1 << 21
_SIDES = 3  # 0 outside the lungs, 1 right, 2 left (or all lung, when the mask has no sides)


@dataclass(frozen=True)
class LungPart:
    """One lung, or both together.

    Attributes:
        lung_ml: volume of the lung, infiltrate included.
        infiltrate_ml: volume of the infiltrate inside it.
        share_percent: infiltrate in percent of the lung; None when there is no lung.
        ground_glass_ml: infiltrate below the density limit.
        consolidation_ml: infiltrate at or above it.
        lung_mean_hu: mean density of the lung, infiltrate included; None when there is no lung.
        infiltrate_mean_hu: mean density of the infiltrate; None when there is none.
    """

    lung_ml: float
    infiltrate_ml: float
    share_percent: float | None
    ground_glass_ml: float
    consolidation_ml: float
    lung_mean_hu: float | None
    infiltrate_mean_hu: float | None


@dataclass(frozen=True)
class Severity:
    """The measured extent of one scan.

    Attributes:
        total: both lungs.
        right: the patient's right lung; None when the mask does not tell sides.
        left: the patient's left lung; None likewise.
        infiltrate_by_label_ml: infiltrate inside the lungs by the mask's own labels.
        infiltrate_outside_voxels: infiltrate marked outside the lungs, in no other number.
        infiltrate_outside_ml: the same as a volume.
        slices: axial slices of the scan.
        slices_with_lung: those with lung.
        slices_with_infiltrate: those with infiltrate, inside or outside the lungs.
        consolidation_from_hu: the density limit used.
        edges: sides of the scan that the lungs reach, such as ``superior``.
        states: what a reader must know, keys of `STATES`.
    """

    total: LungPart
    right: LungPart | None
    left: LungPart | None
    infiltrate_by_label_ml: Mapping[str, float]
    infiltrate_outside_voxels: int
    infiltrate_outside_ml: float
    slices: int
    slices_with_lung: int
    slices_with_infiltrate: int
    consolidation_from_hu: float
    edges: tuple[str, ...]
    states: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Nested plain JSON values."""
        return {**asdict(self), "edges": list(self.edges), "states": list(self.states)}

    def as_row(self) -> dict[str, object]:
        """Flat columns for a table of cases: ``right_share_percent``, ..., states joined by ``;``."""
        row: dict[str, object] = {}
        for side in ("total", "right", "left"):
            part = getattr(self, side)
            for name in LungPart.__dataclass_fields__:
                row[f"{side}_{name}"] = None if part is None else getattr(part, name)
        for name in ("infiltrate_outside_ml", "slices", "slices_with_lung", "slices_with_infiltrate"):
            row[name] = getattr(self, name)
        return {**row, "states": ";".join(self.states)}


def measure(
    volume: Volume, lungs: Mask, infiltrate: Mask, *, consolidation_from_hu: float = CONSOLIDATION_FROM_HU
) -> Severity:
    """Count volumes, shares and densities.

    Sides are taken from the labels named ``right lung`` and ``left lung``; other labels of a lung mask that has them
    (an airway, say) are no lung. A mask without these names counts as a whole. Every label of the infiltrate
    mask is infiltrate.

    Args:
        volume: the scan.
        lungs: its lungs, on the same grid.
        infiltrate: its infiltrates, on the same grid.
        consolidation_from_hu: density from which infiltrate counts as consolidation.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    volume.grid.require_same_space(lungs.grid, "the lung mask")
    volume.grid.require_same_space(infiltrate.grid, "the infiltrate mask")
    sides = _sides(lungs.names)
    box = _box(lungs.labels, infiltrate.labels)
    lung, spot = lungs.labels[box], infiltrate.labels[box]
    voxels, hu_sums, dense = _tally(volume.hu[box], lung, spot, sides, consolidation_from_hu)
    ml = volume.grid.voxel_volume_ml
    parts = {side: _part(voxels[rows], hu_sums[rows], dense[rows], ml) for side, rows in _ROWS.items()}
    sided = 2 in sides
    outside = int(voxels[0, 1:].sum())
    edges = _edges(lungs.labels, sides)
    by_label = voxels[1:].sum(axis=0)
    return Severity(
        total=parts["total"],
        right=parts["right"] if sided else None,
        left=parts["left"] if sided else None,
        infiltrate_by_label_ml={name: float(by_label[n] * ml) for n, name in sorted(infiltrate.names.items()) if n},
        infiltrate_outside_voxels=outside,
        infiltrate_outside_ml=outside * ml,
        slices=volume.grid.shape[2],
        slices_with_lung=int(np.count_nonzero(sides[lung].any(axis=(0, 1)))) if lung.size else 0,
        slices_with_infiltrate=int(np.count_nonzero(spot.any(axis=(0, 1)))) if spot.size else 0,
        consolidation_from_hu=float(consolidation_from_hu),
        edges=edges,
        states=_states(parts, sided, edges, outside, int(voxels[:, 1:].sum())),
    )


_ROWS = {"total": slice(1, 3), "right": slice(1, 2), "left": slice(2, 3)}


def _sides(names: Mapping[int, str]) -> NDArray[np.uint8]:
    """For each of the 256 labels the side it belongs to: 0 none, 1 right (or any lung), 2 left."""
    sides = np.zeros(256, np.uint8)
    known = {name: side for side, name in LUNG_LABELS.items()}
    for label, name in names.items():
        sides[label] = known.get(name, 0)
    if not sides.any():
        sides[1:] = 1
    return sides


def _box(*labels: NDArray[np.uint8]) -> tuple[slice, slice, slice]:
    """The smallest box around everything marked in any of the arrays (i, j, k); empty slices when nothing is."""
    marked = labels[0] != 0
    for more in labels[1:]:
        marked |= more != 0
    flat = marked.any(axis=0)  # (j, k)
    lines = (marked.any(axis=(1, 2)), flat.any(axis=1), flat.any(axis=0))
    found = [np.flatnonzero(line) for line in lines]
    i, j, k = (slice(int(f[0]), int(f[-1]) + 1) if f.size else slice(0, 0) for f in found)
    return i, j, k


def _tally(
    hu: NDArray[np.float32], lung: NDArray[np.uint8], spot: NDArray[np.uint8], sides: NDArray[np.uint8], limit: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Voxels, sums of HU, and voxels at or above `limit`, each (side, infiltrate label), slab by slab along i."""
    shape = (_SIDES, 256)
    voxels, sums, dense = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.int64)
    step = max(1, _SLAB_VOXELS // max(1, lung[0].size if len(lung) else 1))
    for start in range(0, len(lung), step):
        slab = slice(start, start + step)
        side = sides[lung[slab]]
        chosen = np.flatnonzero((side != 0) | (spot[slab] != 0))
        code = side.ravel()[chosen].astype(np.intp) * 256 + spot[slab].ravel()[chosen]
        values = hu[slab].ravel()[chosen]
        voxels += np.bincount(code, minlength=_SIDES * 256).reshape(shape)
        sums += np.bincount(code, weights=values, minlength=_SIDES * 256).reshape(shape)
        dense += np.bincount(code[values >= limit], minlength=_SIDES * 256).reshape(shape)
    return voxels, sums, dense


def _part(voxels: NDArray[np.int64], sums: NDArray[np.float64], dense: NDArray[np.int64], ml: float) -> LungPart:
    """Numbers of one lung or both, from tallies (sides, infiltrate labels); column 0 is lung without infiltrate."""
    lung, spot = int(voxels.sum()), int(voxels[:, 1:].sum())
    consolidation = int(dense[:, 1:].sum())
    return LungPart(
        lung_ml=lung * ml,
        infiltrate_ml=spot * ml,
        share_percent=100.0 * spot / lung if lung else None,
        ground_glass_ml=(spot - consolidation) * ml,
        consolidation_ml=consolidation * ml,
        lung_mean_hu=float(sums.sum() / lung) if lung else None,
        infiltrate_mean_hu=float(sums[:, 1:].sum() / spot) if spot else None,
    )


def _edges(lungs: NDArray[np.uint8], sides: NDArray[np.uint8]) -> tuple[str, ...]:
    """The outer faces of the scan on which lung lies."""
    touched = []
    for axis, names in enumerate(_EDGES):
        for name, position in zip(names, (0, -1), strict=True):
            if sides[lungs.take(position, axis=axis)].any():
                touched.append(name)
    return tuple(touched)


def _states(
    parts: Mapping[str, LungPart], sided: bool, edges: tuple[str, ...], outside: int, infiltrate: int
) -> tuple[str, ...]:
    lung = parts["total"].share_percent is not None
    missing = sum(parts[side].share_percent is None for side in ("right", "left"))
    states = {
        "no_lung_found": not lung,
        "one_lung_only": lung and sided and missing == 1,
        "lungs_not_sided": lung and not sided,
        "lung_incomplete": bool(edges),
        "no_infiltrate_found": infiltrate == 0,
        "infiltrate_outside_lungs": outside > OUTSIDE_TOLERANCE * infiltrate,
    }
    return tuple(name for name, holds in states.items() if holds)
