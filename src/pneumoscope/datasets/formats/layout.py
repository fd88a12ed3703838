"""A dataset's folder: its scans by name, pairs of scan and mask; links are followed inside it only."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.errors import DatasetError
from pneumoscope.io.kinds import suffix_of


def refuse_links_out(folder: Path) -> None:
    """Look at every entry at or below a folder, which may be a link itself.

    Raises:
        DatasetError: a link that leads out of the folder or nowhere.
    """
    real = folder.resolve()
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where) / name
            if path.is_symlink():
                require_inside(path, real)


MAX_DEPTH = 6  # Folders below the root that are looked into; unpackers nest two or three deep
MAX_ENTRIES = 100_000  # A folder with more is no dataset known here, but somebody's home

SCAN_SUFFIXES = (".nii", ".nii.gz")
ARCHIVE_SUFFIXES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz")
_PASSED_OVER = ("__macosx",)


@dataclass(frozen=True)
class Found:
    """A NIfTI file, or a folder called ``X.nii`` that holds one (made by unpackers that expand the gzip layer)."""

    stem: str  # name of the file, or of that folder, without ``.nii`` and ``.nii.gz``
    path: Path  # the file itself
    folders: tuple[str, ...]  # lower-case names of the folders it lies in, the root's own first

    def below(self, names: Iterable[str]) -> str | None:
        """The nearest of `names` (lower case) among the folders it lies in, None for none."""
        wanted = set(names)
        return next((folder for folder in reversed(self.folders) if folder in wanted), None)


@dataclass(frozen=True)
class Tree:
    """Everything of interest in a folder."""

    root: Path  # as the user gave it
    expected: str  # what the folder should hold, for messages
    scans: tuple[Found, ...]  # every NIfTI file, in natural order of the paths
    others: tuple[Path, ...]  # every other file

    def error(self, problem: str, path: str | Path | None = None) -> DatasetError:
        """A refusal in one line: the problem, what was expected, and archives that wait to be unzipped."""
        packed = sorted(p.name for p in self.others if suffix_of(p) in ARCHIVE_SUFFIXES)
        hint = f"; unzip {', '.join(packed[:4])} first" if packed else ""
        return DatasetError(f"{problem}; expected {self.expected}{hint}", path=path or self.root)

    def by_key(self, what: str, key: re.Pattern[str] | Callable[[Found], str | None]) -> dict[str, Path]:
        """The scans for which `key` gives a name (of a pattern the first group), by that name in natural order.

        Raises:
            DatasetError: two files with one name.
        """
        found: dict[str, Path] = {}
        for scan in self.scans:
            if isinstance(key, re.Pattern):
                match = key.fullmatch(scan.stem)
                name = None if match is None else match[1]
            else:
                name = key(scan)
            if name is None:
                continue
            if name in found:
                shown = [str(p.relative_to(self.root)) for p in (found[name], scan.path)]
                raise DatasetError(f"holds {what} {name} twice: {shown[0]} and {shown[1]}; keep one", path=self.root)
            found[name] = scan.path
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def walk(root: str | Path, expected: str) -> Tree:
    """All files below a folder. Nothing is opened.

    Hidden files and what macOS puts into zips are passed over. Links are followed to files inside the root only.

    Args:
        root: the folder a user names; may itself be a link.
        expected: what it should hold, for messages, e.g. ``folders rp_im, rp_msk and rp_lung_msk``.

    Raises:
        DatasetError: no folder, a zip or another file, an empty folder, one without any NIfTI file, one with more
            than `MAX_ENTRIES` entries, a folder called ``X.nii`` without exactly one NIfTI file, or a link that leads
            out of the root or nowhere.
    """
    start = Path(root)
    require_folder(start, expected)
    real = start.resolve()
    scans: list[Found] = []
    others: list[Path] = []
    waiting: list[tuple[Path, tuple[str, ...]]] = [(start, (real.name.lower(),))]
    seen = 0
    while waiting:
        folder, names = waiting.pop()
        for entry in entries_of(folder):
            seen += 1
            if seen > MAX_ENTRIES:
                raise DatasetError(f"holds more than {MAX_ENTRIES} files; expected {expected}", path=start)
            path = Path(entry.path)
            if entry.is_symlink():
                require_inside(path, real)
                if path.is_dir():
                    continue  # what it leads to is found where it lies
            is_scan = suffix_of(entry.name) in SCAN_SUFFIXES
            if entry.is_dir():
                if is_scan:
                    scans.append(Found(stem_of(entry.name), one_inside(path, real), names))
                elif len(names) <= MAX_DEPTH:
                    waiting.append((path, (*names, entry.name.lower())))
            elif is_scan:
                scans.append(Found(stem_of(entry.name), path, names))
            else:
                others.append(path)
    scans.sort(key=lambda scan: natural(str(scan.path)))
    tree = Tree(start, expected, tuple(scans), tuple(sorted(others)))
    if not seen:
        raise DatasetError(f"is an empty folder; expected {expected}", path=start)
    if not scans:
        raise tree.error("holds no NIfTI file (.nii, .nii.gz)")
    return tree


def stem_of(name: str | Path) -> str:
    """A file's name without folders and without ``.nii`` or ``.nii.gz``, in its own letters."""
    plain = Path(name).name
    while suffix_of(plain) in SCAN_SUFFIXES:
        plain = plain[: -len(suffix_of(plain))]
    return plain


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def require_pairs(tree: Tree, images: dict[str, Path], masks: dict[str, Path], what: str, *, both: bool = True) -> None:
    """Refuse images without mask, and with `both` masks without image: half a download.

    Args:
        images, masks: files by case.
        what: kind of mask, e.g. ``lung mask (rp_lung_msk)``.
        both: whether a mask without its image counts as well.

    Raises:
        DatasetError: naming the first such file.
    """
    bare = [name for name in images if name not in masks]
    if bare:
        raise tree.error(f"{shown(bare)} without {what}: half a download? Copy or unzip the rest", path=images[bare[0]])
    lost = [name for name in masks if name not in images] if both else []
    if lost:
        raise tree.error(
            f"{what} of {shown(lost)} without its scan: half a download? Copy or unzip the rest", path=masks[lost[0]]
        )


