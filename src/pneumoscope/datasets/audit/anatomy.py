"""Where the lung is, by density alone: what masks are compared with. Coarse, and never a result.

Everything here works on a thinned grid of about 2.5 mm in plane and a megabyte or two, whatever the scan's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope import components
from pneumoscope.datasets.audit.rules import AuditFinding, AuditRules, Severity, spotted
from pneumoscope.geometry import Grid, Scalar
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.severity.regions import exchanged_slices
from pneumoscope.volume import Volume

STEP_MM = 2.5
AERATED_BELOW_HU = -350.0
"""Between fat and infiltrated lung on one side and aerated lung on the other; scans that read 50 HU off still pass."""

GAS_ABOVE_AIR_HU = 40.0  # Gas reads as the room's air within the noise of a median; even emphysema holds some tissue
LARGEST_SHARE = 0.1  # A connected piece of air smaller than this share of the largest is gut or a gap, not lung
CLOSING_MM = 10.0  # Vessels, fissures and infiltrate narrower than twice this that aerated lung surrounds count as lung

AXES = ("left-right", "front-back", "head-foot")
Flip = tuple[bool, bool, bool]
FLIPS: tuple[Flip, ...] = tuple(
    (a, b, c) for a, b, c in sorted(product((False, True), repeat=3), key=lambda f: (sum(f), f))
)
"""No mirroring first, then by one axis, by two, by three."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The scan thinned, with the lung seen in it."""

    hu: NDArray[np.float32]  # (i, j, k) float32, every `steps`-th voxel in plane
    lung: NDArray[np.bool_]  # (i, j, k) bool, aerated lung with what it surrounds
    aerated: NDArray[np.bool_]  # (i, j, k) bool, aerated lung alone
    steps: tuple[int, int, int]  # voxels of the scan per thinned voxel along (i, j, k)
    lung_ml: float  # volume of `aerated`
    air_hu: float  # what plain air reads on this scan
    typical_hu: float  # the patient's aerated lung, the lower quartile

    def thin(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask of the scan on the thinned grid."""
        i, j, k = self.steps
        return mask[i // 2 :: i, j // 2 :: j, k // 2 :: k]


def look(volume: Volume) -> Anatomy:
    """The scan's own anatomy; where no lung is seen, `lung` is empty and `typical_hu` that of lung in general."""
    x_mm, y_mm, _ = volume.spacing_mm
    i, j = (min(max(1, int(STEP_MM / step)), max(1, n // 48)) for step, n in
            zip((x_mm, y_mm), volume.grid.shape[:2], strict=True))  # fmt: skip
    hu = np.ascontiguousarray(volume.hu[i // 2 :: i, j // 2 :: j])
    air = hu < AERATED_BELOW_HU
    outside = _outside(air)
    inner = air & ~outside
    voxel_ml = volume.grid.voxel_volume_ml * i * j
    around = hu[outside]
    air_hu = min(float(np.median(around)) if around.size > 100 else -1000.0, -800.0)
    aerated = _large_pieces(inner & ~_gas(inner, hu, air_hu))
    lung_ml = float(np.count_nonzero(aerated)) * voxel_ml
    typical = float(np.percentile(hu[aerated], 25)) if aerated.any() else -850.0
    radius = (max(1, round(CLOSING_MM / (x_mm * i))), max(1, round(CLOSING_MM / (y_mm * j))))
    return Anatomy(hu, _closed(aerated, radius), aerated, (i, j, 1), lung_ml, air_hu, typical)


def _outside(air: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Air that reaches the border of its slice: the room, never lung."""
    out = np.zeros_like(air)
    for k in range(air.shape[2]):
        pieces, sizes = components.label(air[:, :, k], 4)
        touching = np.zeros(len(sizes), bool)
        touching[np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])] = True
        out[:, :, k] = touching[pieces] & air[:, :, k]
    return out


def _gas(air: NDArray[np.bool_], hu: NDArray[np.float32], air_hu: float) -> NDArray[np.bool_]:
    """Pieces of a slice that are plain gas over half their area: stomach, gut and windpipe."""
    out = np.zeros_like(air)
    for k in range(air.shape[2]):
        pieces, sizes = components.label(air[:, :, k], 4)
        plain = np.bincount(pieces.ravel(), weights=(hu[:, :, k] <= air_hu + GAS_ABOVE_AIR_HU).ravel())
        out[:, :, k] = (plain > 0.5 * sizes)[pieces] & air[:, :, k]
    return out


def _large_pieces(air: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, sizes = components.label(air, 6)
    return np.asarray((sizes >= LARGEST_SHARE * sizes.max())[pieces] & air)


def _closed(aerated: NDArray[np.bool_], radius: tuple[int, int]) -> NDArray[np.bool_]:
    """Aerated lung with the gaps in it, slice by slice."""
    import cv2

    a, b = np.ogrid[-radius[0] : radius[0] + 1, -radius[1] : radius[1] + 1]
    disc = ((a / radius[0]) ** 2 + (b / radius[1]) ** 2 <= 1).astype(np.uint8)
    out = np.zeros_like(aerated)
    pad = (radius[0] + 1, radius[1] + 1)
    for k in np.flatnonzero(aerated.any(axis=(0, 1))):
        wide = np.pad(aerated[:, :, k], ((pad[0],) * 2, (pad[1],) * 2)).astype(np.uint8)
        closed = ndimage.binary_fill_holes(cv2.morphologyEx(wide, cv2.MORPH_CLOSE, disc))
        out[:, :, k] = closed[pad[0] : -pad[0], pad[1] : -pad[1]]
    return out


def mirrored(array: NDArray[Scalar], flip: Flip) -> NDArray[Scalar]:
    """The array mirrored along the chosen axes; a view."""
    return array[tuple(slice(None, None, -1) if along else slice(None) for along in flip)]


def flip_words(flip: Flip) -> str:
    """``left-right and head-foot``."""
    return " and ".join(name for name, along in zip(AXES, flip, strict=True) if along)


def best_flip(score: dict[Flip, float]) -> Flip:
    """The mirroring with the highest score; of equal ones the simplest."""
    return max(FLIPS, key=lambda flip: score[flip])


def lung_fit(case: str, lungs: NDArray[np.bool_], anatomy: Anatomy | None, rules: AuditRules) -> list[AuditFinding]:
    """Whether a lung mask is a mask of this scan: at most one finding, after which nothing else is judged by the mask.

    Args:
        lungs: (i, j, k) the mask.
        anatomy: what density shows; None where it cannot be judged, and then only emptiness is.
    """
    seen = anatomy is not None and anatomy.lung_ml >= rules.least_lung_ml
    if not lungs.any():
        shown = f", the scan shows about {anatomy.lung_ml:.0f} ml of aerated lung" if anatomy is not None else ""
        severity: Severity = "error" if seen else "warning"
        return [AuditFinding(case, "empty-lungs", severity, f"the lung mask marks no voxel{shown}", mask="lungs")]
    if not seen:
        return []
    assert anatomy is not None
    thin = anatomy.thin(lungs)
    score = {flip: dice(count(mirrored(thin, flip), anatomy.lung)) for flip in FLIPS}
    own, best = score[FLIPS[0]], best_flip(score)
    if score[best] >= max(rules.mirror_dice, own + rules.mirror_gain):
        detail = (
            f"the lung mask fits when mirrored {flip_words(best)} (Dice with the aerated lung {score[best]:.2f}, as it "
            f"is {own:.2f})"
        )
        return [AuditFinding(case, "mirrored-mask", "error", detail, confidence=score[best] - own, mask="lungs")]
    inside = float(np.count_nonzero(thin & anatomy.aerated)) / max(1, int(np.count_nonzero(anatomy.aerated)))
    if inside < rules.foreign_share and own < rules.foreign_dice:
        detail = f"only {inside:.0%} of the aerated lung lies in the lung mask (Dice {own:.2f}), mirrored no more"
        return [AuditFinding(case, "foreign-mask", "error", detail, confidence=1 - own, mask="lungs")]
    return []


def lung_sides(
    case: str, labels: NDArray[np.uint8], grid: Grid, *, sized: bool, rows_are_body: bool = True
) -> Iterator[AuditFinding]:
    """Right (1) lying on the patient's left: in the whole mask, or in runs of slices.

    Args:
        labels: (i, j, k) RAS+, 1 = right and 2 = left.
        sized: whether millimetres are real.
        rows_are_body: neighbouring slices are neighbours in the body, so that runs make sense.
    """
    wrong, both = exchanged_slices(labels)
    if not both.any():
        return
    share = float(np.count_nonzero(wrong)) / int(np.count_nonzero(both))
    if share > 0.5:
        where = np.argwhere((labels == 1) | (labels == 2))
        detail = f"label right lies on the patient's left on {share:.0%} of the slices that show both"
        yield replace(spotted(case, "swapped-sides", "error", detail, where, grid, sized=sized), mask="lungs")
        return
    numbers = np.flatnonzero(wrong)
    gaps = np.flatnonzero(np.diff(numbers) > (1 if rows_are_body else 0)) + 1
    for run in (r for r in np.split(numbers, gaps) if r.size):
        where = np.argwhere((labels[:, :, run] == 1) | (labels[:, :, run] == 2))
        where[:, 2] = run[where[:, 2]]
        first, last = int(run[0]), int(run[-1])
        detail = f"the sides are exchanged on slices {first} to {last}, elsewhere they are right"
        yield replace(spotted(case, "swapped-sides", "error", detail, where, grid, sized=sized), mask="lungs")
