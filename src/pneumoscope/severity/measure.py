"""How much of the lungs is affected: millilitres and shares, with every doubtful state named.

A share is None, never 0, when there is no lung to divide by. A share of 0.0 means: lung was there, and no infiltrate
was marked in it. `measure` counts; `pneumoscope.severity.assess` adds zones, lobes, lesions and the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.objects import Tabled, bars
from pneumoscope.severity.interval import Interval
from pneumoscope.severity.lesions import Distribution, Lesions
from pneumoscope.severity.regions import LobeScores, are_exchanged, sides_of
from pneumoscope.severity.states import OUTSIDE_TOLERANCE, STATES
from pneumoscope.severity.tally import Densities, LungPart, box_of, tally
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CONSOLIDATION_FROM_HU", "STATES", "LungPart", "Severity", "measure"]

CONSOLIDATION_FROM_HU = -300.0
"""Infiltrate at or above this density counts as consolidation, below as ground-glass.

Readers disagree on the limit; of the eight compared in "Quantitative CT for detecting COVID-19 pneumonia in suspected
cases" (BMC Infectious Diseases 2021, doi 10.1186/s12879-021-06556-z) this one separated patients best.
"""

EDGE_MM2 = 200.0
"""A smaller contact of the lung mask with an outer face of the scan is no cut lung; our choice. A lung that is cut off
shows several cm2 there; a lung model that overshoots the apex by a slice shows a few voxels."""

_EDGES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
_SIDES = 3  # 0 outside the lungs, 1 right, 2 left (or all lung, when the mask has no sides)


@dataclass(frozen=True, repr=False)
class Severity(Tabled):
    """The measured extent of one scan.

    Attributes:
    total: both lungs.
        right: the patient's right lung; None when the mask has no sides.
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
        zones: six zones by name (`severity.regions`); empty when they were not asked for or there is no lung.
        lobes: the five lobes and their score; None without a lobe mask.
        densities: the whole lung by classes of density; None when not asked for.
        lesions: how many pieces of infiltrate there are, and how large; None when not asked for.
        distribution: where in the lungs they lie; None when not asked for.
        interval: what the network's own probability says about the volume; None without a probability.
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
    zones: Mapping[str, LungPart] = field(default_factory=dict)
    lobes: LobeScores | None = None
    densities: Densities | None = None
    lesions: Lesions | None = None
    distribution: Distribution | None = None
    interval: Interval | None = None

    def _numbers(self) -> dict[str, str]:
        parts: dict[str, LungPart | None] = {"both lungs": self.total, "right lung": self.right, "left lung": self.left}
        shown = {
            name: f"{part.infiltrate_ml:.0f} of {part.lung_ml:.0f} ml"
            + ("" if part.share_percent is None else f", {part.share_percent:.1f} %")
            for name, part in parts.items()
            if part is not None
        }
        return shown | {name.replace("_", " "): STATES.get(name, "") for name in self.states}

    def _draw(self, axes: Sequence[Any]) -> None:
        parts: Mapping[str, LungPart | None] = self.zones or {"right lung": self.right, "left lung": self.left}
        shares = {n.replace("_", " "): p.share_percent or 0.0 for n, p in parts.items() if p is not None}
        bars(axes[0], shares or {"lungs": self.total.share_percent or 0.0}, "infiltrate, % of lung")

    def to_frame(self) -> pd.DataFrame:
        """A row per lung and zone: ``part`` and the fields of `LungPart`; what was not measured has no row."""
        import pandas as pd

        parts = {"total": self.total, "right": self.right, "left": self.left, **self.zones}
        return pd.DataFrame([{"part": name, **asdict(part)} for name, part in parts.items() if part is not None])

    def as_dict(self) -> dict[str, Any]:
        """Nested plain JSON values."""
        return {**asdict(self), "edges": list(self.edges), "states": list(self.states)}


def measure(
    volume: Volume, lungs: Mask, infiltrate: Mask, *, consolidation_from_hu: float = CONSOLIDATION_FROM_HU
) -> Severity:
    """Count volumes, shares and densities.

    Sides are taken from the names of the labels (`pneumoscope.severity.regions.sides_of`); other labels of a lung mask
    that tells sides (an airway, say) are no lung. A mask without sides counts as a whole. Every label of the infiltrate
    mask is infiltrate.

    Args:
        lungs: its lungs, on the same grid.
        infiltrate: its infiltrates, on the same grid.
        consolidation_from_hu: density from which infiltrate counts as consolidation.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    volume.grid.require_same_space(lungs.grid, "the lung mask")
    volume.grid.require_same_space(infiltrate.grid, "the infiltrate mask")
    sides = sides_of(lungs.names)
    box = box_of(lungs.labels, infiltrate.labels)
    side, spot = sides[lungs.labels[box]], infiltrate.labels[box]
    counted = tally(volume.hu[box], side, spot, _SIDES, consolidation_from_hu)
    voxels, ml = counted.voxels, volume.grid.voxel_volume_ml
    parts = {name: counted.part(rows, ml) for name, rows in _ROWS.items()}
    sided = 2 in sides
    outside = int(voxels[0, 1:].sum())
    edges = _edges(lungs, sides)
    by_label = voxels[1:].sum(axis=0)
    return Severity(
        total=parts["total"],
        right=parts["right"] if sided else None,
        left=parts["left"] if sided else None,
        infiltrate_by_label_ml={name: float(by_label[n] * ml) for n, name in sorted(infiltrate.names.items()) if n},
        infiltrate_outside_voxels=outside,
        infiltrate_outside_ml=outside * ml,
        slices=volume.grid.shape[2],
        slices_with_lung=int(np.count_nonzero(side.any(axis=(0, 1)))) if side.size else 0,
        slices_with_infiltrate=int(np.count_nonzero(spot.any(axis=(0, 1)))) if spot.size else 0,
        consolidation_from_hu=float(consolidation_from_hu),
        edges=edges,
        states=_states(parts, sided, edges, outside, int(voxels[:, 1:].sum()), exchanged=sided and are_exchanged(side)),
    )


_ROWS = {"total": slice(1, 3), "right": slice(1, 2), "left": slice(2, 3)}


def _edges(lungs: Mask, sides: NDArray[np.uint8]) -> tuple[str, ...]:
    """The outer faces of the scan on which at least `EDGE_MM2` of lung lies."""
    touched = []
    steps = lungs.grid.spacing_mm
    for axis, names in enumerate(_EDGES):
        voxel_mm2 = float(np.prod([step for other, step in enumerate(steps) if other != axis]))
        for name, position in zip(names, (0, -1), strict=True):
            if np.count_nonzero(sides[lungs.labels.take(position, axis=axis)]) * voxel_mm2 > EDGE_MM2:
                touched.append(name)
    return tuple(touched)


def _states(
    parts: Mapping[str, LungPart],
    sided: bool,
    edges: tuple[str, ...],
    outside: int,
    infiltrate: int,
    *,
    exchanged: bool,
) -> tuple[str, ...]:
    lung = parts["total"].share_percent is not None
    missing = sum(parts[side].share_percent is None for side in ("right", "left"))
    states = {
        "no_lung_found": not lung,
        "one_lung_only": lung and sided and missing == 1,
        "lungs_not_sided": lung and not sided,
        "sides_exchanged": exchanged,
        "lung_incomplete": bool(edges),
        "no_infiltrate_found": infiltrate == 0,
        "infiltrate_outside_lungs": outside > OUTSIDE_TOLERANCE * infiltrate,
    }
    return tuple(name for name, holds in states.items() if holds)
