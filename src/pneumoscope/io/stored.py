"""One image file as it lies on disk: opened without blocking, inflated under caps, never trusted before it is checked.

Every reader of single files (NIfTI, NRRD, MetaImage) goes through here, so that the rules on size, memory,
truncation and damaged compression are the same for all of them. Rows are those of docs/reference/input-codes.md.
"""

from __future__ import annotations

import bz2
import os
import stat
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, ReadError
from pneumoscope.geometry import Grid, contiguous, reorient_array
from pneumoscope.volume import RAS

MAX_VOXELS = 2**31
"""More voxels than any chest CT has (1290 cubed)."""

MAX_DEFLATE_RATIO = 1100
"""Deflate cannot shrink further than about 1032 to 1: a header that promises more is lying."""

BOMB_RATIO, BOMB_FLOOR_BYTES = 200, 256 * 2**20
"""A scan that inflates more than 200-fold is refused once it is larger than 256 MiB."""

MAX_TAIL_BYTES = 2**20
"""Bytes after the last voxel that are tolerated with a finding; more of them are refused."""

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
    """An image as stored, checked in form but not yet in meaning.

    Attributes:
        array: (i, j, k) in the file's own axis order, unscaled.
        grid: where it lies, RAS+ millimetres.
        slope, intercept: real value = slope * array + intercept.
        scale_is_broken: the file's slope or intercept is NaN or infinite and was left out.
        findings: what was odd and accepted.
        labels: label names found in our own header field, else None.
        format: for reports.
    """

    array: NDArray[Any]
    grid: Grid
    format: str
    slope: float = 1.0
    intercept: float = 0.0
    scale_is_broken: bool = False
    findings: tuple[Finding, ...] = ()
    labels: Mapping[int, str] | None = field(default=None)

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
    source: Source | BinaryIO, shape: tuple[int, ...], dtype: np.dtype[np.generic], place: Place
) -> NDArray[np.generic]:
    """Voxels in Fortran order. The stream must hold all of them.

    Raises:
        ReadError: row 51, when it ends before.
    """
    array: NDArray[Any] = np.empty(int(np.prod(shape, dtype=np.int64)), dtype)
    view = array.view(np.uint8).data
    got = 0
    while got < len(view) and (part := source.read(min(CHUNK * 4, len(view) - got))):
        view[got : got + len(part)] = part
        got += len(part)
    if got < len(view):
        raise place.error(51, f"is cut off: {got} bytes of voxels, expected {len(view)}; fetch or export it again")
    return array.reshape(shape, order="F")


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


def check_budget(place: Place, shape: tuple[int, ...], itemsize: int, packed_bytes: int | None, *, sparse: bool) -> int:
    """Bytes of voxels, once they are known to be affordable. Nothing is allocated before this.

    Args:
        place: the file, for messages.
        shape: sizes from the header, each at least 1.
        itemsize: bytes per voxel.
        packed_bytes: size of the compressed file, or None when it is not compressed.
        sparse: masks are allowed to compress without bound.

    Raises:
        ReadError: row 54 (more voxels or memory than there can be), row 51 (the file cannot hold them), row 55 (bomb).
    """
    voxels = 1
    for size in shape:
        voxels *= int(size)
    n_bytes = voxels * itemsize
    sizes = " x ".join(map(str, shape))
    if voxels > MAX_VOXELS:
        raise place.error(54, f"the header asks for {sizes} voxels, more than any chest CT has; it is damaged")
    if packed_bytes is not None:
        if n_bytes > max(packed_bytes, 64) * MAX_DEFLATE_RATIO:
            raise place.error(51, f"{packed_bytes} compressed bytes cannot hold {sizes} voxels ({n_bytes} bytes)")
        if not sparse and n_bytes > BOMB_FLOOR_BYTES and n_bytes > packed_bytes * BOMB_RATIO:
            raise place.error(
                55, f"inflates {n_bytes // packed_bytes}-fold to {n_bytes >> 20} MiB, no scan does; it is hostile"
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
