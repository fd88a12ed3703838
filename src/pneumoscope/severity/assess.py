"""Everything that is measured of one scan: the counts of `measure`, and where, how dense and how sure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pneumoscope.severity.interval import ProbabilityMap, volume_interval
from pneumoscope.severity.lesions import count_lesions, distribution_of
from pneumoscope.severity.measure import CONSOLIDATION_FROM_HU, Severity, measure
from pneumoscope.severity.regions import (
    LEVELS,
    LOBES,
    ZONES,
    are_lobes_exchanged,
    lobe_lookup,
    scores_of,
    sides_of,
    zone_map,
)
from pneumoscope.severity.states import DENSE_PERCENT, STATES, applicability_states, has_sternal_wires, use_states
from pneumoscope.severity.tally import Box, LungPart, box_of, density_classes, tally
from pneumoscope.volume import Mask, Volume


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
    basic = measure(volume, lungs, infiltrate, consolidation_from_hu=consolidation_from_hu)
    sides = sides_of(lungs.names)
    sided = 2 in sides
    box = box_of(lungs.labels, infiltrate.labels)
    side, spot, hu = sides[lungs.labels[box]], infiltrate.labels[box], volume.hu[box]
    ml = volume.grid.voxel_volume_ml
    marked = (spot != 0) & (side != 0)
    beside = ThreadPoolExecutor(1)  # the distances of the lungs' voxels take as long as all the rest
    distribution = beside.submit(distribution_of, side, marked, volume.grid, box, sided=sided)
    beside.shutdown(wait=False)
    signs = applicability_states(hu, side != 0, marked, volume.spacing_mm)
    states = [*basic.states, *_use(volume, basic), *signs]
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


def _use(volume: Volume, basic: Severity) -> list[str]:
    total = basic.total
    healthy = None
    if total.lung_mean_hu is not None and total.lung_ml > total.infiltrate_ml:
        spot = total.infiltrate_ml * (total.infiltrate_mean_hu or 0.0)
        healthy = (total.lung_ml * total.lung_mean_hu - spot) / (total.lung_ml - total.infiltrate_ml)
    return use_states(volume.spacing_mm[2], total, basic.right, basic.left, healthy)


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
