"""A zip that holds one scan, unpacked under caps into a temporary folder that goes away.

Member names are never used as paths beyond their own sanitised folder tree: anything that points elsewhere is refused,
as are links, encryption, archives inside, and archives that unpack to far more than they are.
"""

from __future__ import annotations

import errno
import re
import shutil
import stat
import struct
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pneumoscope.errors import ReadError
from pneumoscope.io.kinds import SYSTEM_NAME
from pneumoscope.io.stored import Place, open_regular

CODE = "IN-ZIP-071"
MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = 16 * 2**20
MAX_DEPTH = 16
MAX_UNPACKED_BYTES = 8 * 2**30
MAX_RATIO, RATIO_FLOOR_BYTES = 100, 32 * 2**20
"""An archive that unpacks more than 100-fold is refused once it is larger than 32 MiB."""

_NESTED = re.compile(rb"PK\x03\x04|7z\xbc\xaf|Rar!|\xfd7zXZ")
_NAMES_AT_ODDS = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL})
"""What member names cause on a file system; anything else is a failure of the machine."""

_CHUNK = 2**20


class Unpacked:
    """A zip unpacked into a temporary folder, which is removed with this object and at the end of the process.

    A copy in another process knows the folder and does not remove it.

    Raises:
        ReadError: IN-ZIP-071, naming the member and what is wrong with it.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pneumoscope-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._state = _state(Path(path))
        try:
            self.size = _unpack_all(Place(Path(path), "IN-ZIP"), self.folder)
        except BaseException:
            self.remove()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (Unpacked,), {"folder": self.folder, "_state": self._state}

    def holds(self, path: Path) -> bool:
        """Whether the folder is there and the zip is the one that was unpacked."""
        return self.folder.is_dir() and self._state == _state(path)

    def stays(self) -> bool:
        """Whether to keep it for later: not where the disk has less than twice the room of all that is kept so."""
        room = shutil.disk_usage(self.folder).free > 2 * sum(other.size for other in {*_KEPT, self})
        if room:
            _KEPT.add(self)
        return room


_KEPT: weakref.WeakSet[Unpacked] = weakref.WeakSet()


def _state(path: Path) -> tuple[int, int]:
    known = path.stat()
    return known.st_size, known.st_mtime_ns


@contextmanager
def extracted(path: str | Path, unpacked: Unpacked | None = None) -> Iterator[Path]:
    """Unpack a zip, unless that was done, and yield the folder; it is removed at the end, whatever happens.

    Raises:
        ReadError: IN-ZIP-071, naming the member and what is wrong with it.
    """
    if unpacked is not None and unpacked.holds(Path(path)):
        yield unpacked.folder
        return
    unpacked = Unpacked(path)
    try:
        yield unpacked.folder
    finally:
        unpacked.remove()


def _unpack_all(place: Place, folder: Path) -> int:
    """Bytes unpacked."""
    with open_regular(place) as stream:
        size = _check_directory(stream, place)
        try:
            with zipfile.ZipFile(stream) as archive:
                members = _members(archive, size, place)
                for member, target in members:
                    _unpack(archive, member, folder / target, place)
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeError) as error:
            raise _refuse(place, f"is a damaged zip ({error})") from None
        except NotImplementedError as error:
            raise _refuse(place, f"uses a compression that is not read ({error})") from None
        except OSError as error:
            if error.errno not in _NAMES_AT_ODDS:
                raise
            raise _refuse(place, f"cannot be unpacked ({error.strerror})") from None
    return sum(member.file_size for member, _ in members)


def _refuse(place: Place, problem: str, member: str | None = None) -> ReadError:
    where = f"member {member[:80]!r} " if member is not None else ""
    return place.error(71, f"{where}{problem}; unpack it yourself if you trust it, or zip one scan again")


def _check_directory(stream: BinaryIO, place: Place) -> int:
    """Size of the archive, after a check of how large its directory claims to be (parsing a huge one takes minutes)."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 66_000))
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise _refuse(place, "is cut off or no zip: it has no directory")
    count, length = struct.unpack("<HI", tail[at + 10 : at + 16])
    if count == 0xFFFF or length == 0xFFFFFFFF:
        far = tail.rfind(b"PK\x06\x06", 0, at)
        if far >= 0 and len(tail) >= far + 56:
            count, length = struct.unpack("<QQ", tail[far + 32 : far + 48])
    if count > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        raise _refuse(place, f"lists {count} members, expected at most {MAX_ENTRIES}")
    stream.seek(0)
    return size


