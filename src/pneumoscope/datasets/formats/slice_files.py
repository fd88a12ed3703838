"""Folders of slices as cases, so that checking, auditing and splitting take them like scans.

Two kinds of folder are read:

- what `data convert --to slices` writes (it has a ``slices.json``): whole scans in Hounsfield units, exactly as they
  were (`pneumoscope.datasets.formats.slice_files`);
- 8-bit pictures of the sources in `pneumoscope.datasets.slices`. They are not Hounsfield units and have no known size.
  A case still needs a volume, so the grey values 0..255 stand in `Volume.hu` and a grid of 1 mm in all directions
  stands for the unknown one; `Volume.source` and two findings say so. Slices that the makers of a set left out
  are not put back as blank ones: index k is the k-th picture from the feet, and its name is in ``source["pictures"]``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, LabelledScan, make_case
from pneumoscope.datasets.formats.layout import refuse_links_out, require_folder
from pneumoscope.datasets.slices import SOURCES, SliceScan, slice_scans
from pneumoscope.errors import DatasetError, Finding, PneumoscopeError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import write_json
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, Mask, Volume

LUNG: dict[int, str] = {1: "lung"}  # Lung without sides

NOT_HU = Finding(
    "IN-SET-131",
    "8-bit pictures: grey values from 0 to 255, not Hounsfield units; densities and thresholds in HU mean nothing here",
    "error",
)
NO_SIZE = Finding(
    "IN-SET-132",
    "pixel size and slice distance are unknown; 1 mm stands in, so that millilitres are thousands of voxels",
)


def read_slice_cases(root: str | Path) -> list[Case]:
    """The scans of one or several sources, or of an export; pictures are opened when a case is loaded.

    Args:
        root: a folder that holds ``coronacases``, ``radiopaedia`` or ``medseg``, or is one of them by its name; or a
            folder of `data convert --to slices`.

    Raises:
        DatasetError: none of these, no pictures, a link that leads out.
    """
    folder = Path(root)
    expected = f"folders {', '.join(SOURCES)} of 8-bit slices, or slices written by data convert"
    require_folder(folder, expected)
    refuse_links_out(folder)

    if (folder / DESCRIPTION).is_file():
        return read_slice_export(folder)
    sources = [name for name in SOURCES if (folder / name).is_dir()]
    if not sources:
        sources = [name for name in (folder.name, folder.resolve().name) if name in SOURCES][:1]
    if not sources:
        raise DatasetError(f"holds no {expected}; the folder's name tells how its pictures are turned", path=folder)
    scans = [scan for source in sources for scan in slice_scans(folder, source)]
    about = [{"licence": SOURCES[s.source].licence, "citation": SOURCES[s.source].citation} for s in scans]
    return [
        make_case("slices", s.case, partial(load_slices, s), None, patient=s.patient, source=s.source, **a)
        for s, a in zip(scans, about, strict=True)
    ]


def load_slices(scan: SliceScan) -> LabelledScan:
    """The pictures of a scan as a volume that is no scan: see the top of this module.

    Raises:
        DatasetError: see `SliceScan.read`.
    """
    stack = scan.read()
    n, rows, columns = stack.images.shape
    grid = Grid.from_spacing((columns, rows, n), (1.0, 1.0, 1.0))
    source = {
        "format": "8-bit pictures",
        "values": "grey, 0 to 255, not Hounsfield units",
        "spacing": "unknown; 1 mm stands in",
        "pictures": " ".join(stack.slices),
    }
    native = grid.reorient(("L", "P", "S"))
    hu = from_slices(stack.images).astype(np.float32)
    volume = Volume(hu, grid, native, stack.case, (NOT_HU, NO_SIZE, *_gaps(stack.slices)), source)
    lungs = None if stack.lungs is None else Mask(from_slices(stack.lungs), grid, LUNG)
    drawn = None
    if stack.infiltrate is not None:
        names = (
            INFILTRATE_LABELS if SOURCES[scan.source].flat and (scan.folder / "classes").is_dir() else INFILTRATE_LABEL
        )
        drawn = Mask(from_slices(stack.infiltrate), grid, names)
    return LabelledScan(volume, lungs, drawn)


def _gaps(names: tuple[str, ...]) -> tuple[Finding, ...]:
    """What is known of slices that are not there."""
    if len(names) < 2:
        return ()
    text = "pictures without infiltrate may have been left out: neighbours here need not be neighbours in the body"
    if all(name.isdecimal() for name in names):
        numbers = [int(name) for name in names]
        gaps = sum(after - before > 1 for before, after in pairwise(numbers))
        if gaps:
            text = f"the numbers of the pictures have {gaps} gaps; {text}"
    return (Finding("IN-SET-133", text, "info"),)


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
        raise DatasetError(f"is not a description of exported slices ({said}); convert again", path=path) from None
    return cases


def _case(entry: Mapping[str, Any], root: Path) -> Case:
    name = entry["case"]
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"case {name!r}")
    grids = _grid(entry["grid"]), _grid(entry["native"])
    names = {what: _names(entry[what]) for what in ("lungs", "infiltrate")}
    about = {key: str(entry[key]) for key in ("patient", "source", "licence", "citation", "date")}
    return make_case("slices", name, partial(_load, root / name, grids, names), None, **about)


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
