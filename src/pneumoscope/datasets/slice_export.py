"""Whole scans as folders of PNG slices, and exactly back.

Layout::

    slices.json                    what was written, grids and conventions; written last
    slices.csv                     one row per slice
    <case>/hu/000.png              16-bit grey: Hounsfield units + 1024, slice 000 nearest the feet
    <case>/lungs/000.png           8-bit labels, 1 = right, 2 = left; missing where the data set has none
    <case>/infiltrate/000.png      8-bit labels; missing where nobody drew

Pictures hang as a radiologist sees them: front of the chest up, the patient's right at the left edge. Volumes of whole
Hounsfield units from -1024 to 64511 come back bit for bit, grids too. Other values are rounded and cut to that;
``rounded_hu`` of the case says by how much at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, LabelledScan, require_unique_cases
from pneumoscope.errors import DatasetError, PneumoscopeError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import write_json
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.volume import Mask, Volume

DESCRIPTION = "slices.json"
TABLE = "slices.csv"
TABLE_COLUMNS = ("case", "slice", "patient", "source", "z_mm", "lung_pixels", "infiltrate_pixels")
OFFSET_HU = 1024
FORMAT = "pneumoscope slices"
VERSION = 1

CONVENTIONS = {
    "format": FORMAT,
    "version": VERSION,
    "hu": f"stored value of hu/NNN.png - {OFFSET_HU}",
    "view": "rows from the front of the chest to the back, columns from the patient's right to left; 000 is the lowest",
    "grid": "affine: voxel (column from the patient's left, row from the back, slice) to mm, RAS+",
}


def write_case_slices(case: Case, scan: LabelledScan, name: str, root: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    """Write one case below `root`; gives its entry of ``slices.json`` and its rows of ``slices.csv``."""
    volume = scan.volume
    stack = to_slices(volume.hu)
    masks = {"lungs": scan.lungs, "infiltrate": scan.infiltrate}
    labels = {what: None if mask is None else to_slices(mask.labels) for what, mask in masks.items()}
    for what in ("hu", *(what for what, mask in masks.items() if mask is not None)):
        (root / name / what).mkdir(parents=True)
    off, rows = 0.0, []
    for k, hu in enumerate(stack):
        stored = np.clip(np.rint(hu) + OFFSET_HU, 0, 65535).astype(np.uint16)
        off = max(off, float(np.abs(stored.astype(np.float32) - OFFSET_HU - hu).max()))
        _save(stored, root / name / "hu" / f"{k:03d}.png")
        marked: list[Any] = []
        for what, planes in labels.items():
            marked.append("" if planes is None else int(np.count_nonzero(planes[k])))
            if planes is not None:
                _save(planes[k], root / name / what / f"{k:03d}.png")
        middle = volume.grid.world([(volume.grid.shape[0] - 1) / 2, (volume.grid.shape[1] - 1) / 2, k])
        rows.append([name, k, case.patient, case.source, round(float(middle[2]), 3), *marked])
    entry = {
        "case": name,
        "dataset": case.dataset,
        "patient": case.patient,
        "source": case.source,
        "date": case.date,
        "licence": case.licence,
        "citation": case.citation,
        "slices": len(stack),
        "grid": _as_json(volume.grid),
        "native": _as_json(volume.native),
        "lungs": None if scan.lungs is None else {str(k): v for k, v in scan.lungs.names.items()},
        "infiltrate": None if scan.infiltrate is None else {str(k): v for k, v in scan.infiltrate.names.items()},
        "rounded_hu": off,
    }
    return entry, rows


def write_description(root: Path, entries: list[dict[str, Any]]) -> None:
    """Write ``slices.json``; a folder without it is no export."""
    write_json(root / DESCRIPTION, {**CONVENTIONS, "cases": entries})


def read_slice_export(root: str | Path) -> list[Case]:
    """The cases of an export, as they were before.

    Raises:
        DatasetError: no export, a damaged one, or one of a newer version.
    """
    path = Path(root) / DESCRIPTION
    try:
        held = json.loads(path.read_bytes())
        entries = held["cases"]
        if held["format"] != FORMAT or held["version"] > VERSION or not isinstance(entries, list) or not entries:
            raise ValueError(f"format {held['format']!r}, version {held['version']!r}")
        cases = [_case(entry, Path(root)) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, PneumoscopeError) as error:
        said = " ".join(f"{type(error).__name__} {error}".split())
        raise DatasetError(f"is no description of exported slices ({said}); convert again", path=path) from None
    return require_unique_cases(cases, str(root))


def _case(entry: Mapping[str, Any], root: Path) -> Case:
    name = entry["case"]
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"case {name!r}")
    grids = _grid(entry["grid"]), _grid(entry["native"])
    names = {what: _names(entry[what]) for what in ("lungs", "infiltrate")}
    patient, source, licence, citation, date = (
        str(entry[key]) for key in ("patient", "source", "licence", "citation", "date")
    )
    load = partial(_load, root / name, grids, names)
    return Case("slices", name, patient, source, licence, citation, load, date)


def _load(folder: Path, grids: tuple[Grid, Grid], names: Mapping[str, Mapping[int, str] | None]) -> LabelledScan:
    grid, native = grids
    hu = from_slices(_stack(folder / "hu", grid, np.uint16)).astype(np.float32) - np.float32(OFFSET_HU)
    source = {"format": "PNG slices"}
    volume = Volume(hu, grid, native, folder.name, (), source)
    masks = {
        what: None if known is None else Mask(from_slices(_stack(folder / what, grid, np.uint8)), grid, known)
        for what, known in names.items()
    }
    return LabelledScan(volume, masks["lungs"], masks["infiltrate"])


def _stack(folder: Path, grid: Grid, dtype: type[np.generic]) -> NDArray[Any]:
    """Pictures 000.png, 001.png ... of the size and type the description says, (k, h, w)."""
    from PIL import Image

    columns, rows, slices = grid.shape
    stack = np.empty((slices, rows, columns), dtype)
    for k in range(slices):
        path = folder / f"{k:03d}.png"
        try:
            with Image.open(path) as picture:
                plane = np.asarray(picture)
        except (OSError, SyntaxError) as error:
            reason = "is missing" if not path.exists() else f"is not a readable picture ({error})"
            raise DatasetError(f"{reason}; half a download? Copy the rest, or convert again", path=path) from None
        if plane.shape != (rows, columns) or plane.dtype != dtype:
            raise DatasetError(
                f"is {plane.dtype} of {plane.shape}, expected {np.dtype(dtype)} of {(rows, columns)}; a program has "
                "changed it: convert again",
                path=path,
            )
        stack[k] = plane
    return stack


def _save(plane: NDArray[Any], path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(plane)).save(path, compress_level=3)


def _as_json(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _grid(held: Mapping[str, Any]) -> Grid:
    return Grid(held["shape"], held["affine"])


def _names(held: Mapping[str, str] | None) -> Mapping[int, str] | None:
    return None if held is None else {int(label): str(name) for label, name in held.items()}