def shown(names: Sequence[str]) -> str:
    """The first of some names and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def require_folder(start: Path, expected: str) -> None:
    """Refuse what is no folder: DatasetError says whether it is an archive, a file or nothing."""
    if start.is_dir():
        return
    if not start.exists():
        raise DatasetError(f"no such folder; expected {expected}", path=start)
    if suffix_of(start) in ARCHIVE_SUFFIXES and suffix_of(start) not in SCAN_SUFFIXES:
        raise DatasetError("is an archive; unzip it and name the folder that comes out", path=start)
    raise DatasetError(f"is a file, expected a folder with {expected}", path=start)


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without hidden files and junk; DatasetError where it cannot be opened."""
    try:
        with os.scandir(folder) as found:
            kept = [e for e in found if not e.name.startswith(".") and e.name.lower() not in _PASSED_OVER]
    except OSError as error:
        raise DatasetError(f"cannot be opened ({error.strerror}); check its permissions", path=folder) from None
    return sorted(kept, key=lambda entry: entry.name)


def require_inside(link: Path, real: Path) -> None:
    """Refuse a link that leads nowhere or out of the folder `real`, which is resolved."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        raise DatasetError("is a link that leads nowhere; restore its target or remove it", path=link) from None
    if not target.is_relative_to(real):
        raise DatasetError(
            "is a link out of the dataset's folder, which is not followed; copy the file in its place", path=link
        )


def one_inside(folder: Path, real: Path) -> Path:
    """The one NIfTI file in a folder that is called like a scan; DatasetError for none or several."""
    inside = [e for e in entries_of(folder) if suffix_of(e.name) in SCAN_SUFFIXES and not e.is_dir()]
    if len(inside) != 1:
        raise DatasetError(f"is a folder called like a scan with {len(inside)} NIfTI files, expected one", path=folder)
    path = Path(inside[0].path)
    if inside[0].is_symlink():
        require_inside(path, real)
    return path
