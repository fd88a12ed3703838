"""One radiograph of a dataset: whose it is, its label, where it lies; and the table of a user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.datasets.formats.layout import refuse_links_out, require_folder
from pneumoscope.datasets.registry import dataset_info, require_unique
from pneumoscope.errors import DatasetError
from pneumoscope.io.files import read_csv
from pneumoscope.io.formats.radiograph import SUFFIXES
from pneumoscope.io.kinds import case_name, files_below

if TYPE_CHECKING:
    from pneumoscope.volume import Radiograph


LABELS = ("normal", "bacterial", "viral", "covid19", "pneumonia", "other")
"""Classes by name; ``pneumonia`` where the cause is not stated, ``other`` for findings that are none of these."""

MAX_FILES = 300_000

READERS: Mapping[str, str] = {
    "kermany": "pneumoscope.datasets.public.kermany:read_kermany",
    "cohen": "pneumoscope.datasets.public.cohen:read_cohen",
    "hannover": "pneumoscope.datasets.public.hannover:read_hannover",
    "nih": "pneumoscope.datasets.public.nih:read_nih",
    "radiographs": "pneumoscope.datasets.xray.case:read_table",
}
"""Which function reads which dataset, as ``module:function``; imported when it is asked for."""


@dataclass(frozen=True)
class XrayCase:
    """A radiograph that can be loaded."""

    dataset: str  # name in `pneumoscope.datasets.registry`, e.g. ``kermany``
    case: str  # unique within the dataset
    patient: str  # pictures of one person share it; splits go by it. Unique across datasets.
    label: str  # one of `LABELS`, or a class of a user's own table
    source: str  # hospital or sub-collection, e.g. ``guangzhou``; what a network must not learn
    # of the data, for model cards
    licence: str
    citation: str
    path: Path  # the picture
    view: str = ""  # ``PA``, ``AP``, ``AP Supine`` ... as the set says, "" where it does not.
    part: str = ""  # the set's own ``train``, ``val`` or ``test``, "" where it has none

    def load(self) -> Radiograph:
        """Read the picture.

        Raises:
            ReadError: it cannot be read.
        """
        from pneumoscope.io.formats.radiograph import read_radiograph

        return read_radiograph(self.path, case=self.case)


def read_radiographs(name: str, root: str | Path) -> list[XrayCase]:
    """The pictures of a dataset in `root`, in order of path; none is opened.

    Raises:
        DatasetError: unknown name, or a folder that is not that dataset.
    """
    if name not in READERS:
        dataset_info(name)
        raise DatasetError(f"{name} is not a dataset of radiographs; known are {', '.join(READERS)}", path=root)
    module, _, function = READERS[name].partition(":")
    reader: Callable[[Path], list[XrayCase]] = getattr(import_module(module), function)
    return require_unique(reader(Path(root)), root)


def make(dataset: str, path: Path, case: str, patient: str, label: str, source: str, **more: str) -> XrayCase:
    """A case with licence and citation of its dataset."""
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
    require_folder(root, expected)
    refuse_links_out(root)
    pictures = (path for path in files_below(root) if path.suffix.lower() in SUFFIXES)
    found = list(islice(pictures, MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise DatasetError(f"holds more than {MAX_FILES} pictures; expected {expected}", path=root)
    if not found:
        raise DatasetError(f"holds no picture; expected {expected}", path=root)
    return found


def find_table(root: Path, names: Iterable[str]) -> Path | None:
    """The first file of one of these names (lower case), the nearest to the root."""
    wanted = set(names)
    found = [path for path in files_below(root) if path.name.lower() in wanted]
    return min(found, key=lambda p: (len(p.parts), str(p)), default=None)


OWN_TABLE = "radiographs.csv"


def read_table(path: Path) -> list[XrayCase]:
    """The pictures of a CSV ``image,label[,patient,source,view]``, in its order; paths count from its folder.

    A folder means its `radiographs.csv`.

    A row without patient is a patient of its own.

    Raises:
        DatasetError: no such table, a row without image or label, a picture that is not there.
    """
    table = path / OWN_TABLE if path.is_dir() else path
    if not table.is_file():
        raise DatasetError(f"no such table; expected a CSV image,label[,patient,source,view] ({OWN_TABLE})", path=table)
    cases, names = [], set()
    for number, row in enumerate(read_csv(table, ("image", "label"), error=DatasetError), start=2):
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
