"""One finding of the audit, its row in ``findings.csv``, and the order in which findings are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.geometry import Grid

COLUMNS = ("case", "slice", "kind", "voxels", "volume_ml", "x", "y", "z", "severity", "detail")
_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, eq=False)
class AuditFinding:
    """Something about an annotation that a person should check."""

    case: str  # which case
    kind: str  # key of `KINDS`
    severity: Severity  # ``error`` (certainly wrong), ``warning`` (probably), ``note`` (worth knowing)
    detail: str  # one sentence with the numbers behind it
    slice: int | None = None  # index k of the RAS+ volume, counted from the feet from 0; None for a whole case
    voxels: int = 0  # how many are concerned; 0 for a whole case
    volume_ml: float | None = None  # their volume; None where voxels have no known size
    centre_mm: tuple[float, float, float] | None = None  # x, y, z of their centre in RAS+ mm; None for a whole case
    confidence: float = 0.0  # for ranking within severity and kind, larger first
    mask: str = ""  # ``lungs`` or ``infiltrate``, the mask the finding is about; empty for the scan
    # (n, 3) voxel indices (i, j, k) RAS+, while the case is in memory
    where: NDArray[np.int32] | None = field(default=None, repr=False)
    other: str = ""  # the case it is a copy of, for duplicates

    def row(self) -> dict[str, object]:
        """The row of ``findings.csv``; cells that do not apply are empty."""
        x, y, z = ("", "", "") if self.centre_mm is None else (f"{c:.2f}" for c in self.centre_mm)
        volume = "" if self.volume_ml is None else f"{self.volume_ml:.4f}"
        cells = {**vars(self), "slice": "" if self.slice is None else self.slice, "volume_ml": volume}
        cells |= {"x": x, "y": y, "z": z}
        return {name: cells[name] for name in COLUMNS}


def spotted(
    case: str, kind: str, severity: Severity, detail: str, where: NDArray[np.integer], grid: Grid, *, sized: bool = True
) -> AuditFinding:
    """A finding about voxels `where` (n, 3), n at least 1: slice, volume and centre are worked out from them.

    Volume and centre stay open where the grid's millimetres are not real (`sized`).
    """
    middle = where.mean(axis=0)
    x, y, z = (float(c) for c in grid.world(middle))
    return AuditFinding(
        case, kind, severity, detail,
        slice=int(np.bincount(where[:, 2]).argmax()),
        voxels=len(where),
        volume_ml=len(where) * grid.voxel_volume_ml if sized else None,
        centre_mm=(x, y, z) if sized else None,
        confidence=float(len(where)),
        mask="infiltrate",
        where=where.astype(np.int32),
    )  # fmt: skip


def ranked(findings: Iterable[AuditFinding]) -> list[AuditFinding]:
    """Errors first; then by kind in the order of `KINDS`, the surest or largest first."""
    kinds = list(KINDS)
    return sorted(
        findings, key=lambda f: (_ORDER.index(f.severity), kinds.index(f.kind), -f.confidence, f.case, f.slice or 0)
    )


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding."""

    title: str  # for people
    meaning: str  # one sentence: what was seen
    repair: str = ""  # what `--fix` does about it; empty where a person must decide


KINDS: Mapping[str, Kind] = {
    "unreadable": Kind("Unreadable", "The scan or a mask cannot be read, so the case was not judged."),
    "grid-differs": Kind("Mask on another grid", "The mask has another shape or place than its scan."),
    "mirrored-mask": Kind("Mirrored mask", "The mask fits its scan better when it is mirrored."),
    "foreign-mask": Kind("Mask of another scan?", "The mask does not fit its scan, mirrored or not."),
    "not-hu": Kind("Not Hounsfield units", "The values of the scan are no Hounsfield units; rules on density rest."),
    "empty-lungs": Kind("Empty lung mask", "The lung mask marks nothing although the scan shows lung."),
    "swapped-sides": Kind(
        "Sides swapped", "What is labelled right lung lies on the patient's left.", "labels 1 and 2 are exchanged"
    ),
    "absent-label": Kind("Label without voxels", "The dataset declares a label that no case holds."),
    "undeclared-label": Kind(
        "Undeclared label", "The mask holds a label that the dataset does not explain.",
        "removed when it is a trace only",
    ),
    "duplicate-patient": Kind("One scan, two patients", "Two patients of the set have the same scan."),
    "duplicate-scan": Kind("Scan twice", "The same voxels stand under two names, flipped or repacked perhaps."),
    "near-duplicate": Kind("Nearly the same scan", "A resampled or requantised copy of another scan."),
    "no-lung-slice": Kind("Infiltrate without lung", "Infiltrate on a slice that shows no lung.", "removed"),
    "in-air": Kind("Infiltrate in air", "Most of the marked voxels are plain air.", "removed"),
    "in-bone": Kind("Infiltrate in bone", "Most of the marked voxels are as dense as bone.", "removed"),
    "outside-lung": Kind("Infiltrate outside the lung", "Infiltrate away from the lung mask.", "removed"),
    "speck": Kind("Speck", "An island of a few voxels, away from other infiltrate or from the lung.", "removed"),
    "crumbs": Kind("Crumbs", "Islands of a few voxels beside larger infiltrate, counted together.", "removed"),
    "single-slice": Kind("On one slice only", "A wide region on one slice with nothing above and below."),
    "missing-annotation": Kind("Not drawn?", "The model is sure of infiltrate where the reader annotated nothing."),
    "unseen-lesion": Kind("Not seen by the model", "The model sees nothing of a lesion that was drawn."),
}  # fmt: skip
"""In the order in which they are listed where severity is equal; what concerns a whole case comes first."""

