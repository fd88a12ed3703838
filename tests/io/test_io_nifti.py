"""NIfTI in, row by row of the bad-input catalogue, and out again."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from border_files import AFFINE, chest, grid_of, nifti_bytes, save, scan_file
from hypothesis import given
from hypothesis import strategies as st

from grids import all_axis_codes, build_grid
from pneumoscope.errors import GeometryError, InputError, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.formats.nifti import read_nifti
from pneumoscope.io.read import read_mask, read_volume
from pneumoscope.io.write import write_image, write_volume
from pneumoscope.volume import Volume, array_to_native

Build = Callable[[Path], Path]


def packed(data: bytes, *, garbage: bytes = b"", flip_crc: bool = False, cut: int = 0) -> bytes:
    whole = bytearray(gzip.compress(data, 1, mtime=0))
    if flip_crc:
        whole[-8] ^= 0xFF
    return bytes(whole[: len(whole) - cut]) + garbage


def raw_file(name: str, make: Callable[[], bytes]) -> Build:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(make())
        return folder / name

    return build


def bent(name: str = "scan.nii.gz", **fields: object) -> Build:
    return lambda folder: scan_file(folder, name, **fields)


def holding(array: np.ndarray, affine: np.ndarray = AFFINE, **fields: object) -> Build:
    return lambda folder: save(folder / "scan.nii.gz", nifti_bytes(array, affine, **fields))


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def folder_of(count: int) -> Build:
    def build(folder: Path) -> Path:
        (folder / "x.nii").mkdir()
        for n in range(count):
            scan_file(folder / "x.nii", f"{n}.nii")
        return folder / "x.nii"

    return build


def dangling(folder: Path) -> Path:
    (folder / "scan.nii").symlink_to(folder / "gone.nii")
    return folder / "scan.nii"


def bomb(folder: Path) -> Path:
    """A megabyte that inflates to a gigabyte (gzip members may be repeated)."""
    head = nifti_bytes(np.zeros((2, 2, 2), np.int16), dim=[3, 1024, 1024, 512, 1, 1, 1, 1])[:352]
    (folder / "bomb.nii.gz").write_bytes(gzip.compress(head) + gzip.compress(bytes(2**24)) * 64)
    return folder / "bomb.nii.gz"


def overfull(folder: Path) -> Path:
    return save(folder / "scan.nii.gz", nifti_bytes(chest()) + bytes(3 * 2**20))


def patched(**places: float) -> np.ndarray:
    """A float chest with single voxels set: ``i_j_k=value``."""
    hu = chest().astype(np.float32)
    for place, value in places.items():
        hu[tuple(map(int, place.strip("v").split("_")))] = value
    return hu


def slab_of_nan() -> np.ndarray:
    hu = chest().astype(np.float32)
    hu[:, :, 7] = np.nan
    return hu


def sheared(amount: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 2] = amount * 1.25
    return affine


def sform_only(array: np.ndarray, affine: np.ndarray, **fields: object) -> Build:
    rows = {f"srow_{axis}": affine[n].astype(np.float32) for n, axis in enumerate("xyz")}
    pixdim = [1, *np.linalg.norm(affine[:3, :3], axis=0), 0, 0, 0, 0]
    return holding(array, AFFINE, qform_code=0, pixdim=pixdim, **rows, **fields)


WHOLE = nifti_bytes(chest())
SHIFTED = (chest() + 1024).astype(np.int16)
REFUSED: dict[str, tuple[str, Build]] = {
    "51 truncated .nii": ("IN-NII-051", raw_file("s.nii", lambda: WHOLE[:-500])),
    "51 truncated .nii.gz": ("IN-NII-051", raw_file("s.nii.gz", lambda: packed(WHOLE, cut=4000))),
    "51 gzip trailer cut off": ("IN-NII-051", raw_file("s.nii.gz", lambda: packed(WHOLE, cut=3))),
    "51 voxels missing, gzip whole": ("IN-NII-051", raw_file("s.nii.gz", lambda: packed(WHOLE[:-500]))),
    "51 cut in the header": ("IN-NII-051", raw_file("s.nii", lambda: WHOLE[:349])),
    "52 bad CRC": ("IN-NII-052", raw_file("s.nii.gz", lambda: packed(WHOLE, flip_crc=True))),
    "53 not gzip": ("IN-NII-053", raw_file("s.nii.gz", lambda: WHOLE)),
    "53 text": ("IN-NII-053", raw_file("s.nii", lambda: b"hello, this is not an image\n" * 40)),
    "53 empty": ("IN-NII-053", raw_file("s.nii.gz", lambda: b"")),
    "53 gzip of nothing": ("IN-NII-053", raw_file("s.nii.gz", lambda: gzip.compress(b"", mtime=0))),
    "53 folder without": ("IN-NII-053", folder_of(0)),
    "53 folder of two": ("IN-NII-053", folder_of(2)),
    "53 pipe": ("IN-NII-053", fifo),
    "53 broken link": ("IN-NII-053", dangling),
    "53 no such file": ("IN-NII-053", lambda folder: folder / "gone.nii.gz"),
    "53 header pair": ("IN-NII-053", bent(magic=b"ni1")),
    "53 analyze": ("IN-NII-053", bent(magic=b"\0\0\0")),
    "54 huge": ("IN-NII-054", bent(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1], datatype=64)),
    "54 negative": ("IN-NII-054", bent(dim=[3, -24, 20, 16, 1, 1, 1, 1])),
    "54 no axes": ("IN-NII-054", bent(dim=[0, 24, 20, 16, 1, 1, 1, 1])),
    "54 nine axes": ("IN-NII-054", bent(dim=[9, 24, 20, 16, 1, 1, 1, 1])),
    "54 zero-length axis": ("IN-NII-054", bent(dim=[3, 24, 0, 16, 1, 1, 1, 1])),
    "54 offset beyond": ("IN-NII-054", bent(vox_offset=1e9)),
    "54 offset inside the header": ("IN-NII-054", bent(vox_offset=100)),
    "54 offset not a number": ("IN-NII-054", bent(vox_offset=np.nan)),
    "51 more voxels than the file can hold": ("IN-NII-051", bent(dim=[3, 1000, 1000, 1000, 1, 1, 1, 1])),
    "55 far more than the header says": ("IN-NII-055", overfull),
    "55 far more after the gzip": ("IN-NII-055", raw_file("s.nii.gz", lambda: packed(WHOLE, garbage=bytes(3 * 2**20)))),
    "56 unknown type": ("IN-NII-056", bent(datatype=9999)),
    "56 RGB": ("IN-NII-056", bent(datatype=128, bitpix=24)),
    "56 complex": ("IN-NII-056", bent(datatype=32, bitpix=64)),
    "57 NaN in the body": ("IN-NII-057", holding(patched(v12_10_8=np.nan))),
    "57 NaN slab": ("IN-NII-057", holding(slab_of_nan())),
    "57 inf in the body": ("IN-NII-057", holding(patched(v12_10_8=np.inf))),
    "57 too large for float32": ("IN-NII-057", holding(chest().astype(np.float64) * 1e300)),
    "58 NaN slope, no HU": ("IN-NII-058", holding(SHIFTED, scl_slope=np.nan)),
    "58 inf intercept, no HU": ("IN-NII-058", holding(SHIFTED, scl_slope=1, scl_inter=np.inf)),
    "59 two volumes": ("IN-NII-059", holding(np.stack([chest(), chest()], -1))),
    "59 2D": ("IN-NII-059", holding(chest()[:, :, 3])),
    "59 5D": ("IN-NII-059", holding(chest()[..., None, None], dim=[5, 24, 20, 16, 1, 1, 1, 1])),
    "59 single slice": ("IN-NII-059", holding(chest()[:, :, 3:4])),
    "60 no orientation": ("IN-NII-060", bent(sform_code=0, qform_code=0)),
    "61 forms mirrored": ("IN-NII-061", bent(srow_x=[0.5, 0, 0, 12])),
    "61 forms shifted": ("IN-NII-061", bent(srow_z=[0, 0, 1.25, -299])),
    "61 forms scaled": ("IN-NII-061", bent(srow_z=[0, 0, 1.26, -300])),
    "62 NaN sform": ("IN-NII-062", bent(srow_x=[np.nan, 0, 0, 12])),
    "62 singular sform": ("IN-NII-062", bent(srow_x=[0, 0.75, 0, 12])),
    "62 zero sform": ("IN-NII-062", bent(srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4)),
    "62 NaN quaternion": ("IN-NII-062", bent(sform_code=0, quatern_b=np.nan)),
    "62 no rotation": ("IN-NII-062", bent(sform_code=0, quatern_b=3.0)),
    "65 zero pixdim": ("IN-NII-065", bent(pixdim=[1, 0.5, 0, 1.25, 0, 0, 0, 0])),
    "65 NaN pixdim": ("IN-NII-065", bent(pixdim=[1, 0.5, np.nan, 1.25, 0, 0, 0, 0])),
    "66 metres that are mm": ("IN-NII-066", bent(xyzt_units=1)),
    "66 microns that are mm": ("IN-NII-066", bent(xyzt_units=3)),
    "66 mm that are metres": ("IN-NII-066", holding(chest(), np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE)),
    "66 unknown unit": ("IN-NII-066", bent(xyzt_units=5)),
    "68 constant": ("IN-NII-068", holding(np.full((6, 5, 4), -1000, np.int16))),
    "68 all air": ("IN-NII-068", holding((chest() * 0 - 990 + np.arange(16)).astype(np.int16))),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_refused_with_its_code(tmp_path: Path, row: str) -> None:
    code, build = REFUSED[row]
    path = build(tmp_path)
    with pytest.raises(ReadError) as caught:
        read_volume(path)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def four_d(folder: Path) -> Path:
    return save(folder / "s.nii", nifti_bytes(chest()[..., None]))


def in_metres(folder: Path) -> Path:
    small = np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE
    return save(folder / "s.nii", nifti_bytes(chest(), small, xyzt_units=1))


def in_microns(folder: Path) -> Path:
    large = np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE
    return save(folder / "s.nii", nifti_bytes(chest(), large, xyzt_units=3))


ACCEPTED: dict[str, tuple[str | None, Build]] = {
    "plain": (None, bent("s.nii")),
    "gzip": (None, bent()),
    "NIfTI-2": (None, lambda f: save(f / "s.nii", nifti_bytes(chest(), kind=nib.Nifti2Image))),
    "folder called X.nii": (None, folder_of(1)),
    "several gzip members": (None, raw_file("s.nii.gz", lambda: packed(WHOLE[:5000]) + packed(WHOLE[5000:]))),
    "gzip without the suffix": (None, raw_file("s.nii", lambda: packed(WHOLE))),
    "unit not given": (None, bent(xyzt_units=0)),
    "qform only": (None, bent(sform_code=0)),
    "sform only": (None, bent(qform_code=0)),
    "slope 0 is none": (None, bent(scl_slope=0, scl_inter=-5000)),
    "52 trailing bytes": ("IN-NII-052", raw_file("s.nii.gz", lambda: packed(WHOLE, garbage=b"garbage"))),
    "52 more voxels than wanted": ("IN-NII-052", raw_file("s.nii", lambda: WHOLE + b"tail")),
    "57 blank corner": ("IN-NII-057", holding(patched(v0_0_0=np.nan, v23_19_15=np.inf))),
    "58 NaN slope on HU": ("IN-NII-058", bent(scl_slope=np.nan, scl_inter=np.nan)),
    "59 one time point": ("IN-NII-059", four_d),
    "61 sform over pixdim": ("IN-NII-061", bent(qform_code=0, pixdim=[1, 1, 1, 1, 0, 0, 0, 0])),
    "63 slight shear": ("IN-NII-063", sform_only(chest(), sheared(5e-4))),
    "63 gantry tilt": ("IN-NII-063", sform_only(chest(), sheared(0.3))),
    "65 negative pixdim": ("IN-NII-065", bent(pixdim=[1, -0.5, 0.75, 1.25, 0, 0, 0, 0])),
    "62 pixdim[0] is 0": ("IN-NII-062", bent(pixdim=[0, 0.5, 0.75, 1.25, 0, 0, 0, 0])),
    "62 the same, qform only": ("IN-NII-062", bent(sform_code=0, pixdim=[0, 0.5, 0.75, 1.25, 0, 0, 0, 0])),
    "62 pixdim[0] is 3": ("IN-NII-062", bent(pixdim=[3, 0.5, 0.75, 1.25, 0, 0, 0, 0])),
    "62 pixdim[0] is NaN": ("IN-NII-062", bent(pixdim=[np.nan, 0.5, 0.75, 1.25, 0, 0, 0, 0])),
    "62 no qform beside a sform": ("IN-NII-062", bent(quatern_b=9, quatern_c=9)),
    "a quaternion of length 1.00005": (None, bent(quatern_d=1.00005)),
    "66 metres": ("IN-NII-066", in_metres),
    "66 microns": ("IN-NII-066", in_microns),
}  # fmt: skip


@pytest.mark.parametrize("zooms", [(-0.5, 0.75, 1.25), (0.5, -0.75, 1.25), (-0.5, -0.75, 1.25)])
def test_sform_gives_the_handedness_that_pixdim_leaves_open(tmp_path: Path, zooms: tuple[float, ...]) -> None:
    """pixdim[0] = 0 in the orientations of FSL (LAS), LPI and DICOM; the sform is what places the scan."""
    affine = np.diag([*zooms, 1.0])
    path = holding(chest(), affine)(tmp_path)
    image = nib.Nifti1Image(chest(), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    head = bytearray(gzip.decompress(path.read_bytes()))
    head[76:80] = bytes(4)
    path.write_bytes(gzip.compress(bytes(head)))
    np.testing.assert_allclose(read_volume(path).native.affine, affine, atol=1e-5)


@pytest.mark.parametrize("row", ACCEPTED)
def test_accepted_with_its_finding(tmp_path: Path, row: str) -> None:
    code, build = ACCEPTED[row]
    volume = read_volume(build(tmp_path))
    assert [finding.code for finding in volume.findings] == ([code] if code else [])
    if "63" not in row:
        np.testing.assert_allclose(volume.native.affine, AFFINE, atol=1e-4)
    stored = array_to_native(volume.hu, volume.native)
    expected = np.maximum(chest(), -1024)
    if code == "IN-NII-057":
        expected[0, 0, 0] = expected[-1, -1, -1] = -1024
    np.testing.assert_array_equal(stored, expected)
    assert volume.source == {"format": "NIfTI"}


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_all_types_and_byte_orders(tmp_path: Path, dtype: str, order: str) -> None:
    wanted = np.array([-1000, -850, 40, 400] * 6, np.float64).reshape(2, 3, 4)
    slope, intercept = (10.0, 0.0) if dtype == "i1" else (10.0, -1000.0)
    raw = (wanted - intercept) / slope
    image = nib.Nifti1Image(raw.astype(order + dtype), AFFINE, nib.Nifti1Header(endianness=order))
    image.header.set_data_dtype(order + dtype)
    data = bytearray(image.to_bytes())
    data[112:120] = np.array([slope, intercept], order + "f4").tobytes()
    path = save(tmp_path / "s.nii", bytes(data))
    found = array_to_native(read_volume(path).hu, grid_of(raw))
    np.testing.assert_array_equal(found, raw.astype(dtype).astype(float) * slope + intercept)


def test_refuses_what_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scan_file(tmp_path)
    monkeypatch.setattr("pneumoscope.io.stored.available_bytes", lambda: 10_000)
    with pytest.raises(ReadError, match="MiB are free") as caught:
        read_volume(path)
    assert caught.value.code == "IN-NII-054"


def test_address_space_limit_counts_as_memory() -> None:
    resource = pytest.importorskip("resource")
    from pneumoscope.io.stored import available_bytes

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**44, before[1]))
    try:
        assert 0 < available_bytes() < 2**44
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("data", [b"", b"text", b"text" * 200, gzip.compress(b"", mtime=0)])
def test_reader_alone_refuses_what_is_no_nifti(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ReadError, match="IN-NII-053"):
        read_nifti(tmp_path / "a.nii")


def test_folder_of_two_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="a folder with 2 NIfTI files"):
        read_mask(folder_of(2)(tmp_path))
    (tmp_path / "x.nii" / "1.nii").unlink()
    save(tmp_path / "x.nii" / "0.nii", nifti_bytes((chest() > 0).astype(np.uint8)))
    assert read_mask(tmp_path / "x.nii").any.any()


def test_forbidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = scan_file(tmp_path)
    monkeypatch.setattr("pneumoscope.io.stored.os.open", forbidden)
    with pytest.raises(ReadError, match="Permission denied"):
        read_volume(path)


def test_nothing_that_identifies_is_taken_over(tmp_path: Path) -> None:
    """Row 70: names in header fields, extensions and the gzip header stay behind."""
    canary = b"DOE^JOHN"
    array = chest()
    image = nib.Nifti1Image(array, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", canary + b" comment"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("afni", canary))
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[name] = canary
    with (tmp_path / "scan.nii.gz").open("wb") as stream, gzip.GzipFile("DOE^JOHN.nii", "wb", 1, stream) as zipped:
        zipped.write(image.to_bytes())
    assert canary in (tmp_path / "scan.nii.gz").read_bytes()
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert canary.decode() not in repr(volume)
    write_volume(volume, tmp_path / "out.nii")
    write_volume(volume, tmp_path / "out.nii.gz")
    assert canary not in (tmp_path / "out.nii").read_bytes()
    written = (tmp_path / "out.nii.gz").read_bytes()
    assert canary not in written
    assert written[3] == 0  # no name
    assert written[4:8] == bytes(4)  # no time


def test_case_is_the_stem_made_safe(tmp_path: Path) -> None:
    assert read_volume(scan_file(tmp_path, "Patient é 7.nii.gz")).case == "Patient_é_7"
    assert read_volume(scan_file(tmp_path, "....nii")).case.startswith("scan-")
    assert read_volume(scan_file(tmp_path), case="mine").case == "mine"


@pytest.mark.parametrize("arguments", [{"intensity": "MR"}, {"series": "1"}])
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, str]) -> None:
    with pytest.raises(InputError):
        read_volume(scan_file(tmp_path), **arguments)  # type: ignore[arg-type]


def test_volume_is_written_as_whole_hu(tmp_path: Path) -> None:
    hu = chest().astype(np.float32)
    hu[0, 0, 0], hu[1, 0, 0], hu[2, 0, 0] = 40.4, 70_000, -1000.6
    volume = Volume.from_native(hu, grid_of(hu))
    write_volume(volume, tmp_path / "v.nii.gz")
    image = nib.load(tmp_path / "v.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:3, 0, 0], [40, 32767, -1001])
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(image.dataobj)[3:], chest()[3:])


def test_probability_keeps_its_values(tmp_path: Path) -> None:
    native = grid_of(chest())
    ras = np.random.default_rng(1).random(native.shape)
    write_image(ras, native, tmp_path / "p.nii.gz")
    small_ras = np.rint(255 * ras).astype(np.uint8)
    write_image(small_ras, native, tmp_path / "small.nii.gz", scaled=True)
    whole, small = (nib.load(tmp_path / name) for name in ("p.nii.gz", "small.nii.gz"))
    assert whole.get_data_dtype() == np.float32
    assert small.get_data_dtype() == np.uint8
    expected = array_to_native(ras, native)
    np.testing.assert_allclose(whole.get_fdata(), expected, rtol=1e-6)
    np.testing.assert_allclose(small.get_fdata(), expected, atol=0.5001 / 255)
    np.testing.assert_array_equal(small.dataobj.get_unscaled(), array_to_native(small_ras, native))


@pytest.mark.parametrize(
    ("array", "name", "scaled", "error"),
    [
        (np.zeros((1, 2, 3)), "p.nii", False, GeometryError),
        (np.full((24, 20, 16), np.nan), "p.nii", False, GeometryError),
        (np.full((24, 20, 16), 0.5), "p.nii", True, GeometryError),
        (np.zeros((24, 20, 16), np.uint8), "p.mha", True, InputError),
        (np.zeros((24, 20, 16)), "p.png", False, InputError),
    ],
)
def test_images_that_cannot_be_written(
    tmp_path: Path, array: np.ndarray, name: str, scaled: bool, error: type[Exception]
) -> None:
    with pytest.raises(error):
        write_image(array, grid_of(chest()), tmp_path / name, scaled=scaled)
    assert not list(tmp_path.iterdir())


def test_sides_beyond_nifti_1_are_refused(tmp_path: Path) -> None:
    grid = Grid.from_spacing((1, 1, 40_000), (1, 1, 1))
    with pytest.raises(GeometryError, match="32767"):
        write_image(np.zeros(grid.shape, np.uint8), grid, tmp_path / "p.nii")


@given(
    codes=st.sampled_from(all_axis_codes()),
    tilt=st.tuples(*[st.floats(-40, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 10.0)] * 3),
    origin=st.tuples(*[st.floats(-800, 800)] * 3),
    suffix=st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]),
    voxel=st.tuples(st.integers(0, 23), st.integers(0, 19), st.integers(0, 15)),
)
def test_write_read_write(tmp_path_factory, codes, tilt, spacing, origin, suffix, voxel) -> None:
    """Every orientation, tilt and anisotropy: equal bytes on the second writing, points stay within 1e-3 mm."""
    folder = tmp_path_factory.mktemp("round")
    array = np.maximum(chest(noise=0), -1000)
    array[voxel] = 3000
    native = build_grid(codes, shape=array.shape, spacing_mm=spacing, tilt_degrees=tilt, origin_mm=origin)
    volume = Volume.from_native(array, native)
    first, second = folder / f"a{suffix}", folder / f"b{suffix}"
    write_volume(volume, first)
    again = read_volume(first)
    write_volume(again, second)
    assert first.read_bytes() == second.read_bytes()
    assert again.findings == ()
    np.testing.assert_array_equal(array_to_native(again.hu, again.native), array)
    bright = np.argwhere(again.hu == 3000)[0]
    assert np.linalg.norm(again.grid.world(bright) - native.world(voxel)) < 1e-3


@given(
    codes=st.sampled_from(all_axis_codes()),
    tilt=st.tuples(*[st.floats(-40, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 10.0)] * 3),
    origin=st.tuples(*[st.floats(-800, 800)] * 3),
    suffix=st.sampled_from([".nii.gz", ".nrrd", ".mha"]),
)
def test_simpleitk_reads_the_same(tmp_path_factory, codes, tilt, spacing, origin, suffix) -> None:
    """SimpleITK as the second reader: same voxels, and the same place for every corner."""
    import SimpleITK as sitk

    array = chest((5, 6, 7))
    native = build_grid(codes, shape=array.shape, spacing_mm=spacing, tilt_degrees=tilt, origin_mm=origin)
    path = tmp_path_factory.mktemp("itk") / f"a{suffix}"
    write_volume(Volume.from_native(array, native), path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), array)
    for corner in ((0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 6), (4, 5, 6)):
        lps = np.array(image.TransformIndexToPhysicalPoint(corner))
        assert np.linalg.norm(lps * (-1, -1, 1) - native.world(corner)) < 2e-2


def test_every_code_is_in_the_reference() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "input-codes.md").read_text(encoding="utf-8")
    codes = {code for code, _ in REFUSED.values()} | {code for code, _ in ACCEPTED.values() if code}
    assert not [code for code in sorted(codes) if f"| {code} |" not in text]


def test_finders_notes_in_a_folder_are_no_second_image(tmp_path: Path) -> None:
    folder = folder_of(1)(tmp_path)
    (folder / "._0.nii").write_bytes(b"\0\5\x16\7" + bytes(200))
    assert read_nifti(folder).array.shape == chest().shape
