"""Faults of a lung mask as a whole: empty, mirrored, of another scan, sides swapped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.audit.anatomy import FLIPS, Anatomy, best_flip, dice, flip_words, mirrored
from pneumoscope.datasets.audit.findings import AuditFinding, spotted
from pneumoscope.datasets.audit.rules import AuditRules, Severity
from pneumoscope.geometry import Grid
from pneumoscope.severity.sides import exchanged_slices


def lung_fit(
    case: str, lungs: NDArray[np.bool_], anatomy: Anatomy | None, rules: AuditRules
) -> list[AuditFinding]:  # fmt: skip
    """Whether a lung mask is a mask of this scan: at most one finding, after which nothing else is judged by the mask.

    Args:
        case: its name.
        lungs: (i, j, k) the mask.
        anatomy: what density shows; None where it cannot be judged, and then only emptiness is.
        rules: thresholds.
    """
    seen = anatomy is not None and anatomy.lung_ml >= rules.least_lung_ml
    if not lungs.any():
        shown = f", the scan shows about {anatomy.lung_ml:.0f} ml of aerated lung" if anatomy is not None else ""
        severity: Severity = "error" if seen else "warning"
        return [
            AuditFinding(case, "empty-lungs", severity, f"the lung mask marks no voxel{shown}", mask="lungs")
        ]  # fmt: skip
    if not seen:
        return []
    assert anatomy is not None
    thin = anatomy.thin(lungs)
    score = {flip: dice(mirrored(thin, flip), anatomy.lung) for flip in FLIPS}
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
        case: its name.
        labels: (i, j, k) RAS+, 1 = right and 2 = left.
        grid: of the scan.
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
        yield spotted(case, "swapped-sides", "error", detail, where, grid, sized=sized, mask="lungs")
        return
    numbers = np.flatnonzero(wrong)
    gaps = np.flatnonzero(np.diff(numbers) > (1 if rows_are_body else 0)) + 1
    for run in (r for r in np.split(numbers, gaps) if r.size):
        where = np.argwhere((labels[:, :, run] == 1) | (labels[:, :, run] == 2))
        where[:, 2] = run[where[:, 2]]
        first, last = int(run[0]), int(run[-1])
        detail = f"the sides are exchanged on slices {first} to {last}, elsewhere they are right"
        yield spotted(case, "swapped-sides", "error", detail, where, grid, sized=sized, mask="lungs")
