"""All that is judged about one case: grids, labels, lungs, infiltrate, and where reader and model differ.

A difference says that two opinions differ, not who is right (Maganaris 2022a, section on faults and figure 7: only a
second radiologist can tell).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope import components
from pneumoscope.datasets.audit.anatomy import Anatomy, look, lung_fit, lung_sides
from pneumoscope.datasets.audit.infiltrate import Scene, infiltrate_fit, infiltrate_pieces
from pneumoscope.datasets.audit.rules import AuditFinding, AuditRules, spotted
from pneumoscope.datasets.case import Case
from pneumoscope.errors import PneumoscopeError, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.masks import fit_mask, labels_of
from pneumoscope.io.read import read_stored_mask, read_volume
from pneumoscope.io.stored import laid_out
from pneumoscope.volume import Mask, Volume, array_to_native, present_labels, relabelled

NOT_HU, NO_SIZE = "IN-SET-131", "IN-SET-132"
"""Codes by which readers of pictures say that values are no Hounsfield units, and that millimetres are made up."""

EVERY_LABEL = {n: f"label {n}" for n in range(1, 256)}


@dataclass(frozen=True, eq=False)
class RawMask:
    """Labels as stored, turned to RAS+."""

    labels: NDArray[np.uint8]  # (i, j, k) uint8 as on disk
    grid: Grid  # RAS+ grid of `labels`
    native: Grid  # the file's own grid
    meaning: Mapping[int, int]  # label on disk -> label here
    declared: frozenset[int]  # labels of the file that are known to mean something, here or elsewhere
    path: Path | None = None  # the file, None where the mask is no file

    def house(self) -> NDArray[np.uint8]:
        """The labels as they are called here; everything else 0."""
        return relabelled(self.labels, self.meaning)

    def on(self, grid: Grid, what: str) -> Mask:
        """The mask on its scan's grid, labels as on disk.

        Raises:
            ReadError: it lies elsewhere.
        """
        return fit_mask(Mask(self.labels, self.grid, EVERY_LABEL), grid, what=what)


@dataclass(frozen=True, eq=False)
class RawCase:
    """One case read for the audit, one at a time in memory."""

    case: Case  # what the reader says of it
    volume: Volume  # the scan
    # its masks; None where there is none, or where it could not be read
    lungs: RawMask | None = None
    infiltrate: RawMask | None = None
    hounsfield: bool = True  # whether densities can be judged; `why_not` says why not
    why_not: str = ""
    sized: bool = True  # whether the millimetres of the grid are real (8-bit slices have none)
    problems: tuple[tuple[str, str], ...] = field(default=())  # (mask, message) of masks that could not be read

    @property
    def one_file(self) -> bool:
        """Whether lungs and infiltrate are labels of one file."""
        files = self.case.files
        return files is not None and files.lungs is not None and files.lungs == files.infiltrate


def read_raw(case: Case) -> RawCase:
    """Read a case for the audit.

    With `Case.files` the files are read as they lie; without (contours, pictures) the reader's own loading is used, and
    what it corrects is not seen. A scan that is not in Hounsfield units is read all the same.

    Raises:
        PneumoscopeError: the scan cannot be read.
    """
    if case.files is None or case.files.part is not None:
        return _loaded(case)
    volume, why_not = _volume(case)
    problems: list[tuple[str, str]] = []
    masks: dict[str, RawMask | None] = {"lungs": None, "infiltrate": None}
    files = case.files
    shared = files.lungs is not None and files.lungs == files.infiltrate
    both = frozenset(files.lung_labels) | frozenset(files.infiltrate_labels)
    for what, path, meaning in (
        ("lungs", files.lungs, files.lung_labels),
        ("infiltrate", files.infiltrate, files.infiltrate_labels),
    ):
        if path is None:
            continue
        try:
            labels, native = stored_labels(path)
        except PneumoscopeError as problem:
            problems.append((what, str(problem)))
            continue
        native = files.corrected_grid(native)
        declared = (both if shared else frozenset(meaning)) | files.ignored_labels
        turned = Mask.from_native(labels, native, EVERY_LABEL)
        masks[what] = RawMask(turned.labels, turned.grid, native, dict(meaning), declared, path)
    return RawCase(case, volume, masks["lungs"], masks["infiltrate"], not why_not, why_not, True, tuple(problems))


def _loaded(case: Case) -> RawCase:
    scan = case.load()
    codes = {finding.code for finding in scan.volume.findings}
    sized, hounsfield = NO_SIZE not in codes, NOT_HU not in codes
    why_not = "" if hounsfield else "8-bit pictures hold no Hounsfield units"

    def raw(mask: Mask | None) -> RawMask | None:
        if mask is None:
            return None
        meaning = {n: n for n in mask.names}
        return RawMask(mask.labels, mask.grid, scan.volume.native, meaning, frozenset(meaning))

    return RawCase(case, scan.volume, raw(scan.lungs), raw(scan.infiltrate), hounsfield, why_not, sized)


def _volume(case: Case) -> tuple[Volume, str]:
    """The scan where it lies in truth, and why its values are no Hounsfield units if they are not."""
    assert case.files is not None
    path, why_not = case.files.image, ""
    try:
        volume = read_volume(path, case=case.case)
    except ReadError as problem:
        if not (problem.code or "").endswith("-067"):
            raise
        volume, why_not = read_volume(path, case=case.case, intensity="hu"), problem.message.split(";")[0]
    true = case.files.corrected_grid(volume.native)
    if true == volume.native:
        return volume, why_not
    return Volume.from_native(
        array_to_native(volume.hu, volume.native), true, case=volume.case, findings=volume.findings
    ), why_not


def stored_labels(path: Path) -> tuple[NDArray[np.uint8], Grid]:
    """Every label of a file in stored order, whatever names the file itself gives them."""
    stored = read_stored_mask(path)
    return laid_out(labels_of(stored, None, {}, path), stored.grid, np.uint8), stored.grid


LEAST_SLICES = 3  # Fewer are no volume whose masks could be held against the anatomy of a chest


@dataclass(frozen=True, eq=False)
class Judged:
    """What came of one case."""

    findings: list[AuditFinding]  # unranked, with their voxels
    not_judged: dict[str, str] = field(default_factory=dict)  # rule -> why it was left out; never silently
    lungs: NDArray[np.uint8] | None = None  # (i, j, k) labels 1 and 2 that later steps may trust, or None
    infiltrate: NDArray[np.uint8] | None = None  # (i, j, k) labels likewise, or None


def judge_case(
    raw: RawCase,
    rules: AuditRules | None = None,
    *,
    lungs: NDArray[np.uint8] | None = None,
    anatomy: Anatomy | None = None,
    stacked: bool = True,
) -> Judged:
    """Judge one case by itself.

    A fault of a whole mask (another grid, mirrored, of another scan) is reported once, and the mask's pieces are not
    judged then: they would all be wrong for the same reason.

    Args:
        lungs: (i, j, k) lungs found by a model, used where the case has no lung mask that can be trusted.
        anatomy: what `look` gave for this scan, when it is known.
        stacked: whether neighbouring slices are neighbours in the body.
    """
    rules = rules or AuditRules()
    case = raw.case.case
    out = Judged([], {})
    if raw.hounsfield:
        anatomy = look(raw.volume) if anatomy is None else anatomy
    else:
        anatomy = None
        for rule in ("in-air", "in-bone", "foreign-mask", "empty-lungs by density"):
            out.not_judged[rule] = raw.why_not
        if raw.sized:
            detail = f"{raw.why_not}; densities were not judged"
            out.findings.append(AuditFinding(case, "not-hu", "warning", detail))
    for what, problem in raw.problems:
        out.findings.append(AuditFinding(case, "unreadable", "error", problem, mask=what))
    own = _lungs(raw, anatomy, rules, stacked, out)
    if own is not None and raw.one_file:
        out.not_judged["outside-lung by the mask"] = "one file holds both: infiltrate is cut out of its lung"
        own = None
    known = own if own is not None else lungs
    drawn = _on_scan(raw, raw.infiltrate, "infiltrate", out)
    if drawn is not None:
        _infiltrate(raw, drawn, known, anatomy, rules, stacked, out)
    elif raw.infiltrate is None and not raw.problems:
        out.not_judged["infiltrate"] = "no infiltrate mask"
    return Judged(out.findings, out.not_judged, known, drawn)


def _lungs(
    raw: RawCase, anatomy: Anatomy | None, rules: AuditRules, stacked: bool, out: Judged
) -> NDArray[np.uint8] | None:
    """Findings about the lung mask; its labels when they can be trusted to say where lung is."""
    labels = _on_scan(raw, raw.lungs, "lungs", out)
    if labels is None:
        if raw.lungs is None and not any(what == "lungs" for what, _ in raw.problems):
            out.not_judged["lungs"] = "no lung mask"
        return None
    if raw.volume.grid.shape[2] < LEAST_SLICES:
        out.not_judged["mirrored, foreign and empty masks"] = "single slices: too little to tell"
    whole = lung_fit(raw.case.case, labels > 0, anatomy, rules) if raw.volume.grid.shape[2] >= LEAST_SLICES else []
    if anatomy is None or anatomy.lung_ml < rules.least_lung_ml:
        out.not_judged["mirrored lung mask"] = raw.why_not or "no aerated lung is seen on the scan"
    out.findings.extend(whole)
    if whole:
        return None
    if len(present_labels(labels)) > 1:
        out.findings.extend(lung_sides(raw.case.case, labels, raw.volume.grid, sized=raw.sized, rows_are_body=stacked))
    else:
        out.not_judged["swapped-sides"] = "the lung mask does not tell sides"
    assert raw.lungs is not None
    unknown = ~np.isin(np.arange(256), [0, *raw.lungs.declared])
    return np.where((labels == 0) & unknown[raw.lungs.labels], np.uint8(1), labels)  # marked as lung, somehow


def _infiltrate(
    raw: RawCase, labels: NDArray[np.uint8], lungs: NDArray[np.uint8] | None, anatomy: Anatomy | None,
    rules: AuditRules, stacked: bool, out: Judged,
) -> None:  # fmt: skip
    drawn = labels > 0
    if not drawn.any():
        out.not_judged["infiltrate"] = "the infiltrate mask marks nothing"
    scene = Scene(raw.volume, None if lungs is None else lungs > 0, anatomy, raw.sized, stacked)
    if scene.lung is None and scene.guess is None:
        out.not_judged["outside-lung, no-lung-slice"] = "no lung mask, and none can be guessed"
    elif scene.lung is None:
        out.not_judged["outside-lung within 15 mm"] = "no lung mask; lung was guessed from density"
    if not (raw.sized and stacked):
        out.not_judged["single-slice"] = "slices are no gapless stack"
    if raw.sized and rules.speck_ml < 3 * raw.volume.grid.voxel_volume_ml:
        limit = rules.speck_ml / 3
        out.not_judged["speck inside the lung"] = f"voxels above {limit:.3f} ml: a few of them may be a real lesion"
    few = raw.volume.grid.shape[2] < LEAST_SLICES
    if few:
        out.not_judged["mirrored, foreign and empty masks"] = "single slices: too little to tell"
    whole = [] if few else infiltrate_fit(raw.case.case, drawn, scene, rules)
    out.findings.extend(whole)
    if not whole:
        out.findings.extend(infiltrate_pieces(raw.case.case, drawn, scene, rules))


def _on_scan(raw: RawCase, mask: RawMask | None, what: str, out: Judged) -> NDArray[np.uint8] | None:
    """House labels of a mask that lies on its scan, with its undeclared labels reported; None when it does not."""
    if mask is None:
        return None
    try:
        mask.on(raw.volume.grid, f"the {what} mask")
    except ReadError as problem:
        detail = problem.message.split(";")[0]
        out.findings.append(AuditFinding(raw.case.case, "grid-differs", "error", detail, mask=what))
        return None
    present = present_labels(mask.labels)
    marked = int(np.count_nonzero(mask.labels))
    for label in (n for n in present if n not in mask.declared):
        where = np.argwhere(mask.labels == label)
        known = ", ".join(str(n) for n in sorted(mask.declared)) or "none"
        detail = f"label {label} in the {what} mask, declared are {known}; {len(where) / marked:.1%} of what is marked"
        name, grid = raw.case.case, raw.volume.grid
        finding = spotted(name, "undeclared-label", "error", detail, where, grid, sized=raw.sized)
        out.findings.append(replace(finding, mask=what))
    return mask.house()


def differences(
    case: str,
    drawn: NDArray[np.bool_],
    found: NDArray[np.bool_],
    probability: NDArray[np.uint8],
    lung: NDArray[np.bool_],
    grid: Grid,
    rules: AuditRules,
) -> Iterator[AuditFinding]:
    """Differences between reader and model, the surest first after ranking.

    Args:
        drawn: (i, j, k) what the reader annotated.
        found: (i, j, k) what the model found.
        probability: (i, j, k) the model's probability times 255, 0 outside the lungs.
        lung: (i, j, k) where the model was asked; what was drawn elsewhere is not compared.
    """
    voxel_ml = grid.voxel_volume_ml
    near = drawn
    for axis, step in enumerate(grid.spacing_mm):
        width = 2 * max(1, round(rules.crumb_mm / step)) + 1
        near = ndimage.maximum_filter1d(near.view(np.uint8), width, axis=axis, mode="constant").view(bool)
    for where in components.each(found, rules.region_ml / voxel_ml):
        if near[tuple(where.T)].any():
            continue
        sure = float(probability[tuple(where.T)].mean()) / 255
        if sure >= rules.sure and _depth_mm(where, grid) >= rules.region_depth_mm:
            ml = len(where) * voxel_ml
            nothing = f"nothing is drawn within {rules.crumb_mm:.0f} mm"
            detail = f"the model is {sure:.0%} sure of {ml:.1f} ml of infiltrate, {nothing}"
            yield replace(spotted(case, "missing-annotation", "warning", detail, where, grid), confidence=sure)
    for where in components.each(drawn, rules.region_ml / voxel_ml):
        asked = lung[tuple(where.T)]
        highest = float(probability[tuple(where.T)].max()) / 255
        if highest < rules.unseen and asked.mean() > 0.5:
            ml = len(where) * voxel_ml
            detail = f"a drawn lesion of {ml:.1f} ml in which the model's probability stays below {highest:.0%}"
            yield replace(spotted(case, "unseen-lesion", "note", detail, where, grid), confidence=1 - highest)


def _depth_mm(where: NDArray[np.integer], grid: Grid) -> float:
    """How far the innermost voxel of a region lies from its outline, within its slice."""
    low = where.min(axis=0) - 1
    block = np.zeros(where.max(axis=0) - low + 2, bool)
    block[tuple((where - low).T)] = True
    x_mm, y_mm, _ = grid.spacing_mm
    flat = (ndimage.distance_transform_edt(block[:, :, k], (x_mm, y_mm)).max() for k in range(block.shape[2]))
    return float(max(flat))
