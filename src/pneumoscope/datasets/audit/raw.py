"""A case as it lies on disk: the scan, and the masks with the labels somebody really wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case
from pneumoscope.errors import PneumoscopeError, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.volume import Mask, Volume, array_to_native

NOT_HU, NO_SIZE = "IN-SET-131", "IN-SET-132"
"""Codes by which readers of pictures say that values are no Hounsfield units, and that millimetres are made up."""


@dataclass(frozen=True, eq=False)
class RawMask:
    """Labels as stored, turned to RAS+.

    Attributes:
        labels: (i, j, k) uint8 as on disk.
        grid: RAS+ grid of `labels`.
        native: the file's own grid.
        meaning: label on disk -> label here.
        declared: labels of the file that are known to mean something, here or elsewhere.
        path: the file, None where the mask is no file.
    """

    labels: NDArray[np.uint8]
    grid: Grid
    native: Grid
    meaning: Mapping[int, int]
    declared: frozenset[int]
    path: Path | None = None

    def house(self) -> NDArray[np.uint8]:
        """The labels as they are called here; everything else 0."""
        table = np.zeros(256, np.uint8)
        for disk, here in self.meaning.items():
            table[disk] = here
        return np.asarray(table[self.labels])

    def relabelled(self, labels: NDArray[np.uint8]) -> RawMask:
        """The same file with other labels in it."""
        return replace(self, labels=labels)


@dataclass(frozen=True, eq=False)
class RawCase:
    """One case read for the audit, one at a time in memory.

    Attributes:
        case: what the reader says of it.
        volume: the scan.
        lungs, infiltrate: its masks; None where there is none, or where it could not be read.
        hounsfield: whether densities can be judged; `why_not` says why not.
        sized: whether the millimetres of the grid are real (8-bit slices have none).
        problems: (mask, message) of masks that could not be read.
    """

    case: Case
    volume: Volume
    lungs: RawMask | None = None
    infiltrate: RawMask | None = None
    hounsfield: bool = True
    why_not: str = ""
    sized: bool = True
    problems: tuple[tuple[str, str], ...] = field(default=())

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
        turned = Mask.from_native(labels, native, {n: f"label {n}" for n in range(1, 256)})
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
    from pneumoscope.io.read import read_volume

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
    from pneumoscope.io.kinds import require_kind
    from pneumoscope.io.masks import CODE, labels_of
    from pneumoscope.io.read import read_stored
    from pneumoscope.io.stored import laid_out

    kind = "nifti" if path.is_dir() else require_kind(path)
    if kind in ("dicom", "zip"):
        raise ReadError("expected a mask as .nii, .nii.gz, .nrrd or .mha; convert it", code=CODE, path=path)
    stored = read_stored(path, kind, sparse=True)
    return laid_out(labels_of(stored, None, {}, path), stored.grid, np.uint8), stored.grid
