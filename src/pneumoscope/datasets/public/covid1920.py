"""COVID-19-20 challenge: 199 training and 50 validation chest CTs, scan and mask side by side in one folder.

Files are ``volume-covid19-A-NNNN_ct.nii.gz`` and ``..._seg.nii.gz``, NNNN with a suffix ``_0`` or ``_1`` where a
patient has several scans. Validation scans have no masks. The scans come from `an2020`, whose names they share.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from pneumoscope.datasets.case import Case, CaseFiles, make_case
from pneumoscope.datasets.formats.labelled import load_case
from pneumoscope.datasets.formats.layout import Tree, require_pairs, walk

NAME = "covid1920"
EXPECTED = "Train with volume-covid19-A-NNNN_ct.nii.gz and _seg.nii.gz, and Validation with _ct.nii.gz"
PARTS = ("train", "validation", "test")

_VALIDATION = (
    "0004 0026 0033 0064 0075 0082 0089 0091 0108 0143 0156 0170 0180_0 0189_0 0218 0229 0257 0259 0268 0287_0 0294 "
    "0297 0302 0318_0 0330 0343 0345 0369_1 0376 0408 0420 0441 0451 0457 0489 0490 0509 0513 0516 0523 0538 0543 "
    "0584 0620 0631 0654 0673 0676 0690 0697"
)
VALIDATION = frozenset(_VALIDATION.split())  # Numbers of the validation scans, as published

_NAME = r"(volume-covid19-[A-Z]-(\d{4}(?:_\d)?))"
SCAN, MASK, VOLUME = (re.compile(_NAME + suffix, re.IGNORECASE) for suffix in ("_ct", "_seg", "(?:_ct|_seg)?"))


def read_covid1920_cases(root: str | Path) -> list[Case]:
    """The scans as cases ``volume-covid19-A-NNNN``, source ``train``, ``validation`` or ``test``.

    A scan's part is the folder it lies in; in a folder without such a name, validation is known by its number.

    Args:
        root: a folder that holds the scans, however deep.

    Raises:
        DatasetError: no scans, a training scan without mask, a mask without scan, a scan twice.
    """
    tree = walk(root, EXPECTED)
    images = tree.by_key("scan", SCAN)
    masks = tree.by_key("mask", MASK)
    if not images:
        raise tree.error("holds no volume-covid19-A-NNNN_ct.nii.gz")
    parts = _parts(tree)
    to_be_masked = {name: path for name, path in images.items() if parts[path] == "train" or name in masks}
    require_pairs(tree, to_be_masked, masks, "mask (_seg.nii.gz)")
    cases = []
    for name, image in images.items():
        files = CaseFiles(image, infiltrate=masks.get(name), lung_labels={}, infiltrate_labels={1: 1})
        cases.append(volume_case(NAME, name, parts[image], files))
    return cases


def volume_case(dataset: str, name: str, source: str, files: CaseFiles) -> Case:
    """A case of this set or of `an2020`: scans that differ in ``_0`` and ``_1`` only are of one patient."""
    match = VOLUME.fullmatch(name)
    patient = name if match is None else name.removesuffix(match[2]) + match[2][:4]
    return make_case(
        dataset, name, partial(load_case, name, files), files, patient=patient.removeprefix("volume-"), source=source
    )


def _parts(tree: Tree) -> dict[Path, str]:
    parts = {}
    for scan in tree.scans:
        match = VOLUME.fullmatch(scan.stem)
        by_number = "validation" if match and match[2] in VALIDATION else "train"
        parts[scan.path] = scan.below(PARTS) or by_number
    return parts
