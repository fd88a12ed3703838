"""Radiographs in: every mode and depth the same picture, DICOM as it is meant to be seen, bad files one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import UID

from pneumoscope.errors import ReadError
from pneumoscope.io.formats.radiograph import find_radiographs, read_radiograph

ROWS, COLUMNS = 70, 96


def ramp() -> np.ndarray:
    """(rows, columns) uint8 with no symmetry: dark top left, bright bottom right, one bright corner."""
    r, c = np.mgrid[:ROWS, :COLUMNS]
    grey = (r * 1.2 + c * 1.3).astype(np.uint8)
    grey[2:6, 80:90] = 250
    return grey


def dicom(path: Path, stored: np.ndarray, *, bits: int = 12, modality: str = "DX", **more) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    meta.MediaStorageSOPInstanceUID = UID("2.25.5")
    meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.Modality = "SECRET^NAME", modality
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    words = stored.astype("<u2") if bits > 8 else stored.astype("u1")
    data.BitsAllocated = words.itemsize * 8
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, 0
    data.PixelData = words.tobytes()
    data["PixelData"].VR = "OW"
    for name, value in more.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("kind", ["L.png", "RGB.png", "RGBA.png", "LA.png", "P.png", "L.tif", "L.bmp", "L.gif"])
def test_every_mode_is_the_same_picture(tmp_path, kind):
    mode, _, suffix = kind.partition(".")
    picture = Image.fromarray(ramp())
    picture = picture.quantize(256) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    read = read_radiograph(tmp_path / f"a.{suffix}")
    assert np.abs(read.pixels - ramp() / 255).max() <= (3 if mode == "P" else 0.6) / 255
    assert read.pixels.shape == (ROWS, COLUMNS)
    assert not read.findings
    assert read.case == "a"


def test_jpeg_grey_and_colour_coded_agree(tmp_path):
    for mode in ("L", "RGB", "CMYK"):
        Image.fromarray(ramp()).convert(mode).save(tmp_path / f"{mode}.jpg", quality=97)
        read = read_radiograph(tmp_path / f"{mode}.jpg")
        assert np.abs(read.pixels - ramp() / 255).mean() < 2 / 255, mode


def test_16_bits_are_stretched_to_the_whole_range(tmp_path):
    Image.fromarray(ramp().astype(np.uint16) * 12 + 300).save(tmp_path / "deep.png")
    read = read_radiograph(tmp_path / "deep.png")
    low, high = np.percentile(ramp(), (0.5, 99.5))
    assert np.abs(read.pixels - np.clip((ramp() - low) / (high - low), 0, 1)).max() < 0.01


def test_exif_turns_are_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    Image.fromarray(ramp()).save(tmp_path / "turned.jpg", exif=exif, quality=97)
    read = read_radiograph(tmp_path / "turned.jpg")
    assert read.pixels.shape == (COLUMNS, ROWS)
    assert np.abs(read.pixels - np.rot90(ramp(), -1) / 255).mean() < 2 / 255


def test_colours_and_several_frames_are_told(tmp_path):
    colours = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    colours[..., 0], colours[..., 1] = ramp(), 255 - ramp()
    Image.fromarray(colours).save(tmp_path / "photo.png")
    assert [f.code for f in read_radiograph(tmp_path / "photo.png").findings] == ["IN-XRY-085"]
    first = Image.fromarray(ramp())
    first.save(tmp_path / "film.gif", save_all=True, append_images=[Image.fromarray(255 - ramp())])
    assert [f.code for f in read_radiograph(tmp_path / "film.gif").findings] == ["IN-XRY-087"]


def test_dicom_without_a_window_and_with_12_bits(tmp_path):
    stored = ramp().astype(np.uint16) * 16
    read = read_radiograph(dicom(tmp_path / "a.dcm", stored, PixelSpacing=[0.2, 0.3], ViewPosition="PA"))
    low, high = np.percentile(stored, (0.5, 99.5))
    assert np.abs(read.pixels - np.clip((stored - low) / (high - low), 0, 1)).max() < 1e-3
    assert read.spacing_mm == (0.2, 0.3)
    assert read.source["view"] == "PA"
    assert "SECRET" not in repr(read)


def test_monochrome1_is_turned(tmp_path):
    stored = ramp().astype(np.uint16) * 16
    plain = read_radiograph(dicom(tmp_path / "a.dcm", stored))
    turned = read_radiograph(dicom(tmp_path / "b.dcm", 4080 - stored, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(plain.pixels - turned.pixels).max() < 1e-3
    assert [f.code for f in turned.findings] == ["IN-XRY-091"]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_those_of_pydicom(tmp_path, function):
    stored = ramp().astype(np.uint16) * 16
    file = dicom(tmp_path / "a.dcm", stored, WindowCenter=1800, WindowWidth=2000, VOILUTFunction=function)
    data = pydicom.dcmread(file)
    expected = apply_voi_lut(stored, data) / 4095.0
    assert np.abs(read_radiograph(file).pixels - expected).max() < 2e-3


def test_a_voi_table_is_used_before_the_window(tmp_path):
    stored = ramp().astype(np.uint16) * 16
    levels = (np.sqrt(np.arange(4096) / 4095) * 4095).astype(np.uint16)
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "OW", levels.tobytes())
    file = dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[item], WindowCenter=1, WindowWidth=2)
    read = read_radiograph(file)
    assert np.abs(read.pixels - levels[stored] / 4095.0).max() < 1e-3
    assert read.source["window"] == "table"


def test_bits_above_those_stored_do_not_count(tmp_path):
    stored = ramp().astype(np.uint16) * 16
    clean = read_radiograph(dicom(tmp_path / "a.dcm", stored))
    dirty = read_radiograph(dicom(tmp_path / "b.dcm", stored | 0xF000))
    assert np.array_equal(clean.pixels, dirty.pixels)


def test_compressed_dicom_is_the_same_picture(tmp_path):
    file = dicom(tmp_path / "a.dcm", ramp().astype(np.uint16) * 16)
    data = pydicom.dcmread(file)
    data.compress("1.2.840.10008.1.2.4.90", generate_instance_uid=False)
    data.save_as(tmp_path / "b.dcm")
    assert np.array_equal(read_radiograph(file).pixels, read_radiograph(tmp_path / "b.dcm").pixels)


def test_8_bit_dicom_and_lateral_view(tmp_path):
    read = read_radiograph(dicom(tmp_path / "a.dcm", ramp(), bits=8, modality="CR", ViewPosition="LL"))
    assert [f.code for f in read.findings] == ["IN-XRY-090"]


def png_that_says(rows: int, columns: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 9999))
        + chunk(b"IEND", b"")
    )


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    files = {}

    def put(name: str, data: bytes, code: str) -> None:
        (folder / name).write_bytes(data)
        files[name] = (folder / name, code)

    Image.fromarray(ramp()).save(folder / "whole.jpg", quality=95)
    put("cut.jpg", (folder / "whole.jpg").read_bytes()[:-300], "IN-XRY-082")
    put("text.png", b"not a picture at all, only renamed", "IN-XRY-081")
    put("empty.png", b"", "IN-XRY-081")
    put("bomb.png", png_that_says(30_000, 30_000), "IN-XRY-084")
    put("short.png", png_that_says(500, 500), "IN-XRY-082")
    Image.fromarray(ramp()[:1, :1]).save(folder / "dot.png")
    files["dot.png"] = (folder / "dot.png", "IN-XRY-083")
    Image.fromarray(np.full((90, 90), 7, np.uint8)).save(folder / "flat.png")
    files["flat.png"] = (folder / "flat.png", "IN-XRY-086")
    files["ct.dcm"] = (dicom(folder / "ct.dcm", ramp(), modality="CT"), "IN-XRY-088")
    blank = dicom(folder / "blank.dcm", ramp())
    data = pydicom.dcmread(blank)
    del data.PixelData
    data.save_as(blank)
    files["blank.dcm"] = (blank, "IN-XRY-089")
    colour = dicom(folder / "colour.dcm", ramp(), bits=8, SamplesPerPixel=3)
    files["colour.dcm"] = (colour, "IN-XRY-088")
    return files


def test_bad_files_are_one_line_with_a_code(tmp_path):
    for name, (path, code) in bad_files(tmp_path).items():
        with pytest.raises(ReadError) as refused:
            read_radiograph(path)
        assert refused.value.code == code, (name, refused.value)
        assert "\n" not in str(refused.value)
        assert "SECRET" not in str(refused.value)
    with pytest.raises(ReadError, match="IN-XRY-053"):
        read_radiograph(tmp_path / "nothing.png")


def test_any_cut_of_a_picture_is_refused_or_whole(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for size in range(1, len(whole) - 12, max(1, len(whole) // 25)):
        (tmp_path / "cut.png").write_bytes(whole[:size])
        with pytest.raises(ReadError, match=r"IN-XRY-08[12]"):
            read_radiograph(tmp_path / "cut.png")


def big(kind: str, path: Path) -> Path:
    """A picture of 350 x 480 pixels with structure of every size, saved as `kind`."""
    picture = Image.fromarray(ramp()).resize((480, 350), Image.Resampling.BICUBIC)
    grey = np.clip(np.asarray(picture).astype(float) + np.random.default_rng(0).normal(0, 4, (350, 480)), 0, 255)
    mode, _, suffix = kind.partition(".")
    if mode == "I;16":
        Image.fromarray((grey * 16).astype(np.uint16)).save(path.with_suffix(f".{suffix}"))
    elif suffix == "dcm":
        dicom(path.with_suffix(".dcm"), (grey * 16).astype(np.uint16), PixelSpacing=[0.2, 0.3])
    else:
        more = {"quality": 95} if suffix == "jpg" else {}
        Image.fromarray(grey.astype(np.uint8)).convert(mode).save(path.with_suffix(f".{suffix}"), **more)
    return path.with_suffix(f".{suffix}")


@pytest.mark.parametrize("kind", ["L.jpg", "RGB.jpg", "CMYK.jpg", "L.png", "RGB.png", "RGBA.png", "I;16.png", "L.dcm"])
def test_a_picture_shrunk_while_it_is_read_is_nearly_the_same(tmp_path, kind):
    import cv2

    path = big(kind, tmp_path / "a")
    whole, small = read_radiograph(path), read_radiograph(path, least_side=100)
    assert whole.pixels.shape == (350, 480)
    assert min(small.pixels.shape) >= 100
    assert kind.startswith(("RGBA", "I;16")) or small.pixels.shape[0] < 200
    seen = [cv2.resize(r.pixels, (50, 50), interpolation=cv2.INTER_AREA) for r in (whole, small)]
    assert np.abs(seen[0] - seen[1]).max() < 0.03
    assert np.abs(seen[0] - seen[1]).mean() < 0.004
    assert [f.code for f in whole.findings] == [f.code for f in small.findings]
    if kind == "L.dcm":
        assert small.spacing_mm == pytest.approx((0.6, 0.9))
    smaller = read_radiograph(path, least_side=400)
    assert np.array_equal(whole.pixels, smaller.pixels)


def test_shrinking_changes_neither_turns_nor_what_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp()).resize((960, 700)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    read = read_radiograph(tmp_path / "turned.jpg", least_side=100)
    assert read.pixels.shape == (240, 175)
    assert (
        np.abs(
            read.pixels[::10, ::10]
            - np.rot90(np.asarray(Image.fromarray(ramp()).resize((240, 175))), -1)[::10, ::10] / 255
        ).mean()
        < 0.02
    )
    for name, (path, code) in bad_files(tmp_path).items():
        with pytest.raises(ReadError) as refused:
            read_radiograph(path, least_side=100)
        assert refused.value.code == code, name


def test_a_png_whose_last_rows_were_never_written_is_refused_and_a_black_end_is_not(tmp_path):
    white = np.full((500, 500), 255, np.uint8)
    white[:, ::7] = 0
    short = png_that_says(500, 500)
    rows = b"".join(b"\0" + row.tobytes() for row in white[:499])
    at = short.index(b"IDAT") - 4
    data = zlib.compress(rows)
    chunk = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    (tmp_path / "short.png").write_bytes(short[:at] + chunk + short[-12:])
    with pytest.raises(ReadError, match="IN-XRY-082"):
        read_radiograph(tmp_path / "short.png")
    white[-3:] = 0
    Image.fromarray(white).save(tmp_path / "black.png")
    assert read_radiograph(tmp_path / "black.png").pixels[-3:].max() == 0


def test_one_process_reads_many_dicom_files_and_a_crash_costs_one(tmp_path, monkeypatch, own_process):
    from pneumoscope.io.dicom import read as reading
    from pneumoscope.io.dicom.read import DicomReaders

    began = []

    class Counted(reading._Child):
        def __init__(self) -> None:
            began.append(self)
            super().__init__()

    monkeypatch.setattr(reading, "_Child", Counted)
    stored = ramp().astype(np.uint16) * 16
    files = [dicom(tmp_path / f"{n}.dcm", stored + n) for n in range(3)]
    bad = dicom(tmp_path / "ct.dcm", stored, modality="CT")
    with DicomReaders() as readers:
        for file in files:
            assert np.array_equal(read_radiograph(file, readers=readers).pixels, read_radiograph(file).pixels)
        with pytest.raises(ReadError, match="IN-XRY-088"):
            read_radiograph(bad, readers=readers)
        kept = [child for child in began if child.alive]
        assert len(kept) == 1  # those of the calls without `readers` have ended
        kept[0]._process.kill()
        kept[0]._process.wait()
        readers._idle.get_nowait()
        readers._idle.put(kept[0])
        with pytest.raises(ReadError, match="IN-DCM-102"):
            read_radiograph(files[0], readers=readers)
        assert np.array_equal(read_radiograph(files[1], readers=readers).pixels, read_radiograph(files[1]).pixels)
    assert not any(child.alive for child in began)


def test_a_file_that_takes_too_long_ends_its_process(tmp_path, monkeypatch, own_process):
    from pneumoscope.io.dicom import read as reading
    from pneumoscope.io.dicom.read import ReadLimits

    monkeypatch.setattr(reading, "_LIMITS", ReadLimits(wall_s=0, memory_mib=2048))
    with pytest.raises(ReadError, match="IN-DCM-101"):
        read_radiograph(dicom(tmp_path / "a.dcm", ramp()))


def test_dicom_of_any_name_is_found_in_a_folder(tmp_path):
    for name in ("1.2.840.113", "IM0001", "a.dcm"):
        dicom(tmp_path / name, ramp())
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "a.dcm").read_bytes())
    (tmp_path / "notes").write_text("not a picture")
    assert [p.name for p in find_radiographs(tmp_path)] == ["1.2.840.113", "IM0001", "a.dcm"]
    assert read_radiograph(tmp_path / "IM0001").pixels.shape == (ROWS, COLUMNS)


def test_folders_pass_over_junk(tmp_path):
    for name in ("b.png", "sub/a.JPG", "__MACOSX/c.png", ".hidden.png", "Thumbs.db", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in find_radiographs(tmp_path)] == ["b.png", "a.JPG"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ReadError, match="without a picture"):
        find_radiographs(tmp_path / "none")


def test_errors_of_dicom_name_neither_file_nor_folder(tmp_path):
    """Hospitals export under names of patients: a refusal says which case it was, the path is an attribute."""
    path = dicom(tmp_path / "DOE^JOHN.dcm", np.full((64, 64), 7, np.uint16))
    with pytest.raises(ReadError, match="one grey level") as flat:
        read_radiograph(path)
    whole = dicom(path, np.arange(4096, dtype=np.uint16).reshape(64, 64)).read_bytes()
    path.write_bytes(whole[: len(whole) - 500])
    with pytest.raises(ReadError) as cut:
        read_radiograph(path)
    for error in (flat.value, cut.value):
        assert "DOE" not in str(error)
        assert "xr-" in str(error)
    assert cut.value.file == str(path)
