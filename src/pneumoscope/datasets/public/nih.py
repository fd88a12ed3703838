"""NIH ChestX-ray14: adult X-rays, labels mined from reports.

With ``Data_Entry_2017.csv`` labels come from the table, else from folders named after the finding
(``...no-finding``, ``...pneumonia``). The patient is the part of the name before ``_``.
"""

from __future__ import annotations

import re
from pathlib import Path

from pneumoscope.datasets.radiographs import XrayCase, find_table, make, pictures_below
from pneumoscope.errors import DatasetError
from pneumoscope.io.files import read_csv

EXPECTED = "images*/NNNNNNNN_MMM.png and Data_Entry_2017.csv of NIH ChestX-ray14, or folders named after a finding"
TABLES = ("data_entry_2017.csv", "data_entry_2017_v2020.csv")
_NAME = re.compile(r"(\d{8})_\d{3}")


def read_nih(root: Path) -> list[XrayCase]:
    """Pictures with ``No Finding`` (normal), ``Pneumonia`` (pneumonia) or anything else (other).

    Raises:
        DatasetError: not that dataset.
    """
    pictures = [p for p in pictures_below(root, EXPECTED) if _NAME.fullmatch(p.stem)]
    if not pictures:
        raise DatasetError(f"holds no picture called NNNNNNNN_MMM; expected {EXPECTED}", path=root)
    table = find_table(root, TABLES)
    stated: dict[str, tuple[str, str]] = {}
    if table is not None:
        rows = read_csv(table, ("Image Index", "Finding Labels"), error=DatasetError)
        stated = {
            Path(r["Image Index"]).stem: (label_of(r["Finding Labels"]), r.get("View Position", "")) for r in rows
        }
    cases = []
    for path in pictures:
        label, view = stated.get(path.stem) or (_by_folder(path, root), "")
        match = _NAME.fullmatch(path.stem)
        assert match is not None
        cases.append(make("nih", path, path.stem, match[1], label, "nih", view=view))
    return cases


def label_of(findings: str) -> str:
    """Our class of ``Finding|Finding``."""
    words = {word.strip().lower() for word in findings.split("|")}
    if words == {"no finding"}:
        return "normal"
    return "pneumonia" if "pneumonia" in words else "other"


def _by_folder(path: Path, root: Path) -> str:
    names = [root.resolve().name, *path.relative_to(root).parts[:-1]]
    for name in reversed(names):
        plain = name.lower().replace("-", " ").replace("_", " ")
        if "no finding" in plain:
            return "normal"
        if "pneumonia" in plain:
            return "pneumonia"
    raise DatasetError("neither a table nor a folder states its finding; fetch Data_Entry_2017.csv too", path=path)
