"""One radiograph of a data set: whose it is, what it is said to show, where it lies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.datasets.formats.layout import refuse_links_out
from pneumoscope.datasets.registry import dataset_info, require_unique
from pneumoscope.errors import DatasetError

if TYPE_CHECKING:
    from pneumoscope.volume import Radiograph

LABELS = ("normal", "bacterial", "viral", "covid19", "pneumonia", "other")
"""Classes by name; ``pneumonia`` where the cause is not told, ``other`` for findings that are none of these."""

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".dcm")
_JUNK = ("__macosx", "thumbs.db", "desktop.ini")
MAX_FILES = 300_000

READERS: Mapping[str, str] = {
    "kermany": "pneumoscope.datasets.public.kermany:read_kermany",
    "cohen": "pneumoscope.datasets.public.cohen:read_cohen",
    "hannover": "pneumoscope.datasets.public.hannover:read_hannover",
    "nih": "pneumoscope.datasets.public.nih:read_nih",
    "radiographs": "pneumoscope.datasets.formats.radiographs:read_table",
}
"""Which function reads which data set, as ``module:function``; imported when it is asked for."""


@dataclass(frozen=True)
class XrayCase:
    """A radiograph that can be loaded.

    Attributes:
        dataset: name in `pneumoscope.datasets.registry`, e.g. ``kermany``.
        case: unique within the data set.
        patient: pictures of one person share it; splits go by it. Unique across data sets.
        label: one of `LABELS`, or a class of a user's own table.
        source: hospital or sub-collection, e.g. ``guangzhou``; what a network must not learn.
        licence, citation: of the data, for model cards.
        path: the picture.
        view: ``PA``, ``AP``, ``AP Supine`` ... as the set says, "" where it does not.
        part: the set's own ``train``, ``val`` or ``test``, "" where it has none.
    """

    dataset: str
    case: str
    patient: str
    label: str
    source: str
    licence: str
    citation: str
    path: Path
    view: str = ""
    part: str = ""

    def load(self) -> Radiograph:
        """Read the picture.

        Raises:
            ReadError: it cannot be read.
        """
        from pneumoscope.io.formats.radiograph import read_radiograph

        return read_radiograph(self.path, case=self.case)


def read_radiographs(name: str, root: str | Path) -> list[XrayCase]:
    """The pictures of a data set in `root`, in order of path; none is opened.

    Raises:
        DatasetError: unknown name, or a folder that is not that data set.
    """
    if name not in READERS:
        dataset_info(name)
        raise DatasetError(f"{name} is no set of radiographs; known are {', '.join(READERS)}", path=root)
    module, _, function = READERS[name].partition(":")
    reader: Callable[[Path], list[XrayCase]] = getattr(import_module(module), function)
    return require_unique(reader(Path(root)), root)


def make(dataset: str, path: Path, case: str, patient: str, label: str, source: str, **more: str) -> XrayCase:
    """A case with licence and citation of its data set."""
    info = dataset_info(dataset)
    return XrayCase(
        dataset=dataset,
        case=case,
        patient=f"{dataset}:{patient}",
        label=label,
        source=source,
        licence=more.pop("licence", info.licence),
        citation=info.citation,
        path=path,
        **more,
    )


def pictures_below(root: Path, expected: str) -> list[Path]:
    """Every picture at or below a folder, sorted; hidden files and the junk of other systems are passed over.

    Raises:
        DatasetError: no folder, an archive, an empty folder, no picture, or a link out of the folder.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        hint = "; unzip it and name the folder that comes out" if root.suffix.lower() == ".zip" else ""
        raise DatasetError(f"{what}, expected {expected}{hint}", path=root)
    refuse_links_out(root)
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not _is_junk(f))
        found += [Path(folder) / f for f in sorted(files) if not _is_junk(f) and Path(f).suffix.lower() in PICTURES]
        if len(found) > MAX_FILES:
            raise DatasetError(f"holds more than {MAX_FILES} pictures; expected {expected}", path=root)
    if not found:
        raise DatasetError(f"holds no picture; expected {expected}", path=root)
    return found


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def read_rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV; cells and column names are stripped, unnamed columns dropped.

    Raises:
        DatasetError: no CSV in UTF-8 with those columns (a web page that was saved under its name, say).
    """
    import csv

    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = [[cell.strip() for cell in row] for row in csv.reader(stream, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"is no CSV table in UTF-8 ({type(error).__name__}); fetch it again", path=path) from None
    header = table[0] if table else []
    missing = [name for name in needed if name not in header]
    if missing:
        raise DatasetError(f"has no column {', '.join(missing)}; expected {', '.join(needed)}", path=path)
    return [{name: cell for name, cell in zip(header, row, strict=False) if name} for row in table[1:] if any(row)]


def find_table(root: Path, names: Iterable[str]) -> Path | None:
    """The first file of one of these names (lower case), the nearest to the root."""
    wanted = set(names)
    found = [p for p in root.rglob("*") if p.name.lower() in wanted and p.is_file() and "__MACOSX" not in p.parts]
    return min(found, key=lambda p: (len(p.parts), str(p)), default=None)
