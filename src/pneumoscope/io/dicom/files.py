"""Which files of a folder may be slices, by their first bytes, without a DICOM parser."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pneumoscope.errors import ReadError
from pneumoscope.io.walk import files_below

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
        path: where it lies: never print it, hospitals export under names of patients.
        name: its place among the files, such as ``file 3 of 12``, in the order of their paths.
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
        for count, inside in enumerate(files_below(start)):
            if count >= SNIFF_FILES:
                return False
            if sniff(inside)[0] in ("dicom", "bare"):
                return True
        return False
    return sniff(start)[0] in ("dicom", "bare")


def discover(path: Path) -> list[Found]:
    """All files at or below `path` in the order of `files_below`: links are followed, hidden files are not listed.

    Raises:
        ReadError: nothing there (IN-DCM-100), or more than `MAX_FILES` files (IN-DCM-103).
    """
    if not path.exists():
        raise ReadError("no such file or folder; check the path", code="IN-DCM-100", path=path)
    if not path.is_dir():
        return look([path])
    files = list(islice(files_below(path), MAX_FILES + 1))
    if len(files) > MAX_FILES:
        message = f"holds more than {MAX_FILES} files, which is not one scan; give the folder of one series"
        raise ReadError(message, code="IN-DCM-103", path=path)
    return look(files)


def look(files: Sequence[Path]) -> list[Found]:
    """Each file by its first bytes and its place among the files."""
    return [Found(path, f"file {n} of {len(files)}", *sniff(path)) for n, path in enumerate(files, start=1)]


def slice_like(slices: Iterable[Found], others: Iterable[Found]) -> list[Found]:
    """Those of `others` whose file names look like those of `slices`, or end like a DICOM file.

    Digits do not count: ``IM0007`` is like ``IM0001``; ``notes.txt`` is like neither. A damaged file of
    this kind is a lost slice, not junk.
    """
    patterns = {_pattern(found.path.name) for found in slices}
    return [
        found
        for found in others
        if found.path.suffix.lower() in DICOM_SUFFIXES or _pattern(found.path.name) in patterns
    ]


def _pattern(name: str) -> str:
    blurred = re.sub(r"[0-9a-fA-F]{8,}|\d+", "#", name)
    return re.sub(r"#(?:[.#]#|#)*", "#", blurred)


def sniff(path: Path) -> tuple[Kind, int]:
    """Kind and size of a file; never raises."""
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
