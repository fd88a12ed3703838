"""Own data: a CSV that lists scans and masks, as cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from pneumoscope.datasets.case import SAME_LABELS, Case, CaseFiles, LabelledScan, make_case
from pneumoscope.errors import DatasetError
from pneumoscope.io.masks import fit_mask
from pneumoscope.io.read import read_lungs, read_mask, read_volume
from pneumoscope.io.scans import ScanRef, read_manifest
from pneumoscope.severity.regions import with_house_labels
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask


def read_manifest_cases(path: str | Path) -> list[Case]:
    """Cases of ``case,image[,lungs,infiltrate,patient,date,source]``; a folder means its ``manifest.csv``.

    A row without patient is a patient of its own; `Case.date` is the row's date as it stands there. Scans and masks
    are read when a case is loaded.

    Raises:
        InputError: the table cannot be used (see `pneumoscope.io.scans.read_manifest`).
    """
    table = Path(path) / "manifest.csv" if Path(path).is_dir() else Path(path)
    return [case_of_row("manifest", ref, partial(load_scan, ref)) for ref in read_manifest(table)]


def case_of_row(dataset: str, ref: ScanRef, load: Callable[[], LabelledScan]) -> Case:
    """The case of one row."""
    about = {"patient": ref.patient or "", "source": ref.source or "", "date": ref.date or ""}
    return make_case(dataset, ref.case, load, CaseFiles(ref.path, ref.lungs, ref.infiltrate), **about)


def load_scan(ref: ScanRef) -> LabelledScan:
    """Read the scan and the masks of one row.

    A mask may be stored in another orientation than its scan (axes permuted or flipped) as long as its voxels lie on
    the scan's; on any other grid it is refused, with what is different.

    Raises:
        DatasetError: a mask holds labels this program has no meaning for.
        ReadError: a file cannot be read, or a mask does not lie on its scan (IN-MSK-069).
    """
    volume = read_volume(ref.path, case=ref.case)
    masks: dict[str, Mask | None] = {"lungs": None, "infiltrate": None}
    for what, path in (("lungs", ref.lungs), ("infiltrate", ref.infiltrate)):
        if path is not None:
            mask = _named(read_mask(path), path, what)
            name = "lung" if what == "lungs" else what
            masks[what] = fit_mask(mask, volume.grid, what=f"the {name} mask of {ref.case}", path=path)
    return LabelledScan(volume, masks["lungs"], masks["infiltrate"])


def _named(mask: Mask, path: Path, what: str) -> Mask:
    """The mask with the names used here; ``infiltrate`` and ``lung`` where kinds and sides are not distinguished."""
    highest = int(mask.labels.max(initial=0))
    if highest > 2:
        present = np.flatnonzero(np.bincount(mask.labels.ravel(order="K"))).tolist()
        raise DatasetError(f"holds labels {present}; {what} have labels 0, 1 and 2 here", path=path)
    if what == "lungs" and dict(mask.names) == {1: "lung"}:
        return mask
    if what == "lungs":
        return Mask(mask.labels, mask.grid, LUNG_LABELS)
    with_kinds = highest == 2 or 2 in mask.names
    return Mask(mask.labels, mask.grid, INFILTRATE_LABELS if with_kinds else INFILTRATE_LABEL)


PATTERNS = ("{case}/lungs.nii.gz", "{case}.nii.gz", "{case}.nii", "{case}_lungs.nii.gz", "{case}_lung.nii.gz",
            "{case}-lungs.nii.gz", "{case}_mask.nii.gz")  # fmt: skip
"""Where the mask of a case is looked for, in this order."""


def with_lung_masks(cases: list[Case], folder: str | Path) -> list[Case]:
    """The cases, loading their lungs from a folder; masks that the dataset stores itself are not used.

    Labels are those of `pneumoscope.io.read.read_lungs`: 1 = right, 2 = left.

    Args:
        folder: holds a mask for each case, named as in `PATTERNS`.

    Raises:
        DatasetError: no such folder, or cases without a mask in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError("no such folder of lung masks; expected one file per case", path=root)
    found = {case.case: _mask_of(case.case, root) for case in cases}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DatasetError(
            f"holds no lung mask of {missing[0]}{more}; expected {missing[0]}.nii.gz or {missing[0]}/lungs.nii.gz",
            path=root,
        )
    return [_with_mask(case, path) for case in cases if (path := found[case.case])]


def _with_mask(case: Case, path: Path) -> Case:
    files = None if case.files is None else replace(case.files, lungs=path, lung_labels=SAME_LABELS)
    return replace(case, load=partial(_load, case, path), files=files)


def _mask_of(case: str, root: Path) -> Path | None:
    candidates = (root / pattern.format(case=case) for pattern in PATTERNS)
    return next((path for path in candidates if path.is_file()), None)


def _load(case: Case, path: Path) -> LabelledScan:
    scan = case.load()
    lungs = with_house_labels(
        fit_mask(read_lungs(path, scan=scan.volume.grid), scan.volume.grid, what="the lung mask", path=path)
    )
    return replace(scan, lungs=lungs)
