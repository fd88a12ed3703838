"""Safe repairs of masks: what is removed or relabelled, with every voxel that changes."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.audit.anatomy import look
from pneumoscope.datasets.audit.case import Judged, RawCase, RawMask, judge_case
from pneumoscope.datasets.audit.rules import REPAIRS, AuditFinding, AuditRules
from pneumoscope.datasets.case import Case
from pneumoscope.datasets.convert import write_values
from pneumoscope.errors import InputError, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import atomic_path
from pneumoscope.io.formats.nrrd_metaimage import save_nrrd
from pneumoscope.io.kinds import kind_of, suffix_of
from pneumoscope.io.read import read_stored
from pneumoscope.io.scans import MANIFEST_COLUMNS
from pneumoscope.io.write import write_mask
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, RAS, Mask, relabelled

MAX_ROUNDS = 6
"""What a repair leaves may be a speck itself; after so many rounds what is left is reported, not repaired."""

NOT_CARRIED = "not-carried"
"""Kind of a change that is no repair: a declared label (pleural effusion, say) that the copy has no number for."""


@dataclass(frozen=True, eq=False)
class Change:
    """Voxels of one mask that one repair changes."""

    mask: str  # ``lungs`` or ``infiltrate``
    kind: str  # of the finding that is repaired, or `NOT_CARRIED`
    where: NDArray[np.integer]  # (n, 3) voxel indices (i, j, k), RAS+
    before: NDArray[np.uint8]  # (n,) label on disk
    after: NDArray[np.uint8]  # (n,) label in the copy


@dataclass(frozen=True, eq=False)
class Repaired:
    """A case's masks after repair, in the labels used here (lungs 1 = right, 2 = left; infiltrate 1 and 2)."""

    # (i, j, k) uint8, None where there is none to write
    lungs: NDArray[np.uint8] | None
    infiltrate: NDArray[np.uint8] | None
    # every voxel that differs from the originals, in the order of the repairs
    changes: list[Change] = field(default_factory=list)
    left: list[AuditFinding] = field(default_factory=list)  # findings about the repaired masks that were not repaired


