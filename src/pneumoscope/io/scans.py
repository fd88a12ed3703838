"""Which scans a path means: one file, a DICOM folder, a folder of scans, or a CSV manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pneumoscope.errors import InputError
from pneumoscope.io.dicom_header import peek
from pneumoscope.io.kinds import READABLE, case_name, is_scan_name, require_kind, suffix_of
from pneumoscope.io.scan_ref import ScanRef
from pneumoscope.io.table import is_manifest, read_manifest

MAX_FILES = 100_000
MAX_DEPTH = 8

MASK_NAME = re.compile(
    r"[-_. ](msk|mask|masks|seg|segmentation|label|labels|lung|lungs|infiltrate|infection|lesion|probability)$",
    re.IGNORECASE,
)
"""Names of masks that lie beside their scan: ``id001-msk.nii.gz`` beside ``id001.nii.gz``."""

MASK_FOLDER = re.compile(
    r"(labels?|masks?|segs?|segmentations?|lungs?|infiltrates?|infections?|lesions?|exact)(Tr|Ts|Va)?$", re.IGNORECASE
)
"""Names of folders that hold masks of the scans in the folders beside them: ``labelsTr`` beside ``imagesTr``."""

MANIFEST = "manifest.csv"

NOT_IMAGES = frozenset({"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "SR", "PR", "KO", "DOC", "REG", "FID"})
"""DICOM modalities that are never a scan."""


@dataclass(frozen=True)
class Listing:
    """What a search found.

    Attributes:
        scans: one entry per case, in the order given, names unique.
        ignored: files that are no scans (masks beside their scans, notes, thumbnails ...).
    """

    scans: tuple[ScanRef, ...]
    ignored: int


def find_scans(paths: str | Path | Sequence[str | Path]) -> list[ScanRef]:
    """The scans that one or several paths mean, one case each; `list_scans` also counts what was passed over.

    Raises:
        ReadError: a path that does not exist or a file that is no image.
        InputError: nothing found, or a manifest that is not usable.
    """
    return list(list_scans(paths).scans)


def list_scans(paths: str | Path | Sequence[str | Path]) -> Listing:
    """As `find_scans`, with the number of files passed over.

    A file, a zip and a folder with DICOM files directly in it are one case each. A ``.csv`` file is a manifest, so is
    ``manifest.csv`` in a folder that is given. In any other folder every image is a case, and every subfolder that
    holds DICOM at any depth is one; masks beside their scans and folders named after masks are passed over.
    Images in folders are told by name and not opened, so a damaged one is listed, and refused by `read_volume`.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise InputError(f"no scan was given; expected {READABLE}, a folder of those or a CSV manifest")
    search = _Search()
    for path in map(Path, given):
        before = len(search.found)
        if path.is_dir() and is_manifest(path / MANIFEST):
            search.found.extend(read_manifest(path / MANIFEST))
        elif path.is_dir():
            search.folder(path, 0)
        elif suffix_of(path) == ".csv":
            search.found.extend(read_manifest(path))
        else:
            require_kind(path)
            search.add(path)
        if len(search.found) == before:
            passed = f"; {search.ignored} other files were passed over" if search.ignored else ""
            raise InputError(f"holds no scan, expected {READABLE}{passed}", path=path)
    return Listing(tuple(_unique(search.found)), search.ignored)


class _Search:
    """Collects scans below folders."""

    def __init__(self) -> None:
        self.found: list[ScanRef] = []
        self.ignored = 0
        self._seen = 0

    def add(self, path: Path) -> None:
        self.found.append(ScanRef(dicom_case([path]) if path.is_file() and _is_dicom(path) else case_name(path), path))

    def folder(self, folder: Path, depth: int) -> None:
        try:
            inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        except OSError as error:
            raise InputError(f"cannot be listed ({error.strerror}); check its permissions", path=folder) from None
        self._seen += len(inside)
        if self._seen > MAX_FILES:
            raise InputError(f"holds more than {MAX_FILES} files; give a folder of scans or a manifest", path=folder)
        files = [p for p in inside if not p.is_dir()]
        folders = [p for p in inside if p.is_dir() and not p.is_symlink()]
        images = [p for p in files if is_scan_name(p)]
        if is_scan_name(folder) and len(images) == 1 and not folders:  # a folder called X.nii
            self.add(folder)
            self.ignored += len(files) - 1
            return
        stems = {case_name(p) for p in images}
        masks = [p for p in images if MASK_NAME.search(case_name(p)) and MASK_NAME.sub("", case_name(p)) in stems]
        for image in images:
            if image not in masks:
                self.add(image)
        dicom = [p for p in files if not is_scan_name(p) and _is_dicom(p)]
        self.ignored += len(files) - len(images) + len(masks) - len(dicom)
        if dicom:
            self._dicom(folder, dicom)
        for sub in folders:
            if MASK_FOLDER.match(sub.name):
                self.ignored += sum(p.is_file() for p in sub.rglob("*"))
            elif not _holds_images(sub) and _is_dicom(sub):
                if not dicom:
                    self._dicom(sub, [p for p in sorted(sub.rglob("*")) if p.is_file() and _is_dicom(p)])
            elif depth < MAX_DEPTH:
                self.folder(sub, depth + 1)

    def _dicom(self, folder: Path, files: list[Path]) -> None:
        if any(peek(p)[0] not in NOT_IMAGES for p in files):
            self.found.append(ScanRef(dicom_case(files), folder))
        else:
            self.ignored += len(files)


def _holds_images(folder: Path) -> bool:
    return any(is_scan_name(p) for p in folder.rglob("*"))


def _is_dicom(path: Path) -> bool:
    from pneumoscope.io.dicom_files import is_dicom

    return bool(is_dicom(path))


def dicom_case(files: Sequence[Path]) -> str:
    """The DICOM reader's name (a keyed hash) for the first series of `files` that is a scan."""
    from pneumoscope.io.dicom_identity import case_name as hashed

    first = next((p for p in files if peek(p)[0] not in NOT_IMAGES), files[0])
    return hashed(peek(first)[1] or first.parent.name)


def _unique(refs: list[ScanRef]) -> list[ScanRef]:
    """Names told apart: files by their folder where stems repeat, then all by a number."""
    count = Counter(ref.case for ref in refs)
    named = [
        replace(ref, case=f"{case_name(ref.path.parent)}_{ref.case}")
        if count[ref.case] > 1 and is_scan_name(ref.path)  # a DICOM folder's parent may carry the patient's name
        else ref
        for ref in refs
    ]
    taken: set[str] = set()
    result = []
    for ref in named:
        name, number = ref.case, 1
        while name.casefold() in taken:
            number += 1
            name = f"{ref.case}-{number}"
        taken.add(name.casefold())
        result.append(replace(ref, case=name))
    return result
