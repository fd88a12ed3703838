"""Hannover Medical School, COVID-19 Image Repository: X-rays of COVID-19, several per patient.

The table is ``data.csv`` (``patients.csv`` in some extracts) with ``image_id``, ``patient_id``, ``modality`` and
``projection``; pictures are called after their image_id.
"""

from __future__ import annotations

from pathlib import Path

from pneumoscope.datasets.radiographs import XrayCase, find_table, make, pictures_below
from pneumoscope.errors import DatasetError
from pneumoscope.io.files import read_csv

EXPECTED = "data.csv (or patients.csv) and the pictures of ml-workgroup/covid-19-image-repository"
_FRONTAL = ("pa", "ap", "")


def read_hannover(root: Path) -> list[XrayCase]:
    """Frontal X-rays of the table that are on disk, in its order.

    Raises:
        DatasetError: not that dataset, or no picture fits.
    """
    pictures = {p.stem.lower(): p for p in pictures_below(root, EXPECTED)}
    table = find_table(root, ("data.csv", "patients.csv"))
    if table is None:
        raise DatasetError(f"has no data.csv; expected {EXPECTED}", path=root)
    cases = []
    for row in read_csv(table, ("image_id", "patient_id"), error=DatasetError):
        view = row.get("projection", "").lower()
        path = pictures.get(row["image_id"].lower())
        if path is None or view not in _FRONTAL or row.get("modality", "CR").upper() not in ("CR", "DX", "X-RAY", ""):
            continue
        cases.append(make("hannover", path, path.stem, row["patient_id"], "covid19", "hannover", view=view.upper()))
    if not cases:
        raise DatasetError("no frontal X-ray of its table is on disk; fetch the folder png too", path=root)
    return cases
