"""The cleaned copy: a folder any reader of manifests takes, with a log of every voxel that was changed."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pneumoscope.datasets.audit.raw import RawCase
from pneumoscope.datasets.audit.repair import NOT_CARRIED, Repaired, file_index
from pneumoscope.datasets.case import Case
from pneumoscope.datasets.convert_layouts import write_values
from pneumoscope.errors import InputError, ReadError
from pneumoscope.io.files import atomic_path
from pneumoscope.io.itk_out import save_nrrd
from pneumoscope.io.kinds import kind_of, suffix_of
from pneumoscope.io.read import read_stored
from pneumoscope.volume import INFILTRATE_LABEL, INFILTRATE_LABELS, LUNG_LABELS, Mask

TABLE = "manifest.csv"
CHANGES = "changes.csv"
CHANGE_COLUMNS = ("case", "mask", "i", "j", "k", "x", "y", "z", "from", "to", "kind")
TABLE_COLUMNS = ("case", "image", "lungs", "infiltrate", "patient", "date", "source")
_CHUNK = 100_000


def require_apart(copy: Path, roots: Iterable[Path]) -> None:
    """Refuse a folder for the copy that lies in a data set or around one: originals are never touched.

    Raises:
        InputError: it does.
    """
    target = copy.resolve()
    for root in roots:
        home = root.resolve() if root.is_dir() else root.resolve().parent
        if target == home or target in home.parents or home in target.parents:
            raise InputError(f"lies in or around the data set {root}; choose a folder beside it", path=copy)


def write_case(folder: Path, raw: RawCase, repaired: Repaired, name: str) -> dict[str, Any]:
    """Write one case of the copy under the file name `name`: the image unchanged, the masks as repaired.

    Returns:
        Its row of the manifest.
    """
    from pneumoscope.io.write import write_mask

    case = raw.case
    row: dict[str, Any] = dict.fromkeys(TABLE_COLUMNS, "")
    row |= {"case": name, "patient": case.patient, "date": case.date, "source": case.source}
    row["image"] = _image(folder, case, raw, name)
    for what, labels in (("lungs", repaired.lungs), ("infiltrate", repaired.infiltrate)):
        if labels is not None:
            row[what] = f"{what}/{name}.nii.gz"
            names = LUNG_LABELS if what == "lungs" else INFILTRATE_LABELS if (labels == 2).any() else INFILTRATE_LABEL
            write_mask(Mask(labels, raw.volume.grid, dict(names)), folder / row[what], raw.volume.native)
    return row


def _image(folder: Path, case: Case, raw: RawCase, name: str) -> str:
    """Path within the copy. A header that is known to be wrong, or values the reader must turn, are written right."""
    rewrite = case.files is None or case.files.mirrored or case.files.stored_axes or case.files.part is not None
    if rewrite or not raw.hounsfield:
        try:
            write_values(case.load().volume, folder / f"images/{name}.nii.gz")
            return f"images/{name}.nii.gz"
        except ReadError:  # the reader refuses what is no Hounsfield unit: the copy keeps it as it is
            if rewrite:
                raise
    assert case.files is not None
    return f"images/{_duplicate(case.files.image, folder / 'images', name)}"


def _duplicate(source: Path, folder: Path, name: str) -> str:
    """Copy a scan as it is stored, sharing no byte with the source; gives its name in `folder`.

    A folder is copied whole. A MetaImage, whose header may name other files, becomes one NRRD file of the same voxels.
    """
    if source.is_dir():
        shutil.rmtree(folder / name, ignore_errors=True)  # no slice of an earlier copy stays between the new ones
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            target = folder / name / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return name
    if kind_of(source) == "metaimage":
        stored = read_stored(source, "metaimage")
        save_nrrd(stored.array, stored.grid, folder / f"{name}.nrrd")
        return f"{name}.nrrd"
    with atomic_path(folder / f"{name}{suffix_of(source)}") as temporary:
        shutil.copyfile(source, temporary)
    return f"{name}{suffix_of(source)}"


def change_rows(raw: RawCase, repaired: Repaired) -> Iterator[str]:
    """Lines of ``changes.csv``, in pieces: one line per voxel and repair, indices in the order of the mask's own file.

    A voxel that two repairs touch one after the other stands there twice, in that order.
    """
    for change in repaired.changes:
        mask = raw.lungs if change.mask == "lungs" else raw.infiltrate
        assert mask is not None
        for start in range(0, len(change.where), _CHUNK):
            where = change.where[start : start + _CHUNK]
            index = file_index(where, mask.native)
            places = np.char.mod("%.2f", mask.grid.world(where))
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            columns = zip(
                index.tolist(), places.tolist(), change.before[start : start + _CHUNK].tolist(),
                change.after[start : start + _CHUNK].tolist(), strict=True,
            )  # fmt: skip
            writer.writerows(
                (raw.case.case, change.mask, *ijk, *xyz, before, after, change.kind)
                for ijk, xyz, before, after in columns
            )
            yield text.getvalue()


def begin_changes(stream: TextIO) -> None:
    """The head of ``changes.csv``."""
    stream.write(",".join(CHANGE_COLUMNS) + "\n")


def table_text(rows: Iterable[dict[str, Any]]) -> str:
    """``manifest.csv`` of the copy."""
    text = io.StringIO()
    writer = csv.DictWriter(text, TABLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def summary(repaired: Repaired) -> dict[str, int]:
    """Voxels changed by kind; `NOT_CARRIED` counts labels that the copy has no number for."""
    out: dict[str, int] = {}
    for change in repaired.changes:
        out[change.kind] = out.get(change.kind, 0) + len(change.where)
    return dict(sorted(out.items(), key=lambda item: (item[0] == NOT_CARRIED, item[0])))
