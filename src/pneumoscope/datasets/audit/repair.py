"""Safe repairs of masks: what is removed or relabelled, with every voxel that changes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.audit.anatomy import look
from pneumoscope.datasets.audit.case import Judged, judge_case
from pneumoscope.datasets.audit.findings import AuditFinding
from pneumoscope.datasets.audit.raw import RawCase, RawMask
from pneumoscope.datasets.audit.rules import REPAIRS, AuditRules
from pneumoscope.geometry import Grid
from pneumoscope.volume import RAS

MAX_ROUNDS = 6
"""What a repair leaves may be a speck itself; after so many rounds what is left is reported, not repaired."""

NOT_CARRIED = "not-carried"
"""Kind of a change that is no repair: a declared label (pleural effusion, say) that the copy has no number for."""


@dataclass(frozen=True, eq=False)
class Change:
    """Voxels of one mask that one repair changes.

    Attributes:
        mask: ``lungs`` or ``infiltrate``.
        kind: of the finding that is mended, or `NOT_CARRIED`.
        where: (n, 3) voxel indices (i, j, k), RAS+.
        before: (n,) label on disk.
        after: (n,) label in the copy.
    """

    mask: str
    kind: str
    where: NDArray[np.integer]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Repaired:
    """A case's masks after repair, in the labels used here (lungs 1 = right, 2 = left; infiltrate 1 and 2).

    Attributes:
        lungs, infiltrate: (i, j, k) uint8, None where there is none to write.
        changes: every voxel that differs from the originals, in the order of the repairs.
        left: findings about the repaired masks that were not mended.
    """

    lungs: NDArray[np.uint8] | None
    infiltrate: NDArray[np.uint8] | None
    changes: list[Change] = field(default_factory=list)
    left: list[AuditFinding] = field(default_factory=list)


def is_repairable(
    finding: AuditFinding, kinds: Collection[str], raw: RawCase, judged: Judged, rules: AuditRules
) -> bool:
    """Whether `--fix` mends this finding: a kind that is wanted, and a repair that takes nothing real away.

    Infiltrate is removed by its place only where a lung mask or a model says where lung is, not by guess; an
    undeclared label only when it is a trace.
    """
    if finding.kind not in kinds or finding.kind not in REPAIRS or finding.where is None:
        return False
    if finding.kind in ("outside-lung", "no-lung-slice"):
        return judged.lungs is not None
    if finding.kind == "undeclared-label":
        mask = raw.lungs if finding.mask == "lungs" else raw.infiltrate
        assert mask is not None
        return finding.voxels <= rules.stray_label_share * int(np.count_nonzero(mask.labels))
    return True


def repair_case(
    raw: RawCase,
    kinds: Collection[str] = REPAIRS,
    rules: AuditRules | None = None,
    *,
    lungs: NDArray[np.uint8] | None = None,
    stacked: bool = True,
) -> Repaired:
    """Repair the masks of a case in memory; nothing on disk is touched.

    Args:
        raw: the case as read; its arrays are not changed.
        kinds: kinds to mend, of `REPAIRS`.
        rules: thresholds.
        lungs: lungs found by a model, as for `judge_case`.
        stacked: as for `judge_case`.
    """
    rules = rules or AuditRules()
    anatomy = look(raw.volume) if raw.hounsfield else None
    now = raw
    repairs: list[Change] = []
    judged = judge_case(now, rules, lungs=lungs, anatomy=anatomy, stacked=stacked)
    for _ in range(MAX_ROUNDS):
        mend = [f for f in judged.findings if is_repairable(f, kinds, now, judged, rules)]
        if not mend:
            break
        for finding in mend:
            now, change = _mended(now, finding)
            repairs.append(change)
        judged = judge_case(now, rules, lungs=lungs, anatomy=anatomy, stacked=stacked)
    out = {what: _house(getattr(now, what), what, judged, repairs) for what in ("lungs", "infiltrate")}
    return Repaired(out["lungs"], out["infiltrate"], repairs, judged.findings)


def _mended(raw: RawCase, finding: AuditFinding) -> tuple[RawCase, Change]:
    """The case with one finding mended, and what that changed."""
    mask = raw.lungs if finding.mask == "lungs" else raw.infiltrate
    assert mask is not None
    assert finding.where is not None
    labels = mask.labels.copy()
    at = tuple(finding.where.T)
    before = labels[at]
    if finding.kind == "swapped-sides":
        disk = {here: label for label, here in mask.meaning.items()}
        table = np.arange(256, dtype=np.uint8)
        table[[disk[1], disk[2]]] = disk[2], disk[1]
        labels[at] = table[before]
    else:
        labels[at] = 0
    house = np.zeros(256, np.uint8)
    for label, here in mask.meaning.items():
        house[label] = here
    change = Change(finding.mask, finding.kind, finding.where, before, house[labels[at]])
    mended = mask.relabelled(labels)
    return (replace(raw, lungs=mended) if finding.mask == "lungs" else replace(raw, infiltrate=mended)), change


def _house(mask: RawMask | None, what: str, judged: Judged, changes: list[Change]) -> NDArray[np.uint8] | None:
    """The labels to write; what has no number here is listed as not carried. None when the mask is off its scan."""
    off = any(f.mask == what and f.kind == "grid-differs" for f in judged.findings)
    if mask is None or off:
        return None
    house = mask.house()
    where = np.argwhere((mask.labels > 0) & (house == 0))
    if len(where):
        before = mask.labels[tuple(where.T)]
        changes.append(Change(what, NOT_CARRIED, where, before, np.zeros(len(where), np.uint8)))
    return house


def file_index(where: NDArray[np.integer], native: Grid) -> NDArray[np.integer]:
    """RAS+ voxel indices (n, 3) as indices in the axis order of a file.

    Args:
        where: indices into the RAS+ array.
        native: the file's grid.
    """
    order, flips = native.reorientation(RAS)
    out = np.empty_like(where)
    for new, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        out[:, axis] = native.shape[axis] - 1 - where[:, new] if flip else where[:, new]
    return out
