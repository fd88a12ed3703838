"""NRRD and MetaImage in: what SimpleITK writes is read alike, what is cut off or unclear is refused."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
from border_files import AFFINE, chest, grid_of
from hypothesis import given
from hypothesis import strategies as st

from grids import all_axis_codes, build_grid
from pneumoscope.errors import ReadError
from pneumoscope.io.read import read_mask, read_volume
from pneumoscope.volume import array_to_native

HU = chest()
RAW = HU.tobytes(order="F")
LPS = np.diag([-1, -1, 1, 1]) @ AFFINE


def nrrd(folder: Path, data: bytes | None = None, *, drop: str = "", **fields: str) -> Path:
    """A .nrrd with header fields replaced (underscores for blanks) or one dropped."""
    header = {
        "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "24 20 16",
        "space directions": "(0.5,0,0) (0,0.75,0) (0,0,1.25)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "gzip", "space origin": "(-12,-20,-300)",
    } | {name.replace("_", " "): value for name, value in fields.items()}  # fmt: skip
    lines = ["NRRD0004", "# a comment", *(f"{k}: {v}" for k, v in header.items() if k != drop), "patient:=DOE^JOHN"]
    if data is None:
        data = {"gzip": gzip.compress(RAW), "raw": RAW, "bzip2": bz2.compress(RAW)}.get(header["encoding"], RAW)
    path = folder / "scan.nrrd"
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + data)
    return path


def meta(folder: Path, data: bytes | None = None, *, drop: str = "", name: str = "scan.mha", **fields: str) -> Path:
    """A .mha with header fields replaced or one dropped."""
    header = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-12 -20 -300",
        "CenterOfRotation": "0 0 0", "ElementSpacing": "0.5 0.75 1.25", "DimSize": "24 20 16",
        "ElementType": "MET_SHORT",
    } | fields  # fmt: skip
    header["ElementDataFile"] = header.pop("ElementDataFile", "LOCAL")  # always last
    if data is None:
        data = zlib.compress(RAW) if header["CompressedData"] == "True" else RAW
    path = folder / name
    text = "".join(f"{k} = {v}\n" for k, v in header.items() if k != drop)
    path.write_bytes(text.encode() + (data if header["ElementDataFile"] == "LOCAL" else b""))
    return path


def is_whole(path: Path) -> None:
    volume = read_volume(path)
    np.testing.assert_array_equal(array_to_native(volume.hu, volume.native), HU)
    np.testing.assert_array_equal(volume.native.affine, AFFINE)
    assert "DOE" not in repr(volume)


@pytest.mark.parametrize("encoding", ["gzip", "raw", "bzip2"])
def test_nrrd_encodings(tmp_path: Path, encoding: str) -> None:
    is_whole(nrrd(tmp_path, encoding=encoding))


@pytest.mark.parametrize(
    ("space", "directions", "origin"),
    [
        ("RAS", "(-0.5,0,0) (0,-0.75,0) (0,0,1.25)", "(12,20,-300)"),
        ("right-anterior-superior", "(-0.5,0,0) (0,-0.75,0) (0,0,1.25)", "(12,20,-300)"),
        ("left-anterior-superior", "(0.5,0,0) (0,-0.75,0) (0,0,1.25)", "(-12,20,-300)"),
        ("LPS", "(0.5, 0, 0) (0, 0.75, 0) (0, 0, 1.25)", "(-12, -20, -300)"),
    ],
)
def test_nrrd_spaces(tmp_path: Path, space: str, directions: str, origin: str) -> None:
    is_whole(nrrd(tmp_path, space=space, space_directions=directions, space_origin=origin))


def test_nrrd_big_endian_and_mm(tmp_path: Path) -> None:
    data = gzip.compress(HU.astype(">i2").tobytes(order="F"))
    is_whole(nrrd(tmp_path, data, endian="big", space_units='"mm" "mm" "mm"'))


@pytest.mark.parametrize("compressed", ["True", "False"])
def test_metaimage_encodings(tmp_path: Path, compressed: str) -> None:
    is_whole(meta(tmp_path, CompressedData=compressed))


@pytest.mark.parametrize("compressed", ["True", "False"])
def test_metaimage_in_two_files(tmp_path: Path, compressed: str) -> None:
    (tmp_path / "scan.raw").write_bytes(zlib.compress(RAW) if compressed == "True" else RAW)
    is_whole(meta(tmp_path, name="scan.mhd", CompressedData=compressed, ElementDataFile="scan.raw"))


NRRD_REFUSED = {
    "51 raw cut off": ("051", {"encoding": "raw", "data": RAW[:-9]}),
    "51 gzip cut off": ("051", {"data": gzip.compress(RAW)[:-2000]}),
    "51 bzip2 cut off": ("051", {"encoding": "bzip2", "data": bz2.compress(RAW)[:-2000]}),
    "51 too few voxels": ("051", {"data": gzip.compress(RAW[:-2])}),
    "52 bad CRC": ("052", {"data": gzip.compress(RAW)[:-8] + bytes(8)}),
    "52 bzip2 damaged": ("052", {"encoding": "bzip2", "data": bz2.compress(RAW)[:1000] + bytes(3000)}),
    "53 text voxels": ("053", {"encoding": "ascii"}),
    "53 voxels elsewhere": ("053", {"data_file": "scan.raw"}),
    "53 skipped bytes": ("053", {"byte_skip": "-1"}),
    "54 sizes no numbers": ("054", {"sizes": "24 x 16"}),
    "54 negative size": ("054", {"sizes": "24 -20 16"}),
    "54 too few sizes": ("054", {"sizes": "24 20"}),
    "54 huge": ("054", {"sizes": "60000 60000 60000"}),
    "51 more than can be": ("051", {"sizes": "1000 1000 1000"}),
    "55 much more than said": ("055", {"data": gzip.compress(RAW + bytes(3 * 2**20))}),
    "56 block type": ("056", {"type": "block"}),
    "56 no byte order": ("056", {"drop": "endian"}),
    "59 four axes": ("059", {"dimension": "4", "sizes": "1 24 20 16"}),
    "60 no space": ("060", {"drop": "space"}),
    "60 scanner space": ("060", {"space": "scanner-xyz"}),
    "60 no directions": ("060", {"drop": "space directions"}),
    "60 no origin": ("060", {"drop": "space origin"}),
    "62 NaN direction": ("062", {"space_directions": "(nan,0,0) (0,0.75,0) (0,0,1.25)"}),
    "62 singular": ("062", {"space_directions": "(0.5,0,0) (0.5,0,0) (0,0,1.25)"}),
    "66 metres": ("066", {"space_units": '"m" "m" "m"'}),
    "66 metres unsaid": ("066", {"space_directions": "(0.0005,0,0) (0,0.00075,0) (0,0,0.00125)"}),
}  # fmt: skip

META_REFUSED = {
    "51 cut off": ("051", {"data": RAW[:-9]}),
    "51 zlib cut off": ("051", {"CompressedData": "True", "data": zlib.compress(RAW)[:-2000]}),
    "51 header cut off": ("051", {"drop": "ElementDataFile", "data": b""}),
    "52 damaged": ("052", {"CompressedData": "True", "data": zlib.compress(RAW)[:-4] + bytes(4)}),
    "53 text voxels": ("053", {"BinaryData": "False"}),
    "53 foreign header": ("053", {"HeaderSize": "-1"}),
    "53 list of files": ("053", {"ElementDataFile": "LIST"}),
    "53 pattern of files": ("053", {"ElementDataFile": "s%03d.raw 1 9 1"}),
    "53 file elsewhere": ("053", {"ElementDataFile": "../scan.raw"}),
    "53 absolute file": ("053", {"ElementDataFile": "/etc/passwd"}),
    "53 file missing": ("053", {"ElementDataFile": "gone.raw"}),
    "54 sizes": ("054", {"DimSize": "24 20"}),
    "56 array type": ("056", {"ElementType": "MET_SHORT_ARRAY"}),
    "59 channels": ("059", {"ElementNumberOfChannels": "3"}),
    "59 four axes": ("059", {"NDims": "4"}),
    "60 no matrix": ("060", {"drop": "TransformMatrix"}),
    "60 no offset": ("060", {"drop": "Offset"}),
    "62 singular": ("062", {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}),
    "65 zero spacing": ("065", {"ElementSpacing": "0.5 0 1.25"}),
    "65 no spacing": ("065", {"drop": "ElementSpacing"}),
}  # fmt: skip


@pytest.mark.parametrize("row", NRRD_REFUSED)
def test_nrrd_refused_with_its_code(tmp_path: Path, row: str) -> None:
    code, change = NRRD_REFUSED[row]
    with pytest.raises(ReadError) as caught:
        read_volume(nrrd(tmp_path, **change))  # type: ignore[arg-type]
    assert caught.value.code == f"IN-ITK-{code}"


@pytest.mark.parametrize("row", META_REFUSED)
def test_metaimage_refused_with_its_code(tmp_path: Path, row: str) -> None:
    code, change = META_REFUSED[row]
    with pytest.raises(ReadError) as caught:
        read_volume(meta(tmp_path, **change))  # type: ignore[arg-type]
    assert caught.value.code == f"IN-ITK-{code}"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("scan.nrrd", b"NRRD0004\ntype: short\n"),
        ("scan.nrrd", b"NOT A NRRD\n\n"),
        ("scan.nrrd", b"NRRD0004\n" + b"x" * (2**20 + 9)),
        ("scan.mha", b"ObjectType = Image\nno equals sign here\n"),
    ],
)
def test_broken_headers(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ReadError, match="IN-ITK-05"):
        read_volume(tmp_path / name)


def test_oblique_shear_and_tail_are_noted(tmp_path: Path) -> None:
    volume = read_volume(nrrd(tmp_path, space_directions="(0.5,0,0) (0,0.75,0) (0,0.4,1.25)"))
    assert [finding.code for finding in volume.findings] == ["IN-ITK-063"]
    volume = read_volume(nrrd(tmp_path, RAW + b"tail", encoding="raw"))
    assert [finding.code for finding in volume.findings] == ["IN-ITK-052"]


def test_content_is_checked_as_for_nifti(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"\+1024") as caught:
        read_volume(nrrd(tmp_path, gzip.compress((HU + 1024).astype(np.int16).tobytes(order="F"))))
    assert caught.value.code == "IN-ITK-067"


@given(
    codes=st.sampled_from(all_axis_codes()),
    tilt=st.tuples(*[st.floats(-40, 40)] * 3),
    suffix=st.sampled_from(["a.nrrd", "a.mha", "a.mhd", "a.nii.gz"]),
    compressed=st.booleans(),
)
def test_what_simpleitk_writes_is_read_alike(tmp_path_factory, codes, tilt, suffix, compressed) -> None:
    import SimpleITK as sitk

    array = chest((5, 6, 7))
    native = build_grid(codes, shape=array.shape, tilt_degrees=tilt)
    affine = np.diag([-1, -1, 1, 1]) @ native.affine
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(native.spacing_mm)
    image.SetDirection((affine[:3, :3] / native.spacing_mm).ravel())
    image.SetOrigin(affine[:3, 3])
    path = tmp_path_factory.mktemp("sitk") / suffix
    sitk.WriteImage(image, str(path), useCompression=compressed)
    volume = read_volume(path)
    assert volume.native.is_same_space(native, tolerance_mm=2e-2)
    np.testing.assert_array_equal(array_to_native(volume.hu, volume.native), array)


def test_mask_made_elsewhere(tmp_path: Path) -> None:
    import SimpleITK as sitk

    labels = (HU < -500).astype(np.uint8)
    image = sitk.GetImageFromArray(labels.transpose(2, 1, 0))
    image.SetSpacing((0.5, 0.75, 1.25))
    image.SetOrigin((-12, -20, -300))
    for name in ("m.nrrd", "m.mha"):
        sitk.WriteImage(image, str(tmp_path / name), useCompression=True)
        mask = read_mask(tmp_path / name, {1: "air"})
        assert mask.grid == grid_of(HU).reorient(("R", "A", "S"))
        np.testing.assert_array_equal(mask.to_native(grid_of(HU)), labels)
