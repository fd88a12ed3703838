"""Bad input, row by row of the catalogue in docs/reference/input-codes.md: refused by code and file, or a finding."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path

import dicom_making as making
import numpy as np
import pytest
from dicom_making import clean_hu, native_kji
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from pneumoscope.errors import ReadError
from pneumoscope.io.dicom.read import ReadLimits, is_dicom, read_dicom
from pneumoscope.io.read import read_volume
from pneumoscope.volume import Volume

Slices = list[FileDataset]
J2K, JLS = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"
SC, MR, SEG, SR = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("7", "4", "66.4", "88.33"))
PUBLIC = Path(get_testdata_file("CT_small.dcm")).parent


def codes(volume: Volume) -> set[str | None]:
    return {finding.code for finding in volume.findings}


# Defects of values: (row, what is done to the clean slices, what the message must name)


def drop(*numbers: int) -> Callable[[Slices], None]:
    def change(slices: Slices) -> None:
        for number in sorted(numbers, reverse=True):
            del slices[number]

    return change


def on(number: int, **values: object) -> Callable[[Slices], None]:
    def change(slices: Slices) -> None:
        for name, value in values.items():
            put(slices[number], name, value)

    return change


def on_all(**values: object) -> Callable[[Slices], None]:
    def change(slices: Slices) -> None:
        for data in slices:
            for name, value in values.items():
                put(data, name, value)

    return change


def put(data: Dataset, name: str, value: object) -> None:
    """Set an element; None removes it; text goes in as it is, without pydicom's checks."""
    if value is None:
        delattr(data, name)
    elif isinstance(value, str):
        data.add_new(name, "UT" if name != "SOPClassUID" else "UI", value)
    else:
        setattr(data, name, value)


def move(number: int, z: float) -> Callable[[Slices], None]:
    def change(slices: Slices) -> None:
        slices[number].ImagePositionPatient[2] = f"{z:.8g}"

    return change


def tilt_one(slices: Slices) -> None:
    slices[4].ImageOrientationPatient = [1, 0, 0, 0, "0.9659258", "0.2588190"]


def smaller_matrix(slices: Slices) -> None:
    making.set_pixels(slices[4], making.get_pixels(slices[4])[:8])


def two_pictures(slices: Slices) -> None:
    other = copy.deepcopy(slices[4])
    other.AcquisitionNumber = 2
    making.set_pixels(other, making.get_pixels(other) + 5)
    slices.append(other)


def two_acquisitions(slices: Slices) -> None:
    for data in list(slices):
        other = copy.deepcopy(data)
        other.AcquisitionNumber, other.SOPInstanceUID = 2, UID(data.SOPInstanceUID + ".9")
        making.set_pixels(other, making.get_pixels(other) + 3)
        slices.append(other)


def two_kernels(slices: Slices) -> None:
    for data in slices[5:]:
        data.ConvolutionKernel = "B70f"


def another_study(slices: Slices) -> None:
    slices.extend(making.make_series(5, uid="2.25.99"))
    for data in slices[-5:]:
        data.StudyInstanceUID = "2.25.77"


def unflagged_sign(slices: Slices) -> None:
    for k, data in enumerate(slices):
        data.BitsStored, data.HighBit, data.RescaleIntercept = 16, 15, "0"
        making.set_pixels(data, making.hu_of(k))


def unflagged_sign_12_bit(slices: Slices) -> None:
    for k, data in enumerate(slices):
        data.RescaleIntercept = "0"
        making.set_pixels(data, making.hu_of(k) & 0xFFF)


def shifted_unscaled(slices: Slices) -> None:
    for data in slices:
        del data.RescaleSlope, data.RescaleIntercept


def twice_intercept(slices: Slices) -> None:
    for k, data in enumerate(slices):
        data.PixelRepresentation, data.BitsStored, data.HighBit = 1, 16, 15
        making.set_pixels(data, making.hu_of(k))


def colour(slices: Slices) -> None:
    for data in slices:
        data.SamplesPerPixel, data.PhotometricInterpretation, data.BitsAllocated = 3, "RGB", 8
        data.BitsStored, data.HighBit = 8, 7
        data.PixelData = bytes(3 * 16 * 12)
        data.PlanarConfiguration = 0


