"""Kermany et al. 2018: paediatric radiographs of Guangzhou, in both naming worlds.

Mendeley: ``{NORMAL,BACTERIA,VIRUS}-<patient>-<picture>.jpeg``. Kaggle: ``person<N>_{bacteria,virus}_<M>.jpeg``,
``IM-NNNN-0001.jpeg`` and ``NORMAL2-IM-NNNN-0001.jpeg``, with a third folder ``val`` and often the whole tree a second
time inside itself. The class comes from the folder and the name; the patient from the name, as coarse as safe:
``person1_virus_6`` and ``person1_bacteria_1`` may be two children, and are kept together.
"""

from __future__ import annotations

import re
from pathlib import Path

from pneumoscope.datasets.radiographs import XrayCase, make, pictures_below
from pneumoscope.errors import DatasetError

EXPECTED = "chest_xray/{train,test[,val]}/{NORMAL,PNEUMONIA} of Kermany et al."
_PARTS = ("train", "test", "val")
_MENDELEY = re.compile(r"(normal|bacteria|virus)-(\d+)-\d+", re.IGNORECASE)
_PERSON = re.compile(r"(person\d+)_(bacteria|virus)(?:_\d+)+", re.IGNORECASE)
_NORMAL = re.compile(r"(?:normal2-)?(im-\d+)-\d+(?:-\d+)?", re.IGNORECASE)
_CAUSES = {"bacteria": "bacterial", "virus": "viral", "normal": "normal"}


def read_kermany(root: Path) -> list[XrayCase]:
    """Pictures of the outermost tree; a second tree nested in it is the same pictures again and is passed over.

    Raises:
        DatasetError: not that dataset; a picture in PNEUMONIA whose name states no cause.
    """
    pictures = [(p, p.relative_to(root).parts) for p in pictures_below(root, EXPECTED)]
    placed = [(p, parts) for p, parts in pictures if len(parts) >= 2 and parts[-2].upper() in ("NORMAL", "PNEUMONIA")]
    if not placed:
        raise DatasetError(f"holds no folder NORMAL or PNEUMONIA with pictures; expected {EXPECTED}", path=root)
    nearest = min(len(parts) for _, parts in placed)
    cases = []
    for path, parts in placed:
        if len(parts) != nearest:
            continue
        part = parts[-3].lower() if len(parts) >= 3 and parts[-3].lower() in _PARTS else ""
        label, patient = _label_and_patient(path, parts[-2].upper())
        case = f"{part}_{path.stem}" if part else path.stem
        cases.append(make("kermany", path, case, patient, label, "guangzhou", part=part))
    return cases


def _label_and_patient(path: Path, folder: str) -> tuple[str, str]:
    """Class and patient by folder and name."""
    name = path.stem
    mendeley, person, normal = (p.fullmatch(name) for p in (_MENDELEY, _PERSON, _NORMAL))
    if mendeley:
        label, patient = _CAUSES[mendeley[1].lower()], f"id{mendeley[2]}"
    elif person:
        label, patient = _CAUSES[person[2].lower()], person[1].lower()
    elif normal:
        label, patient = "normal", name.lower()[: normal.end(1)]
    elif folder == "NORMAL":
        label, patient = "normal", name.lower()
    else:
        raise DatasetError(
            "its name states neither bacteria nor virus; expected person<N>_bacteria_<M>.jpeg", path=path
        )
    if (label == "normal") != (folder == "NORMAL"):
        raise DatasetError(f"lies in {folder} and is called {label}; put it in its own folder", path=path)
    return label, patient
