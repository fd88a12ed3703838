"""The header of one DICOM file, and values taken from it strictly.

Values are parsed from the stored bytes, not by pydicom's converters: those repair or quote what they meet, and a
quoted value may be a patient's name. Runs in the reading process of `pneumoscope.io.dicom.worker`.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from pneumoscope.errors import ReadError, is_of_machine
from pneumoscope.io.kinds import Found

DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE_SYNTAXES = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", DEFLATED, BIG_ENDIAN})
"""Transfer syntaxes whose pixels are not compressed one by one."""

MAX_INFLATED_BYTES, MIN_INFLATED_BYTES, MAX_INFLATION = 1 << 30, 1 << 26, 100
"""A deflated file may grow 100-fold, or to 64 MiB, and never to more than 1 GiB."""
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"

TAGS = {
    "ImageType": 0x00080008, "SOPClassUID": 0x00080016, "SOPInstanceUID": 0x00080018, "Modality": 0x00080060,
    "Manufacturer": 0x00080070, "BodyPartExamined": 0x00180015, "SliceThickness": 0x00180050,
    "SpacingBetweenSlices": 0x00180088, "GantryDetectorTilt": 0x00181120, "ConvolutionKernel": 0x00181210,
    "SeriesInstanceUID": 0x0020000E, "SeriesNumber": 0x00200011, "AcquisitionNumber": 0x00200012,
    "ImagePositionPatient": 0x00200032, "ImageOrientationPatient": 0x00200037, "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004, "NumberOfFrames": 0x00280008, "Rows": 0x00280010,
    "Columns": 0x00280011, "PixelSpacing": 0x00280030, "BitsAllocated": 0x00280100, "BitsStored": 0x00280101,
    "HighBit": 0x00280102, "PixelRepresentation": 0x00280103, "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121, "RescaleIntercept": 0x00281052, "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054, "LossyImageCompression": 0x00282110, "ModalityLUTSequence": 0x00283000,
    "WindowCenter": 0x00281050, "WindowWidth": 0x00281051, "VOILUTFunction": 0x00281056,
    "VOILUTSequence": 0x00283010, "ViewPosition": 0x00185101, "ImagerPixelSpacing": 0x00181164,
    "PresentationLUTShape": 0x20500020,
    "SharedFunctionalGroupsSequence": 0x52009229, "PerFrameFunctionalGroupsSequence": 0x52009230,
    "PixelMeasuresSequence": 0x00289110, "PlanePositionSequence": 0x00209113,
    "PlaneOrientationSequence": 0x00209116, "PixelValueTransformationSequence": 0x00289145,
    "CTImageFrameTypeSequence": 0x00189329, "FrameType": 0x00089007, "CTReconstructionSequence": 0x00189314,
    "DirectoryRecordSequence": 0x00041220, "ReferencedFileID": 0x00041500,
    "SeriesDescription": 0x0008103E, "ProtocolName": 0x00181030,
    "FrameOfReferenceUID": 0x00200052, "InstanceNumber": 0x00200013,
    "StudyInstanceUID": 0x0020000D, "StudyDate": 0x00080020, "PatientID": 0x00100020,
    "SpecificCharacterSet": 0x00080005, "StudyTime": 0x00080030, "AccessionNumber": 0x00080050,
    "ReferringPhysicianName": 0x00080090, "StudyDescription": 0x00081030, "PatientName": 0x00100010,
    "IssuerOfPatientID": 0x00100021, "PatientBirthDate": 0x00100030, "PatientSex": 0x00100040,
    "PatientAge": 0x00101010, "StudyID": 0x00200010,
}  # fmt: skip
"""The only elements that are read. Those from SeriesDescription on may say who the patient is and are never printed:
the first two are searched for known words, the next three tell studies apart and stand in the private key file, the
others go into SEG and SR. PatientID leaves `pneumoscope.io.dicom.search` only where it is a subject number of a public
dataset."""

_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UNDEFINED = 0xFFFFFFFF


class BadValueError(ValueError):
    """An element is there but its value cannot be used; carries no value."""


@dataclass(frozen=True)
class PixelBlock:
    """Where the pixels of a file lie."""

    offset: int  # first byte of the value, in the file (in the inflated dataset when deflated)
    length: int | None  # bytes declared, None when encapsulated
    available: int  # bytes from `offset` to the end


@dataclass(frozen=True, eq=False)
class Header:
    """What one DICOM file says, without its pixels."""

    found: Found  # the file
    tags: Any  # pydicom dataset of the elements in `TAGS`
    syntax: str  # transfer syntax UID
    big_endian: bool  # byte order of numbers
    pixels: PixelBlock | None  # None when the file holds none
    # rows of the catalogue that reading it touched: 4 (no DICM mark), 5 (no transfer syntax)
    notes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Its place among the files, such as ``file 3 of 12``."""
        return self.found.name

    def text(self, keyword: str) -> str:
        """An element as text, "" when missing."""
        return text(self.tags, keyword)

    def integer(self, keyword: str, default: int | None = None) -> int:
        """A binary 16-bit integer (US or SS, as unsigned); refuses a missing or empty one without a default."""
        data = raw(self.tags, keyword)
        if len(data) < 2:
            if default is not None:
                return default
            raise refused(
                2, f"the image has no {keyword}, so that its pixels cannot be read; export the series again", self
            )
        return int.from_bytes(data[:2], "big" if self.big_endian else "little")

    def pixel_bytes(self, start: int, count: int) -> bytes:
        """`count` bytes from byte `start` of the pixel value; fewer when the file ends before."""
        assert self.pixels is not None
        if self.syntax == DEFLATED:
            data = inflate(self.found)
            return data[self.pixels.offset + start :][:count]
        with self.found.path.open("rb") as stream:
            stream.seek(self.pixels.offset + start)
            return stream.read(count)


