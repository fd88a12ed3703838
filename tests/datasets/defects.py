"""Annotation faults planted into clean synthetic scans, each in a case of its own, with what must be found.

`plant` writes a dataset as a manifest with one fault per case; `score` holds the findings of an audit against what
was planted. A finding counts as right only for the planted case, of the expected kind and, where the fault has a place,
with its centre within a voxel and a half of it along each axis. Everything else that is reported is wrong, in planted
cases too: a mirrored mask that also brings ten findings of infiltrate outside the lung is one right finding and ten
wrong ones. Findings of severity note count like all others.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from pneumoscope.datasets.audit.rules import AuditFinding
from pneumoscope.datasets.phantom.folder import PhantomScan, scan_patient
from pneumoscope.geometry import Grid
from pneumoscope.io.formats.nifti import FAST_LEVEL, save_nifti
from pneumoscope.volume import Volume, array_to_native

COLUMNS = ("case", "image", "lungs", "infiltrate", "patient", "source")


class NoRoom(Exception):
    """A fault that cannot be planted into this patient."""


@dataclass(eq=False)
class Draft:
    """One case before it is written: arrays (i, j, k) RAS+ that a defect may change."""

    case: str
    volume: Volume
    hu: np.ndarray
    lungs: np.ndarray | None
    infiltrate: np.ndarray
    exact_lungs: np.ndarray
    patient: str
    source: str
    rng: np.random.Generator
    native: Grid = field(init=False)
    mask_native: Grid = field(init=False)
    lungs_native: Grid = field(init=False)

    def __post_init__(self) -> None:
        self.native = self.mask_native = self.lungs_native = self.volume.native


@dataclass(frozen=True)
class Planted:
    """What an audit must report: the case, the kind and, where it has one, the place (voxel, RAS+) in mm."""

    case: str
    defect: str
    kind: str
    centre_mm: tuple[float, float, float] | None = None
    step_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Score:
    """How an audit did: found of planted, and what was reported beside."""

    planted: int
    found: tuple[Planted, ...]
    missed: tuple[Planted, ...]
    wrong: tuple[AuditFinding, ...]

    @property
    def recall(self) -> float:
        return len(self.found) / self.planted if self.planted else 1.0

    @property
    def precision(self) -> float:
        reported = len(self.found) + len(self.wrong)
        return len(self.found) / reported if reported else 1.0


def score(planted: Iterable[Planted], findings: Iterable[AuditFinding]) -> Score:
    """Match findings and faults one to one, by the rule of this module."""
    left, found, missed = list(findings), [], []
    wanted = list(planted)
    for fault in wanted:
        match = next((f for f in left if _fits(fault, f)), None)
        (missed if match is None else found).append(fault)
        if match is not None:
            left.remove(match)
    return Score(len(wanted), tuple(found), tuple(missed), tuple(left))


def _fits(fault: Planted, finding: AuditFinding) -> bool:
    if (finding.case, finding.kind) != (fault.case, fault.kind):
        return False
    if fault.centre_mm is None:
        return True
    if finding.centre_mm is None:
        return False
    off = np.abs(np.subtract(finding.centre_mm, fault.centre_mm)) / fault.step_mm  # voxels; the grids stand upright
    return bool(off.max() <= 1.5)


def clean(site: str, number: int, size: str, seed: int) -> PhantomScan:
    """The n-th patient of a site without planted faults: `scan_patient` plants into every third and fourth."""
    made = scan_patient(site, number // 2 * 4 + number % 2, seed=seed, size=size)
    assert made.faults == ()
    return made


# --- defects: each changes a draft and says what must be found -------------------------------------------------------


def _at(draft: Draft, where: np.ndarray, defect: str, kind: str) -> Planted:
    x, y, z = (float(c) for c in draft.volume.grid.world(where.mean(axis=0)))
    return Planted(draft.case, defect, kind, (x, y, z), draft.volume.grid.spacing_mm)


def _blob(draft: Draft, allowed: np.ndarray, radius_mm: float, k: int | None = None) -> np.ndarray:
    """Voxels (n, 3) of a disc that lies wholly in `allowed`, on one slice, away from drawn infiltrate."""
    x_mm, y_mm, _ = draft.volume.grid.spacing_mm
    ri, rj = max(1, round(radius_mm / x_mm)), max(1, round(radius_mm / y_mm))
    a, b = np.ogrid[-ri : ri + 1, -rj : rj + 1]
    disc = (a / ri) ** 2 + (b / rj) ** 2 <= 1.01
    slices = [k] if k is not None else draft.rng.permutation(allowed.shape[2])
    near = ndimage.binary_dilation(draft.infiltrate > 0, iterations=2)
    for n in slices:
        fits = ndimage.binary_erosion(allowed[:, :, n] & ~near[:, :, n], disc)
        places = np.argwhere(fits)
        if len(places):
            i, j = places[int(draft.rng.integers(len(places)))]
            inside = np.argwhere(disc) + np.array([i - ri, j - rj])
            return np.column_stack([inside, np.full(len(inside), n)])
    raise NoRoom(f"no room for a blob of {radius_mm} mm in {draft.case}")


def _tissue(draft: Draft) -> np.ndarray:
    """Soft tissue of the body, 20 mm and more away from lung, on slices that show lung."""
    x_mm, y_mm, _ = draft.volume.grid.spacing_mm
    lung = draft.exact_lungs > 0
    away = np.stack(
        [ndimage.distance_transform_edt(~lung[:, :, k], (x_mm, y_mm)) for k in range(lung.shape[2])], axis=2
    )
    smooth = ndimage.uniform_filter(draft.hu, (3, 3, 1))
    return (smooth > -150) & (smooth < 120) & (away > 20) & lung.any(axis=(0, 1)) & _inner(lung)


def _inner(lung: np.ndarray) -> np.ndarray:
    """Slices whose neighbours show lung as well."""
    shows = lung.any(axis=(0, 1))
    both = np.zeros_like(shows)
    both[1:-1] = shows[1:-1] & shows[:-2] & shows[2:]
    return both


def speck(draft: Draft) -> Planted:
    """Three voxels in a row in the chest wall (Maganaris 2022b, figure 4, area 1)."""
    room = _tissue(draft) & (draft.infiltrate == 0)
    room[1:-1] &= room[:-2] & room[2:]
    room[[0, -1]] = False
    i, j, k = np.argwhere(room)[int(draft.rng.integers(np.count_nonzero(room)))]
    where = np.array([[i - 1, j, k], [i, j, k], [i + 1, j, k]])
    draft.infiltrate[tuple(where.T)] = 1
    return _at(draft, where, "three voxels in the chest wall", "speck")


def no_lung(draft: Draft) -> Planted:
    """A blot on a slice of the belly or the neck (figure 4, area 2)."""
    shows = draft.exact_lungs.any(axis=(0, 1))
    grown = shows.copy()
    grown[1:] |= shows[:-1]
    grown[:-1] |= shows[1:]
    free = np.flatnonzero(~grown) if (~grown).any() else np.flatnonzero(~shows)
    if len(free) == 0:
        raise NoRoom(f"every slice of {draft.case} shows lung")
    body = ndimage.uniform_filter(draft.hu, (3, 3, 1)) > -150
    where = _blob(draft, body, 9.0, int(free[0]))
    draft.infiltrate[tuple(where.T)] = 1
    return _at(draft, where, "a blot on a slice without lung", "no-lung-slice")


def outside(draft: Draft) -> Planted:
    """A lesion in the muscle of the chest wall or in the belly."""
    where = _blob(draft, _tissue(draft), max(9.0, 2.05 * max(draft.volume.grid.spacing_mm[:2])))
    draft.infiltrate[tuple(where.T)] = 1
    return _at(draft, where, "a lesion in soft tissue", "outside-lung")


def in_air(draft: Draft) -> Planted:
    """A lesion beside the patient."""
    air = ndimage.maximum_filter(draft.hu, (3, 3, 1)) < -850
    labelled, _ = ndimage.label(air)
    rim = np.unique(labelled[[0, -1]])
    room = np.isin(labelled, rim[rim > 0]) & _inner(draft.exact_lungs > 0)
    where = _blob(draft, room, max(9.0, 2.05 * max(draft.volume.grid.spacing_mm[:2])))
    draft.infiltrate[tuple(where.T)] = 1
    return _at(draft, where, "a lesion in the air beside the patient", "in-air")


def in_bone(draft: Draft) -> Planted:
    """A rib or vertebra painted as infiltrate: the largest piece of bone on a slice."""
    best = np.empty((0, 3), int)
    near = ndimage.binary_dilation(draft.infiltrate > 0, np.ones((3, 3, 3)))
    for k in np.flatnonzero(_inner(draft.exact_lungs > 0)):
        pieces, count = ndimage.label(draft.hu[:, :, k] > 215, np.ones((3, 3)))
        if count:
            sizes = np.bincount(pieces.ravel())
            sizes[np.unique(pieces[near[:, :, k]])] = 0
            sizes[0] = 0
            where = np.argwhere(pieces == sizes.argmax()) if sizes.any() else best[:0, :2]
            if len(where) > len(best):
                best = np.column_stack([where, np.full(len(where), k)])
    if len(best) <= 10:
        raise NoRoom(f"no bone of more than 10 voxels in {draft.case}")
    draft.infiltrate[tuple(best.T)] = 1
    return _at(draft, best, "bone painted as infiltrate", "in-bone")


def flat(draft: Draft) -> Planted:
    """A disc of healthy lung on one slice, wider than three slice distances."""
    z_mm = draft.volume.grid.spacing_mm[2]
    near = ndimage.binary_dilation(draft.infiltrate > 0, np.ones((3, 3, 3)))
    room = (draft.exact_lungs > 0) & ~near
    room[:, :, 1:] &= draft.infiltrate[:, :, :-1] == 0
    room[:, :, :-1] &= draft.infiltrate[:, :, 1:] == 0
    where = _blob(draft, room, 1.6 * z_mm)
    draft.infiltrate[tuple(where.T)] = 1
    return _at(draft, where, "a disc on one slice", "single-slice")


def swap(draft: Draft) -> Planted:
    assert draft.lungs is not None
    draft.lungs[:] = np.array([0, 2, 1], np.uint8)[draft.lungs]
    return Planted(draft.case, "sides swapped", "swapped-sides")


def swap_few(draft: Draft) -> Planted:
    """Sides swapped on three slices in the middle."""
    assert draft.lungs is not None
    middle = int(np.count_nonzero(draft.lungs, axis=(0, 1)).argmax())
    part = draft.lungs[:, :, middle - 1 : middle + 2]
    part[:] = np.array([0, 2, 1], np.uint8)[part]
    where = np.argwhere(part > 0) + np.array([0, 0, middle - 1])
    return _at(draft, where, "sides swapped on three slices", "swapped-sides")


def stray(draft: Draft) -> Planted:
    """Five voxels of label 3 at the border of a lung, as in MedSeg's first release."""
    assert draft.lungs is not None
    rim = (draft.lungs > 0) & ~ndimage.binary_erosion(draft.lungs > 0)
    where = np.argwhere(rim)[:: max(1, int(np.count_nonzero(rim)) // 5)][:5]
    draft.lungs[tuple(where.T)] = 3
    return _at(draft, where, "stray label in the lung mask", "undeclared-label")


def effusion(draft: Draft) -> Planted:
    """The largest lesion labelled 3, as pleural effusion is in MedSeg, without the set saying so."""
    pieces, _ = ndimage.label(draft.infiltrate > 0, np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    where = np.argwhere(pieces == sizes.argmax())
    draft.infiltrate[tuple(where.T)] = 3
    return _at(draft, where, "undeclared label in the infiltrate", "undeclared-label")


def windowed(draft: Draft) -> Planted:
    """Stored as a picture of the window -1250..250, as radiopaedia's half of COVID-19-CT-Seg is."""
    draft.hu[:] = np.rint(np.clip((draft.hu + 1250) / 1500, 0, 1) * 255)
    return Planted(draft.case, "8-bit window stored", "not-hu")


def shifted(draft: Draft) -> Planted:
    affine = draft.native.affine.copy()
    affine[:3, 3] += affine[:3, 0] * 0.5
    draft.mask_native = Grid(draft.native.shape, affine)
    return Planted(draft.case, "mask half a voxel off", "grid-differs")


def header_mirrored(draft: Draft) -> Planted:
    draft.mask_native = Grid(draft.native.shape, np.diag([-1.0, 1.0, 1.0, 1.0]) @ draft.native.affine)
    return Planted(draft.case, "mask's header mirrored", "grid-differs")


def _mirror(what: str, axis: int, words: str) -> Callable[[Draft], Planted]:
    def change(draft: Draft) -> Planted:
        setattr(draft, what, np.flip(getattr(draft, what), axis).copy())
        return Planted(draft.case, f"{what} mirrored {words}", "mirrored-mask")

    change.__name__ = f"{what}_mirrored_{words}"
    return change


def no_lungs_marked(draft: Draft) -> Planted:
    assert draft.lungs is not None
    draft.lungs[:] = 0
    return Planted(draft.case, "empty lung mask", "empty-lungs")


def foreign(draft: Draft) -> Planted:
    """The lung mask of another scan of the same shape: lungs of other size, elsewhere in the field of view."""
    assert draft.lungs is not None
    small = ndimage.zoom(draft.lungs, (0.75, 0.75, 0.8), order=0)
    draft.lungs[:] = 0
    low = [max(0, (n - m) // 2 + d) for n, m, d in zip(draft.lungs.shape, small.shape, (4, -3, 1), strict=True)]
    place = tuple(slice(a, min(a + m, n)) for a, m, n in zip(low, small.shape, draft.lungs.shape, strict=True))
    draft.lungs[place] = small[tuple(slice(0, s.stop - s.start) for s in place)]
    return Planted(draft.case, "lung mask of another scan", "foreign-mask")


WITH_LUNGS = (
    speck, no_lung, outside, in_air, in_bone, swap, swap_few, stray, effusion, windowed, shifted, header_mirrored,
    _mirror("lungs", 0, "left-right"), _mirror("lungs", 1, "front-back"), _mirror("lungs", 2, "head-foot"),
    _mirror("infiltrate", 2, "head-foot"), no_lungs_marked, foreign,
)  # fmt: skip
"""For sites A and B."""

WITHOUT_LUNGS = (speck, no_lung, in_air, in_bone, effusion, windowed, shifted, _mirror("infiltrate", 1, "front-back"))
"""For site C, which stores no lung masks."""

SMALL_ONLY = (flat, _mirror("infiltrate", 0, "left-right"))
"""Need slices near enough to each other, and enough voxels."""


# --- copies ----------------------------------------------------------------------------------------------------------


def _copies(drafts: list[Draft], make: Callable[[int], Draft]) -> list[Planted]:
    """A scan flipped and stored the other way under another patient; twice under one patient; one resampled."""
    first, second, third = make(101), make(102), make(103)
    flipped = _again(first, "copy-flipped", "somebody-else")
    for name in ("hu", "lungs", "infiltrate"):
        if getattr(flipped, name) is not None:
            setattr(flipped, name, np.flip(getattr(flipped, name), 0).copy())
    if flipped.lungs is not None:
        flipped.lungs = np.array([0, 2, 1], np.uint8)[flipped.lungs]
    again = _again(second, "copy-again", second.patient)
    near = _again(third, "copy-near", third.patient)
    near.hu = np.rint(ndimage.gaussian_filter(near.hu, (0.4, 0.4, 0)) / 12) * 12
    drafts += [first, flipped, second, again, third, near]
    return [
        Planted("copy-flipped", "one scan, two patients, flipped", "duplicate-patient"),
        Planted("copy-again", "one scan twice", "duplicate-scan"),
        Planted("copy-near", "a smoothed and requantised copy", "near-duplicate"),
    ]


def _again(draft: Draft, case: str, patient: str) -> Draft:
    lungs = None if draft.lungs is None else draft.lungs.copy()
    return Draft(case, draft.volume, draft.hu.copy(), lungs, draft.infiltrate.copy(), draft.exact_lungs, patient,
                 draft.source, draft.rng)  # fmt: skip


# --- the dataset ----------------------------------------------------------------------------------------------------


def plant(root: Path, site: str, *, size: str = "tiny", seed: int = 21, untouched: int = 2) -> list[Planted]:
    """Write a dataset with one fault per case, copies, and some cases without any, as a manifest in `root`."""
    defects = list(WITHOUT_LUNGS if site == "C" else WITH_LUNGS)
    defects += list(SMALL_ONLY) if size != "tiny" and site != "C" else []
    if site == "C" and size == "tiny":
        defects.remove(in_bone)  # voxels of 8 x 8 x 30 mm are never wholly bone
    drafts: list[Draft] = []
    planted: list[Planted] = []

    def make(number: int) -> Draft:
        made = clean(site, number, size, seed)
        scan = made.scan
        assert scan.infiltrate is not None
        return Draft(
            f"{site}{number:03d}", scan.volume, scan.volume.hu.copy(),
            None if scan.lungs is None else scan.lungs.labels.copy(), scan.infiltrate.labels.copy(),
            made.lungs.labels, f"p{number:03d}", site, np.random.default_rng([seed, number]),
        )  # fmt: skip

    for number, defect in enumerate(defects):
        draft, fault = _planted(defect, make, number)
        drafts.append(draft)
        planted.append(fault)
    drafts += [make(len(defects) + number) for number in range(untouched)]
    planted += _copies(drafts, make)
    write(root, drafts)
    return planted


def _planted(defect: Callable[[Draft], Planted], make: Callable[[int], Draft], number: int) -> tuple[Draft, Planted]:
    """A patient with the fault; the next one where it has no room."""
    for other in range(number, number + 1000, 200):
        draft = make(other)
        try:
            return draft, defect(draft)
        except NoRoom:
            continue
    raise AssertionError(f"no patient has room for {defect.__name__}")


def write(root: Path, drafts: Iterable[Draft]) -> None:
    """Drafts as files and a manifest; masks without label names inside, as most sets give them away."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for draft in drafts:
        native = draft.volume.native
        row = {"case": draft.case, "patient": draft.patient, "source": draft.source, "lungs": ""}
        _save(draft.hu.astype(np.int16), native, native, root / f"{draft.case}-ct.nii.gz")
        row["image"] = f"{draft.case}-ct.nii.gz"
        for what, labels, grid in (
            ("lungs", draft.lungs, draft.lungs_native), ("infiltrate", draft.infiltrate, draft.mask_native),
        ):  # fmt: skip
            if labels is not None:
                row[what] = f"{draft.case}-{what}.nii.gz"
                _save(labels, native, grid, root / row[what])
        rows.append(row)
    with (root / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _save(array: np.ndarray, native: Grid, header: Grid, path: Path) -> None:
    save_nifti(array_to_native(np.ascontiguousarray(array), native), header, path, level=FAST_LEVEL)
