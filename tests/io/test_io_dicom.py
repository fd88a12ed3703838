"""Good series: read, never refused, and where SimpleITK sees them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
import warnings
from pathlib import Path

import dicom_making as making
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_making import clean_hu, native_kji
from pydicom.data import get_testdata_file
from pydicom.uid import UID

from pneumoscope.errors import ReadError
from pneumoscope.geometry import LPS_TO_RAS
from pneumoscope.io.dicom import read as reading
from pneumoscope.io.dicom import worker as dicom_worker
from pneumoscope.io.dicom.read import ReadLimits, is_dicom, list_series, read_dicom
from pneumoscope.io.dicom.search import single
from pneumoscope.volume import Volume


def itk_affine(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def read_with_itk(folder: Path) -> sitk.Image:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), making.SERIES_UID)
    return sitk.ReadImage(names)


def assert_as_itk(volume: Volume, folder: Path) -> None:
    image = read_with_itk(folder)
    assert volume.native.shape == image.GetSize()
    np.testing.assert_allclose(volume.native.affine, itk_affine(image), atol=1e-4)
    np.testing.assert_array_equal(native_kji(volume), np.maximum(sitk.GetArrayFromImage(image), -1024))


def test_clean_series_is_read_in_hu_on_the_grid_of_simpleitk(tmp_path: Path) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    volume = read_dicom(folder)
    assert volume.findings == ()
    assert volume.native.shape == (12, 16, 10)
    np.testing.assert_array_equal(native_kji(volume), clean_hu())
    assert_as_itk(volume, folder)
    assert volume.source["kernel"] == "B31f"
    assert volume.source["manufacturer"] == "SIEMENS"


def _axis_orientations() -> list[tuple[float, ...]]:
    unit = np.eye(3)
    found = []
    for a, b in itertools.permutations(range(3), 2):
        for s, t in itertools.product((1, -1), repeat=2):
            found.append((*(s * unit[a]), *(t * unit[b])))
    return found


def _turned() -> tuple[float, ...]:
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", (12, -20, 31), degrees=True).as_matrix()
    return (*turn[:, 0], *turn[:, 1])


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("orientation", [*_axis_orientations(), _turned()])
def test_all_48_orientations_and_an_oblique_one(
    orientation: tuple[float, ...], backwards: bool, tmp_path: Path
) -> None:
    """24 image orientations (prone, feet first, decubitus, sagittal, coronal), files stored in either direction."""
    normal = np.cross(orientation[:3], orientation[3:])
    step = normal * making.STEP * (-1 if backwards else 1)
    folder = making.save(making.make_series(orientation=orientation, step=step), tmp_path / "series")
    volume = read_dicom(folder)
    assert volume.findings == ()
    assert_as_itk(volume, folder)
    wanted = clean_hu()[::-1] if backwards else clean_hu()
    np.testing.assert_array_equal(native_kji(volume), wanted)
    bright = np.unravel_index(volume.hu.argmax(), volume.hu.shape)
    data = making.make_slice(making.SLICES - 1, orientation=orientation, step=step)
    place = np.array([float(x) for x in data.ImagePositionPatient]) * (-1, -1, 1)
    np.testing.assert_allclose(volume.grid.world(bright), place, atol=1e-4)


@pytest.mark.parametrize(
    "syntax",
    [making.IMPLICIT, making.BIG, making.DEFLATED, making.RLE] + [f"1.2.840.10008.1.2.4.{n}" for n in (57, 70, 80, 90)],
)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_coded_twins_are_bit_equal(syntax: str, signed: bool, tmp_path: Path) -> None:
    slices = making.make_series()
    if signed:
        for k, data in enumerate(slices):
            data.BitsStored, data.HighBit, data.PixelRepresentation, data.RescaleIntercept = 16, 15, 1, "0"
            making.set_pixels(data, making.hu_of(k))
    volume = read_dicom(making.save([making.code_as(data, syntax) for data in slices], tmp_path / "series"))
    np.testing.assert_array_equal(native_kji(volume), clean_hu())
    if not (signed and syntax.endswith(".90")):
        assert volume.findings == ()


def test_lossy_12_bit_jpeg_is_read_and_flagged(tmp_path: Path) -> None:
    slices = [making.code_as(data, "1.2.840.10008.1.2.4.51") for data in making.make_series()]
    volume = read_dicom(making.save(slices, tmp_path / "series"))
    assert np.abs(native_kji(volume) - clean_hu()).max() < 60
    assert "IN-DCM-050" in {finding.code for finding in volume.findings}


def test_enhanced_multi_frame_file_equals_its_classic_twin(tmp_path: Path) -> None:
    classic = read_dicom(making.save(making.make_series(), tmp_path / "classic"))
    data = making.make_enhanced(order=[3, 0, 1, 2, 9, 8, 7, 6, 5, 4])
    making.save([data], tmp_path / "enhanced")
    for path in (tmp_path / "enhanced", tmp_path / "enhanced" / "IM0000.dcm"):
        volume = read_dicom(path)
        assert volume.native == classic.native
        np.testing.assert_array_equal(volume.hu, classic.hu)
        assert volume.findings == ()


@pytest.mark.parametrize("syntax", [making.RLE, "1.2.840.10008.1.2.4.90", making.DEFLATED])
def test_coded_enhanced_file(syntax: str, tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate

    data = making.make_enhanced()
    data.file_meta.TransferSyntaxUID = UID(syntax)
    if syntax != making.DEFLATED:
        frames = np.frombuffer(data.PixelData, "<u2").reshape(10, 16, 12)
        data.PixelData = encapsulate([making.coded(frame, syntax, 12) for frame in frames])
        data["PixelData"].is_undefined_length = True
    volume = read_dicom(making.save([data], tmp_path / "series"))
    np.testing.assert_array_equal(native_kji(volume), clean_hu())


NAMES = {
    "no extension": lambda n: f"IM{n:04d}", "shuffled": lambda n: f"{(n * 7) % 10:03d}.dcm",
    "nested": lambda n: f"disk{n % 3}/a b/{n:03d}.ima", "unicode": lambda n: f"Lunge-ü中-{n}.dcm",
    "newline": lambda n: f"a\nb{n}.dcm", "long": lambda n: f"{'x' * 240}{n}.dcm",
    "uid": lambda n: f"1.2.840.{n}.99.{n * 31}", "escape": lambda n: f"\x1b[31m<script>{n}=1+1",
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_file_names_do_not_matter(kind: str, tmp_path: Path) -> None:
    folder = making.save(making.make_series(), tmp_path / "series", NAMES[kind])
    np.testing.assert_array_equal(native_kji(read_dicom(folder)), clean_hu())


def test_intercepts_per_slice_garbage_bits_and_slopes(tmp_path: Path) -> None:
    slices = making.make_series()
    slices[3].RescaleIntercept = "-1000"
    making.set_pixels(slices[3], making.hu_of(3) + 1000)
    making.set_pixels(slices[4], (making.hu_of(4).astype(np.int32) + 1024) | 0xA000)  # bits above the 12 stored ones
    slices[5].RescaleSlope = "0.5"
    making.set_pixels(slices[5], 2 * (making.hu_of(5) + 1024).astype(np.int32))
    volume = read_dicom(making.save(slices, tmp_path / "series"))
    np.testing.assert_array_equal(native_kji(volume), clean_hu())
    assert volume.findings == ()


def test_jitter_and_rounded_positions_pass(tmp_path: Path) -> None:
    slices = making.make_series()
    for k, data in enumerate(slices):
        data.ImagePositionPatient[2] = f"{-310 + 2.5 * k + 0.004 * (-1) ** k:.4f}"
    assert read_dicom(making.save(slices, tmp_path / "jitter")).findings == ()
    for k, data in enumerate(slices):
        data.ImagePositionPatient[2] = f"{-310 + 0.625 * k:.1f}"
        data.SliceThickness = "0.625"
    volume = read_dicom(making.save(slices, tmp_path / "rounded"))
    assert volume.spacing_mm[2] == pytest.approx(0.625, abs=0.01)


def test_one_case_name_per_series_and_salt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    one, two = read_dicom(folder).case, read_dicom(folder).case
    assert one == two
    assert one.startswith("ct-")
    assert read_dicom(folder, case="mine").case == "mine"
    monkeypatch.setenv("PNEUMOSCOPE_SALT", "another")
    assert read_dicom(folder).case != one


def test_nothing_identifying_leaves_the_reader(tmp_path: Path) -> None:
    slices = making.make_series()
    for data in slices:
        for name in ("InstitutionName", "SeriesDescription", "StudyDescription", "ProtocolName", "StationName"):
            setattr(data, name, "CANARY<script>")
        data.add_new("ConvolutionKernel", "UT", "CANARY-KERNEL-OF-MANY-LETTERS")
        data.Manufacturer = "CANARY WORKS"
        data.BodyPartExamined = "CANARY"
    folder = making.save(slices, tmp_path / "series")
    volume = read_dicom(folder)
    told = json.dumps([finding.as_dict() for finding in volume.findings]) + json.dumps(volume.source) + volume.case
    slices[4].PixelSpacing = None
    slices[4].SliceThickness = None
    making.save(slices, folder)
    with pytest.raises(ReadError) as caught:
        read_dicom(folder)
    told += str(caught.value) + repr(list_series(folder)[0].case)
    for word in ("CANARY", "SECRET", "19010203", making.SERIES_UID):
        assert word not in told


def test_series_are_listed_and_chosen(tmp_path: Path) -> None:
    making.save(making.make_series(), tmp_path / "all" / "a")
    making.save(making.make_series(6, uid="2.25.99"), tmp_path / "all" / "b")
    listed = list_series(tmp_path / "all")
    assert [(entry.number, entry.images, entry.rows, entry.first_file) for entry in listed] == [
        (1, 10, 16, "file 1 of 16"),
        (2, 6, 16, "file 11 of 16"),
    ]
    assert read_dicom(tmp_path / "all", series="2").native.shape[2] == 6
    volume = read_dicom(tmp_path / "all", series=making.SERIES_UID)
    assert volume.case == listed[0].case
    with pytest.raises(ReadError, match=r"IN-DCM-013.*no series '3'"):
        read_dicom(tmp_path / "all", series="3")


def test_is_dicom(tmp_path: Path) -> None:
    folder = making.save(making.make_series(2), tmp_path / "a" / "deep")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    assert is_dicom(folder / "IM0000.dcm")
    assert is_dicom(tmp_path / "a")
    assert is_dicom(get_testdata_file("ExplVR_LitEndNoMeta.dcm"))
    assert is_dicom(get_testdata_file("ExplVR_BigEndNoMeta.dcm"))
    for name in ("note.txt", "empty", "pipe", "absent"):
        assert not is_dicom(tmp_path / name)
    shutil.rmtree(tmp_path / "a")
    assert not is_dicom(tmp_path)


def test_public_five_slice_series_equals_pydicom_and_simpleitk() -> None:
    folder = Path(get_testdata_file("CT_small.dcm")).parent / "dicomdirtests" / "98892001" / "CT5N"
    volume = read_dicom(folder)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names)
    np.testing.assert_allclose(volume.native.affine, itk_affine(image), atol=1e-4)
    padded = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(native_kji(volume), np.maximum(padded, -1024))


@pytest.mark.parametrize("name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "expb", "implicit", "padded"])
def test_public_picture_in_eight_codings(name: str) -> None:
    """The same MR picture everywhere: a check of the decoders, with the modality allowed and one slice taken."""
    pictures = [
        read_dicom(get_testdata_file(f"{n}.dcm"), any_modality=True, min_slices=1).hu
        for n in ("MR_small", f"MR_small_{name}")
    ]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize(("name", "row"), [("693_J2KI", 21), ("J2K_pixelrep_mismatch", 24)])
def test_public_single_slices(name: str, row: int) -> None:
    path = get_testdata_file(f"{name}.dcm")
    with pytest.raises(ReadError, match="IN-DCM-016"):
        read_dicom(path)
    volume = read_dicom(path, min_slices=1)
    assert f"IN-DCM-{row:03d}" in {finding.code for finding in volume.findings}
    assert volume.hu.min() == -1024
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(path)
        wanted = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    np.testing.assert_array_equal(native_kji(volume)[0], np.maximum(wanted, -1024))


def test_hostile_strings_and_a_polyglot_preamble_are_read_and_kept_out(tmp_path: Path) -> None:
    slices = making.make_series()
    for data in slices:
        data.SeriesDescription = '<script>alert(1)</script>"=cmd|x'
        data.PatientComments = "../../etc/passwd\x1b[2J"
        data.preamble = b"MZ" + b"\x7fELF" * 31 + b"\0\0"
    np.testing.assert_array_equal(native_kji(read_dicom(making.save(slices, tmp_path / "s"))), clean_hu())


def test_the_search_tells_a_series_without_pixels_or_inflating(tmp_path: Path) -> None:
    slices = [making.make_slice(0), making.code_as(making.make_slice(1), making.DEFLATED)]
    folder = making.save(slices, tmp_path / "series")
    (folder / "note").write_text("hello")
    (folder / "deep").write_bytes(making.nested(20_000))
    told = single(folder / "IM0000.dcm", None).identity
    assert (told.series_uid, told.patient) == (making.SERIES_UID, "SECRETID")
    assert [single(folder / name, None).identity.series_uid for name in ("IM0001.dcm", "note", "deep")] == [""] * 3


# The reading process


def test_real_process_reads_and_refuses(tmp_path: Path, own_process: None) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    np.testing.assert_array_equal(native_kji(read_dicom(folder)), clean_hu())
    assert [entry.images for entry in list_series(folder)] == [10]
    (folder / "IM0004.dcm").unlink()
    with pytest.raises(ReadError, match=r"IN-DCM-006.*1 slice\(s\) missing"):
        read_dicom(folder)


def test_deep_nesting_is_refused_at_once(tmp_path: Path, own_process: None) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    (folder / "IM0099.dcm").write_bytes(making.nested(40_000))
    start = time.monotonic()
    with pytest.raises(ReadError, match=r"IN-DCM-042.*file 11 of 11"):
        read_dicom(folder)
    assert time.monotonic() - start < 100  # under a second on an idle machine


def test_a_hanging_process_is_ended(tmp_path: Path, own_process: None) -> None:
    making.save(making.make_series(), tmp_path / "series")
    with pytest.raises(ReadError, match="IN-DCM-101"):
        read_dicom(tmp_path / "series", limits=ReadLimits(wall_s=0))


def test_a_crashing_process_is_one_error(tmp_path: Path, own_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = making.save(making.make_series(), tmp_path / "series")
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nread line\nkill -{signal.SIGSEGV.value} $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(reading.sys, "executable", str(script))
    with pytest.raises(ReadError, match=r"IN-DCM-102.*status -11"):
        read_dicom(folder)


def test_memory_limit_is_one_error(tmp_path: Path, own_process: None) -> None:
    data = making.code_as(making.make_slice(0), making.DEFLATED)
    data.add_new(0x00091010, "OB", bytes(100 << 20))
    data.add_new(0x00090010, "LO", "pneumoscope")
    folder = making.save([data], tmp_path / "series")
    with pytest.raises(ReadError, match=r"IN-DCM-103.*250 MiB"):
        read_dicom(folder, limits=ReadLimits(memory_mib=250))


def test_an_unforeseen_failure_tells_its_place_but_no_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io
    import sys

    request = {**reading.request_for(tmp_path, "list", ReadLimits(), False)}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request) + "\n"))
    monkeypatch.setattr(dicom_worker, "limit_process", lambda *limits: None)

    def fail(*args: object) -> None:
        raise KeyError("SECRET^NAME")

    monkeypatch.setattr(dicom_worker, "answer", fail)
    assert dicom_worker.main() == 0
    reply = capsys.readouterr().out
    assert "SECRET" not in reply
    with pytest.raises(ReadError, match=r"IN-DCM-102.*KeyError at test_io_dicom.py"):
        reading.understood(reply.encode(), 0, request)


def test_missing_path() -> None:
    with pytest.raises(ReadError, match="IN-DCM-100"):
        read_dicom("no/such/folder")


def test_parent_needs_no_dicom_parser(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, pneumoscope.io.dicom.read; sys.exit(any(m in sys.modules for m in ('pydicom', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.real
def test_real_scan_equals_simpleitk(real_data: Path) -> None:
    folder = real_data / "ct-volumes" / "nsclc-LUNG1-001" / "image"
    volume = read_dicom(folder)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    assert volume.findings == ()
    np.testing.assert_allclose(volume.native.affine, itk_affine(image), atol=1e-4)
    np.testing.assert_array_equal(native_kji(volume), np.maximum(sitk.GetArrayViewFromImage(image), -1024))
    assert volume.native.shape == (512, 512, 134)
