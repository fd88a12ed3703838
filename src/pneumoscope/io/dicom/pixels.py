"""Stored integers of each frame, checked against the header's sizes before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ReadError, is_of_machine, printable
from pneumoscope.io.dicom.codecs import COMPRESSED_SYNTAXES, LOSSY_SYNTAXES, RLE, decode_frame
from pneumoscope.io.dicom.header import NATIVE_SYNTAXES, Header, PixelBlock, refused

MAX_FRAME_PIXELS, MAX_RADIOGRAPH_PIXELS = 1 << 24, 1 << 26
"""4096 x 4096 is far above any CT, 8192 x 8192 above any detector."""

MAX_FRAMES = 1 << 20
MAX_PADDING_BYTES = 1 << 16  # Padding is no longer than the pixels and this
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 1 << 9, 1 << 12  # Blocks of disks and tapes

MAX_EXPANSION, MIN_EXPANDED_BYTES = 60, 1 << 26
"""No codec packs a whole file 60-fold that shows something; up to 64 MiB it does no harm."""


@dataclass(frozen=True)
class Stored:
    """The stored values of one frame."""

    values: NDArray[np.integer]  # (rows, columns) integers with the sign their samples have
    # (rows, columns) the words as they lie in the file, unsigned, unmasked (for padding marks)
    words: NDArray[np.integer]
    sign_from_codestream: bool = False  # JPEG 2000 says another sign than the header; the codestream was followed


@dataclass(frozen=True)
class PixelFormat:
    """How samples lie in words."""

    shape: tuple[int, int]  # (rows, columns)
    frames: int  # at least 1
    bits_allocated: int  # 16 or 32 (8 for grey pictures)
    bits_stored: int  # bits that carry the value
    high_bit: int  # highest of them
    signed: bool  # two's complement

    def excess_bytes(self, pixels: PixelBlock) -> int:
        """Bytes of padding behind uncompressed pixels."""
        return 0 if pixels.length is None else max(0, pixels.length - self.frame_bytes * self.frames)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return self.shape[0] * self.shape[1] * self.bits_allocated // 8


def pixel_format(header: Header, *, grey_levels: bool = False) -> PixelFormat:
    """Sizes and sample format of a file, proven to fit the bytes that are there.

    Args:
        grey_levels: 8-bit pictures are welcome too (radiographs); they are no Hounsfield units.

    Raises:
        ReadError: rows 1, 2, 17 (8-bit pictures), 29, 30, 31, 32.
    """
    if header.pixels is None:
        raise refused(2, "the image ends before its pixels; copy or export the file again", header)
    if header.syntax not in NATIVE_SYNTAXES | COMPRESSED_SYNTAXES:
        raise refused(
            29,
            f"transfer syntax {_uid(header.syntax)} cannot be decoded; export the series uncompressed",
            header,
        )
    rows, columns = header.integer("Rows"), header.integer("Columns")
    allocated = header.integer("BitsAllocated")
    frames = _frames(header)
    if rows < 1 or columns < 1:
        raise refused(30, f"the header says {rows} x {columns} pixels; export the series again", header)
    if rows * columns > (MAX_RADIOGRAPH_PIXELS if grey_levels else MAX_FRAME_PIXELS):
        raise refused(31, f"the header says {rows} x {columns} pixels, no CT has that many; remove the file", header)
    if allocated == 8 and not grey_levels:
        raise refused(
            17, "8-bit pictures hold grey levels, not Hounsfield units; export the original CT images", header
        )
    stored = header.integer("BitsStored", allocated)
    high = header.integer("HighBit", stored - 1)
    words = (8, 16, 32) if grey_levels else (16, 32)
    if allocated not in words or not 1 <= stored <= allocated or not stored - 1 <= high < allocated:
        raise refused(29, f"{stored} bits in words of {allocated} cannot be decoded; export the series again", header)
    signed = header.integer("PixelRepresentation", 0) == 1
    layout = PixelFormat((rows, columns), frames, allocated, stored, high, signed)
    _require_bytes(header, layout)
    return layout


def _frames(header: Header) -> int:
    given = header.text("NumberOfFrames")
    if not given:
        return 1
    if not given.isdecimal() or not 1 <= int(given[:12]) <= MAX_FRAMES:
        raise refused(32, "the number of frames is no sensible number; export the series again", header)
    return int(given)


def _require_bytes(header: Header, layout: PixelFormat) -> None:
    assert header.pixels is not None
    need, (rows, columns) = layout.frame_bytes * layout.frames, layout.shape
    length, there = header.pixels.length, header.pixels.available
    if length is None:
        if need > max(MIN_EXPANDED_BYTES, there * MAX_EXPANSION):
            raise _lies(header, layout, there)
        return
    if there < length:
        raise refused(
            1, f"ends inside the pixels: {there} of {length} bytes are there; copy or export the file again", header
        )
    if header.syntax in COMPRESSED_SYNTAXES:
        raise refused(27, "says it is compressed, but its pixels are not; export the series again", header)
    if length < need:
        raise _lies(header, layout, length)
    if not _is_padding(header, layout, need, length - need):
        message = f"the header says {rows} x {columns} pixels ({need} bytes), the file holds {length} bytes of them"
        raise refused(30, f"{message}; export the series again", header)


def _is_padding(header: Header, layout: PixelFormat, need: int, excess: int) -> bool:
    """Whether bytes behind the pixels are padding (PS3.5 8.1.1) and not rows or columns that the header leaves out.

    Up to a row may hold anything; more must be one byte over and over, or leftovers that fill the last disk block and
    are no whole number of rows or columns.
    """
    rows, columns = (side * layout.bits_allocated // 8 for side in layout.shape)
    if excess <= max(columns, 128):
        return True
    if excess > need + MAX_PADDING_BYTES:
        return False
    behind = header.pixel_bytes(need, excess)
    uniform = behind.count(behind[:1]) == len(behind)
    fills_block = excess < MAX_BLOCK_BYTES and (need + excess) % MIN_BLOCK_BYTES == 0
    return uniform or (fills_block and excess % rows != 0 and excess % columns != 0)


def _lies(header: Header, layout: PixelFormat, there: int) -> ReadError:
    row = 32 if layout.frames > 1 and layout.frame_bytes <= there else 30
    return refused(
        row,
        f"the header says {layout.frames} frame(s) of {layout.shape[0]} x {layout.shape[1]} pixels, "
        f"{layout.frame_bytes * layout.frames} bytes, but {there} are there; export the series again",
        header,
    )


def read_frame(header: Header, layout: PixelFormat, index: int) -> Stored:
    """The stored values of frame `index`.

    Raises:
        ReadError: rows 1, 27, 30.
    """
    if header.syntax in NATIVE_SYNTAXES:
        data = header.pixel_bytes(index * layout.frame_bytes, layout.frame_bytes)
        if len(data) < layout.frame_bytes:
            raise refused(
                1,
                f"ends inside the pixels: {len(data)} of {layout.frame_bytes} bytes are there; copy the file again",
                header,
            )
        order = ">" if header.big_endian else "<"
        words = np.frombuffer(data, f"{order}u{layout.bits_allocated // 8}").reshape(layout.shape)
        words = words.astype(words.dtype.newbyteorder("="), copy=False)
        return Stored(_samples(words, layout.bits_stored, layout.high_bit, layout.signed), words)
    data = _fragments(header, layout, index)
    frame = decode_frame(data, header.syntax, layout.shape, layout.bits_allocated, name=header.name)
    if frame.dtype.kind == "i":
        words = frame.view(f"u{frame.dtype.itemsize}")
        return Stored(frame, words, sign_from_codestream=not layout.signed)
    mismatch = layout.signed and header.syntax.startswith("1.2.840.10008.1.2.4.9")
    if header.syntax == RLE:
        return Stored(_samples(frame, layout.bits_stored, layout.high_bit, layout.signed), frame)
    return Stored(_samples(frame, layout.bits_stored, layout.bits_stored - 1, layout.signed), frame, mismatch)


def is_lossy(header: Header) -> bool:
    """Whether the file says, or its syntax means, that detail was given away."""
    said = header.text("LossyImageCompression")
    return said == "01" or (said != "00" and header.syntax in LOSSY_SYNTAXES)


def _fragments(header: Header, layout: PixelFormat, index: int) -> bytes:
    from pydicom.encaps import get_frame

    assert header.pixels is not None
    try:
        return get_frame(_encapsulated(header), index, number_of_frames=layout.frames)
    except MemoryError:
        raise
    except Exception as error:
        if is_of_machine(error):
            raise
        raise refused(1, "ends inside the compressed pixels; copy or export the file again", header) from error


@lru_cache(maxsize=1)
def _encapsulated(header: Header) -> bytes:
    """The whole pixel value of a compressed file, kept while its frames are read one after another."""
    assert header.pixels is not None
    return header.pixel_bytes(0, header.pixels.available)


def _samples(words: NDArray[np.integer], stored: int, high: int, signed: bool) -> NDArray[np.integer]:
    """Values of the `stored` bits up to bit `high`; other bits, whatever they hold, are dropped."""
    size = words.dtype.itemsize * 8
    high = min(high, size - 1)
    stored = min(stored, high + 1)
    up, down = size - 1 - high, size - stored
    if not signed:
        return words if stored == size else (words << up) >> down
    values = words.view(f"i{words.dtype.itemsize}")
    return values if stored == size else (values << up) >> down


def _uid(value: str) -> str:
    """A UID to print: an attacker or a careless writer may have put anything there."""
    return printable(value) if value and len(value) <= 64 and set(value) <= set("0123456789.") else "(not a UID)"
