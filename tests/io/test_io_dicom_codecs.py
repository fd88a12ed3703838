"""Every codec with all its parameters, against a second decoder: GDCM (through SimpleITK), or OpenJPH for HTJ2K."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import dicom_making as making
import imagecodecs
import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID

from pneumoscope.errors import ReadError
from pneumoscope.io.dicom.pixels import decode_frame
from pneumoscope.io.dicom.read import read_dicom
from pneumoscope.volume import array_to_native

JPEG_12, LOSSLESS, LOSSLESS_SV1, JPEG_LS, NEAR, J2K, J2K_LOSSY, HTJ2K = (
    f"1.2.840.10008.1.2.4.{n}" for n in (51, 57, 70, 80, 81, 90, 91, 201)
)
Encoder = Callable[[np.ndarray, int], bytes]


def words_of(bits: int, *, signed: bool) -> np.ndarray:
    """(16, 12) words of `bits` bits with the ends of the range in them; two's complement when signed."""
    rng = np.random.default_rng(bits)
    air, tissue = (-1000, 40) if signed else (24, 1064)
    words = np.where(making.hu_of(3) < -900, air, tissue) + rng.integers(-20, 20, (making.ROWS, making.COLUMNS))
    top = min((1 << (bits - signed)) - 1, 19_000)
    words[2, 3:6] = (max(-(1 << (bits - 1)), -1400) if signed else 0, top, -1 if signed else 1)
    return (words & ((1 << bits) - 1)).astype(np.uint16)


def slice_of(words: np.ndarray, bits: int, *, signed: bool) -> FileDataset:
    """One uncompressed slice whose stored values are `words`."""
    data = making.make_slice(3)
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, int(signed)
    data.RescaleIntercept = "0" if signed else "-1024"
    extended = np.where(words >> (bits - 1), words.astype(np.int32) - (1 << bits), words) if signed else words
    making.set_pixels(data, extended)
    return data


def compressed(data: FileDataset, syntax: str, frame: bytes, *, pieces: int = 1) -> FileDataset:
    """A copy whose pixels are `frame`, in so many fragments."""
    copied = copy.deepcopy(data)
    copied.file_meta.TransferSyntaxUID = UID(syntax)
    copied.PixelData = encapsulate([frame], fragments_per_frame=pieces)
    copied["PixelData"].VR = "OB"
    copied["PixelData"].is_undefined_length = True
    return copied


def hu_in(data: FileDataset, folder: Path) -> np.ndarray:
    """What we read, (rows, columns); -1024 at least."""
    path = making.save([data], folder) / "IM0000.dcm"
    volume = read_dicom(path, min_slices=1)
    return array_to_native(volume.hu, volume.native)[:, :, 0].T


def hu_by_gdcm(folder: Path) -> np.ndarray:
    image = SimpleITK.ReadImage(str(folder / "IM0000.dcm"))
    return np.maximum(SimpleITK.GetArrayFromImage(image)[0].astype(np.float32), -1024)


def lossless(predictor: int, transform: int = 0, restart_rows: int = 0) -> Encoder:
    return lambda words, bits: making.lossless_jpeg(
        words, precision=bits, predictor=predictor, transform=transform, restart_rows=restart_rows
    )


def jpeg2000(level: int) -> Encoder:
    return lambda words, bits: imagecodecs.jpeg2k_encode(
        words, codecformat="j2k", level=level, reversible=not level, bitspersample=bits
    )


CODECS: dict[str, tuple[str, Encoder, int]] = {
    **{f"lossless JPEG, predictor {n}": (LOSSLESS, lossless(n), 0) for n in range(1, 8)},
    **{f"lossless JPEG, point transform {n}": (LOSSLESS_SV1, lossless(1, n), (1 << n) - 1) for n in (1, 3)},
    "lossless JPEG, predictor 4, point transform 2": (LOSSLESS, lossless(4, 2), 3),
    "lossless JPEG, restarts": (LOSSLESS_SV1, lossless(1, 0, 3), 0),
    "lossless JPEG, predictor 6, restarts, point transform": (LOSSLESS, lossless(6, 1, 2), 1),
    "JPEG-LS": (JPEG_LS, lambda words, bits: imagecodecs.jpegls_encode(words), 0),
    "JPEG-LS, near": (NEAR, lambda words, bits: imagecodecs.jpegls_encode(words, level=3), 3),
    "JPEG 2000": (J2K, jpeg2000(0), 0),
    "JPEG 2000, lossy": (J2K_LOSSY, jpeg2000(60), 200),
    "RLE": (making.RLE, lambda words, bits: making.coded(words, making.RLE, bits), 0),
}  # fmt: skip
"""Transfer syntax, encoder, and how far a value may be off what was coded."""


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_codecs(name: str, bits: int, signed: bool, tmp_path: Path) -> None:
    syntax, encode, off = CODECS[name]
    words = words_of(bits, signed=signed)
    plain = slice_of(words, bits, signed=signed)
    read = hu_in(
        compressed(plain, syntax, encode(words, bits), pieces=2 if syntax != making.RLE else 1), tmp_path / "a"
    )
    np.testing.assert_array_equal(read, hu_by_gdcm(tmp_path / "a"))
    wrapped = signed and off  # what a lossy step carries over the ends of two's complement
    assert wrapped or np.abs(read - hu_in(plain, tmp_path / "b")).max() <= off


