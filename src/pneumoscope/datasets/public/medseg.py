"""MedSeg set 2: nine whole chest CTs with lungs and two kinds of infiltrate, from medicalsegmentation.com.

Three archives, ``rp_im.zip``, ``rp_msk.zip`` and ``rp_lung_msk.zip``, unzip to folders that hold ``1.nii.gz`` to
``9.nii.gz`` each. Headers are right and labels are in the house order; label 3 is pleural effusion in infiltrate
masks, and a stray voxel at the border in lung masks of the first release: both are left out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pneumoscope.datasets.case import Case, CaseFiles, make_case
from pneumoscope.datasets.formats.labelled import load_case
from pneumoscope.datasets.formats.layout import Tree, require_pairs, walk

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
    from pneumoscope.errors import DatasetError

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
