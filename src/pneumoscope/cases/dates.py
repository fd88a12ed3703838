"""One date of a patient, read from the case folder that `segment` or `quantify` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pneumoscope.cases.outputs import COPY_FILE, REPORT_FILE
from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import read_json
from pneumoscope.volume import Mask, Volume

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
