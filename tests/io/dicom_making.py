"""Small CT series for tests: clean ones of any orientation, coding and layout, to be spoiled by the tests."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import UID

from pneumoscope.volume import Volume, array_to_native

ROWS, COLUMNS, SLICES = 16, 12, 10
SPACING = (0.8, 0.5)  # between rows, between columns
STEP = 2.5
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG, DEFLATED, RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
CT, ENHANCED = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
SERIES_UID = "2.25.4711"


def hu_of(k: int, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """(rows, columns) int16: air around tissue around lung, each slice with its own bright corner and speckle."""
    hu = np.full((rows, columns), -1000, np.int16)
    hu[2:-2, 2:-2] = 40
    hu[4:-4, 4:-4] = -820
    hu[rows // 2, columns // 2] = 55 + k
    hu[0, 0] = 300 + 7 * k
    return hu


def make_slice(
    k: int,
    *,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    origin: Sequence[float] = (-120.5, -80.25, -310.0),
    step: Sequence[float] | None = None,
    uid: str = SERIES_UID,
    hu: np.ndarray | None = None,
) -> FileDataset:
    """Slice k of a clean series: unsigned 12 of 16 bits, intercept -1024."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CT)
    meta.MediaStorageSOPInstanceUID = UID(f"{uid}.{k + 1}")
    meta.TransferSyntaxUID = UID(EXPLICIT)
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SOPClassUID, data.SOPInstanceUID = UID(CT), UID(f"{uid}.{k + 1}")
    data.StudyInstanceUID, data.SeriesInstanceUID = UID("2.25.7"), UID(uid)
    data.FrameOfReferenceUID = UID("2.25.8")
    data.PatientName, data.PatientID, data.PatientBirthDate = "SECRET^NAME", "SECRETID", "19010203"
    data.Modality, data.Manufacturer, data.ConvolutionKernel = "CT", "SIEMENS", "B31f"
    data.SliceThickness = str(STEP)
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 3, 1, k + 1
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    move = normal * STEP if step is None else np.array(step, float)
    data.ImagePositionPatient = [f"{x:.8g}" for x in np.array(origin) + k * move]
    data.ImageOrientationPatient = [f"{x:.10g}" for x in (*row, *column)]
    data.PixelSpacing = [str(s) for s in SPACING]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"
    set_pixels(data, (hu_of(k) if hu is None else hu).astype(np.int32) + 1024)
    return data


def set_pixels(data: Dataset, stored: np.ndarray) -> None:
    """Stored values as 16-bit words, little-endian."""
    data.Rows, data.Columns = stored.shape[-2:]
    data.PixelData = (stored.astype(np.int64) & 0xFFFF).astype("<u2").tobytes()
    data["PixelData"].VR = "OW"


def get_pixels(data: Dataset) -> np.ndarray:
    return np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns).astype(np.int32)


def make_series(count: int = SLICES, **options: object) -> list[FileDataset]:
    return [make_slice(k, **options) for k in range(count)]  # type: ignore[arg-type]


