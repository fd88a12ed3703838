"""One finding of the audit, its row in ``findings.csv``, and the order in which findings are shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.audit.rules import KINDS, Severity
from pneumoscope.geometry import Grid

COLUMNS = ("case", "slice", "kind", "voxels", "volume_ml", "x", "y", "z", "severity", "detail")
_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, eq=False)
class AuditFinding:
    """Something about an annotation that a person should look at.

    Attributes:
        case: which case.
        kind: key of `KINDS`.
        severity: ``error`` (certainly wrong), ``warning`` (probably), ``note`` (worth knowing).
        detail: one sentence with the numbers behind it.
        slice: index k of the RAS+ volume, counted from the feet from 0; None for a whole case.
        voxels: how many are concerned; 0 for a whole case.
        volume_ml: their volume; None where voxels have no known size.
        centre_mm: x, y, z of their centre in RAS+ mm; None for a whole case.
        confidence: for ranking within severity and kind, larger first.
        mask: ``lungs`` or ``infiltrate``, the mask the finding is about; empty for the scan.
        where: (n, 3) voxel indices (i, j, k) RAS+, while the case is at hand.
        other: the case it is a copy of, for duplicates.
    """

    case: str
    kind: str
    severity: Severity
    detail: str
    slice: int | None = None
    voxels: int = 0
    volume_ml: float | None = None
    centre_mm: tuple[float, float, float] | None = None
    confidence: float = 0.0
    mask: str = ""
    where: NDArray[np.int32] | None = field(default=None, repr=False)
    other: str = ""

    def row(self) -> dict[str, object]:
        """The row of ``findings.csv``; cells that do not apply are empty."""
        x, y, z = ("", "", "") if self.centre_mm is None else (f"{c:.2f}" for c in self.centre_mm)
        return {
            "case": self.case,
            "slice": "" if self.slice is None else self.slice,
            "kind": self.kind,
            "voxels": self.voxels,
            "volume_ml": "" if self.volume_ml is None else f"{self.volume_ml:.4f}",
            "x": x,
            "y": y,
            "z": z,
            "severity": self.severity,
            "detail": self.detail,
        }


def spotted(
    case: str,
    kind: str,
    severity: Severity,
    detail: str,
    where: NDArray[np.integer],
    grid: Grid,
    *,
    sized: bool = True,
    mask: str = "infiltrate",
    confidence: float | None = None,
) -> AuditFinding:
    """A finding about voxels: slice, volume and centre are worked out from them.

    Args:
        case: its name.
        kind: key of `KINDS`.
        severity: see `AuditFinding`.
        detail: one sentence.
        where: (n, 3) voxel indices, n at least 1.
        grid: RAS+ grid of the scan.
        sized: whether the grid's millimetres are real; if not, volume and centre stay open.
        mask: the mask concerned.
        confidence: for ranking; by default the number of voxels.
    """
    middle = where.mean(axis=0)
    x, y, z = (float(c) for c in grid.world(middle))
    return AuditFinding(
        case, kind, severity, detail,
        slice=int(np.bincount(where[:, 2]).argmax()),
        voxels=len(where),
        volume_ml=len(where) * grid.voxel_volume_ml if sized else None,
        centre_mm=(x, y, z) if sized else None,
        confidence=float(len(where)) if confidence is None else confidence,
        mask=mask,
        where=where.astype(np.int32),
    )  # fmt: skip


def ranked(findings: Iterable[AuditFinding]) -> list[AuditFinding]:
    """Errors first; then by kind in the order of `KINDS`, the surest or largest first."""
    kinds = list(KINDS)
    return sorted(
        findings, key=lambda f: (_ORDER.index(f.severity), kinds.index(f.kind), -f.confidence, f.case, f.slice or 0)
    )


def findings_csv(findings: Iterable[AuditFinding]) -> str:
    """The table as text, in the order given; a header alone when there are none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(finding.row() for finding in findings)
    return text.getvalue()