def other_class(uid: str, modality: str, *, pixels: bool = True) -> Callable[[Slices], None]:
    def change(slices: Slices) -> None:
        for data in slices:
            data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID(uid)
            data.Modality = modality
            if not pixels:
                del data.PixelData

    return change


def sideways(slices: Slices) -> None:
    slices[4].ImagePositionPatient[0] = "-118.5"


def strong_lean(slices: Slices) -> None:
    for k, data in enumerate(slices):
        data.ImagePositionPatient = ["-120.5", f"{-80.25 + 4 * k}", f"{-310 + 2.5 * k}"]


def eight_bit(slices: Slices) -> None:
    for data in slices:
        words = making.get_pixels(data)
        data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
        data.PixelData = (words // 16).astype(np.uint8).tobytes()


def lookup_table(slices: Slices) -> None:
    for data in slices:
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [2, 0, 16], "HU", bytes(4)
        data.ModalityLUTSequence = [item]


def multi_frame_without_places(slices: Slices) -> None:
    first = slices[0]
    first.NumberOfFrames = 10
    first.PixelData = b"".join(data.PixelData for data in slices)
    del slices[1:]


def enhanced_with_lost_frames(slices: Slices) -> None:
    data = making.make_enhanced()
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:7]
    slices[:] = [data]


def coded_cut(syntax: str, *, at: float = 0.6) -> Callable[[Slices], None]:
    def change(slices: Slices) -> None:
        slices[:] = [making.code_as(data, syntax) for data in slices]
        words = np.random.default_rng(1).integers(0, 2000, (16, 12), np.uint16)
        stream = making.coded(words, syntax, 12)
        slices[4].PixelData = encapsulate([stream[: int(len(stream) * at)]])
        slices[4]["PixelData"].is_undefined_length = True

    return change


def coded_wrong_size(slices: Slices) -> None:
    slices[:] = [making.code_as(data, J2K) for data in slices]
    slices[4].Rows = 24
    for data in slices:
        data.Rows = 24


def private_syntax(slices: Slices) -> None:
    for data in slices:
        data.file_meta.TransferSyntaxUID = UID("1.3.46.670589.33.1.4.1")


def columns_left_out(count: int) -> Callable[[Slices], None]:
    """The header of pictures with 16 x 12 pixels says fewer columns; 40 rows so that this is more than one row."""

    def change(slices: Slices) -> None:
        for k, data in enumerate(slices):
            making.set_pixels(data, np.resize(making.hu_of(k), (100, 12)).astype(np.int32) + 1024)
            data.Columns -= count

    return change


def rows_left_out_and_padded(slices: Slices) -> None:
    for data in slices:
        data.Rows //= 2
        data.PixelData += bytes(100)


