"""Which files of a folder may be slices: a walk and a look at the first bytes, without a DICOM parser."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pneumoscope.errors import ReadError, printable

MAX_FILES = 50_000
"""A folder with more files is not one scan."""

SNIFF_FILES = 200
"""How many files of a folder `is_dicom` looks at before it says no."""

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})

_HEAD_BYTES = 132 + 8
_VALUE_TYPES = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)

Kind = Literal["dicom", "bare", "empty", "other"]


@dataclass(frozen=True)
class Found:
    """One file of the input.

    Attributes:
        path: where it lies.
        name: its path relative to the folder that was given, safe to print.
        kind: ``dicom`` has the DICM mark, ``bare`` looks like a data set without it, ``empty`` has no bytes
            (or is a link to nothing), ``other`` is no DICOM.
        size: bytes.
    """

    path: Path
    name: str
    kind: Kind
    size: int


def is_dicom(path: str | Path) -> bool:
    """Whether a file looks like DICOM, or a folder holds such a file (among its first files, at any depth).

    Looks at first bytes only; never raises for unreadable paths.
    """
    start = Path(path)
    if start.is_dir():
        for count, inside in enumerate(_walk(start)):
            if count >= SNIFF_FILES:
                return False
            if _sniff(inside)[0] in ("dicom", "bare"):
                return True
        return False
    return _sniff(start)[0] in ("dicom", "bare")


def discover(path: Path) -> list[Found]:
    """All regular files at or below `path`, sorted by name; links to folders are not followed.

    Raises:
        ReadError: nothing there (IN-DCM-100), or more than `MAX_FILES` files (IN-DCM-103).
    """
    if not path.exists():
        raise ReadError("no such file or folder; check the path", code="IN-DCM-100", path=path)
    if not path.is_dir():
        kind, size = _sniff(path)
        return [Found(path, printable(path.name), kind, size)]
    found: list[Found] = []
    for inside in _walk(path):
        if len(found) >= MAX_FILES:
            message = f"holds more than {MAX_FILES} files, which is not one scan; give the folder of one series"
            raise ReadError(message, code="IN-DCM-103", path=path)
        kind, size = _sniff(inside)
        found.append(Found(inside, printable(inside.relative_to(path)), kind, size))
    return found


def slice_like(names: list[str], others: list[str]) -> list[str]:
    """Those of `others` whose names look like those of the slices `names`, or end like a DICOM file.

    Digits do not count: ``IM0007`` is like ``IM0001``; ``Thumbs.db`` is like neither. A damaged file of
    this kind is a lost slice, not junk.
    """
    patterns = {_pattern(name) for name in names}
    return [
        name
        for name in others
        if not Path(name).name.startswith(".")
        and (Path(name).suffix.lower() in DICOM_SUFFIXES or _pattern(name) in patterns)
    ]


def _pattern(name: str) -> str:
    blurred = re.sub(r"[0-9a-fA-F]{8,}|\d+", "#", Path(name).name)
    return re.sub(r"#(?:[.#]#|#)*", "#", blurred)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(files):
            yield Path(root) / name


def _sniff(path: Path) -> tuple[Kind, int]:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # a pipe or device would block
            return "other", 0
        if state.st_size == 0:
            return "empty", 0
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return "empty", 0
    if head[128:132] == b"DICM":
        return "dicom", state.st_size
    return ("bare" if _starts_like_data_set(head) else "other"), state.st_size


def _starts_like_data_set(head: bytes) -> bool:
    """Whether the bytes begin with an element of group 0002 or 0008 in any of the uncompressed encodings."""
    if len(head) < 12 or head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    order: Literal["little", "big"] = "big" if head[0] == 0 else "little"
    element = int.from_bytes(head[2:4], order)
    explicit = head[4:6] in _VALUE_TYPES
    length = int.from_bytes(head[4:8], order)
    return element <= 0x0070 and (explicit or (length % 2 == 0 and length <= 1024))
