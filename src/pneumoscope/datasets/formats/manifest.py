"""Own data: a CSV that lists scans and masks, as cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pneumoscope.datasets.case import Case, CaseFiles, LabelledScan, make_case
from pneumoscope.errors import DatasetError
from pneumoscope.io.scan_ref import ScanRef
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask


def read_manifest_cases(path: str | Path) -> list[Case]:
    """Cases of ``case,image[,lungs,infiltrate,patient,date,source]``; a folder means its ``manifest.csv``.

    A row without patient is a patient of its own; `Case.date` is the row's date as it stands there. Scans and masks
    are read when a case is loaded.

    Raises:
        InputError: the table cannot be used (see `pneumoscope.io.scan_ref.read_manifest`).
    """
    from pneumoscope.io.scan_ref import read_manifest

    table = Path(path) / "manifest.csv" if Path(path).is_dir() else Path(path)
    return [case_of_row("manifest", ref, partial(load_scan, ref)) for ref in read_manifest(table)]


def case_of_row(dataset: str, ref: ScanRef, load: Callable[[], LabelledScan]) -> Case:
    """The case of one row."""
    about = {"patient": ref.patient or "", "source": ref.source or "", "date": ref.date or ""}
    return make_case(dataset, ref.case, load, CaseFiles(ref.path, ref.lungs, ref.infiltrate), **about)


def load_scan(ref: ScanRef) -> LabelledScan:
    """Read the scan and the masks of one row.

    A mask may be stored in another orientation than its scan (axes permuted or flipped) as long as its voxels lie on
    the scan's; on any other grid it is refused, with what is different.

    Raises:
        DatasetError: a mask holds labels this program has no meaning for.
        ReadError: a file cannot be read, or a mask does not lie on its scan (IN-MSK-069).
    """
    from pneumoscope.io.masks import fit_mask
    from pneumoscope.io.read import read_mask, read_volume

    volume = read_volume(ref.path, case=ref.case)
    masks: dict[str, Mask | None] = {"lungs": None, "infiltrate": None}
    for what, path in (("lungs", ref.lungs), ("infiltrate", ref.infiltrate)):
        if path is not None:
            mask = _named(read_mask(path), path, what)
            name = "lung" if what == "lungs" else what
            masks[what] = fit_mask(mask, volume.grid, what=f"the {name} mask of {ref.case}", path=path)
    return LabelledScan(volume, masks["lungs"], masks["infiltrate"])


def _named(mask: Mask, path: Path, what: str) -> Mask:
    """The mask with the names used here; ``infiltrate`` and ``lung`` where kinds and sides are not distinguished."""
    highest = int(mask.labels.max(initial=0))
    if highest > 2:
        present = np.flatnonzero(np.bincount(mask.labels.ravel(order="K"))).tolist()
        raise DatasetError(f"holds labels {present}; {what} have labels 0, 1 and 2 here", path=path)
    if what == "lungs" and dict(mask.names) == {1: "lung"}:
        return mask
    if what == "lungs":
        return Mask(mask.labels, mask.grid, LUNG_LABELS)
    with_kinds = highest == 2 or 2 in mask.names
    return Mask(mask.labels, mask.grid, INFILTRATE_LABELS if with_kinds else INFILTRATE_LABEL)