def _members(archive: zipfile.ZipFile, size: int, place: Place) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Members to unpack and where to, all checks that need no data done."""
    listed = archive.infolist()
    if len(listed) > MAX_ENTRIES:
        raise _refuse(place, f"lists {len(listed)} members, expected at most {MAX_ENTRIES}")
    seen: set[str] = set()
    members: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
    for member in listed:
        name = member.filename.replace("\\", "/")
        _check_name(member, name, place)
        key = name.casefold().rstrip("/")
        if key in seen:
            raise _refuse(place, "appears twice", name)
        seen.add(key)
        if (
            not member.is_dir()
            and not name.endswith("/")
            and not any(map(SYSTEM_NAME.fullmatch, PurePosixPath(name).parts))
        ):
            members.append((member, _safe_path(name, len(members))))
    total = sum(member.file_size for member, _ in members)
    if total > MAX_UNPACKED_BYTES:
        raise _refuse(place, f"unpacks to {total >> 20} MiB, expected at most {MAX_UNPACKED_BYTES >> 20}")
    if sum(member.compress_size for member, _ in members) > size:
        raise _refuse(place, "has members that overlap")
    if total > RATIO_FLOOR_BYTES and total > size * MAX_RATIO:
        raise _refuse(place, f"unpacks {total // max(1, size)}-fold, no scan does: a bomb")
    return members


def _check_name(member: zipfile.ZipInfo, name: str, place: Place) -> None:
    parts = name.split("/")
    if len(parts) > MAX_DEPTH:
        raise _refuse(place, f"lies more than {MAX_DEPTH} folders deep", name)
    if name.startswith("/") or ".." in parts or re.match(r"^[A-Za-z]:", name) or "\0" in member.orig_filename:
        raise _refuse(place, "points outside the archive", name)
    mode = member.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refuse(place, "is a link or a special file", name)
    if member.flag_bits & 0x41:
        raise _refuse(place, "is encrypted", name)
    if name.lower().endswith((".zip", ".7z", ".rar", ".tar", ".tgz", ".tar.gz", ".xz")):
        raise _refuse(place, "is an archive inside the archive", name)


def _safe_path(name: str, number: int) -> PurePosixPath:
    """The member's path with harmless, short parts; parts that had to change get a number to stay apart."""
    parts = []
    for part in (p for p in name.split("/") if p not in ("", ".")):
        plain = re.sub(r"[^\w.+=@ -]", "_", part, flags=re.ASCII)
        if plain != part or len(plain) > 100:
            suffix = ".nii.gz" if plain.lower().endswith(".nii.gz") else PurePosixPath(plain).suffix[:10]
            plain = f"{plain[: 80 - len(suffix)]}-{zlib.crc32(part.encode('utf-8', 'replace')):08x}{suffix}"
        parts.append(plain)
    return PurePosixPath(*parts) if parts else PurePosixPath(f"member-{number}")


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, place: Place) -> None:
    """Stream one member to `target`. The library stops at the size it is said to have, which is within the caps."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as packed, target.open("xb") as out:
        got = 0
        while part := packed.read(_CHUNK):
            if not got and _NESTED.match(part):
                raise _refuse(place, "is an archive inside the archive", member.filename)
            got += len(part)
            out.write(part)
        if got != member.file_size:
            raise _refuse(place, f"has {got} bytes, expected {member.file_size}", member.filename)
