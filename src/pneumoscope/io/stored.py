"""One image file as it lies on disk: opened without blocking, inflated under caps, never trusted before it is checked.

Every reader of single files (NIfTI, NRRD, MetaImage) goes through here, so that the rules on size, memory,
truncation and damaged compression are the same for all of them. Rows are those of docs/reference/input-codes.md.
"""

from __future__ import annotations

import bz2
import functools
import math
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import NO_ROOM, Finding, ReadError, RunError, is_of_machine
from pneumoscope.geometry import Grid, contiguous, reorient_array
from pneumoscope.volume import RAS

MAX_VOXELS = 2**30  # More voxels than any chest CT has (1024 cubed)

MAX_DEFLATE_RATIO, MAX_BZIP2_RATIO = 1100, 45_000
"""Deflate cannot shrink further than about 1032 to 1: a header that promises more is lying. Runs in bzip2 can."""

BOMB_RATIO, BOMB_FLOOR_BYTES = 100, 64 * 2**20
"""A scan that inflates more than 100-fold is refused once it is larger than 64 MiB: noise does not pack like that."""

MASK_ROOM, BOMB_FLOOR_VOXELS = 2, 2**28
"""A mask has at most twice the voxels of its scan. Where that is not known, one that inflates more than 100-fold is
refused above 512 x 512 x 1024 voxels: empty masks pack as far as deflate goes."""

MAX_TAIL_BYTES = 2**20  # Bytes after the last voxel that are tolerated with a finding; more of them are refused

CHUNK = 2**20
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Place:
    """The file a reader is at, and the family of codes it speaks, e.g. ``IN-NII``."""

    path: Path
    family: str

    def error(self, row: int, message: str) -> ReadError:
        """The refusal of catalogue row `row`."""
        return ReadError(message, code=f"{self.family}-{row:03d}", path=self.path)

    def note(self, row: int, message: str, severity: Literal["info", "warning"] = "warning") -> Finding:
        """The finding of catalogue row `row`; it does not carry the path, which may name a patient."""
        return Finding(f"{self.family}-{row:03d}", message, severity)


@dataclass(frozen=True, eq=False)
class Stored:
    """An image as stored, checked in form but not yet in meaning."""

    array: NDArray[Any]  # (i, j, k) in the file's own axis order, unscaled
    grid: Grid  # where it lies, RAS+ millimetres
    format: str  # for reports
    # real value = slope * array + intercept
    slope: float = 1.0
    intercept: float = 0.0
    scale_is_broken: bool = False  # the file's slope or intercept is NaN or infinite and was left out
    findings: tuple[Finding, ...] = ()  # what was odd and accepted
    labels: Mapping[int, str] | None = field(default=None)  # label names found in our own header field, else None

    def values(self) -> NDArray[Any]:
        """Real values in stored order: the array itself where there is no scaling, else float32 (float64 if wide)."""
        if self.slope == 1.0 and self.intercept == 0.0:
            return self.array
        wide = self.array.dtype.itemsize > 4 or (self.array.dtype.kind in "iu" and self.array.dtype.itemsize == 4)
        scaled: NDArray[Any] = self.array.astype(np.float64 if wide else np.float32)
        with np.errstate(all="ignore"):  # what overflows is infinite, which is tested for
            scaled *= self.slope
            scaled += self.intercept
        return scaled


P = ParamSpec("P")
R = TypeVar("R")


