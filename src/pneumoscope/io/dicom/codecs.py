"""Compressed frames to stored integers, with the decoders of imagecodecs (no GDCM, nothing under the GPL)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ReadError
from pneumoscope.io.dicom.header import refused

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