REFUSED: list[tuple[str, int, Callable[[Slices], None], str]] = [
    ("missing middle slice", 6, drop(4), r"1 slice.*-302\.50 to -297\.50 mm"),
    ("several missing slices", 7, drop(3, 4, 7), "3 slice"),
    ("two missing side by side", 7, drop(4, 5), "2 slice"),
    ("a big jump", 7, move(9, 100), "missing"),
    ("duplicate position", 9, two_pictures, r"acquisition 1, kernel B31f.*acquisition 2"),
    ("two acquisitions at the same places", 9, two_acquisitions, r"10 x \(acquisition 1"),
    ("two kernels in one series", 9, two_kernels, r"B70f"),
    ("one slice shifted along the normal", 10, move(4, -299.8), "uneven"),
    ("one slice shifted sideways", 10, sideways, r"file 5 of 10.*2\.00 mm"),
    ("slices lean too much", 12, strong_lean, "58 degrees"),
    ("two studies", 13, another_study, r"2 studies .*1: 10 images.*2: 5 images.*--series"),
    ("mixed orientation", 14, tilt_one, "file 5 of 10"),
    ("only scouts", 15, on_all(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "scout"),
    ("single slice", 16, drop(*range(1, 10)), "not a volume"),
    ("two slices", 16, drop(*range(2, 10)), "at least 3"),
    ("no rescale", 17, shifted_unscaled, "file 1 of 10.*not HU"),
    ("intercept applied twice", 17, twice_intercept, "twice"),
    ("8-bit picture", 17, eight_bit, "8-bit"),
    ("a lookup table", 17, lookup_table, "lookup"),
    ("other units", 17, on_all(RescaleType="Z_EFF"), "RescaleType"),
    ("slope 0", 18, on(4, RescaleSlope="0"), "file 5 of 10.*RescaleSlope is 0"),
    ("slope NaN", 18, on_all(RescaleSlope="NaN"), "RescaleSlope"),
    ("intercept infinite", 18, on_all(RescaleIntercept="inf"), "RescaleIntercept"),
    ("slope negative", 18, on_all(RescaleSlope="-1"), "-1"),
    ("signed samples flagged unsigned", 22, unflagged_sign, "unsigned"),
    ("the same with 12 bits", 22, unflagged_sign_12_bit, "unsigned"),
    ("truncated JPEG 2000", 27, coded_cut(J2K), "file 5 of 10"),
    ("truncated JPEG-LS", 27, coded_cut(JLS), "file 5 of 10"),
    ("truncated lossless JPEG", 27, coded_cut("1.2.840.10008.1.2.4.70"), "file 5 of 10"),
    ("truncated RLE", 27, coded_cut(making.RLE), "file 5 of 10"),
    ("private compression", 29, private_syntax, r"1\.3\.46\.670589\.33\.1\.4\.1"),
    ("rows and columns lie", 30, on_all(Rows=4096, Columns=4096), r"33554432 bytes"),
    ("rows and columns are too small", 30, on_all(Rows=8), "8 x 12"),
    ("compressed picture of another size", 30, coded_wrong_size, "16 x 12"),
    ("one column too few", 30, columns_left_out(1), "11 pixels"),
    ("half of the rows, padded", 30, rows_left_out_and_padded, "8 x 12"),
    ("no rows", 30, on(4, Rows=0), "file 5 of 10"),
    ("65535 x 65535", 31, on_all(Rows=65535, Columns=65535), "65535"),
    ("46341 x 46341", 31, on_all(Rows=46341, Columns=46341), "46341"),
    ("2**31 frames", 32, on_all(NumberOfFrames="2147483648"), "frames"),
    ("more frames than pixels", 32, on_all(NumberOfFrames="50"), "50 frame"),
    ("negative frames", 32, on_all(NumberOfFrames="-1"), "frames"),
    ("frames without a description", 32, enhanced_with_lost_frames, "10 frames and describes 7"),
    ("another matrix", 33, smaller_matrix, "file 5 of 10.*8 x 12"),
    ("another pixel size", 33, on(4, PixelSpacing=["0.7", "0.7"]), "file 5 of 10.*0.7 x 0.7"),
    ("no PixelSpacing", 34, on_all(PixelSpacing=None), "PixelSpacing"),
    ("empty PixelSpacing", 34, on(4, PixelSpacing=""), "file 5 of 10"),
    ("zero spacing", 34, on_all(PixelSpacing=["0", "0"]), "PixelSpacing"),
    ("negative spacing", 34, on_all(PixelSpacing=["-0.5", "0.5"]), "PixelSpacing"),
    ("decimal comma", 34, on_all(PixelSpacing="0,5\\0,5"), "decimal point"),
    ("one spacing only", 34, on_all(PixelSpacing="0.5"), "PixelSpacing"),
    ("text for spacing", 34, on_all(PixelSpacing="a\\b"), "PixelSpacing"),
    ("no position", 36, on_all(ImagePositionPatient=None), "ImagePositionPatient"),
    ("no position in one slice", 36, on(4, ImagePositionPatient=None), "file 5 of 10"),
    ("no orientation", 36, on_all(ImageOrientationPatient=None), "ImageOrientationPatient"),
    ("orientation not unit", 36, on_all(ImageOrientationPatient=["2", 0, 0, 0, "1", 0]), "unit vectors"),
    ("orientation not square", 36, on_all(ImageOrientationPatient=["1", 0, 0, "1", 0, 0]), "right angle"),
    ("position not a number", 36, on_all(ImagePositionPatient="1\\x\\3"), "ImagePositionPatient"),
    ("frames without places", 36, multi_frame_without_places, "multi-frame"),
    ("RGB secondary capture", 40, other_class(SC, "CT"), "secondary capture"),
    ("RGB in the CT class", 40, colour, "colour picture"),
    ("segmentations", 40, other_class(SEG, "SEG"), "10 SEG"),
    ("reports", 40, other_class(SR, "SR", pixels=False), "10 SR"),
    ("modality MR", 41, other_class(making.CT, "MR"), "10 MR"),
    ("an MR series", 41, other_class(MR, "MR"), "10 MR"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "spoil", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_by_code_and_name(row: int, spoil: Callable[[Slices], None], words: str, tmp_path: Path) -> None:
    slices = making.make_series()
    spoil(slices)
    folder = making.save(slices, tmp_path / "series")
    with pytest.raises(ReadError) as caught:
        read_dicom(folder)
    assert caught.value.code == f"IN-DCM-{row:03d}", caught.value
    assert re.search(words, str(caught.value)), caught.value
    assert "DICOM folder" in str(caught.value)
    for word in ("SECRET", "IM00", str(tmp_path), ".dcm"):
        assert word not in str(caught.value)
    assert Path(caught.value.file).is_relative_to(folder)


# Defects of files: (row, what is done to the folder of clean files, what the message must name)


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def zip_of_dicomdir(parts: list[str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.add_new("ReferencedFileID", "UT", "\\".join(parts))
        data = making.make_slice(0)
        for name in ("PixelData", "SOPClassUID", "SOPInstanceUID", "Modality"):
            delattr(data, name)
        data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.1.3.10")
        data.DirectoryRecordSequence = [record]
        data.save_as(folder / "DICOMDIR", enforce_file_format=True)

    return change


PIXEL_BYTES = 2 * making.ROWS * making.COLUMNS
FILES: list[tuple[str, int, Callable[[Path], None], str]] = [
    ("half the pixels", 1, lambda f: os.truncate(f / "IM0004.dcm", (f / "IM0004.dcm").stat().st_size - 100),
     rf"file 5 of 10.*{PIXEL_BYTES - 100} of {PIXEL_BYTES}"),
    ("cut in the header", 2, cut("IM0004.dcm", 700), "file 5 of 10"),
    ("cut in the meta header", 2, cut("IM0004.dcm", 200), "file 5 of 10"),
    ("cut in the preamble", 2, cut("IM0004.dcm", 60), "file 5 of 10"),
    ("zero bytes", 3, cut("IM0004.dcm", 0), "file 5 of 10.*no bytes"),
    ("link to nothing", 3, lambda f: ((f / "IM0004.dcm").unlink(), (f / "IM0004.dcm").symlink_to("gone"))[0],
     "file 5 of 10"),
    ("text with a slice's name", 2, lambda f: (f / "IM0004.dcm").write_text("hello"), "file 5 of 10"),
    ("deep nesting", 42, lambda f: (f / "IM0004.dcm").write_bytes(making.nested(30_000)), "file 5 of 10"),
    ("directory file that points up", 48, zip_of_dicomdir(["..", "..", "etc", "passwd"]), "file 1 of 11"),
    ("directory file with an absolute path", 48, zip_of_dicomdir(["/etc/passwd"]), "file 1 of 11"),
    ("all files empty", 3, lambda f: [os.truncate(p, 0) for p in f.iterdir()], "file 1 of 10"),
    ("nothing but notes", 40, lambda f: [p.unlink() for p in f.iterdir()] and (f / "a.txt").write_text("x"), "1 files"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "spoil", "words"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_damaged_files_are_named(row: int, spoil: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    spoil(folder)
    with pytest.raises(ReadError) as caught:
        read_dicom(folder)
    assert caught.value.code == f"IN-DCM-{row:03d}", caught.value
    assert re.search(words, str(caught.value)), caught.value


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    """A slice cut at any of 40 places is never dropped."""
    folder = making.save(making.make_series(), tmp_path / "series")
    whole = (folder / "IM0004.dcm").read_bytes()
    for size in np.linspace(0, len(whole) - 2, 40).astype(int):
        (folder / "IM0004.dcm").write_bytes(whole[:size])
        with pytest.raises(ReadError, match=r"IN-DCM-00[124].*file 5 of 10|IN-DCM-003"):
            read_dicom(folder)


# Accepted with a finding


def double(slices: Slices) -> None:
    slices.append(copy.deepcopy(slices[4]))
    slices[-1].SOPInstanceUID = UID("2.25.77")


def lean(slices: Slices) -> None:
    for k, data in enumerate(slices):
        data.ImagePositionPatient = ["-120.5", f"{-80.25 + k * 2.5 * np.tan(np.radians(15)):.6f}", f"{-310 + 2.5 * k}"]
        data.GantryDetectorTilt = "15"


def scout(slices: Slices) -> None:
    other = making.make_slice(0, orientation=(0, 1, 0, 0, 0, -1), origin=(0, -100, 200))
    other.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    other.SOPInstanceUID = UID("2.25.78")
    slices.append(other)


def signed_without_rescale(slices: Slices) -> None:
    for k, data in enumerate(slices):
        data.PixelRepresentation, data.BitsStored, data.HighBit = 1, 16, 15
        del data.RescaleSlope, data.RescaleIntercept
        making.set_pixels(data, making.hu_of(k))


def padding(slices: Slices) -> None:
    for k, data in enumerate(slices):
        data.PixelRepresentation, data.BitsStored, data.HighBit = 1, 16, 15
        data.add_new("PixelPaddingValue", "SS", -2000)
        stored = making.hu_of(k) + 1024
        stored[:2] = -2000
        making.set_pixels(data, stored)


def unsigned_padding(slices: Slices) -> None:
    for k, data in enumerate(slices):
        data.add_new("PixelPaddingValue", "US", 63536)
        stored = making.hu_of(k).astype(np.int32) + 1024
        stored[:2] = 63536
        making.set_pixels(data, stored)


def tissue_padding(slices: Slices) -> None:
    for data in slices:
        data.add_new("PixelPaddingValue", "US", 1064)


def signed_codestream(slices: Slices) -> None:
    import imagecodecs

    for k, data in enumerate(slices):
        stream = imagecodecs.jpeg2k_encode(making.hu_of(k), codecformat="j2k", level=0, reversible=True)
        data.file_meta.TransferSyntaxUID = UID(J2K)
        data.BitsStored, data.HighBit, data.RescaleIntercept = 16, 15, "0"
        data.PixelData = encapsulate([stream])
        data["PixelData"].is_undefined_length = True


ACCEPTED: list[tuple[str, int, Callable[[Slices], None]]] = [
    ("duplicate with equal pixels", 8, double), ("scout in the series", 15, scout),
    ("no rescale, but HU", 17, signed_without_rescale), ("padding value", 20, padding),
    ("padding beyond the stored bits", 20, unsigned_padding), ("padding value that tissue has", 20, tissue_padding),
    ("sign only in the codestream", 24, signed_codestream),
    ("SliceThickness contradicts", 37, on_all(SliceThickness="5")),
    ("SpacingBetweenSlices contradicts", 37, on_all(SpacingBetweenSlices="7")),
    ("MONOCHROME1", 39, on_all(PhotometricInterpretation="MONOCHROME1")),
    ("another body part", 49, on_all(BodyPartExamined="KNEE")),
    ("lossy flag", 50, on_all(LossyImageCompression="01")), ("bone kernel", 50, on_all(ConvolutionKernel="BONEPLUS")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "change"), [case[1:] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
def test_accepted_with_a_finding(row: int, change: Callable[[Slices], None], tmp_path: Path) -> None:
    slices = making.make_series()
    change(slices)
    volume = read_dicom(making.save(slices, tmp_path / "series"))
    assert codes(volume) == {f"IN-DCM-{row:03d}"}
    wanted = clean_hu()
    if row == 20 and "1064" not in str(slices[0].PixelPaddingValue):
        wanted[:, :2] = -1024
    np.testing.assert_array_equal(native_kji(volume), wanted)


def test_thick_slices(tmp_path: Path) -> None:
    slices = making.make_series(step=(0, 0, 10))
    on_all(SliceThickness="10")(slices)
    volume = read_dicom(making.save(slices, tmp_path / "thick"))
    assert codes(volume) == {"IN-DCM-050"}


def test_gantry_tilt_keeps_true_places_and_volume(tmp_path: Path) -> None:
    slices = making.make_series()
    lean(slices)
    volume = read_dicom(making.save(slices, tmp_path / "series"))
    assert codes(volume) == {"IN-DCM-012"}
    assert not volume.native.is_orthogonal
    assert volume.native.voxel_volume_ml == pytest.approx(0.5 * 0.8 * 2.5 / 1000)
    for k, data in enumerate(slices):
        place = np.array([float(x) for x in data.ImagePositionPatient]) * (-1, -1, 1)
        np.testing.assert_allclose(volume.native.world((0, 0, k)), place, atol=1e-4)


def test_missing_slice_is_filled_only_when_asked(tmp_path: Path) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    (folder / "IM0004.dcm").write_bytes(b"")
    volume = read_dicom(folder, fill_gaps=True)
    assert codes(volume) == {"IN-DCM-003", "IN-DCM-006"}
    assert volume.native.shape == (12, 16, 10)
    wanted = clean_hu()
    wanted[4] = np.rint((wanted[3] + wanted[5]) / 2)
    np.testing.assert_array_equal(native_kji(volume), wanted)
    assert volume.spacing_mm[2] == pytest.approx(making.STEP)
    slices = making.make_series()
    move(9, 100)(slices)
    with pytest.raises(ReadError, match="IN-DCM-007"):
        read_dicom(making.save(slices, tmp_path / "jump"), fill_gaps=True)


def test_uneven_slices_are_resampled_only_when_asked(tmp_path: Path) -> None:
    slices = making.make_series()
    move(4, -299.5)(slices)
    volume = read_dicom(making.save(slices, tmp_path / "series"), fill_gaps=True)
    assert codes(volume) == {"IN-DCM-010"}
    np.testing.assert_array_equal(native_kji(volume)[[0, 1, 2, 3, -1]], clean_hu()[[0, 1, 2, 3, -1]])
    corner = 300 + 7 * (3 + 2.5 / 3)  # position -300 lies 2.5 of 3 mm from slice 3 to slice 4
    assert native_kji(volume)[4, 0, 0] == round(corner)


def test_file_without_meta_header(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for k, data in enumerate(making.make_series()):
        bare = Dataset(data)
        bare.save_as(folder / f"{k}.dcm", implicit_vr=k % 2 == 0, little_endian=True)
        assert (folder / f"{k}.dcm").read_bytes()[128:132] != b"DICM"
    volume = read_dicom(folder)
    assert codes(volume) == {"IN-DCM-004", "IN-DCM-005"}
    np.testing.assert_array_equal(native_kji(volume), clean_hu())


def test_missing_transfer_syntax(tmp_path: Path) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    for path in folder.iterdir():
        data = path.read_bytes()
        at = data.index(b"\x02\x00\x10\x00UI")
        length = int.from_bytes(data[at + 6 : at + 8], "little")
        path.write_bytes(data[:at] + data[at + 8 + length :])
    volume = read_dicom(folder)
    assert codes(volume) == {"IN-DCM-005"}
    np.testing.assert_array_equal(native_kji(volume), clean_hu())


def test_junk_is_counted_and_ignored(tmp_path: Path) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 40)
    (folder / ".DS_Store").touch()
    (folder / "readme").write_text("the scan of an old friend")
    (folder / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    zip_of_dicomdir(["IM0000"])(folder)
    report = making.make_series(1)
    other_class(SR, "SR", pixels=False)(report)
    report[0].save_as(folder / "report.dcm", enforce_file_format=True)
    capture = making.make_series(1)
    colour(capture)
    capture[0].save_as(folder / "capture", enforce_file_format=True)
    volume = read_dicom(folder)
    (finding,) = volume.findings
    assert finding.code == "IN-DCM-044"
    for words in ("2 not DICOM", "1 DICOMDIR", "1 SR", "1 colour picture"):
        assert words in finding.message


def test_a_small_other_series_is_set_aside_by_rule(tmp_path: Path) -> None:
    making.save(making.make_series(), tmp_path / "all" / "a")
    making.save(making.make_series(1, uid="2.25.99"), tmp_path / "all" / "b")
    volume = read_dicom(tmp_path / "all")
    assert codes(volume) == {"IN-DCM-013"}
    assert volume.native.shape[2] == 10


def test_damage_in_another_series_does_not_matter(tmp_path: Path) -> None:
    making.save(making.make_series(), tmp_path / "all" / "a")
    other = making.make_series(5, uid="2.25.99")
    del other[2].PixelData
    making.save(other, tmp_path / "all" / "b")
    assert read_dicom(tmp_path / "all", series="1").native.shape[2] == 10
    with pytest.raises(ReadError, match=r"IN-DCM-002.*file 13 of 15"):
        read_dicom(tmp_path / "all", series="2")


def test_other_modality_only_when_allowed(tmp_path: Path) -> None:
    slices = making.make_series()
    other_class(MR, "MR")(slices)
    volume = read_dicom(making.save(slices, tmp_path / "series"), any_modality=True)
    assert codes(volume) == {"IN-DCM-041"}


def test_too_large_for_the_limits(tmp_path: Path) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    with pytest.raises(ReadError, match=r"IN-DCM-031.*1920 voxels"):
        read_dicom(folder, limits=ReadLimits(max_voxels=1919))


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumoscope.io import kinds

    folder = making.save(making.make_series(), tmp_path / "series")
    monkeypatch.setattr(kinds, "MAX_FILES", 9)
    with pytest.raises(ReadError, match="IN-DCM-103"):
        read_dicom(folder)


PUBLIC_REFUSED = [
    ("MR_truncated.dcm", 41), ("rtplan_truncated.dcm", 40), ("no_meta.dcm", 4), ("meta_missing_tsyntax.dcm", 40),
    ("badVR.dcm", 40), ("liver_1frame.dcm", 40), ("reportsi.dcm", 40), ("JPEG-lossy.dcm", 40), ("SC_rgb_rle.dcm", 40),
    ("JPEG2000-embedded-sequence-delimiter.dcm", 40), ("image_dfl.dcm", 40), ("UN_sequence.dcm", 2),
    ("nested_priv_SQ.dcm", 40), ("dicomdirtests/77654033/CT2", 7), ("dicomdirtests/98892001/CT2N", 15),
    ("dicomdirtests/98892003/MR2", 41), ("dicomdirtests", 13), ("zipMR.gz", 40),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row"), PUBLIC_REFUSED, ids=[name for name, _ in PUBLIC_REFUSED])
def test_public_files_nobody_here_wrote(name: str, row: int) -> None:
    with pytest.raises(ReadError) as caught:
        read_dicom(PUBLIC / name)
    assert caught.value.code == f"IN-DCM-{row:03d}", caught.value


def test_pipe_does_not_block(tmp_path: Path) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    os.mkfifo(folder / "pipe")
    assert is_dicom(folder)
    assert codes(read_dicom(folder)) == {"IN-DCM-044"}


WORDS = [
    "HU", "hu ", "Hu", "H.U.", "[HU]", "HU_MOD", "US", "", "Hounsfield Units", "HOUNSFIELD", "hounsfield unit",
    "Hounsfield_Units (HU)", "Houndsfield", "[hnsf'U]", "Hounsfield-Einheiten", "HU\0", "HU\\HU", "UH", "CT HU",
    "CT Number", "UNKNOWN", "None", "N/A",
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_rescale_type_in_any_spelling(words: str, tmp_path: Path) -> None:
    slices = making.make_series()
    on_all(RescaleType=words)(slices)
    volume = read_dicom(making.save(slices, tmp_path))
    np.testing.assert_array_equal(native_kji(volume), clean_hu())
    assert codes(volume) == set()


@pytest.mark.parametrize(
    "spoil", [on_all(RescaleType="Z_EFF"), on_all(RescaleType="MGML"), on_all(RescaleIntercept=None)], ids=range(3)
)
def test_other_units_are_hu_by_the_word_of_the_user(spoil: Callable[[Slices], None], tmp_path: Path) -> None:
    slices = making.make_series()
    for data in slices:
        data.RescaleIntercept, data.PixelRepresentation = "0", 1
        making.set_pixels(data, making.get_pixels(data) - 824)  # 200 HU too high, so that nothing proves them
    spoil(slices)
    folder = making.save(slices, tmp_path)
    with pytest.raises(ReadError, match=r"RescaleType|RescaleIntercept"):
        read_volume(folder)
    volume = read_volume(folder, intensity="hu")
    np.testing.assert_array_equal(native_kji(volume), clean_hu() + 200)
    assert codes(volume) == {"IN-DCM-017"}


def rounded(step: float, unit: float, count: int = making.SLICES, *, without: int | None = None) -> list[float]:
    return [round(k * step / unit) * unit for k in range(count) if k != without]


def placed(slices: Slices, z: list[float], thickness: float | None, form: str = "{:g}") -> None:
    for data, place in zip(slices, z, strict=True):
        data.ImagePositionPatient = ["-120.5", "-80.25", form.format(place)]
        put(data, "SliceThickness", None if thickness is None else str(thickness))


@pytest.mark.parametrize("form", ["{:g}", "{:.4f}"])
@pytest.mark.parametrize(
    ("step", "unit", "thickness", "tolerance"),
    [
        (2.5, 1, 2.5, 1e-6), (2.5, 1, 5, 0.06), (2.5, 1, None, 0.06), (1.25, 1, 1.25, 1e-6), (3.75, 1, 3.75, 1e-6),
        (-2.5, 1, 2.5, 1e-6), (1.25, 0.5, 1.25, 1e-6), (0.625, 0.1, 0.625, 1e-6), (0.625, 0.1, None, 0.01),
    ],
)  # fmt: skip
def test_positions_rounded_by_the_writer(
    step: float, unit: float, thickness: float | None, tolerance: float, form: str, tmp_path: Path
) -> None:
    slices = making.make_series()
    placed(slices, rounded(step, unit), thickness, form)
    volume = read_dicom(making.save(slices, tmp_path))
    assert abs(volume.spacing_mm[2] - abs(step)) <= tolerance
    expected = clean_hu() if step > 0 else clean_hu()[::-1]
    np.testing.assert_array_equal(native_kji(volume), expected)


@pytest.mark.parametrize(
    ("z", "thickness"),
    [
        (rounded(1, 1, 11, without=4), 1), (rounded(1, 1, 11, without=4), None), (rounded(2, 1, 11, without=7), 2),
        (rounded(2.5, 1, 11, without=4), 2.5), (rounded(1.25, 1, 11, without=3), 1.25),
        ([0, 2, 4, 6, 8, 11, 13, 15, 17, 19], 2), (rounded(0.625, 0.1, 11, without=4), 0.625),
    ],
)  # fmt: skip
def test_rounding_hides_no_missing_slice(z: list[float], thickness: float | None, tmp_path: Path) -> None:
    slices = making.make_series()
    placed(slices, z, thickness)
    with pytest.raises(ReadError) as caught:
        read_dicom(making.save(slices, tmp_path))
    assert caught.value.code in ("IN-DCM-006", "IN-DCM-007", "IN-DCM-010")


@pytest.mark.parametrize(
    "padding",
    [bytes(2048), b"\xff" * 700, bytes(1 << 16), np.random.default_rng(0).bytes(2048 - 330)],
    ids=["zeros", "ones", "64 KiB", "leftovers"],
)
@pytest.mark.parametrize("syntax", [making.EXPLICIT, making.DEFLATED])
def test_padding_behind_the_pixels(padding: bytes, syntax: str, tmp_path: Path) -> None:
    slices = making.make_series()
    for data in slices:
        making.set_pixels(data, making.get_pixels(data)[:15, :11])
        data.PixelData += padding
    volume = read_dicom(making.save([making.code_as(data, syntax) for data in slices], tmp_path))
    np.testing.assert_array_equal(native_kji(volume), clean_hu()[:, :15, :11])
    assert [(f.code, f.severity) for f in volume.findings] == [("IN-DCM-030", "info")]
