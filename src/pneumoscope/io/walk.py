"""One walk through folders for every search: links are followed once, files of operating systems are passed over."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SYSTEM_NAME = re.compile(
    r"\..*|__MACOSX|(eh)?Thumbs\.db|desktop\.ini|@eaDir|\$RECYCLE\.BIN|System Volume Information|lost\+found",
    re.IGNORECASE,
)
"""Files and folders that macOS, Windows and network storage leave behind, and everything hidden."""

_HIDDEN, _AGAIN = "hidden or system files", "links to what is listed already"


class Walk:
    """What lies below a folder, each thing once.

    Attributes:
        passed: how many entries were passed over, by kind.
    """

    def __init__(self, root: Path) -> None:
        self.passed: Counter[str] = Counter()
        self._root = root.resolve()
        self._seen: set[Path] = set()

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Files (pipes and links to nothing too) and folders directly in `folder`, by name.

        A link to what is listed anyway, around in a circle, or to where another link led is passed over.

        Raises:
            OSError: the folder cannot be listed.
        """
        self._seen.add(folder.resolve())
        files: list[Path] = []
        folders: list[Path] = []
        for path in sorted(folder.iterdir()):
            if SYSTEM_NAME.fullmatch(path.name):
                self.passed[_HIDDEN] += 1
            elif path.is_symlink() and self._is_listed(path):
                self.passed[_AGAIN] += 1
            elif not path.is_dir():
                files.append(path)
            elif not path.is_symlink() and path.resolve() in self._seen:
                self.passed[_AGAIN] += 1
            else:
                folders.append(path)
        return files, folders

    def _is_listed(self, link: Path) -> bool:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # a link to nothing or to itself: a file that cannot be opened
            return False
        if target in self._seen or target.parent in self._seen or self._root.is_relative_to(target):
            return True
        if target.is_relative_to(self._root):
            return not any(SYSTEM_NAME.fullmatch(part) for part in target.relative_to(self._root).parts)
        self._seen.add(target)
        return False


def files_below(folder: Path) -> Iterator[Path]:
    """All files at or below a folder, its own before those of its folders; a folder that cannot be listed has none."""
    walk = Walk(folder)
    waiting = [folder]
    while waiting:
        try:
            files, folders = walk.entries(waiting.pop())
        except OSError:
            continue
        yield from files
        waiting += reversed(folders)
