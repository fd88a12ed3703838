"""How much of the lungs is affected: millilitres and shares, with every doubtful state named.

A share is None, never 0, when there is no lung to divide by. A share of 0.0 means: lung was there, and no infiltrate
was marked in it. `measure` counts; `assess` adds zones, lobes, lesions and the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope import components
from pneumoscope.geometry import Box, box_of
from pneumoscope.objects import Tabled, bars
from pneumoscope.severity.regions import (
    LEVELS,
    LOBES,
    ZONES,
    Distribution,
    Lesions,
    LobeScores,
    are_exchanged,
    are_lobes_exchanged,
    count_lesions,
    distribution_of,
    lobe_lookup,
    scores_of,
    sides_of,
    zone_map,
)
from pneumoscope.severity.states import (
    DENSE_PERCENT,
    OUTSIDE_TOLERANCE,
    STATES,
    applicability_states,
    has_sternal_wires,
    use_states,
)
from pneumoscope.severity.tally import Densities, LungPart, density_classes, tally
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    import pandas as pd

STEP = 0.25  # How far the cut is moved up and down; our choice


@dataclass(frozen=True)
class Interval:
    """How sure the network itself is: infiltrate of both lungs at three cuts of its probability.

    It is: the volumes that the very same network gives when its probability is cut a quarter above and a quarter below
    the model's threshold, with the same smallest piece, and the volume it expects (the sum of the probabilities).
    It is not: a confidence interval. It knows nothing of errors of the lung mask, of scanners the network never saw, or
    of how readers differ; a network that is sure and wrong gives a narrow interval.
    """

    low_ml: float  # at the stricter cut; at most the reported volume
    high_ml: float  # at the looser cut; at least the reported volume
    expected_ml: float  # sum of the probabilities, times the volume of a voxel
    low_percent: float | None  # of the lungs; None when there is no lung
    high_percent: float | None  # likewise
    expected_percent: float | None  # likewise
    threshold: float  # the model's
    strict: float  # the stricter cut
    loose: float  # the looser cut


@dataclass(frozen=True, eq=False)
class ProbabilityMap:
    """What a network thinks of each voxel."""

    values: NDArray[np.uint8]  # (i, j, k) uint8, probability times 255
    threshold: float = 0.5  # from which the model marks infiltrate
    smallest_ml: float = 0.0  # smaller pieces are dropped


def volume_interval(
    probability: ProbabilityMap, lung: NDArray[np.bool_], values: NDArray[np.uint8], voxel_ml: float
) -> Interval:
    """The interval inside the lungs.

    Args:
        probability: threshold and smallest piece; its `values` are not used.
        lung: (i, j, k).
        values: (i, j, k) the probability times 255 of the same voxels.
        voxel_ml: volume of a voxel.
    """
    strict = min(probability.threshold + STEP, (1 + probability.threshold) / 2)
    loose = max(probability.threshold - STEP, probability.threshold / 2)
    inside = np.where(lung, values, np.uint8(0))
    low, high = (_volume(inside, cut, probability.smallest_ml, voxel_ml) for cut in (strict, loose))
    expected = float(inside.sum(dtype=np.int64)) / 255 * voxel_ml
    whole = np.count_nonzero(lung) * voxel_ml
    low_percent, high_percent, expected_percent = (100 * v / whole if whole else None for v in (low, high, expected))
    return Interval(
        low, high, expected, low_percent, high_percent, expected_percent, probability.threshold, strict, loose
    )


def _volume(values: NDArray[np.uint8], cut: float, smallest_ml: float, voxel_ml: float) -> float:
    found = components.without_small(values >= np.ceil(cut * 255), smallest_ml / voxel_ml)
    return float(np.count_nonzero(found)) * voxel_ml


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
    return _counted(volume, lungs, infiltrate, consolidation_from_hu)[0]


def _counted(
    volume: Volume, lungs: Mask, infiltrate: Mask, limit_hu: float
) -> tuple[Severity, Box, NDArray[np.uint8], NDArray[np.uint8]]:
    """See `measure`; and the box of everything marked, with the lungs' sides and the infiltrate's labels in it."""
    volume.grid.require_same_space(lungs.grid, "the lung mask")
    volume.grid.require_same_space(infiltrate.grid, "the infiltrate mask")
    sides = sides_of(lungs.names)
    box = box_of(lungs.labels, infiltrate.labels)
    side, spot = sides[lungs.labels[box]], infiltrate.labels[box]
    counted = tally(volume.hu[box], side, spot, _SIDES, limit_hu)
    voxels, ml = counted.voxels, volume.grid.voxel_volume_ml
    parts = {name: counted.part(rows, ml) for name, rows in _ROWS.items()}
    sided = 2 in sides
    outside = int(voxels[0, 1:].sum())
    edges = _edges(lungs, sides)
    by_label = voxels[1:].sum(axis=0)
    severity = Severity(
        total=parts["total"],
        right=parts["right"] if sided else None,
        left=parts["left"] if sided else None,
        infiltrate_by_label_ml={name: float(by_label[n] * ml) for n, name in sorted(infiltrate.names.items()) if n},
        infiltrate_outside_voxels=outside,
        infiltrate_outside_ml=outside * ml,
        slices=volume.grid.shape[2],
        slices_with_lung=int(np.count_nonzero(side.any(axis=(0, 1)))) if side.size else 0,
        slices_with_infiltrate=int(np.count_nonzero(spot.any(axis=(0, 1)))) if spot.size else 0,
        consolidation_from_hu=float(limit_hu),
        edges=edges,
        states=_states(parts, sided, edges, outside, int(voxels[:, 1:].sum()), exchanged=sided and are_exchanged(side)),
    )
    return severity, box, side, spot


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


def assess(
    volume: Volume,
    lungs: Mask,
    infiltrate: Mask,
    *,
    lobes: Mask | None = None,
    probability: ProbabilityMap | None = None,
    consolidation_from_hu: float = CONSOLIDATION_FROM_HU,
) -> Severity:
    """Measure one scan in full.

    Args:
        lungs: see `measure`.
        infiltrate: see `measure`.
        lobes: five lobes by name, or in lungmask's order; adds the score of 0 to 25.
        probability: the network's, for an interval.
        consolidation_from_hu: see `measure`.

    Raises:
        GeometryError: a mask lies on another grid than the scan.
        InputError: `lobes` has labels that are no lobes.
    """
    basic, box, side, spot = _counted(volume, lungs, infiltrate, consolidation_from_hu)
    sided, hu, ml = basic.right is not None, volume.hu[box], volume.grid.voxel_volume_ml
    marked = (spot != 0) & (side != 0)
    beside = ThreadPoolExecutor(1)  # the distances of the lungs' voxels take as long as all the rest
    distribution = beside.submit(distribution_of, side, marked, volume.grid, box, sided=sided)
    beside.shutdown(wait=False)
    signs = applicability_states(hu, side != 0, marked, volume.spacing_mm)
    use = use_states(volume.spacing_mm[2], basic.total, basic.right, basic.left)
    states = [*basic.states, *use, *signs]
    states += ["sternal_wires"] if has_sternal_wires(volume.hu, box, volume.spacing_mm) else []
    scores = None
    if lobes is not None:
        volume.grid.require_same_space(lobes.grid, "the lobe mask")
        inside = box_of(lobes.labels)
        lobe = lobe_lookup(lobes)[lobes.labels[inside]]
        counted = tally(volume.hu[inside], lobe, infiltrate.labels[inside], len(LOBES) + 1, consolidation_from_hu)
        scores = scores_of({name: counted.part(n, ml) for n, name in enumerate(LOBES, start=1)})
        states += ["lobes_incomplete"] if scores.total is None else []
        states += ["lobes_exchanged"] if are_lobes_exchanged(lobe) else []
    interval = None
    if probability is not None:
        interval = volume_interval(probability, side != 0, probability.values[box], ml)
    densities = density_classes(hu, side, ml, sided=sided, consolidation_from_hu=consolidation_from_hu)
    parts = (densities.total, densities.right, densities.left)
    if any(part is not None and (part.consolidation_percent or 0) > DENSE_PERCENT for part in parts):
        states.append("lung_dense")
    return replace(
        basic,
        states=tuple(name for name in STATES if name in states),
        zones=_zones(volume, side, spot, box, sided=sided, limit_hu=consolidation_from_hu),
        lobes=scores,
        densities=densities,
        lesions=count_lesions(marked, ml),
        interval=interval,
        distribution=distribution.result(),
    )


def _zones(
    volume: Volume, side: NDArray[np.uint8], spot: NDArray[np.uint8], box: Box, *, sided: bool, limit_hu: float
) -> dict[str, LungPart]:
    """Parts by zone: six names, or three when sides are not known; none without lung."""
    zone = zone_map(side, volume.grid, box)
    if not zone.any():
        return {}
    counted = tally(volume.hu[box], zone, spot, 7, limit_hu)
    names = ZONES if sided else LEVELS
    return {name: counted.part(n, volume.grid.voxel_volume_ml) for n, name in enumerate(names, start=1)}
