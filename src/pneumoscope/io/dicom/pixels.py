"""Stored integers of each frame, checked against the header's sizes before anything is allocated.

Compressed frames are decoded by imagecodecs (no GDCM, nothing under the GPL).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ReadError, is_of_machine, printable
from pneumoscope.io.dicom.header import NATIVE_SYNTAXES, Header, PixelBlock, refused

_JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_JPEG_LOSSLESS = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
_JPEG_LS = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
_JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
_HTJ2K = frozenset({"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"})
RLE = "1.2.840.10008.1.2.5"

COMPRESSED_SYNTAXES = _JPEG | _JPEG_LOSSLESS | _JPEG_LS | _JPEG_2000 | _HTJ2K | {RLE}  # What `decode_frame` understands

LOSSY_SYNTAXES = _JPEG | {"1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203"}
"""Syntaxes that may have lost detail."""

_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_END = b"\xff\xd9"
_NEXT_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
"""What ends a scan: bytes of coded data are below 0x80 after 0xFF (T.81 F.1.2.3, T.87 A.1), restarts belong to it."""
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_FILL_BYTES = 512


def decode_frame(
    data: bytes, syntax: str, shape: tuple[int, int], bits_allocated: int, *, name: str
) -> NDArray[np.integer]:
    """One frame, (rows, columns), signed only when its own codestream says so.

    Args:
        bits_allocated: 8, 16 or 32; the word size of RLE.

    Raises:
        ReadError: damaged or cut short (IN-DCM-027), or of another size than the header says (IN-DCM-030).
    """
    data = _without_padding(data, syntax, name)
    inner = None if syntax == RLE else codestream_shape(data)
    if inner is not None and inner != shape:
        raise refused(
            30,
            f"the compressed picture has {inner[0]} x {inner[1]} pixels, the header says {shape[0]} x {shape[1]}; "
            "export the series again",
            name,
        )
    try:
        frame = _decode(data, syntax, shape, bits_allocated)
        whole = _is_whole(frame, data, syntax)
    except MemoryError:
        raise
    except Exception as error:  # every codec has its own error class
        raise _damaged(name) from error
    if frame.shape != shape or frame.dtype.kind not in "iu" or not whole:
        raise _damaged(name)
    return frame


def _decode(data: bytes, syntax: str, shape: tuple[int, int], bits_allocated: int) -> NDArray[Any]:
    import imagecodecs

    if syntax == RLE:
        return _decode_rle(data, shape, bits_allocated // 8)
    if syntax in _JPEG_LS:
        return np.asarray(imagecodecs.jpegls_decode(data))
    if syntax in _JPEG_2000 | _HTJ2K:
        return np.asarray(imagecodecs.jpeg2k_decode(data, numthreads=1))
    # libjpeg-turbo also for lossless JPEG: jpegsof3 and lj92 leave point transforms and restart intervals out.
    return np.asarray(imagecodecs.jpeg8_decode(data))


def _decode_rle(data: bytes, shape: tuple[int, int], size: int) -> NDArray[Any]:
    """Byte planes, the most significant first, each run-length coded (DICOM PS3.5 annex G).

    Segments are taken apart here, with every offset checked: `imagecodecs.dicomrle_decode` reads past the end of
    damaged frames and takes the process with it.
    """
    from imagecodecs import packbits_decode

    header = np.frombuffer(data, "<u4", 16)
    starts = [int(start) for start in header[1 : 1 + int(header[0])]]
    if len(starts) != size or starts != sorted(starts) or starts[0] < 64 or starts[-1] >= len(data):
        raise ValueError("segments")
    planes = np.empty((shape[0] * shape[1], size), np.uint8)
    for place, (start, end) in enumerate(itertools.pairwise([*starts, len(data)])):
        try:
            runs = packbits_decode(data[start:end])
        except RuntimeError:  # its base class; perhaps padding behind the last run that is half a run itself
            runs = packbits_decode(data[start : _end_of_runs(data, start, end, len(planes))])
        plane = np.frombuffer(runs, np.uint8)
        planes[:, size - 1 - place] = plane[: len(planes)]  # too few raise ValueError
    return planes.reshape(-1).view(f"<u{size}").reshape(shape)


def _end_of_runs(data: bytes, at: int, end: int, wanted: int) -> int:
    """Where the run-length code of `wanted` bytes ends: what pads a segment is no code."""
    while at < end and wanted > 0:
        code = data[at]
        wanted -= 0 if code == 128 else code + 1 if code < 128 else 257 - code
        at += 1 if code == 128 else code + 2 if code < 128 else 2
    return min(at, end)


def _without_padding(data: bytes, syntax: str, name: str) -> bytes:
    """The frame up to its end mark: what encoders pad it with, whatever it is, is no part of it.

    A frame without the mark was cut short; decoders fill in grey, or wait for it for ever (JPEG-LS).
    """
    if syntax == RLE:
        whole = len(data) >= 64 and 1 <= int.from_bytes(data[:4], "little") <= 15
        end = len(data) if whole else 0
    elif syntax in _JPEG_2000 | _HTJ2K:  # whose decoder is strict itself
        end = len(data) if _END in data else 0
    else:
        end = next((at + 2 for marker, at in _markers(data) if marker == _END[1]), 0)
    if not end:
        raise _damaged(name)
    return data[:end]


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker code and place of every segment of a JPEG or JPEG-LS codestream; the data of scans are passed over."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 1 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill before a marker
            at += 1
            continue
        yield marker, at
        at += 2
        if marker in _STANDALONE:
            continue
        at += int.from_bytes(data[at : at + 2], "big")
        if marker == 0xDA:
            following = _NEXT_MARKER.search(data, at)
            at = following.start() if following else len(data)


def _is_whole(frame: NDArray[Any], data: bytes, syntax: str) -> bool:
    """Whether a JPEG holds its whole frame: libjpeg fills in what is missing before the end mark.

    Bytes put there change nothing when they are read by nobody.
    """
    import imagecodecs

    if syntax not in _JPEG | _JPEG_LOSSLESS:
        return True
    coded = data[max(at for marker, at in _markers(data) if marker == 0xDA) : -2].rstrip(b"\xff")
    middle = len(coded) // 2
    fill = bytes(range(254, 0, -1)) + coded[middle : middle + _FILL_BYTES].replace(b"\xff", b"")
    restart = bytes([0xFF, 0xD0 + len(_RESTART.findall(coded)) % 8])
    longer = data[:-2].rstrip(b"\xff") + fill + restart + fill + _END
    return np.array_equal(frame, imagecodecs.jpeg8_decode(longer))


def _damaged(name: str) -> ReadError:
    return refused(27, "the compressed picture is damaged or cut short; copy or export the file again", name)


def codestream_shape(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 codestream announces; None when unknown."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        right, bottom, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
        return bottom - top, right - left
    for marker, at in _markers(data):
        if marker in _SIZE_MARKERS:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
    return None


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
            29, f"transfer syntax {_uid(header.syntax)} cannot be decoded; export the series uncompressed", header
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
