"""Your own radiographs: a CSV ``image,label[,patient,source,view]``; paths count from its folder."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.datasets.xray.case import XrayCase, make, read_rows
from pneumoscope.errors import DatasetError
from pneumoscope.io.kinds import case_name

NAME = "radiographs.csv"


def read_table(path: Path) -> list[XrayCase]:
    """The pictures of a table, in its order; a folder means its `radiographs.csv`.

    A row without patient is a patient of its own.

    Raises:
        DatasetError: no such table, a row without image or label, a picture that is not there.
    """
    table = path / NAME if path.is_dir() else path
    if not table.is_file():
        raise DatasetError(f"no such table; expected a CSV image,label[,patient,source,view] ({NAME})", path=table)
    cases, names = [], set()
    for number, row in enumerate(read_rows(table, ("image", "label")), start=2):
        if not row["image"] or not row["label"]:
            raise DatasetError(f"line {number} has no image or no label", path=table)
        picture = table.parent / row["image"]
        if not picture.is_file():
            raise DatasetError(f"line {number}: image {row['image']!r} does not exist", path=table)
        name = case_name(picture.with_suffix(""))
        if name in names:
            name = f"{name}-{number}"
        names.add(name)
        patient = row.get("patient") or f"row{number}"
        view = row.get("view", "")
        cases.append(make("radiographs", picture, name, patient, row["label"], row.get("source", ""), view=view))
    if not cases:
        raise DatasetError("lists no picture; expected at least one line below the column names", path=table)
    return cases
