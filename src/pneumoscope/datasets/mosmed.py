"""MosMedData COVID19_1110: 1110 chest CTs in five severity classes, 50 of them with an infiltrate mask.

Copies lie about in several trees: ``studies/CT-0`` to ``CT-4``, ``CT-*`` or ``ct0`` to ``ct4`` at the top, all
studies in one folder; masks in ``masks``. Studies are known by their names wherever they lie. Slices are 8 mm apart,
because only a part of each series was published. No lung masks exist; ground-glass and consolidation are not told
apart.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from pneumoscope.datasets.case import Case, CaseFiles, require_unique_cases
from pneumoscope.datasets.labelled import load_case
from pneumoscope.datasets.layout import Found, Tree, require_pairs, walk
from pneumoscope.datasets.registry import dataset_info

NAME = "mosmed"
EXPECTED = "studies/CT-0 to CT-4 with study_0001.nii.gz and so on, and masks"
MASKED = range(255, 305)
"""Studies with a mask, all in CT-1."""

LAST_STUDY = (254, 938, 1063, 1108, 1110)
"""Number of the last study of CT-0 ... CT-4."""

_STUDY = re.compile(r"study_(\d{4})", re.IGNORECASE)
_MASK = re.compile(r"study_(\d{4})_mask", re.IGNORECASE)
_CATEGORY = re.compile(r"ct[-_ ]?([0-4])", re.IGNORECASE)


def read_mosmed_cases(root: str | Path) -> list[Case]:
    """The studies as cases ``study_0001`` ..., source ``CT-0`` ... ``CT-4``; each study is a patient of its own.

    The class of a study is the name of the folder it lies in; where that says nothing, what the registry
    (``dataset_registry.xlsx`` or ``.csv``) says; where there is none, the published ranges of study numbers.

    Args:
        root: a folder that holds the studies, however deep, as ``.nii.gz`` or ``.nii``.

    Raises:
        DatasetError: no studies, a study of 0255 to 0304 without mask, a mask without study, a study twice, or a
            registry that is needed and cannot be read.
    """
    tree = walk(root, EXPECTED)
    images = tree.by_key("study", partial(_number, _STUDY))
    masks = tree.by_key("mask of study", partial(_number, _MASK))
    if not images:
        raise tree.error("holds no study_NNNN.nii.gz")
    to_be_masked = {number: path for number, path in images.items() if int(number) in MASKED or number in masks}
    require_pairs(tree, to_be_masked, masks, "mask (masks/study_NNNN_mask.nii.gz)")
    categories = _categories(tree, images)
    info = dataset_info(NAME)
    cases = []
    for number, image in images.items():
        case = f"study_{number}"
        files = CaseFiles(image, infiltrate=masks.get(number), lung_labels={}, infiltrate_labels={1: 1})
        cases.append(
            Case(
                NAME,
                case,
                case,
                categories[number],
                info.licence,
                info.citation,
                partial(load_case, case, files),
                files=files,
            )
        )
    return require_unique_cases(cases, str(root))


def published_category(number: int) -> str:
    """The class of a study by the published ranges; empty for numbers beyond 1110."""
    return next((f"CT-{n}" for n, last in enumerate(LAST_STUDY) if 1 <= number <= last), "")


def _number(pattern: re.Pattern[str], scan: Found) -> str | None:
    match = pattern.fullmatch(scan.stem)
    return match[1] if match else None


def _categories(tree: Tree, images: dict[str, Path]) -> dict[str, str]:
    """Class of each study; the registry is opened only when a folder does not say."""
    by_folder = {scan.path: _of_folder(scan) for scan in tree.scans}
    found = {number: by_folder[path] for number, path in images.items()}
    if all(found.values()):
        return found
    from pneumoscope.datasets.mosmed_registry import find_registry, read_registry

    table = find_registry(tree.others)
    registered = {} if table is None else read_registry(table)
    return {
        number: category or registered.get(number) or published_category(int(number))
        for number, category in found.items()
    }


def _of_folder(scan: Found) -> str:
    for folder in reversed(scan.folders):
        match = _CATEGORY.fullmatch(folder)
        if match:
            return f"CT-{match[1]}"
    return ""
