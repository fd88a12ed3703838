"""Compressed frames to stored integers, with the decoders of imagecodecs (no GDCM, nothing under the GPL)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ReadError

_JPEG = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_JPEG_LOSSLESS = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
_JPEG_LS = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
_JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
_HTJ2K = frozenset({"1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203"})
RLE = "1.2.840.10008.1.2.5"

COMPRESSED_SYNTAXES = _JPEG | _JPEG_LOSSLESS | _JPEG_LS | _JPEG_2000 | _HTJ2K | {RLE}
"""What `decode_frame` understands."""

LOSSY_SYNTAXES = _JPEG | {"1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203"}
"""Syntaxes that may have lost detail."""

_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_END = b"\xff\xd9"


def decode_frame(
    data: bytes, syntax: str, shape: tuple[int, int], bits_allocated: int, *, name: str
) -> NDArray[np.integer]:
    """One frame, (rows, columns), signed only when its own codestream says so.

    Args:
        data: the joined fragments of the frame.
        syntax: a member of `COMPRESSED_SYNTAXES`.
        shape: rows and columns of the header.
        bits_allocated: 8, 16 or 32; the word size of RLE.
        name: file, for messages.

    Raises:
        ReadError: damaged or cut short (IN-DCM-027), or of another size than the header says (IN-DCM-030).
    """
    _require_whole(data, syntax, name)
    inner = None if syntax == RLE else codestream_shape(data)
    if inner is not None and inner != shape:
        raise ReadError(
            f"the compressed picture has {inner[0]} x {inner[1]} pixels, the header says {shape[0]} x {shape[1]}; "
            "export the series again",
            code="IN-DCM-030",
            path=name,
        )
    try:
        frame = _decode(data, syntax, shape, bits_allocated)
    except MemoryError:
        raise
    except Exception as error:  # every codec has its own error class
        raise _damaged(name) from error
    if frame.shape != shape or frame.dtype.kind not in "iu":
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
    if syntax in _JPEG_LOSSLESS:
        try:
            return np.asarray(imagecodecs.jpegsof3_decode(data))
        except imagecodecs.Jpegsof3Error:
            return np.asarray(imagecodecs.ljpeg_decode(data))
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
        plane = np.frombuffer(packbits_decode(data[start:end]), np.uint8)
        planes[:, size - 1 - place] = plane[: len(planes)]  # too few raise ValueError
    return planes.reshape(-1).view(f"<u{size}").reshape(shape)


def _require_whole(data: bytes, syntax: str, name: str) -> None:
    """Decoders fill a missing end with grey; all JPEG families say where they end."""
    if syntax == RLE:
        if len(data) < 64 or not 1 <= int.from_bytes(data[:4], "little") <= 15:
            raise _damaged(name)
    elif _END not in data.rstrip(b"\x00\xff")[-2:]:
        raise _damaged(name)


def _damaged(name: str) -> ReadError:
    return ReadError(
        "the compressed picture is damaged or cut short; copy or export the file again", code="IN-DCM-027", path=name
    )


def codestream_shape(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 codestream announces; None when it cannot be told."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        right, bottom, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
        return bottom - top, right - left
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _SIZE_MARKERS:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker == 0xFF:
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