def save(slices: Sequence[FileDataset], folder: Path, name: Callable[[int], str] = lambda n: f"IM{n:04d}.dcm") -> Path:
    """Write in the byte order that each slice's transfer syntax asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(slices):
        path = folder / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = copy.deepcopy(data)
        if data.file_meta.TransferSyntaxUID == BIG:
            data.set_original_encoding(False, False)
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        data.save_as(path, enforce_file_format=True)
    return folder


def code_as(data: FileDataset, syntax: str) -> FileDataset:
    """A copy with another transfer syntax and, for compressed ones, coded pixels."""
    copied = copy.deepcopy(data)
    copied.file_meta.TransferSyntaxUID = UID(syntax)
    if syntax in (EXPLICIT, IMPLICIT, BIG, DEFLATED):
        return copied
    words = np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns)
    copied.PixelData = encapsulate([coded(words, syntax, data.BitsStored)])
    copied["PixelData"].VR = "OB"
    copied["PixelData"].is_undefined_length = True
    return copied


def coded(words: np.ndarray, syntax: str, bits: int) -> bytes:
    """One frame of unsigned words as a codestream."""
    if syntax == RLE:
        return bytes(
            get_encoder(UID(RLE)).encode(
                np.ascontiguousarray(words),
                rows=words.shape[0],
                columns=words.shape[1],
                samples_per_pixel=1,
                number_of_frames=1,
                bits_allocated=16,
                bits_stored=16,
                pixel_representation=0,
                photometric_interpretation="MONOCHROME2",
                encoding_plugin="pydicom",
            )
        )
    if syntax == "1.2.840.10008.1.2.4.51":
        return bytes(imagecodecs.jpeg8_encode(words, level=100, bitspersample=12))
    if syntax == "1.2.840.10008.1.2.4.57":
        return bytes(imagecodecs.jpeg8_encode(words, bitspersample=bits, lossless=True))
    if syntax == "1.2.840.10008.1.2.4.70":
        return bytes(imagecodecs.ljpeg_encode(words, bitspersample=bits))
    if syntax == "1.2.840.10008.1.2.4.80":
        return bytes(imagecodecs.jpegls_encode(words))
    reversible = syntax.endswith(".90")
    return bytes(
        imagecodecs.jpeg2k_encode(
            words, codecformat="j2k", level=0 if reversible else 60, reversible=reversible, bitspersample=bits
        )
    )


def lossless_jpeg(
    words: np.ndarray, *, precision: int, predictor: int = 1, transform: int = 0, restart_rows: int = 0
) -> bytes:
    """A lossless JPEG codestream by the book (ITU-T T.81 annex H), for what encoders leave out.

    Args:
        words: (rows, columns) unsigned.
        precision: bits of a sample.
        predictor: selection value 1 to 7.
        transform: the point transform Pt, lowest bits that are dropped.
        restart_rows: rows between restart markers, 0 for none.
    """
    small = words.astype(np.int64) >> transform
    rows, columns = small.shape
    lines = restart_rows or rows
    scan = b""
    for start in range(0, rows, lines):
        part = small[start : start + lines]
        left, above, corner = (np.roll(part, shift, axis) for shift, axis in ((1, 1), (1, 0), ((1, 1), (0, 1))))
        guess = (
            left, above, corner, left + above - corner, left + (above - corner) // 2, above + (left - corner) // 2,
            (left + above) // 2,
        )[predictor - 1].copy()  # fmt: skip
        guess[0], guess[:, 0] = left[0], above[:, 0]
        guess[0, 0] = 1 << (precision - transform - 1)
        steps = ((part - guess + 0x8000) % 0x10000 - 0x8000).ravel().tolist()
        bits = "".join(map(_difference, steps))
        bits += "1" * (-len(bits) % 8)
        coded_part = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
        scan += (bytes([0xFF, 0xD0 + (start // lines - 1) % 8]) if start else b"") + coded_part
    table = bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    restart = b"\xff\xdd" + struct.pack(">HH", 4, lines * columns) if restart_rows else b""
    frame = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, precision, rows, columns, 1, 1, 0x11, 0)
    head = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, predictor, 0, transform)
    return (
        b"\xff\xd8\xff\xc4"
        + struct.pack(">HB", 3 + len(table), 0)
        + table
        + restart
        + frame
        + head
        + scan
        + b"\xff\xd9"
    )


def _difference(step: int) -> str:
    """Five bits for how many follow, then these."""
    if step == -0x8000:
        return f"{16:05b}"
    size = abs(step).bit_length()
    return f"{size:05b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "")


def make_enhanced(count: int = SLICES, order: Sequence[int] | None = None) -> FileDataset:
    """The same series as one enhanced multi-frame file; `order` is the order of frames in it."""
    frames = list(order or range(count))
    first = make_slice(0)
    data = copy.deepcopy(first)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID(ENHANCED)
    for name in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
        "RescaleType", "SliceThickness", "ConvolutionKernel",
    ):  # fmt: skip
        delattr(data, name)
    data.NumberOfFrames = count
    data.PixelData = b"".join(make_slice(k).PixelData for k in frames)
    shared, measures, orientation, recon = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    recon.ConvolutionKernel = "B31f"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.CTReconstructionSequence = [recon]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for k in frames:
        group, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = make_slice(k).ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "1", "-1024", "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [values]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    return data


def nested(depth: int) -> bytes:
    """A whole file, little more than undefined-length sequences inside each other."""
    head = b"\0" * 128 + b"DICM"
    syntax = EXPLICIT.encode() + b"\0"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    opening = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return head + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta + opening * depth


def clean_hu(count: int = SLICES) -> np.ndarray:
    """What a sound series holds, (k, rows, columns)."""
    return np.stack([hu_of(k) for k in range(count)]).astype(np.float32)


def native_kji(volume: Volume) -> np.ndarray:
    """A volume as its series is stored, (k, rows, columns)."""
    return array_to_native(volume.hu, volume.native).transpose(2, 1, 0)
