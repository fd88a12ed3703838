"""What a folder holds that may be a scan: image files, and places with DICOM. For the search and the reader alike.

A scan found is a `ScanRef` until it is read.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pneumoscope.errors import Finding, InputError
from pneumoscope.io.archive import Unpacked
from pneumoscope.io.kinds import IMAGE_SUFFIXES, Found, Walk, case_name, files_below, is_scan_name, look, suffix_of
from pneumoscope.io.masks import LABELS_KEY
from pneumoscope.io.stored import GZIP_MAGIC
from pneumoscope.progress import Progress, silent

MAX_FILES = 100_000
MAX_DEPTH = 32

MASK_NAME = re.compile(
    r"[-_. ](msk|mask|masks|seg|segmentation|label|labels|lung|lungs|infiltrate|infection|lesion|probability)$",
    re.IGNORECASE,
)
"""Names of masks that lie beside their scan: ``id001-msk.nii.gz`` beside ``id001.nii.gz``."""

MASK_FOLDER = re.compile(
    r"(labels?|masks?|segs?|segmentations?|lungs?|infiltrates?|infections?|lesions?|exact)(Tr|Ts|Va)?$", re.IGNORECASE
)
"""Names of folders that hold masks of the scans in the folders beside them: ``labelsTr`` beside ``imagesTr``."""

OWN_MARKS = frozenset({"report.json", "change.json", "done.json"})
CLEANED_MARKS = frozenset({"changes.csv", "manifest.csv"})
"""What a cleaned copy of a dataset by ``data audit --fix`` holds; below other scans it is those scans again."""

OWN_IMAGES = re.compile(
    r"(lungs|infiltrate|probability|uncertainty-(entropy|variance)|registration|change|"
    r"followup_infiltrate_on_baseline)\.nii\.gz"
)
"""Marks of a case folder and the images that `segment`, `quantify` and `compare` write into it."""


@dataclass(frozen=True)
class Identity:
    """Which DICOM series a case is: for the private key file, and for nothing else."""

    series_uid: str = ""  # SeriesInstanceUID
    patient: str = ""  # PatientID
    study_date: str = ""  # as DICOM writes it, YYYYMMDD


@dataclass(frozen=True)
class ScanRef:
    """Where a scan lies, before anything is read."""

    case: str  # name for outputs; unique in a listing, safe as a file name
    path: Path  # file, DICOM folder or zip, for `read_volume`
    lungs: Path | None = None  # lung mask that came with it, or None
    infiltrate: Path | None = None  # infiltrate mask that came with it, or None
    lobes: Path | None = None  # lobe mask that came with it, or None. Masks may be folders with one file per structure.
    patient: str | None = None  # patient id as the manifest gives it (groups scans of one person), or None
    date: str | None = None  # date or day as the manifest gives it, or None
    source: str | None = None  # hospital, dataset or scanner as the manifest gives it, or None
    # name and value of the manifest's columns that are no paths, for `cases.csv`
    columns: tuple[tuple[str, str], ...] = ()
    # which DICOM series, for `read_volume`; None for other files, and where the reader shall find it
    series: str | None = field(default=None, repr=False)
    identity: Identity = field(default=Identity(), repr=False, compare=False)  # of a DICOM series, else empty
    findings: tuple[Finding, ...] = field(default=(), compare=False)  # what the search has to say about the scan
    unpacked: Unpacked | None = field(default=None, repr=False, compare=False)  # the zip, where the search unpacked it


@dataclass
class DicomPlace:
    """A folder with DICOM files in it or below."""

    path: Path  # the folder
    files: list[Found]  # its DICOM files at any depth


@dataclass
class _Node:
    path: Path
    images: list[Path]
    dicom: list[Found]
    folders: list[_Node]
    others: int
    broken: int
    cleaned: bool

    def all_dicom(self) -> list[Found]:
        return [*self.dicom, *(found for sub in self.folders for found in sub.all_dicom())]

    def has_images(self) -> bool:
        return bool(self.images) or any(sub.has_images() for sub in self.folders)

    def count(self) -> int:
        inside = sum(sub.count() for sub in self.folders)
        return len(self.images) + len(self.dicom) + self.others + self.broken + inside


@dataclass
class Contents:
    """Candidates below a folder."""

    # images (a folder called ``X.nii`` with one image in it counts as one) and places, in the order of paths
    found: list[Path | DicomPlace] = field(default_factory=list)
    beside: list[Path] = field(default_factory=list)  # images passed over because they lie among DICOM slices
    passed: Counter[str] = field(default_factory=Counter)  # what was passed over, in words, and how often


def contents_of(folder: Path, progress: Progress = silent) -> Contents:
    """Look through a folder; images are recognised by name and not opened, DICOM by its first bytes.

    `progress` is called per folder with the files seen so far.

    Raises:
        InputError: a folder that cannot be listed, or more than `MAX_FILES` files.
    """
    walk = Walk(folder)
    found = Contents()
    _sort(_Scout(walk, folder, progress).node(folder, 0), found, with_dicom=True)
    found.passed.update(walk.passed)
    return found


def scan_files(path: Path) -> list[Path]:
    """The files at or below a path that a scan can be read from; none in folders that this program wrote.

    Raises:
        OSError: nothing there.
    """
    if not path.is_dir():
        path.stat()
        return [path]
    files = list(files_below(path))
    written = {p.parent for p in files if p.name in OWN_MARKS}
    return [
        found.path
        for found in look([p for p in files if p.parent not in written])
        if found.kind != "other" or is_scan_name(found.path)
    ]


class _Scout:
    """Makes the tree of a folder."""

    def __init__(self, walk: Walk, root: Path, progress: Progress) -> None:
        self._walk, self._root, self._seen, self._progress = walk, root, 0, progress

    def node(self, folder: Path, depth: int) -> _Node:
        try:
            files, folders = self._walk.entries(folder)
        except OSError as error:
            raise InputError(f"cannot be listed ({error.strerror}); check its permissions", path=folder) from None
        self._seen += len(files) + len(folders)
        if self._seen > MAX_FILES:
            raise InputError(
                f"holds more than {MAX_FILES} files; give a folder of scans or a manifest", path=self._root
            )
        self._progress("search", self._seen, MAX_FILES, f"Ctrl-C stops; {folder}")
        if depth >= MAX_DEPTH and folders:
            self._walk.passed[f"folders deeper than {MAX_DEPTH}"] += len(folders)
            folders = []
        images = [p for p in files if is_scan_name(p)]
        own = own_results(folder, files, images)
        self._walk.passed["results of pneumoscope"] += len(own)
        rest = look([p for p in files if not is_scan_name(p)])
        dicom = [found for found in rest if found.kind in ("dicom", "bare")]
        broken = sum(found.path.is_symlink() and not found.path.exists() for found in rest)
        return _Node(
            folder,
            [p for p in images if p not in own],
            dicom,
            [self.node(sub, depth + 1) for sub in folders],
            len(rest) - len(dicom) - broken,
            broken,
            {p.name for p in files} >= CLEANED_MARKS,
        )


def own_results(folder: Path, files: list[Path], images: list[Path]) -> set[Path]:
    """Images that this program wrote: by their names, in a folder that bears the mark of a case, finished or not."""
    named = {p for p in images if OWN_IMAGES.fullmatch(p.name)}
    marked = any(p.name in OWN_MARKS for p in files) or _carries_labels(folder / "lungs.nii.gz")
    return named if marked else set()


def _carries_labels(path: Path) -> bool:
    """Whether a mask's header has the names of labels as this program writes them."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
        if head.startswith(GZIP_MAGIC):
            head = zlib.decompressobj(31).decompress(head, 4096)
    except (OSError, zlib.error):
        return False
    return LABELS_KEY.encode() in head


