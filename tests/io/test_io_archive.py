"""Row 71: zips that hold one scan are read, hostile ones refused, and no temporary folder stays."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import stat
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import dicom_making as making
import numpy as np
import pytest
from border_files import chest, nifti_bytes

from pneumoscope.errors import ReadError
from pneumoscope.io import archive as archives
from pneumoscope.io.archive import extracted
from pneumoscope.io.read import read_listed, read_volume
from pneumoscope.io.scans import find_scans
from pneumoscope.volume import array_to_native

SCAN = nifti_bytes(chest())
Members = list[tuple[str | zipfile.ZipInfo, bytes]]


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Temporary folders are made in one place, which is empty again after every test."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    assert not list(place.iterdir())


def zipped(path: Path, members: Members, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # of a name given twice
        for name, data in members:
            archive.writestr(name, data)
    return path


def link(name: str, mode: int = stat.S_IFLNK) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o777) << 16
    return info


def edited(path: Path, members: Members, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(zipped(path, members).read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def set_field(signature: bytes, offset: int, form: str, value: int) -> Callable[[bytearray], None]:
    """Change one field in every record of a kind."""

    def change(data: bytearray) -> None:
        at = data.find(signature)
        while at >= 0:
            struct.pack_into(form, data, at + offset, value)
            at = data.find(signature, at + 4)

    return change


def flip_data(data: bytearray) -> None:
    data[60 + len("scan.nii")] ^= 0xFF


def inner_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scan.nii", SCAN)
    return buffer.getvalue()


def long_directory() -> bytes:
    """The end of a zip64 file that says it has a million members."""
    far = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 10**6, 10**6, 10**8, 0)
    near = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return b"PK\x03\x04" + bytes(40) + far + b"PK\x06\x07" + struct.pack("<IQI", 0, 44, 1) + near


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


CENTRAL, END = b"PK\x01\x02", b"PK\x05\x06"
HOSTILE: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "traversal": ("outside", lambda p: zipped(p, [("../scan.nii", SCAN)])),
    "traversal inside": ("outside", lambda p: zipped(p, [("a/../../scan.nii", SCAN)])),
    "backslash traversal": ("outside", lambda p: zipped(p, [("..\\scan.nii", SCAN)])),
    "absolute": ("outside", lambda p: zipped(p, [("/tmp/scan.nii", SCAN)])),
    "drive letter": ("outside", lambda p: zipped(p, [("C:\\scan.nii", SCAN)])),
    "link": ("link", lambda p: zipped(p, [(link("scan.nii"), b"/etc/passwd")])),
    "pipe": ("link", lambda p: zipped(p, [(link("scan.nii", stat.S_IFIFO), b"")])),
    "name twice": ("twice", lambda p: zipped(p, [("scan.nii", SCAN), ("scan.nii", SCAN)])),
    "name twice but for case": ("twice", lambda p: zipped(p, [("scan.nii", SCAN), ("SCAN.nii", SCAN)])),
    "bomb": ("bomb", lambda p: zipped(p, [("scan.nii", bytes(48 * 2**20))])),
    "bomb of many": ("bomb", lambda p: zipped(p, [(f"{n}.dcm", bytes(2**20)) for n in range(48)])),
    "nested": ("archive inside", lambda p: zipped(p, [("a.zip", inner_zip())])),
    "nested under another name": ("archive inside", lambda p: zipped(p, [("scan.nii", inner_zip())])),
    "encrypted": ("encrypted", lambda p: edited(p, [("scan.nii", SCAN)], set_field(CENTRAL, 8, "<H", 1))),
    "size forged down": ("damaged", lambda p: edited(p, [("scan.nii", SCAN)], set_field(CENTRAL, 24, "<I", 400))),
    "size forged up": ("expected", lambda p: edited(p, [("s.nii", SCAN)], set_field(CENTRAL, 24, "<I", len(SCAN) + 9))),
    "size far beyond": ("unpacks", lambda p: edited(p, [("s.nii", SCAN)], set_field(CENTRAL, 24, "<I", 2**31))),
    "packed size beyond the file": ("overlap", lambda p: edited(p, [("s", SCAN)], set_field(CENTRAL, 20, "<I", 2**30))),
    "a million members": ("lists", lambda p: edited(p, [("s", SCAN)], set_field(END, 12, "<I", 90_000_000))),
    "a million members in the long form": ("lists 1000000", lambda p: written(p, long_directory())),
    "too many members": ("lists", lambda p: edited(p, [("s", SCAN)], set_field(END, 10, "<H", 60_000))),
    "too deep": ("deep", lambda p: zipped(p, [("a/" * 20 + "scan.nii", SCAN)])),
    "file and folder of one name": ("unpacked", lambda p: zipped(p, [("a", SCAN), ("a/scan.nii", SCAN)])),
    "damaged data": ("damaged", lambda p: edited(p, [("scan.nii", SCAN)], flip_data)),
    "unknown compression": ("compression", lambda p: edited(p, [("s", SCAN)], set_field(CENTRAL, 10, "<H", 77))),
    "cut off": ("cut off", lambda p: edited(p, [("scan.nii", SCAN)], lambda data: data.__delitem__(slice(-60, None)))),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_zips_are_refused(tmp_path: Path, name: str) -> None:
    words, build = HOSTILE[name]
    path = build(tmp_path / "scan.zip")
    with pytest.raises(ReadError, match=words) as caught:
        read_volume(path)
    assert caught.value.code == "IN-ZIP-071"
    assert not (tmp_path / "scan.nii").exists()
    assert not Path("/tmp/scan.nii").exists()


def test_members_are_counted_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "scan.zip", [(f"{n}", b"x") for n in range(30)])
    monkeypatch.setattr(archives, "MAX_ENTRIES", 20)
    with pytest.raises(ReadError, match="30 members"), extracted(path):
        pass


def test_total_size_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "scan.zip", [("scan.nii", SCAN)])
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(ReadError, match="unpacks to"), extracted(path):
        pass


GOOD: dict[str, Members] = {
    "one file": [("scan.nii", SCAN)],
    "in folders": [("a/", b""), ("a/b/scan.nii", SCAN)],
    "backslashes": [("a\\scan.nii", SCAN)],
    "with junk": [("__MACOSX/._scan.nii", b"x"), ("scan.nii", SCAN), (".DS_Store", b"x"), ("readme.txt", b"hello")],
    "odd names": [("Ünï/" + "n" * 300 + "\n.nii", SCAN)],
    "trailing dots": [("./a/./scan.nii", SCAN)],
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_good_zips_are_read(tmp_path: Path, name: str, compression: int) -> None:
    volume = read_volume(zipped(tmp_path / "case 7.zip", GOOD[name], compression))
    assert volume.case == "case_7"
    np.testing.assert_array_equal(array_to_native(volume.hu, volume.native), chest())


def test_two_files_of_one_scan(tmp_path: Path) -> None:
    header = (
        "ObjectType = Image\nNDims = 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -12 -20 -300\n"
        "ElementSpacing = 0.5 0.75 1.25\nDimSize = 24 20 16\nElementType = MET_SHORT\nElementDataFile = s.raw\n"
    )
    path = zipped(tmp_path / "s.zip", [("x/s.mhd", header.encode()), ("x/s.raw", chest().tobytes(order="F"))])
    assert read_volume(path).grid.shape == (24, 20, 16)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "no image"),
        ([("readme.txt", b"hello")], "no image"),
        ([("a.nii", SCAN), ("b.nii", SCAN)], "2 images"),
        ([("a.nii", SCAN[:-99])], "cut off"),
    ],
)
def test_errors_name_the_zip_and_not_the_temporary_folder(tmp_path: Path, members: Members, words: str) -> None:
    path = zipped(tmp_path / "scan.zip", members)
    with pytest.raises(ReadError, match=words) as caught:
        read_volume(path)
    assert "scan.zip" in str(caught.value)
    assert "pneumoscope-" not in str(caught.value)


def test_an_error_while_the_folder_is_used_passes_through(tmp_path: Path) -> None:
    path = zipped(tmp_path / "scan.zip", [("scan.nii", SCAN)])

    def use() -> None:
        with extracted(path) as folder:
            assert (folder / "scan.nii").read_bytes() == SCAN
            raise EOFError

    with pytest.raises(EOFError):
        use()


@pytest.mark.parametrize("then", ["nothing", "changed", "no room"])
def test_a_zip_of_several_series_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """For the listing and for all its series, read here or in another process; again where the zip has changed."""
    for number, height in (("1", 6), ("2", 7)):
        making.save(making.make_series(height, uid=f"2.25.{number}"), tmp_path / "study" / number)
    path = Path(shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "study"))
    asked, unpack = [], archives._unpack_all
    monkeypatch.setattr(archives, "_unpack_all", lambda *given: asked.append(given[-1]) or unpack(*given))
    if then == "no room":
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1000, 1000, 0))
    scans = find_scans(path, series="all")
    assert [scan.path for scan in scans] == [path, path]
    if then == "changed":
        os.utime(path, (1, 1))
    for scan, height in zip(pickle.loads(pickle.dumps(scans)), (6, 7), strict=True):
        assert read_listed(scan).hu.shape[2] == height
    assert len(asked) == (1 if then == "nothing" else 3)
    assert [folder.exists() for folder in asked] == [then != "no room", False, False][: len(asked)]
    del scans, scan
