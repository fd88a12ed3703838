"""What lies at a path: one walk through folders for every search, and what a file is by its first bytes, not its name.

In a walk links are followed once and files of operating systems are passed over. DICOM is recognised without a parser.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pneumoscope.errors import ReadError
from pneumoscope.io.stored import GZIP_MAGIC, Place, open_regular

SYSTEM_NAME = re.compile(
    r"\..*|__MACOSX|(eh)?Thumbs\.db|desktop\.ini|@eaDir|\$RECYCLE\.BIN|System Volume Information|lost\+found",
    re.IGNORECASE,
)
"""Files and folders that macOS, Windows and network storage leave behind, and everything hidden."""

_HIDDEN, _AGAIN = "hidden or system files", "links to what is listed already"


class Walk:
    """What lies below a folder, each thing once."""

    def __init__(self, root: Path) -> None:
        self.passed: Counter[str] = Counter()  # how many entries were passed over, by kind
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


Kind = Literal["nifti", "nrrd", "metaimage", "dicom", "zip"]

IMAGE_SUFFIXES: dict[str, Kind] = {
    ".nii": "nifti", ".nii.gz": "nifti", ".nrrd": "nrrd", ".mha": "metaimage", ".mhd": "metaimage",
}  # fmt: skip
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
NO_PICTURES = (
    "a picture has no Hounsfield units and no third dimension: for chest X-rays use `pneumoscope xray predict`, for CT "
    "give the DICOM or NIfTI scan that the picture was made from"
)
READABLE = ".nii, .nii.gz, .nrrd, .mha, .mhd, DICOM or a zip of one"

MAX_CASE_BYTES = 120

RESERVED = re.compile(
    r"(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?|private|parts?|logs|points|mesh|stages|splits|figures|data|cache|.*\.(json|csv|html|lock|log|tmp)",
    re.IGNORECASE,
)
"""Names of Windows devices, and what our own files and folders beside the case folders are called."""


def suffix_of(path: str | Path) -> str:
    """The suffix in lower case, with ``.nii.gz`` as one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def is_scan_name(path: str | Path) -> bool:
    """Whether a name ends like an image or a zip that may hold one."""
    return suffix_of(path) in IMAGE_SUFFIXES or suffix_of(path) == ".zip"


def case_name(path: str | Path) -> str:
    """A case's name from a file or folder name: its stem, safe as the name of a folder on any system.

    Letters, marks and digits of every script stay, in the composed form (NFC), and single blanks become ``_``. Whatever
    else must change (separators, control characters, a leading dot, names of Windows devices and of our own files, more
    than `MAX_CASE_BYTES`) leaves a short hash of the stem behind the name, so that two names stay two, whatever other
    files there are.
    """
    name = Path(path).name
    while suffix_of(name) in IMAGE_SUFFIXES or suffix_of(name) in (".zip", ".gz", ".dcm"):
        name = name[: -len(suffix_of(name))]
    stem = re.sub(r"(?<=\S) (?=\S)", "_", unicodedata.normalize("NFC", name))
    safe = "".join(c if c in "._-+=@,()" or unicodedata.category(c)[0] in "LMN" else "\0" for c in stem)
    safe = re.sub(r"_*\0[_\0]*", "_", safe).lstrip(".-+=@").rstrip(".")
    if RESERVED.fullmatch(safe):
        safe = safe.replace(".", "_")
    elif safe == stem and len(safe.encode()) <= MAX_CASE_BYTES:
        return safe
    return f"{shortened(safe, MAX_CASE_BYTES - 7).strip('._-') or 'scan'}-{short_hash(stem)}"


def shortened(text: str, most_bytes: int) -> str:
    """The beginning of a text in at most so many bytes of UTF-8; no character is cut apart."""
    return text.encode()[:most_bytes].decode("utf-8", "ignore")


def short_hash(text: str) -> str:
    """Six hex digits that distinguish names; the same on every machine."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]


def kind_of(path: str | Path) -> Kind | None:
    """The kind of a regular file, None when it is none of ours.

    Raises:
        ReadError: the file cannot be opened, is not a regular file, or is empty (row 53).
    """
    place = Place(Path(path), "IN-NII")
    with open_regular(place) as stream:
        head = stream.read(4096)
    if not head:
        raise place.error(53, "is empty (0 bytes), expected an image; fetch it again")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"NRRD"):
        return "nrrd"
    if head[128:132] == b"DICM":
        return "dicom"
    if _is_nifti(_inflated(head) if head.startswith(GZIP_MAGIC) else head):
        return "nifti"
    if re.match(rb"\s*(ObjectType|NDims|Comment|ObjectSubType)\s*=", head):
        return "metaimage"
    return "dicom" if is_dicom(path) else None


def require_kind(path: str | Path) -> Kind:
    """`kind_of`, refusing files of no known kind.

    Raises:
        ReadError: row 53.
    """
    kind = kind_of(path) or IMAGE_SUFFIXES.get(suffix_of(path))  # a damaged .nii is refused as such by its reader
    if kind is None:
        hint = f"; {NO_PICTURES}" if suffix_of(path) in PICTURES else ""
        raise ReadError(f"is not a readable image; expected {READABLE}{hint}", code="IN-NII-053", path=path)
    return kind


def _is_nifti(head: bytes) -> bool:
    sizes = {struct.unpack(order + "i", head[:4])[0] for order in "<>"} if len(head) >= 4 else set()
    return bool(sizes & {348, 540})


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, 600)
    except zlib.error:
        return b""


MAX_FILES = 50_000  # A folder with more files is not one scan
SNIFF_FILES = 200  # How many files of a folder `is_dicom` reads before it gives up

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})

_HEAD_BYTES = 132 + 8
_VALUE_TYPES = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)

DicomKind = Literal["dicom", "bare", "empty", "other"]


@dataclass(frozen=True)
class Found:
    """One file of the input."""

    path: Path  # where it lies: never print it, hospitals export under names of patients
    name: str  # its place among the files, such as ``file 3 of 12``, in the order of their paths
    # ``dicom`` has the DICM mark, ``bare`` looks like a dataset without it, ``empty`` has no bytes (or is a link to
    # nothing), ``other`` is no DICOM
    kind: DicomKind
    size: int  # bytes


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


def sniff(path: Path) -> tuple[DicomKind, int]:
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