def _sort(node: _Node, found: Contents, *, with_dicom: bool) -> None:
    found.passed["other files"] += node.others
    found.passed["links to nothing"] += node.broken
    folder_is_image = suffix_of(node.path) in IMAGE_SUFFIXES and len(node.images) == 1
    if folder_is_image and not node.dicom and not node.folders:
        found.found.append(node.path)
        return
    stems = {case_name(p) for p in node.images}
    masks = [p for p in node.images if MASK_NAME.search(case_name(p)) and MASK_NAME.sub("", case_name(p)) in stems]
    found.passed["masks beside their scans"] += len(masks)
    images = [p for p in node.images if p not in masks]
    if node.dicom:
        found.passed["images beside DICOM slices"] += len(images)
        found.beside += images
        if with_dicom:
            found.found.append(DicomPlace(node.path, node.all_dicom()))
            with_dicom = False
    else:
        found.found += images
    for sub in node.folders:
        if MASK_FOLDER.match(sub.path.name):
            found.passed["files in folders of masks"] += sub.count()
        elif sub.cleaned:
            found.passed["results of pneumoscope"] += sub.count()
        elif with_dicom and not sub.has_images() and (dicom := sub.all_dicom()):
            found.found.append(DicomPlace(sub.path, dicom))
            found.passed["other files"] += sub.count() - len(dicom)
        else:
            _sort(sub, found, with_dicom=with_dicom)