@pytest.mark.skipif(not hasattr(imagecodecs, "htj2k_encode"), reason="imagecodecs before 2026 writes no HTJ2K")
def test_htj2k(tmp_path: Path) -> None:
    words = words_of(12, signed=False)
    frame = imagecodecs.htj2k_encode(words)
    plain = slice_of(words, 12, signed=False)
    read = hu_in(compressed(plain, HTJ2K, frame), tmp_path)
    np.testing.assert_array_equal(read, imagecodecs.htj2k_decode(frame).astype(np.float32) - 1024)
    np.testing.assert_array_equal(read, words.astype(np.float32) - 1024)


BEHIND = (b"\0", b"\x63", b"\xff", b"\xff\xff\xff", b"\0\0", b"\xff\xd8\xff\xe0", bytes(range(200)), b"\xff\xd9\x63")


@pytest.mark.parametrize("behind", BEHIND, ids=lambda tail: tail[:4].hex())
@pytest.mark.parametrize("name", ["lossless JPEG, predictor 1", "JPEG-LS", "JPEG-LS, near", "JPEG 2000"])
def test_bytes_behind_the_end_are_padding(name: str, behind: bytes) -> None:
    syntax, encode, _ = CODECS[name]
    words = words_of(12, signed=False)
    frame = encode(words, 12)
    want = decode_frame(frame, syntax, words.shape, 16, name="a")
    np.testing.assert_array_equal(decode_frame(frame + behind, syntax, words.shape, 16, name="a"), want)


def jpeg_12(words: np.ndarray, bits: int) -> bytes:
    return making.coded(words, JPEG_12, 12)


@pytest.mark.parametrize("end", [b"", b"\0\0", b"\x63", b"\xff\xff", b"\xff\xd9", b"\x63\xff\xd9"], ids=bytes.hex)
@pytest.mark.parametrize("name", [*CODECS, "12-bit JPEG"])
def test_a_frame_that_is_cut_short_is_refused(name: str, end: bytes) -> None:
    """Whatever stands in the place of the end; RLE has no end mark."""
    syntax, encode, _ = CODECS.get(name, (JPEG_12, jpeg_12, 0))
    words = words_of(12, signed=False)
    frame = encode(words, 12)
    decode_frame(frame, syntax, words.shape, 16, name="a")
    for share in (0.4, 0.7, 0.9):
        with pytest.raises(ReadError, match="damaged or cut short"):
            decode_frame(frame[: int(len(frame) * share)] + end, syntax, words.shape, 16, name="a")


@pytest.mark.parametrize(
    "tail", [b"\x63", b"\x63\x01\x02", b"\xff", b"\xff\xd9", bytes(300)], ids=lambda tail: tail[:3].hex()
)
def test_padding_behind_run_length_code(tail: bytes) -> None:
    words = words_of(16, signed=True)
    frame = making.coded(words, making.RLE, 16)
    np.testing.assert_array_equal(decode_frame(frame + tail, making.RLE, words.shape, 16, name="a"), words)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_frames_in_fragments(extended: bool, pieces: int, tmp_path: Path) -> None:
    """Several frames in one file, found by offset table, extended offset table or end marks."""
    data = making.make_enhanced(4)
    words = np.frombuffer(data.PixelData, "<u2").reshape(4, data.Rows, data.Columns)
    frames = [making.lossless_jpeg(frame, precision=12) for frame in words]
    frames = [frame + b"\x63" * (len(frame) % 2) for frame in frames]
    plain = read_dicom(making.save([data], tmp_path / "plain"))
    data.file_meta.TransferSyntaxUID = UID(LOSSLESS_SV1)
    if extended:
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        data.PixelData = encapsulate(frames, fragments_per_frame=pieces)
    data["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(read_dicom(making.save([data], tmp_path / "coded")).hu, plain.hu)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("syntax", [making.IMPLICIT, making.BIG, making.DEFLATED])
def test_uncompressed_encodings(syntax: str, signed: bool, tmp_path: Path) -> None:
    coded = making.code_as(slice_of(words_of(12, signed=signed), 12, signed=signed), syntax)
    np.testing.assert_array_equal(hu_in(coded, tmp_path), hu_by_gdcm(tmp_path))