REPAIRS = tuple(name for name, kind in KINDS.items() if kind.repair)
"""Kinds that `--fix` can repair; each can be switched."""


@dataclass(frozen=True)
class AuditRules:
    """Thresholds of the audit; our choice unless a source is given."""

    # an island up to so many voxels is a speck (Maganaris 2022b, figure 4, area 1: three pixels).
    speck_voxels: int = 10
    # inside the lung an island is a speck only below this (a ball of 3 mm): with coarse voxels a few of them are a real
    # lesion, and islands inside the lung are not judged.
    speck_ml: float = 0.015
    crumb_mm: float = 5.0  # an island this near to larger infiltrate is a crumb of its outline.
    # a reader's outline may leave the lung mask by so much (pleura, partial volume) without a finding.
    outside_mm: float = 5.0
    outside_error_mm: float = 10.0  # from this distance on it is no slip of an outline.
    outside_ml: float = 0.5  # what lies outside in one piece and is smaller gets a warning only.
    # distance allowed where there is no lung mask and the lung is guessed from density (on clean synthetic scans
    # infiltrate lies up to 8 mm away from the guess); such findings are warnings.
    outside_guess_mm: float = 15.0
    # between plain air (0) and the patient's aerated lung (1) a median below this share is air.
    air_share: float = 0.25
    bone_hu: float = 200.0  # a median above is bone: consolidation stays below 100 HU, with contrast below 200.
    # a region on one slice is odd when it is wider than so many slice distances: a lesion is about as high as wide.
    one_slice_steps: float = 3.0
    # an undeclared label up to this share of the marked voxels is a trace (MedSeg's first release had stray voxels of
    # label 3 at lung borders) and may be removed.
    stray_label_share: float = 0.01
    # a lung mask is mirrored when mirroring raises its Dice with the aerated lung by this much.
    mirror_gain: float = 0.03
    mirror_dice: float = 0.75  # and to at least this.
    # less than this share of the aerated lung inside the lung mask, however mirrored, and the mask is of another scan:
    # windpipe and gut take a few percent.
    foreign_share: float = 0.85
    foreign_dice: float = 0.88  # and the Dice is below this.
    least_lung_ml: float = 400.0  # aerated lung that must be seen before lung masks are judged by it.
    # share of a mirrored infiltrate mask that must lie on dense lung (of masks that are right 0.53 to 0.97 do, measured
    # on 30 synthetic scans).
    infiltrate_fit: float = 0.45
    infiltrate_gain: float = 1.35  # how many times more than unmirrored (mirrored wrongly, at most 0.8 times).
    # an infiltrate mask that meets dense lung less than so many times as often as chance would is perhaps of another
    # scan.
    infiltrate_chance: float = 1.2
    infiltrate_voxels: int = 40  # on the thinned grid of 2.5 mm; fewer are too little to tell a mirrored mask by.
    # fingerprints (ranks of 32 x 32 x 24 block means) correlate so much for copies only: resampled, windowed and
    # requantised synthetic scans reach 0.997 and more, other patients 0.95 (0.97 on tiny scans).
    near_correlation: float = 0.985
    # mean probability over a region that the model is sure of (Maganaris 2022a, figure 7, gives no number).
    sure: float = 0.8
    region_ml: float = 1.0  # regions and lesions smaller than this are not compared with the model.
    region_depth_mm: float = 3.0  # nor regions with no place so far from their own outline: vessels are thinner.
    unseen: float = 0.2  # the model sees nothing where its probability stays below this everywhere in a drawn lesion.
