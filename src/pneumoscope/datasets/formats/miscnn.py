"""A folder in MIScnn's layout, ``<case>/imaging.nii.gz`` and ``<case>/segmentation.nii.gz``, as cases.

The layout does not say what its labels are. Without a word of the user they are those of covid19.MIScnn (1 = left lung,
2 = right lung, 3 = infection), which copies the combined mask of COVID-19-CT-Seg.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pneumoscope.datasets.case import Case, CaseFiles, LabelledScan, make_case
from pneumoscope.datasets.formats.label_names import LabelMap, label_map, load_with_names
from pneumoscope.datasets.formats.layout import SCAN_SUFFIXES, Found, shown, walk
from pneumoscope.errors import DatasetError
from pneumoscope.io.kinds import case_name, suffix_of
from pneumoscope.io.read import read_mask
from pneumoscope.volume import present_labels

EXPECTED = "<case>/imaging.nii.gz and <case>/segmentation.nii.gz"
IMAGE, MASK = "imaging", "segmentation"
COVID19_MISCNN: Mapping[int, str] = {1: "left lung", 2: "right lung", 3: "infiltrate"}
"""scripts/download_data.py of muellerdo/covid19.MIScnn, which takes Lung_and_Infection_Mask."""


def read_miscnn_cases(
    root: str | Path, *, labels: Mapping[int | str, str] | None = None, unlabelled: bool = False
) -> list[Case]:
    """The folders with an ``imaging`` file as cases; when none has a ``segmentation``, they have no masks.

    Args:
        root: the folder of the cases, or one above.
        labels: label -> one of `pneumoscope.datasets.formats.label_names.MEANINGS`, by default `COVID19_MISCNN`.
        unlabelled: take folders without ``segmentation`` beside others that have one.

    Raises:
        DatasetError: no such folder, no scans, a scan without mask or a mask without scan, a link that leads out.
            When a case is loaded: a mask of nothing but label 1 without `labels`, which may as well be infiltrate.
    """
    tree = walk(root, EXPECTED)
    images = {_case_folder(scan): scan.path for scan in tree.scans if scan.stem == IMAGE}
    masks = {_case_folder(scan): scan.path for scan in tree.scans if scan.stem == MASK}
    if not images:
        raise tree.error("holds no imaging.nii.gz")
    lost = [str(folder) for folder in masks if folder not in images]
    if lost:
        raise tree.error(f"segmentation in {shown(lost)} without its scan: half a download? Copy the rest")
    bare = [str(folder) for folder in images if folder not in masks]
    if bare and masks and not unlabelled:
        raise tree.error(f"{shown(bare)} without segmentation: half a download? Copy the rest, or give unlabelled=True")
    names = {str(label): meaning for label, meaning in (labels or COVID19_MISCNN).items()}
    known = label_map({name: (_number(name),) for name in names}, names, Path(root))
    source = Path(root).resolve().name
    cases = []
    for folder, image in images.items():
        name = case_name(folder.resolve())
        files = known.files(image, masks[folder]) if folder in masks else CaseFiles(image)
        load = partial(_load, name, files, known, labels is not None)
        cases.append(make_case("miscnn", name, load, files, source=source))
    return cases


def _case_folder(scan: Found) -> Path:
    """The folder of the case, also where an unpacker made a folder ``imaging.nii`` of the file."""
    folder = scan.path.parent
    return folder.parent if suffix_of(folder) in SCAN_SUFFIXES else folder


def _load(case: str, files: CaseFiles, known: LabelMap, is_said: bool) -> LabelledScan:
    if files.infiltrate is not None and not is_said and present_labels(read_mask(files.infiltrate).labels) == [1]:
        raise DatasetError(
            "holds nothing but label 1, which would be a left lung alone; say what it is, "
            "labels={1: 'infiltrate'} or --label 1=infiltrate",
            path=files.infiltrate,
        )
    return load_with_names(case, files, known)


def _number(name: str) -> int:
    if not name.isdecimal() or int(name[:9]) > 255:
        raise DatasetError(f"has labels that are numbers from 1 to 255, got {name!r}")
    return int(name)
