"""MedSeg, two sets. Set 2: nine whole chest CTs with lungs and two kinds of infiltrate, from medicalsegmentation.com.

Three archives, ``rp_im.zip``, ``rp_msk.zip`` and ``rp_lung_msk.zip``, unzip to folders that hold ``1.nii.gz`` to
``9.nii.gz`` each. Headers are right and labels are in the house order; label 3 is pleural effusion in infiltrate
masks, and a stray voxel at the border in lung masks of the first release: both are left out.

Set 1: 100 single slices with masks and 10 without, of more than 40 patients. ``tr_im``, ``tr_mask`` and
``tr_lungmasks_updated`` stack them along the third axis, ``val_im`` those without masks. The stack looks like a volume
and is none: every slice is a case and a patient of its own here, a scan one slice thick. Hounsfield units are
estimates, mapped back from JPEG pictures whose bright end was lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, CaseFiles, LabelledScan, make_case
from pneumoscope.datasets.formats.labelled import load_case, map_labels, put_right, read_labels, slice_of
from pneumoscope.datasets.formats.layout import Tree, require_pairs, walk
from pneumoscope.errors import DatasetError, Finding
from pneumoscope.geometry import Grid
from pneumoscope.io import intensity as hounsfield
from pneumoscope.io.kinds import require_kind
from pneumoscope.io.read import read_stored
from pneumoscope.volume import INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume

NAME = "medseg"
FOLDERS = ("rp_im", "rp_msk", "rp_lung_msk")
EXPECTED = "folders rp_im, rp_msk and rp_lung_msk with 1.nii.gz to 9.nii.gz"
IGNORED = frozenset({3})
_NPY = "images_radiopedia.npy"


def read_medseg_cases(root: str | Path) -> list[Case]:
    """The scans as cases ``rp_1`` ... ``rp_9``, each a patient of its own; nothing is opened before a case is loaded.

    Args:
        root: a folder that holds the three folders, however deep, as ``.nii.gz`` or ``.nii``.

    Raises:
        DatasetError: a folder is missing, a scan without masks or masks without scan, the same scan twice; or the
            NumPy re-pack of this set, which has no geometry.
    """
    tree = walk_or_refuse_npy(root, EXPECTED, _NPY)
    images, infiltrates, lungs = (_folder(tree, name) for name in FOLDERS)
    require_pairs(tree, images, infiltrates, "infiltrate mask (rp_msk)")
    require_pairs(tree, images, lungs, "lung mask (rp_lung_msk)")
    cases = []
    for number, image in images.items():
        files = CaseFiles(image, lungs[number], infiltrates[number], ignored_labels=IGNORED)
        case = f"rp_{number}"
        cases.append(make_case(NAME, case, partial(load_case, case, files), files, source=NAME))
    return cases


def walk_or_refuse_npy(root: str | Path, expected: str, marker: str) -> Tree:
    """`walk`, with a word on the NumPy re-pack of the MedSeg sets where that is what a user has."""
    if any(Path(root).glob(marker)):
        raise DatasetError(
            f"is the re-pack as NumPy arrays ({marker}), which has neither voxel size nor orientation; "
            f"expected {expected}, see `pneumoscope data info`",
            path=root,
        )
    return walk(root, expected)


def _folder(tree: Tree, name: str) -> dict[str, Path]:
    found = tree.by_key("scan", lambda scan: scan.stem if scan.below(FOLDERS) == name else None)
    if not found:
        raise tree.error(f"holds no scan in a folder {name}")
    return found


SLICES = "medseg-slices"
SLICE_FILES = "tr_im.nii.gz and tr_mask.nii.gz, and where you have them tr_lungmasks_updated.nii.gz and val_im.nii.gz"
N_TRAINING, N_VALIDATION = 100, 10
LUNG_STEMS = ("tr_lungmasks_updated", "tr_lungmasks")
STORED_AXES = ("L", "P", "")
"""How slices lie in the files: to be shown they are transposed, nothing else (several users). The header may differ."""


@dataclass
class _Stack:
    """A whole file of slices with its masks, in stored order."""

    hu: NDArray[np.float32]
    header: Grid
    lungs: NDArray[np.uint8] | None
    infiltrate: NDArray[np.uint8] | None
    findings: tuple[Finding, ...]


class _Shelf:
    """Keeps the stack read last, at most one: its slices are asked for one after another. Travels empty."""

    def __init__(self) -> None:
        self.image: Path | None = None
        self.stack: _Stack | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shelf, ()

    def fetch(self, files: CaseFiles, count: int) -> _Stack:
        """The stack of these files."""
        if self.stack is None or self.image != files.image:
            self.stack = None  # let go of the other one first
            self.stack, self.image = _read_stack(files, count), files.image
        return self.stack


def read_medseg_slices_cases(root: str | Path) -> list[Case]:
    """The slices as cases ``tr_000`` ... (source ``training``) and ``val_000`` ... (source ``validation``, no masks).

    Lung masks were published later and may be absent. The first slice that is loaded reads the whole stack, which is
    kept while the cases are (about 160 MB).

    Args:
        root: a folder that holds the files, however deep.

    Raises:
        DatasetError: no ``tr_im`` or no ``tr_mask``, or the NumPy re-pack of this set, which has no geometry.
    """
    tree = walk_or_refuse_npy(root, SLICE_FILES, "images_medseg.npy")
    found = tree.by_key(
        "file",
        lambda scan: scan.stem.lower() if scan.stem.lower() in ("tr_im", "tr_mask", "val_im", *LUNG_STEMS) else None,
    )
    lungs = next((found[stem] for stem in LUNG_STEMS if stem in found), None)
    shelf = _Shelf()
    training = CaseFiles(
        _required(tree, found, "tr_im"),
        lungs,
        _required(tree, found, "tr_mask"),
        ignored_labels=IGNORED,
        stored_axes=STORED_AXES,
    )
    cases = _cases("training", "tr", training, N_TRAINING, shelf)
    if "val_im" in found:
        cases += _cases("validation", "val", CaseFiles(found["val_im"], stored_axes=STORED_AXES), N_VALIDATION, shelf)
    return cases


def _required(tree: Tree, found: dict[str, Path], stem: str) -> Path:
    if stem not in found:
        raise tree.error(f"holds no {stem}.nii.gz")
    return found[stem]


def _cases(source: str, prefix: str, stack: CaseFiles, count: int, shelf: _Shelf) -> list[Case]:
    cases = []
    for index in range(count):
        case, files = f"{prefix}_{index:03d}", replace(stack, part=index)
        load = partial(_load, case, files, count, shelf)
        cases.append(make_case(SLICES, case, load, files, source=source))
    return cases


def _read_stack(files: CaseFiles, count: int) -> _Stack:
    stored = read_stored(files.image, require_kind(files.image))
    if stored.grid.shape[2] != count:
        shown = " x ".join(map(str, stored.grid.shape))
        raise DatasetError(f"measures {shown}, expected a stack of {count} slices; fetch it again", path=files.image)
    hu = stored.values().astype(np.float32)
    if not np.isfinite(hu).all():
        raise DatasetError("holds NaN or infinite values; fetch it again", path=files.image)
    hounsfield.require_hu(hu, path=files.image)
    notes = (*stored.findings, *hounsfield.clip_air(hu))
    masks: list[NDArray[np.uint8] | None] = []
    for path, known in ((files.lungs, files.lung_labels), (files.infiltrate, files.infiltrate_labels)):
        if path is None:
            masks.append(None)
            continue
        mask = read_labels(path, stored.grid)
        labels, ignored = map_labels(mask, known, files)
        masks.append(labels)
        notes += (*mask.findings, *ignored)
    return _Stack(hu, stored.grid, masks[0], masks[1], tuple(dict.fromkeys(notes)))


def _load(case: str, files: CaseFiles, count: int, shelf: _Shelf) -> LabelledScan:
    """One slice as a scan one slice thick."""
    stack = shelf.fetch(files, count)
    assert files.part is not None
    here = slice(files.part, files.part + 1)
    text = (
        f"slice {files.part} of a stack of unrelated patients: no volume, its thickness and height mean nothing; "
        "Hounsfield units are estimates from pictures"
    )
    volume = Volume.from_native(
        stack.hu[:, :, here],
        slice_of(stack.header, files.part),
        case=case,
        findings=(*stack.findings, Finding("IN-SET-086", text, "info")),
        source={"format": "NIfTI"},
    )
    volume = put_right(volume, files)
    masks = [
        None if labels is None else Mask.from_native(labels[:, :, here], volume.native, names)
        for labels, names in ((stack.lungs, LUNG_LABELS), (stack.infiltrate, INFILTRATE_LABELS))
    ]
    masks = [None if mask is None else Mask(mask.labels, volume.grid, mask.names) for mask in masks]
    return LabelledScan(volume, *masks)
