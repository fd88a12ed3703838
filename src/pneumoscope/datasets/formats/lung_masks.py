"""Lung masks from elsewhere for a dataset that has none: a folder of masks, or of case folders of `segment`.

Masks given for scans, in the forms of other programs, are matched by `cases.given_masks`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from pneumoscope.datasets.case import SAME_LABELS, Case, LabelledScan
from pneumoscope.errors import DatasetError

PATTERNS = ("{case}/lungs.nii.gz", "{case}.nii.gz", "{case}.nii", "{case}_lungs.nii.gz", "{case}_lung.nii.gz",
            "{case}-lungs.nii.gz", "{case}_mask.nii.gz")  # fmt: skip
"""Where the mask of a case is looked for, in this order."""


def with_lung_masks(cases: list[Case], folder: str | Path) -> list[Case]:
    """The cases, loading their lungs from a folder; masks that the dataset stores itself are not used.

    Labels are those of `pneumoscope.io.read.read_lungs`: 1 = right, 2 = left.

    Args:
        cases: of one dataset.
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
    from pneumoscope.io.masks import fit_mask
    from pneumoscope.io.read import read_lungs
    from pneumoscope.severity.regions import with_house_labels

    scan = case.load()
    lungs = with_house_labels(
        fit_mask(read_lungs(path, scan=scan.volume.grid), scan.volume.grid, what="the lung mask", path=path)
    )
    return replace(scan, lungs=lungs)
