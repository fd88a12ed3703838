"""Folders of slices as cases, so that checking, auditing and splitting take them like scans.

Two kinds of folder are read:

- what `data convert --to slices` writes (it has a ``slices.json``): whole scans in Hounsfield units, exactly as they
  were (`pneumoscope.datasets.slice_export`);
- 8-bit pictures of the sources in `pneumoscope.datasets.slices`. They are not Hounsfield units and have no known size.
  A case still needs a volume, so the grey values 0..255 stand in `Volume.hu` and a grid of 1 mm in all directions
  stands for the unknown one; `Volume.source` and two findings say so. Slices that the makers of a set left out
  are not put back as blank ones: index k is the k-th picture from the feet, and its name is in ``source["pictures"]``.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from pneumoscope.datasets.case import Case, LabelledScan, require_unique_cases
from pneumoscope.datasets.layout import require_folder
from pneumoscope.datasets.links import refuse_links_out
from pneumoscope.datasets.slices import SOURCES, SliceScan, slice_scans
from pneumoscope.errors import DatasetError, Finding
from pneumoscope.geometry import Grid
from pneumoscope.preprocess.slices import from_slices
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, Mask, Volume

LUNG: dict[int, str] = {1: "lung"}
"""Lung whose sides are not told apart."""

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
    from pneumoscope.datasets.slice_export import DESCRIPTION, read_slice_export

    if (folder / DESCRIPTION).is_file():
        return read_slice_export(folder)
    sources = [name for name in SOURCES if (folder / name).is_dir()]
    if not sources:
        sources = [name for name in (folder.name, folder.resolve().name) if name in SOURCES][:1]
    if not sources:
        raise DatasetError(f"holds no {expected}; the folder's name tells how its pictures are turned", path=folder)
    scans = [scan for source in sources for scan in slice_scans(folder, source)]
    cases = [
        Case(
            "slices",
            scan.case,
            scan.patient,
            scan.source,
            SOURCES[scan.source].licence,
            SOURCES[scan.source].citation,
            partial(load_slices, scan),
        )
        for scan in scans
    ]
    return require_unique_cases(cases, str(folder))


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
        names = INFILTRATE_LABELS if _tells_kinds(scan) else INFILTRATE_LABEL
        drawn = Mask(from_slices(stack.infiltrate), grid, names)
    return LabelledScan(volume, lungs, drawn)


def _tells_kinds(scan: SliceScan) -> bool:
    return SOURCES[scan.source].flat and (scan.folder / "classes").is_dir()


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
