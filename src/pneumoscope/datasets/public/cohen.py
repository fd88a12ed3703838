"""Cohen et al. 2020, covid-chestxray-dataset: frontal X-rays of COVID-19 by the table, in both generations of it.

Early tables have flat findings (``COVID-19, ARDS``), late ones a path (``Pneumonia/Viral/COVID-19``). Rows of CT, of
lateral views, of pictures that are not on disk and of unknown findings are left out. A folder without the table (some
extracts hold the COVID-19 pictures only) is read when it is called so, with the article as patient.
"""

from __future__ import annotations

import re
from pathlib import Path

from pneumoscope.datasets.radiographs import XrayCase, find_table, make, pictures_below
from pneumoscope.errors import DatasetError
from pneumoscope.io.files import read_csv

EXPECTED = "metadata.csv and images/ of ieee8023/covid-chestxray-dataset"
NEEDED = ("patientid", "finding", "view", "modality", "folder", "filename")
FRONTAL = ("PA", "AP", "AP SUPINE", "AP SEMI ERECT", "AP ERECT")
_LEFT_OUT = ("todo", "unknown", "")
_BACTERIA = ("bacterial", "streptococcus", "klebsiella", "legionella", "e.coli", "chlamydophila", "mycoplasma")
_VIRUSES = ("viral", "sars", "mers-cov", "influenza", "varicella", "herpes")
_SHORTEST = 6
_PANEL = re.compile(
    r"(?:[-_.](?:gr|fx|fig|figure|f|g|[a-z])?\d{0,4}[a-z]?|[-_](?:lrg|lg|large|ap|pa|aps|main|fig)|\.pdf)$",
    re.IGNORECASE,
)


def read_cohen(root: Path) -> list[XrayCase]:
    """Frontal X-rays of the table that are on disk, in its order.

    Raises:
        DatasetError: not that dataset, or no picture fits.
    """
    pictures = {p.name.lower(): p for p in pictures_below(root, EXPECTED)}
    table = find_table(root, ("metadata.csv",))
    if table is None:
        return _without_table(root, list(pictures.values()))
    cases = []
    for row in read_csv(table, NEEDED, error=DatasetError):
        label = label_of(row["finding"])
        frontal = row["view"].upper() in FRONTAL
        if label is None or not frontal or row["modality"].lower() != "x-ray" or row["folder"].lower() != "images":
            continue
        path = pictures.get(row["filename"].lower())
        if path is None:  # listed, not in this copy
            continue
        licence = row.get("license") or "not stated for this image"
        cases.append(
            make(
                "cohen", path, path.stem, row["patientid"] or path.stem, label, "cohen",
                view=row["view"], licence=f"{licence} (image); metadata CC BY-NC-SA 4.0",
            )
        )  # fmt: skip
    if not cases:
        raise DatasetError("no frontal X-ray of its table is on disk; fetch the folder images too", path=root)
    return cases


def label_of(finding: str) -> str | None:
    """Our class of a finding of either generation; None for rows to leave out.

    COVID-19 goes before everything else: ``COVID-19, ARDS`` is COVID-19.
    """
    words = [word.strip().lower() for word in re.split(r"[/,]", finding)]
    if "covid-19" in words:
        return "covid19"
    if all(word in _LEFT_OUT for word in words):
        return None
    if words[0] == "no finding":
        return "normal"
    if any(word in _BACTERIA for word in words):
        return "bacterial"
    if any(word in _VIRUSES for word in words):
        return "viral"
    return "pneumonia" if words[0] == "pneumonia" else "other"


def _without_table(root: Path, pictures: list[Path]) -> list[XrayCase]:
    """Pictures of a folder that is called after COVID-19; everything else needs the table."""
    if "covid" not in root.resolve().name.lower():
        raise DatasetError(
            "has no metadata.csv; fetch it too, or list the pictures in a table and read them as radiographs", path=root
        )
    return [make("cohen", p, p.stem, article_of(p.stem), "covid19", "cohen") for p in pictures]


def article_of(stem: str) -> str:
    """What pictures of one article have in common: the name without figure and panel; the safest patient there is."""
    plain = stem.lower()
    while (shorter := _PANEL.sub("", plain)) != plain and len(shorter) >= _SHORTEST:
        plain = shorter
    return plain
