"""A folder in the layout of the Medical Segmentation Decathlon: ``dataset.json`` lists scans and masks, as cases.

Its zips are full of ``._name`` files of macOS; they are in no list here, and entries that name them are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pneumoscope.datasets.case import Case, CaseFiles, make_case
from pneumoscope.datasets.formats.dataset_json import Description, read_description
from pneumoscope.datasets.formats.label_names import LabelMap, label_map, load_with_names
from pneumoscope.errors import DatasetError
from pneumoscope.io.kinds import case_name

KIND = "the Decathlon's layout (imagesTr, labelsTr)"


def read_decathlon_cases(root: str | Path, *, labels: Mapping[str, str] | None = None) -> list[Case]:
    """The cases listed as ``training`` (source ``train``) and ``test`` (source ``test``, without masks).

    Args:
        root: the folder of the task, or one above that holds no other.
        labels: what names of ``dataset.json`` mean, where they are not known here (see `read_nnunet_cases`).

    Raises:
        DatasetError: no such folder, a damaged description, unknown label names, files that are listed and not
            there, paths and links that lead out.
    """
    held = read_description(root, KIND)
    known = label_map(held.labels, labels, held.path)
    cases = []
    for part, source in (("training", "train"), ("test", "test")):
        entries = held.raw.get(part) or []
        if not isinstance(entries, list):
            raise DatasetError(f"has no list of scans in {part}; write it again", path=held.path)
        for entry in entries:
            image, mask = _entry(entry, held)
            if _is_junk(image):
                continue
            if mask is None and source == "train":
                raise DatasetError(f"lists the training scan {image!r} without a mask", path=held.path)
            cases.append(_case(held, known, source, held.inside(image), None if mask is None else held.inside(mask)))
    if not cases:
        raise DatasetError("lists no scan (training and test are empty); is it the Decathlon's?", path=held.path)
    return cases


def _entry(entry: Any, held: Description) -> tuple[str, str | None]:
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, dict) and isinstance(entry.get("image"), str):
        return entry["image"], entry.get("label")
    raise DatasetError(f"lists {entry!r} where a scan is expected", path=held.path)


def _is_junk(path: str) -> bool:
    return Path(path).name.startswith("._")


def _case(held: Description, known: LabelMap, source: str, image: Path, mask: Path | None) -> Case:
    name = case_name(image)
    files = known.files(image, mask) if mask is not None else CaseFiles(image)
    load = partial(load_with_names, name, files, known)
    return make_case("decathlon", name, load, files, source=source, licence=held.licence, citation=held.citation)
