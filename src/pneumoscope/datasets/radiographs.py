"""Radiographs of a dataset: whose they are, labels, where they lie; and the pictures made of them for networks.

What a network or a baseline is shown is a `PictureRecipe`: what is cut away, whether the histogram is equalised, and
how the rest is brought to a square. Views that hide a part exist to ask what a classifier can do without it:
``corners`` holds no chest, ``no_lungs`` hides the middle box where the lungs lie.

The lungs are not segmented here. `LUNG_BOX` is one fixed box for all pictures: frontal radiographs are framed around
the lungs, and a fixed box cannot itself learn where a picture comes from. It is a stand-in, and cuts off some costal
angles and leaves some mediastinum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.cache import ArrayCache, Entry
from pneumoscope.datasets.formats.layout import refuse_links_out, require_folder
from pneumoscope.datasets.registry import dataset_info, require_unique
from pneumoscope.errors import DatasetError, InputError, ReadError
from pneumoscope.io.files import read_csv, sha256
from pneumoscope.io.formats.radiograph import SUFFIXES
from pneumoscope.io.kinds import case_name, files_below
from pneumoscope.jobs.stamp import stamp
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import Radiograph

LABELS = ("normal", "bacterial", "viral", "covid19", "pneumonia", "other")
"""Classes by name; ``pneumonia`` where the cause is not stated, ``other`` for findings that are none of these."""

MAX_FILES = 300_000

READERS: Mapping[str, str] = {
    "kermany": "pneumoscope.datasets.public.kermany:read_kermany",
    "cohen": "pneumoscope.datasets.public.cohen:read_cohen",
    "hannover": "pneumoscope.datasets.public.hannover:read_hannover",
    "nih": "pneumoscope.datasets.public.nih:read_nih",
    "radiographs": "pneumoscope.datasets.radiographs:read_table",
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


LUNG_BOX = (0.12, 0.82, 0.08, 0.92)
"""Top, bottom, left and right as shares of rows and columns: where the lungs lie in most frontal radiographs."""

VIEWS = ("whole", "lung_box", "no_lungs", "corners")
MID_GREY = 128  # What is painted over what is hidden: the same in every picture


@dataclass(frozen=True)
class PictureRecipe:
    """How a radiograph becomes a square."""

    side: int = 224  # rows and columns of the result
    # ``stretch`` to the square as the paper's "resized to 224 x 224" reads, or ``pad``: the proportions are kept and
    # the rest is black
    fit: Literal["stretch", "pad"] = "stretch"
    # ``none``, ``global`` (histogram equalisation) or ``clahe`` (contrast-limited and local)
    equalise: Literal["none", "global", "clahe"] = "none"
    # of CLAHE
    clip_limit: float = 2.0
    tiles: int = 8
    border: float = 0.0  # share of rows and columns cut off at each edge, before anything else
    # ``whole``; ``lung_box``: only the box, enlarged to the square; ``no_lungs``: the box painted over; ``corners``:
    # all but the four corners painted over
    view: Literal["whole", "lung_box", "no_lungs", "corners"] = "whole"
    lung_box: tuple[float, float, float, float] = LUNG_BOX  # top, bottom, left, right as shares
    corner: float = 0.125  # side of a corner as a share of the square's

    def __post_init__(self) -> None:
        object.__setattr__(self, "lung_box", tuple(float(v) for v in self.lung_box))
        top, bottom, left, right = self.lung_box
        if not (8 <= self.side <= 4096 and 0 <= self.border < 0.4 and 0 < self.corner <= 0.5):
            raise InputError(
                "a picture needs side 8 to 4096, border 0 to below 0.4, corner 0 to 0.5; got "
                f"{self.side}, {self.border}, {self.corner}"
            )
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise InputError(f"the lung box {self.lung_box} is not top < bottom, left < right within 0 to 1")
        for what, value, known in (
            ("fit", self.fit, ("stretch", "pad")),
            ("equalise", self.equalise, ("none", "global", "clahe")),
            ("view", self.view, VIEWS),
        ):
            if value not in known:
                raise InputError(f"{what} = {value!r}; expected one of {', '.join(known)}")

    def make(self, pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(rows, columns) in [0, 1] to (side, side) of 0 to 255."""
        import cv2

        cut = _share_of(pixels, self.border, 1 - self.border, self.border, 1 - self.border)
        if self.view == "lung_box":
            cut = _share_of(cut, *self.lung_box)
        square = self._square(np.rint(cut * 255).astype(np.uint8))
        if self.equalise == "clahe":
            square = cv2.createCLAHE(self.clip_limit, (self.tiles, self.tiles)).apply(square).astype(np.uint8)
        elif self.equalise == "global":
            square = cv2.equalizeHist(square).astype(np.uint8)
        return self._hide(square)

    def _square(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        import cv2

        rows, columns = grey.shape
        if self.fit == "stretch":
            height, width = self.side, self.side
        else:
            scale = self.side / max(rows, columns)
            height, width = (min(self.side, max(1, round(n * scale))) for n in (rows, columns))
        way = cv2.INTER_AREA if rows * columns >= height * width else cv2.INTER_LINEAR
        inner = cv2.resize(grey, (width, height), interpolation=way)
        if (height, width) == (self.side, self.side):
            return inner.astype(np.uint8)
        square = np.zeros((self.side, self.side), np.uint8)
        top, left = (self.side - height) // 2, (self.side - width) // 2
        square[top : top + height, left : left + width] = inner
        return square

    def _hide(self, square: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.view == "no_lungs":
            hidden = square.copy()
            rows, columns = _box(self.lung_box, self.side, self.side)
            hidden[rows, columns] = MID_GREY
            return hidden
        if self.view == "corners":
            n = self.corner_pixels
            hidden = np.full_like(square, MID_GREY)
            for rows in (slice(0, n), slice(-n, None)):
                for columns in (slice(0, n), slice(-n, None)):
                    hidden[rows, columns] = square[rows, columns]
            return hidden
        return square

    @property
    def corner_pixels(self) -> int:
        """Side of a corner in pixels, at least 2."""
        return max(2, round(self.side * self.corner))


def _box(shares: tuple[float, float, float, float], rows: int, columns: int) -> tuple[slice, slice]:
    top, bottom, left, right = shares
    return slice(round(top * rows), round(bottom * rows)), slice(round(left * columns), round(right * columns))


def _share_of(pixels: NDArray[np.float32], top: float, bottom: float, left: float, right: float) -> NDArray[np.float32]:
    """The part of a picture between shares of its rows and columns; never empty."""
    rows, columns = _box((top, bottom, left, right), *pixels.shape)
    part = pixels[rows, columns]
    return part if part.size else pixels


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Squares of a list of cases."""

    pixels: NDArray[np.uint8]  # (n, side, side) uint8, mapped from a file
    digest: str  # of recipe, files and pictures: equal digests hold equal squares
    recipe: PictureRecipe  # how they were made


def build_pictures(
    cases: Sequence[XrayCase], recipe: PictureRecipe, folder: str | Path, *, progress: Progress = silent
) -> PictureSet:
    """The squares of `cases`, in their order, from `folder` when they were made before.

    They are made again when the recipe, the list, or the content of a picture changed; `folder` is an `ArrayCache`.

    Raises:
        InputError: no case.
        ReadError: a picture cannot be read; leave unreadable ones out before.
    """
    if not cases:
        raise InputError("there is no picture to read; check the datasets and the draw")
    digest = pictures_content(cases, recipe)
    cache = ArrayCache(folder)

    def make() -> Entry:
        with TemporaryFile(dir=cache.folder) as file:  # NIH's 112,120 pictures take 5.6 GB
            pixels = np.memmap(file, np.uint8, "w+", shape=(len(cases), recipe.side, recipe.side))
        for place, case in enumerate(cases):
            pixels[place] = recipe.make(case.load().pixels)
            progress("pictures", place + 1, len(cases))
        return Entry({"pixels": pixels}, {"pictures": len(cases), "recipe": asdict(recipe)})

    return PictureSet(cache.get(digest[:40], make).arrays["pixels"], digest, recipe)


def pictures_content(cases: Sequence[XrayCase], recipe: PictureRecipe) -> str:
    """Sum over a recipe and over name, class and file of each picture.

    Raises:
        ReadError: a file is gone.
    """
    files = []
    for case in cases:
        try:
            files.append([case.dataset, case.case, file_content(case.path)])
        except OSError as error:
            raise ReadError(f"cannot be opened ({error.strerror}); was it moved?", path=case.path) from None
    return stamp("pictures", revision=1, recipe=asdict(recipe), files=files)


def file_content(path: Path) -> str:
    """SHA-256 of a file; read again only when size, dates or place on the disk changed since this process did."""
    at = path.stat()
    return _file_content(path, (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns))


@lru_cache(maxsize=1 << 17)
def _file_content(path: Path, at: tuple[int, ...]) -> str:
    return sha256(path)


def thumbnails(pixels: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """(n, side * side) mean grey levels in [0, 1] of squares (n, h, w)."""
    import cv2

    small = np.empty((len(pixels), side * side), np.float32)
    for place, square in enumerate(pixels):
        grey = np.asarray(square, np.float32) / np.float32(255)
        small[place] = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA).ravel()
    return small


def corners(pixels: NDArray[np.uint8], pixels_each: int, side: int) -> NDArray[np.float32]:
    """(n, 4 * side * side): the four corners of squares (n, h, w), each shrunk; upper left, upper right, lower ones."""
    n = pixels_each
    parts = [
        pixels[:, rows, columns]
        for rows in (slice(0, n), slice(-n, None))
        for columns in (slice(0, n), slice(-n, None))
    ]
    return np.concatenate([thumbnails(np.ascontiguousarray(part), side) for part in parts], axis=1)