def is_repairable(
    finding: AuditFinding, kinds: Collection[str], raw: RawCase, judged: Judged, rules: AuditRules
) -> bool:
    """Whether `--fix` repairs this finding: a kind that is wanted, and a repair that takes nothing real away.

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
    """Repair the masks of a case in memory; neither its arrays nor anything on disk is changed."""
    rules = rules or AuditRules()
    anatomy = look(raw.volume) if raw.hounsfield else None
    now = raw
    repairs: list[Change] = []
    judged = judge_case(now, rules, lungs=lungs, anatomy=anatomy, stacked=stacked)
    for _ in range(MAX_ROUNDS):
        repairable = [f for f in judged.findings if is_repairable(f, kinds, now, judged, rules)]
        if not repairable:
            break
        for finding in repairable:
            now, change = _with_repair(now, finding)
            repairs.append(change)
        judged = judge_case(now, rules, lungs=lungs, anatomy=anatomy, stacked=stacked)
    out = {what: _house(getattr(now, what), what, judged, repairs) for what in ("lungs", "infiltrate")}
    return Repaired(out["lungs"], out["infiltrate"], repairs, judged.findings)


def _with_repair(raw: RawCase, finding: AuditFinding) -> tuple[RawCase, Change]:
    """The case with one finding repaired, and what that changed."""
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
    change = Change(finding.mask, finding.kind, finding.where, before, relabelled(labels[at], mask.meaning))
    repaired = replace(mask, labels=labels)
    return (replace(raw, lungs=repaired) if finding.mask == "lungs" else replace(raw, infiltrate=repaired)), change


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
    """RAS+ voxel indices (n, 3) as indices in the axis order of a file."""
    order, flips = native.reorientation(RAS)
    out = np.empty_like(where)
    for new, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        out[:, axis] = native.shape[axis] - 1 - where[:, new] if flip else where[:, new]
    return out


TABLE = "manifest.csv"
CHANGES = "changes.csv"
CHANGE_COLUMNS = ("case", "mask", "i", "j", "k", "x", "y", "z", "from", "to", "kind")
_CHUNK = 100_000


def require_apart(copy: Path, roots: Iterable[Path]) -> None:
    """Refuse a folder for the copy that lies in a dataset or around one: originals are never touched.

    Raises:
        InputError: it does.
    """
    target = copy.resolve()
    for root in roots:
        home = root.resolve() if root.is_dir() else root.resolve().parent
        if target == home or target in home.parents or home in target.parents:
            raise InputError(f"lies in or around the dataset {root}; choose a folder beside it", path=copy)


def write_case(folder: Path, raw: RawCase, repaired: Repaired, name: str) -> dict[str, Any]:
    """Write one case of the copy under the file name `name`: the image unchanged, the masks as repaired.

    Returns:
        Its row of the manifest.
    """
    case = raw.case
    row: dict[str, Any] = dict.fromkeys(MANIFEST_COLUMNS, "")
    row |= {"case": name, "patient": case.patient, "date": case.date, "source": case.source}
    row["image"] = _image(folder, case, raw, name)
    for what, labels in (("lungs", repaired.lungs), ("infiltrate", repaired.infiltrate)):
        if labels is not None:
            row[what] = f"{what}/{name}.nii.gz"
            names = LUNG_LABELS if what == "lungs" else INFILTRATE_LABELS if (labels == 2).any() else INFILTRATE_LABEL
            write_mask(Mask(labels, raw.volume.grid, dict(names)), folder / row[what], raw.volume.native)
    return row


def _image(folder: Path, case: Case, raw: RawCase, name: str) -> str:
    """Path within the copy. A header that is known to be wrong, or values the reader must turn, are written right."""
    rewrite = case.files is None or case.files.mirrored or case.files.stored_axes or case.files.part is not None
    if rewrite or not raw.hounsfield:
        try:
            write_values(case.load().volume, folder / f"images/{name}.nii.gz")
            return f"images/{name}.nii.gz"
        except ReadError:  # the reader refuses what is no Hounsfield unit: the copy keeps it as it is
            if rewrite:
                raise
    assert case.files is not None
    return f"images/{_duplicate(case.files.image, folder / 'images', name)}"


def _duplicate(source: Path, folder: Path, name: str) -> str:
    """Copy a scan as it is stored, sharing no byte with the source; gives its name in `folder`.

    A folder is copied whole. A MetaImage, whose header may name other files, becomes one NRRD file of the same voxels.
    """
    if source.is_dir():
        shutil.rmtree(folder / name, ignore_errors=True)  # no slice of an earlier copy stays between the new ones
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            target = folder / name / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return name
    if kind_of(source) == "metaimage":
        stored = read_stored(source, "metaimage")
        save_nrrd(stored.array, stored.grid, folder / f"{name}.nrrd")
        return f"{name}.nrrd"
    with atomic_path(folder / f"{name}{suffix_of(source)}") as temporary:
        shutil.copyfile(source, temporary)
    return f"{name}{suffix_of(source)}"


def change_rows(raw: RawCase, repaired: Repaired) -> Iterator[str]:
    """Lines of ``changes.csv``, in pieces: one line per voxel and repair, indices in the order of the mask's own file.

    A voxel that two repairs touch one after the other stands there twice, in that order.
    """
    for change in repaired.changes:
        mask = raw.lungs if change.mask == "lungs" else raw.infiltrate
        assert mask is not None
        for start in range(0, len(change.where), _CHUNK):
            where = change.where[start : start + _CHUNK]
            index = file_index(where, mask.native)
            places = np.char.mod("%.2f", mask.grid.world(where))
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            columns = zip(
                index.tolist(), places.tolist(), change.before[start : start + _CHUNK].tolist(),
                change.after[start : start + _CHUNK].tolist(), strict=True,
            )  # fmt: skip
            writer.writerows(
                (raw.case.case, change.mask, *ijk, *xyz, before, after, change.kind)
                for ijk, xyz, before, after in columns
            )
            yield text.getvalue()


def write_head(stream: TextIO) -> None:
    """The head of ``changes.csv``."""
    stream.write(",".join(CHANGE_COLUMNS) + "\n")


def summary(repaired: Repaired) -> dict[str, int]:
    """Voxels changed by kind; `NOT_CARRIED` counts labels that the copy has no number for."""
    out: dict[str, int] = {}
    for change in repaired.changes:
        out[change.kind] = out.get(change.kind, 0) + len(change.where)
    return dict(sorted(out.items(), key=lambda item: (item[0] == NOT_CARRIED, item[0])))