def names_failures(read: Callable[P, R]) -> Callable[P, R]:
    """A reader whose first argument is a path, with failures of the machine named as such.

    Readers write nowhere but in the folder for temporary files, so a lack of room is one there. The file read may be
    sound whatever the disk, the network or a limit of the process says.
    """

    @functools.wraps(read)
    def reader(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(*args, **kwargs)
        except OSError as problem:
            raise machine_failure(problem, str(args[0])) from problem

    return reader


def machine_failure(problem: OSError, path: str) -> RunError:
    """The error for a failure of the machine while `path` was read."""
    no_folder = isinstance(problem, FileNotFoundError) and "temporary directory" in str(problem)
    if no_folder or problem.errno in NO_ROOM:
        reason = NO_ROOM.get(problem.errno or 0, "there is none that can be written")
        what = f"the folder for temporary files takes no more ({reason}), free space or set TMPDIR to another"
        return RunError(f"{what}, then run it again", path=None if no_folder else tempfile.gettempdir())
    reason = os.strerror(problem.errno) if problem.errno else str(problem)
    return RunError(
        f"could not be read ({reason}), which is no fault of the file; see to that, then read it again", path=path
    )


def open_regular(place: Place) -> BinaryIO:
    """Open a regular file for reading; pipes, sockets, devices and folders are refused without blocking.

    Raises:
        ReadError: row 53, when there is no readable regular file.
    """
    try:
        handle = os.open(place.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if place.path.is_symlink() and not place.path.exists():
            raise place.error(53, "is a link to a file that does not exist; restore the target or the link") from None
        if is_of_machine(error):
            raise
        if isinstance(error, FileNotFoundError):
            raise place.error(53, "no such file; check the path") from None
        raise place.error(53, f"cannot be opened ({error.strerror}), expected a readable image file") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise place.error(53, f"is {kind}, expected an image file")
    return os.fdopen(handle, "rb")


class Source(Protocol):
    """A forward-only stream of image bytes."""

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes; b'' at the end."""


class GzipSource:
    """Inflates gzip or zlib data; every member's checksum is verified by the time `read` returns b''."""

    def __init__(self, stream: BinaryIO, place: Place, *, start: bytes = b"", window_bits: int = 31) -> None:
        self._stream, self._place, self._bits = stream, place, window_bits
        self._inflate = zlib.decompressobj(window_bits)
        self._pending = start
        self._done = False
        self.trailing_bytes = 0

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes; b'' at the end of the last member."""
        while not self._done:
            data = self._pending or self._stream.read(CHUNK)
            try:
                out = self._inflate.decompress(data, limit)
            except zlib.error as error:
                raise self._place.error(
                    52, f"the compressed data are damaged ({error}); fetch or export the file again"
                ) from None
            self._pending = self._inflate.unconsumed_tail
            if self._inflate.eof:
                self._next_member(self._inflate.unused_data)
            elif not data and not out:
                raise self._place.error(51, "the compressed data end early: the file is cut off; fetch it again")
            if out:
                return out
        return b""

    def _next_member(self, rest: bytes) -> None:
        if len(rest) < len(GZIP_MAGIC):
            rest += self._stream.read(CHUNK)
        if self._bits == 31 and rest.startswith(GZIP_MAGIC):
            self._inflate, self._pending = zlib.decompressobj(31), rest
            return
        self._done = True
        self.trailing_bytes = len(rest)
        while more := self._stream.read(CHUNK):
            self.trailing_bytes += len(more)


class Bzip2Source:
    """Inflates a bzip2 stream (NRRD knows it)."""

    def __init__(self, stream: BinaryIO, place: Place) -> None:
        self._stream, self._place, self._inflate = stream, place, bz2.BZ2Decompressor()

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes; b'' at the end."""
        while not self._inflate.eof:
            data = self._stream.read(CHUNK) if self._inflate.needs_input else b""
            if not data and self._inflate.needs_input:
                raise self._place.error(51, "the compressed data end early: the file is cut off; fetch it again")
            try:
                out = self._inflate.decompress(data, limit)
            except OSError as error:
                raise self._place.error(52, f"the compressed data are damaged ({error}); fetch it again") from None
            if out:
                return out
        return b""


def read_up_to(source: Source | BinaryIO, n_bytes: int) -> bytes:
    """The next `n_bytes`, fewer at the end of the stream."""
    parts, missing = [], n_bytes
    while missing and (part := source.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def read_array(
    source: Source | BinaryIO, shape: tuple[int, ...], dtype: np.dtype[np.generic], place: Place, *, sparse: bool
) -> NDArray[np.generic]:
    """Voxels in Fortran order. The stream must hold all of them.

    A mask (`sparse`) is kept in one byte per voxel, whatever it is stored in, as long as it holds whole numbers from 0
    to 255 only.

    Raises:
        ReadError: row 51, when it ends before.
    """
    count = int(np.prod(shape, dtype=np.int64))
    narrow = sparse and dtype.itemsize > 1
    array: NDArray[Any] = np.empty(count, np.uint8 if narrow else dtype)
    block = max(1, CHUNK * 4 // dtype.itemsize)
    for start in range(0, count, block):
        wanted = min(block, count - start)
        data = read_up_to(source, wanted * dtype.itemsize)
        if len(data) < wanted * dtype.itemsize:
            got, all_bytes = start * dtype.itemsize + len(data), count * dtype.itemsize
            raise place.error(51, f"is cut off: {got} bytes of voxels, expected {all_bytes}; fetch or export it again")
        values = np.frombuffer(data, dtype)
        if narrow and not _are_bytes(values):
            narrow = False
            wide: NDArray[Any] = np.empty(count, dtype)
            wide[:start] = array[:start]
            array = wide
        array[start : start + wanted] = values
    return array.reshape(shape, order="F")


def _are_bytes(values: NDArray[Any]) -> bool:
    with np.errstate(invalid="ignore"):  # NaN and numbers without a byte
        return bool(np.array_equal(values.astype(np.uint8), values))


def laid_out(array: NDArray[Any], native: Grid, dtype: type[np.generic]) -> NDArray[Any]:
    """A copy of (i, j, k) stored voxels as `dtype`, in memory as RAS+ wants them, still indexed in stored order.

    `from_native` then needs no further copy. Copying in blocks is several times faster than a plain transposing copy.
    """
    order, flips = native.reorientation(RAS)
    source = reorient_array(array, order, flips)
    out = contiguous(source, dtype)
    if out is source:
        out = out.copy()
    back = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    return out[back].transpose(*np.argsort(order))


def read_tail(source: Source | BinaryIO, place: Place) -> tuple[Finding, ...]:
    """Read to the very end, which verifies checksums; odd bytes after the voxels become a finding.

    Raises:
        ReadError: row 52 for a bad checksum, row 55 when far more data follow than belong to the image.
    """
    extra = 0
    while extra <= MAX_TAIL_BYTES and (part := source.read(CHUNK)):
        extra += len(part)
    extra += getattr(source, "trailing_bytes", 0)
    if extra > MAX_TAIL_BYTES:
        raise place.error(55, "holds far more data than its header describes; it is damaged or hostile")
    return (place.note(52, f"{extra} bytes after the image were ignored", "info"),) if extra else ()


def check_budget(
    place: Place,
    shape: tuple[int, ...],
    itemsize: int,
    packed: tuple[int, int] | None,
    *,
    sparse: bool,
    scan: Grid | None,
) -> int:
    """Bytes of voxels, once they are known to be affordable. Nothing is allocated before this.

    Args:
        shape: sizes from the header, each at least 1.
        packed: size of the compressed file and how often its codec can shrink data, or None when it is not compressed.
        sparse: a mask, which is allowed to compress without bound up to `BOMB_FLOOR_VOXELS`.
        scan: the mask's scan, when it is known.

    Raises:
        ReadError: row 54 (more voxels or memory than there can be), row 51 (the file cannot hold them), row 55 (bomb).
    """
    voxels = math.prod(shape)
    n_bytes = voxels * itemsize
    sizes = " x ".join(map(str, shape))
    if scan is not None and voxels > MASK_ROOM * math.prod(scan.shape):
        raise place.error(54, f"the header asks for {sizes} voxels, its scan has {' x '.join(map(str, scan.shape))}")
    if voxels > MAX_VOXELS:
        raise place.error(54, f"the header asks for {sizes} voxels, more than any chest CT has; it is damaged")
    if packed is not None:
        size, ratio = packed
        if n_bytes > max(size, 64) * ratio:
            raise place.error(51, f"{size} compressed bytes cannot hold {sizes} voxels ({n_bytes} bytes)")
        large = scan is None and voxels > BOMB_FLOOR_VOXELS if sparse else n_bytes > BOMB_FLOOR_BYTES
        if large and n_bytes > size * BOMB_RATIO:
            what = "mask" if sparse else "scan"
            raise place.error(
                55, f"inflates {n_bytes // size}-fold to {n_bytes >> 20} MiB, no {what} does; it is hostile"
            )
    need = n_bytes + voxels * (2 if sparse else 8)
    free = available_bytes()
    if need > free:
        raise place.error(54, f"{sizes} voxels need about {need >> 20} MiB, {free >> 20} MiB are free")
    return n_bytes


def available_bytes() -> int:
    """Memory this process may still take: what the machine has free, within its address-space limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    with suppress(ImportError, OSError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            free = min(free, max(0, soft - int(psutil.Process().memory_info().vms)))
    return free
