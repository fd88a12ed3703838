"""One date of a patient, read from the case folder that `segment` or `quantify` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.cases.outputs import COPY_FILE, REPORT_FILE
from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import read_json
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    from pneumoscope.inference.segmenter import Segmentation

CASE_FILES = (REPORT_FILE, "lungs.nii.gz", "infiltrate.nii.gz", COPY_FILE)
"""What a comparison reads of a case folder."""


@dataclass(frozen=True, eq=False)
class Dated:
    """What a comparison needs of one date.

    Attributes:
        name: of the case.
        lungs: on the scan's grid.
        infiltrate: on the scan's grid.
        scan: densities; a coarse copy around the lungs is enough, the whole scan serves as well.
        native: the scan's grid as it lies on disk; masks are written on it.
    """

    name: str
    lungs: Mask
    infiltrate: Mask
    scan: Volume
    native: Grid


def is_case_folder(path: Path) -> bool:
    """Whether a folder is a finished case of `segment` or `quantify`."""
    return (path / REPORT_FILE).is_file() and (path / "lungs.nii.gz").is_file()


def read_dated(folder: Path) -> Dated:
    """Read a case folder.

    Raises:
        InputError: it is no finished case, no lung was found in it, or it was written before comparisons existed.
        ReadError: a file in it is damaged.
    """
    from pneumoscope.io import read_mask, read_volume
    from pneumoscope.io.read import read_stored

    missing = [name for name in CASE_FILES if not (folder / name).is_file()]
    if missing == [COPY_FILE]:
        raise InputError(
            f"holds no {COPY_FILE}: no lung was found in this case, or it was written with --fast; segment it again",
            path=folder,
        )
    if missing:
        raise InputError(f"is no finished case: {', '.join(missing)} is missing; segment the scan first", path=folder)
    name = read_json(folder / REPORT_FILE, remedy="segment the scan again").get("case")
    if not isinstance(name, str) or not name:
        raise InputError("names no case; segment the scan again", path=folder / REPORT_FILE)
    lungs = read_mask(folder / "lungs.nii.gz")
    infiltrate = read_mask(folder / "infiltrate.nii.gz")
    lungs.grid.require_same_space(infiltrate.grid, "the infiltrate mask")
    native = read_stored(folder / "lungs.nii.gz", "nifti", sparse=True).grid
    return Dated(name, lungs, infiltrate, read_volume(folder / COPY_FILE, intensity="hu", case=name), native)


def write_dated(found: Segmentation, folder: Path) -> Path:
    """Write what a comparison reads of a segmentation that knows its scan; gives the folder.

    Raises:
        InputError: it has no scan, or no lung was found.
    """
    from pneumoscope.cases.outputs import write_copy
    from pneumoscope.io.files import write_json

    if found.scan is None or not found.lungs.any.any():
        raise InputError("this segmentation has no scan or no lung, so it cannot be compared")
    folder.mkdir(parents=True, exist_ok=True)
    found.lungs.save(folder / "lungs.nii.gz")
    found.infiltrate.save(folder / "infiltrate.nii.gz")
    write_copy(folder / COPY_FILE, found.scan, found.lungs, found.infiltrate)
    write_json(folder / REPORT_FILE, {"case": found.scan.case})
    return folder