def raw(tags: Any, keyword: str) -> bytes:
    """The stored bytes of an element, b"" when missing or empty."""
    item = tags.get_item(TAGS[keyword])
    if item is None:
        return b""
    value = item.value
    return value if isinstance(value, bytes) else str(value or "").encode()


def text(tags: Any, keyword: str) -> str:
    """An element as text without padding, "" when missing; bytes that are not ASCII become ``?``."""
    return raw(tags, keyword).decode("ascii", "replace").replace("\ufffd", "?").strip(" \0")


def numbers(tags: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """A decimal string of exactly `count` finite numbers; None when missing or empty.

    Raises:
        BadValueError: another count, or something that is not a number (a decimal comma, ``nan``).
    """
    data = raw(tags, keyword).strip(b" \0")
    if not data:
        return None
    parts = [part.strip(b" \0") for part in data.split(b"\\")]
    if len(parts) != count or not all(_NUMBER.fullmatch(part) for part in parts):
        raise BadValueError(keyword)
    values = tuple(float(part) for part in parts)
    if not all(map(math.isfinite, values)):
        raise BadValueError(keyword)
    return values


def sequence(tags: Any, keyword: str) -> list[Any]:
    """The items of a sequence, [] when missing."""
    if TAGS[keyword] not in tags:
        return []
    return list(tags[TAGS[keyword]].value or [])


def refused(row: int, message: str, where: Any, family: str = "IN-DCM") -> ReadError:
    """The refusal of catalogue row `row`; `where` is a place in words, or what has a ``name``: a header or a frame."""
    return ReadError(message, code=f"{family}-{row:03d}", path=getattr(where, "name", where))


def read_header(found: Found) -> Header:
    """Read the elements in `TAGS` of one file up to its pixels.

    Raises:
        ReadError: truncated or unreadable (IN-DCM-002), nested too deeply (IN-DCM-042).
        MemoryError: elements larger than the process may hold.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _parse(found)
    except RecursionError as error:
        raise refused(42, "sequences are nested too deeply to be a real image; remove the file", found) from error
    except (ReadError, MemoryError):
        raise
    except Exception as error:  # pydicom raises nearly everything for damaged files, and quotes values
        if is_of_machine(error):
            raise
        raise refused(2, "the header is damaged or ends too early; copy or export the file again", found) from error


def _parse(found: Found) -> Header:
    from pydicom.filereader import read_dataset, read_partial

    mark: list[int] = []
    source: list[BinaryIO] = []

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        if tag not in _PIXEL_TAGS:
            return False
        mark[:] = [source[0].tell(), length, int(tag)]
        return True

    wanted: list[Any] = list(TAGS.values())
    with found.path.open("rb") as stream:
        source.append(stream)
        syntax = transfer_syntax(found)
        if syntax == DEFLATED:
            source[0] = io.BytesIO(inflate(found))
            end = len(source[0].getbuffer())  # type: ignore[attr-defined]
            tags: Any = read_dataset(source[0], False, True, stop_when=at_pixels, specific_tags=wanted)
        else:
            tags = read_partial(stream, at_pixels, force=True, specific_tags=wanted)
            end = found.size
    if any(_cut_short(item) for item in tags.elements()):
        raise EOFError
    notes: tuple[int, ...] = (4,) if found.kind == "bare" else ()
    big_endian = syntax == BIG_ENDIAN
    if not syntax:
        implicit, little = tags.original_encoding
        big_endian = little is False
        syntax = BIG_ENDIAN if big_endian else "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
        notes = (4, 5) if found.kind == "bare" else (5,)
    pixels = None
    if mark and mark[2] == _PIXEL_TAGS[2]:
        pixels = PixelBlock(mark[0], None if mark[1] == _UNDEFINED else mark[1], max(0, end - mark[0]))
    return Header(found, tags, syntax, big_endian, pixels, notes)


def _cut_short(item: Any) -> bool:
    value = item.value
    return isinstance(value, bytes) and len(value) < getattr(item, "length", 0) != _UNDEFINED


def transfer_syntax(found: Found) -> str:
    """The transfer syntax in the file meta group, "" when it is not given.

    Read by hand, because pydicom inflates a deflated file, whatever it grows to, before it can be asked.
    """
    with found.path.open("rb") as stream:
        stream.seek(132 if found.kind == "dicom" else 0)
        meta = stream.read(65536)
    at = 0
    while meta[at : at + 2] == b"\x02\x00":
        kind = meta[at + 4 : at + 6]
        if kind in (b"OB", b"UN", b"OW", b"UT", b"SQ"):
            start, length = at + 12, int.from_bytes(meta[at + 8 : at + 12], "little")
        else:
            start, length = at + 8, int.from_bytes(meta[at + 6 : at + 8], "little")
        if meta[at + 2 : at + 4] == b"\x10\x00":
            return meta[start : start + length].decode("ascii", "replace").strip(" \0")
        at = start + length
    return ""


@lru_cache(maxsize=1)
def inflate(found: Found) -> bytes:
    """The dataset of a deflated file.

    Raises:
        ReadError: no group length, damaged, or inflating to more than such a file may.
    """
    limit = min(MAX_INFLATED_BYTES, max(MIN_INFLATED_BYTES, MAX_INFLATION * found.size))
    with found.path.open("rb") as stream:
        stream.seek(132)
        first = stream.read(12)
        if first[:8] != b"\x02\x00\x00\x00UL\x04\x00":
            raise EOFError
        stream.seek(132 + 12 + int.from_bytes(first[8:12], "little"))
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        data = engine.decompress(stream.read(), limit)
    if engine.unconsumed_tail:
        raise refused(
            31,
            f"inflates from {found.size} bytes to more than {limit >> 20} MiB, which no CT does; remove the file",
            found,
        )
    return data
