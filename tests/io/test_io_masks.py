"""Masks: back on exactly the scan's grid, with their names and nothing else; strange ones refused by rule 69."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from border_files import AFFINE, chest, nifti_bytes, save, scan_file
from hypothesis import given
from hypothesis import strategies as st

from grids import all_axis_codes, any_grid, build_grid
from pneumoscope.errors import GeometryError, InputError, ReadError, RunError
from pneumoscope.geometry import Grid
from pneumoscope.io.masks import fit_mask, labels_extension, labels_in_extensions, parse_labels
from pneumoscope.io.read import read_mask, read_volume
from pneumoscope.io.write import write_mask
from pneumoscope.volume import LUNG_LABELS, Mask

SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]


def two_lungs(shape: tuple[int, int, int] = (24, 20, 16)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[2:9, 5:15, 2:14], labels[15:22, 5:15, 2:14] = 1, 2
    labels[0, 0, 0] = 2
    return labels


@pytest.fixture
def mask() -> Mask:
    return Mask.from_native(two_lungs(), Grid((24, 20, 16), AFFINE), LUNG_LABELS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_with_names(mask: Mask, tmp_path: Path, suffix: str) -> None:
    native = Grid((24, 20, 16), AFFINE)
    path = tmp_path / f"m{suffix}"
    write_mask(mask, path, native)
    again = read_mask(path)
    np.testing.assert_array_equal(again.labels, mask.labels)
    assert again.grid == mask.grid
    assert again.names == LUNG_LABELS
    write_mask(again, tmp_path / f"n{suffix}", native)
    assert path.read_bytes() == (tmp_path / f"n{suffix}").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"m{suffix}", f"n{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_mask_is_written_and_read(tmp_path: Path, suffix: str) -> None:
    native = Grid((4, 5, 6), AFFINE)
    write_mask(Mask.empty(native.reorient(("R", "A", "S")), {1: "infiltrate"}), tmp_path / f"m{suffix}", native)
    again = read_mask(tmp_path / f"m{suffix}")
    assert not again.any.any()
    assert again.names == {1: "infiltrate"}


@given(
    codes=st.sampled_from(all_axis_codes()),
    tilt=st.tuples(*[st.floats(-44, 44)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 10.0)] * 3),
    forms=st.sampled_from(["both", "sform", "qform"]),
    version=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
)
def test_mask_has_the_affine_of_its_nifti_scan_to_the_bit(
    tmp_path_factory, codes, tilt, spacing, forms, version
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    affine = build_grid(codes, spacing_mm=spacing, tilt_degrees=tilt).affine
    fields = {"sform": {"qform_code": 0}, "qform": {"sform_code": 0}, "both": {}}[forms]
    scan = save(folder / "scan.nii", nifti_bytes(chest((5, 6, 7)), affine, kind=version, **fields))
    volume = read_volume(scan)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[-1, 0, -1] = 1
    write_mask(Mask(labels, volume.grid, {1: "infiltrate"}), folder / "m.nii.gz", volume.native)
    original, written = nib.load(scan), nib.load(folder / "m.nii.gz")
    assert written.shape == original.shape
    if forms == "qform":  # a quaternion of float32 has no bit to spare: 43 degrees do not come back from their own
        np.testing.assert_allclose(written.affine, original.affine, rtol=1e-6, atol=1e-5)
    else:
        kind = np.float32 if version is nib.Nifti2Image else np.float64
        np.testing.assert_array_equal(written.affine, original.affine.astype(kind))
    voxel = np.argwhere(np.asarray(written.dataobj))[0]
    world = nib.affines.apply_affine(written.affine, voxel)
    assert np.linalg.norm(world - volume.grid.world(np.array(volume.grid.shape) * (1, 0, 1) - (1, 0, 1))) < 1e-3


@given(native=any_grid())
def test_any_grid_comes_back_in_its_place(tmp_path_factory, native: Grid) -> None:
    """Also single voxels, shear and float64 origins, as DICOM has them."""
    path = tmp_path_factory.mktemp("any") / "m.nii.gz"
    grid = native.reorient(("R", "A", "S"))
    mask = Mask(np.ones(grid.shape, np.uint8), grid, {1: "x"})
    write_mask(mask, path, native)
    again = read_mask(path)
    assert np.linalg.norm(again.grid.corners() - grid.corners(), axis=1).max() < 1e-3


def test_both_forms_say_the_same_where_axes_are_perpendicular(tmp_path: Path) -> None:
    for name, shear in (("upright", 0.0), ("tilted", 0.2)):
        native = build_grid(("L", "P", "S"), tilt_degrees=(5, 3, 1), shear=shear)
        write_mask(Mask.empty(native.reorient(("R", "A", "S")), {1: "x"}), tmp_path / f"{name}.nii", native)
    header = nib.load(tmp_path / "upright.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)
    header = nib.load(tmp_path / "tilted.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    assert header.get_xyzt_units()[0] == "mm"


def test_nothing_but_labels_in_the_header(mask: Mask, tmp_path: Path) -> None:
    write_mask(mask, tmp_path / "DOE^JOHN.nii.gz", Grid((24, 20, 16), AFFINE))
    raw = (tmp_path / "DOE^JOHN.nii.gz").read_bytes()
    assert raw[3:8] == bytes(5)  # no flags (no name), no time
    assert b"DOE" not in raw
    header = nib.load(tmp_path / "DOE^JOHN.nii.gz").header
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        assert not bytes(header[name].tobytes()).strip(b"\0")
    assert len(header.extensions) == 1


def test_another_grid_is_refused(mask: Mask, tmp_path: Path) -> None:
    with pytest.raises(GeometryError):
        write_mask(mask, tmp_path / "m.nii.gz", Grid((24, 20, 16), np.diag([1, 1, 1, 1.0])))
    with pytest.raises(InputError, match=r"\.png"):
        write_mask(mask, tmp_path / "m.png", Grid((24, 20, 16), AFFINE))
    assert not list(tmp_path.iterdir())


def test_metaimage_refuses_shear(tmp_path: Path) -> None:
    native = build_grid(shear=0.2)
    with pytest.raises(GeometryError, match="perpendicular"):
        write_mask(Mask.empty(native, {1: "x"}), tmp_path / "m.mha", native)


def test_old_file_stays_when_writing_fails(mask: Mask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.nii.gz"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pneumoscope.io.formats.nifti.slabs", full)
    with pytest.raises(RunError, match="No space"):
        write_mask(mask, path, Grid((24, 20, 16), AFFINE))
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


FLOAT_RULES = [
    (np.array([0.0, 0.9999, 2.0001]), {}, [0, 1, 2]),
    (np.array([0.0, 255.0, 254.995]), {}, [0, 1, 1]),
    (np.array([0.0, 255.0, 1.0]), {}, [0, 255, 1]),
    (np.array([0.0, 255.0, 0.0]), {"names": {255: "infiltrate"}}, [0, 255, 0]),
    (np.array([-80.0, 126.9, 340.2]), {"threshold": 127}, [0, 0, 1]),
    (np.array([0.0, 0.5, 0.51]), {"threshold": 0.5}, [0, 0, 1]),
]


@pytest.mark.parametrize(("values", "options", "expected"), FLOAT_RULES)
def test_rules_for_values_that_are_not_labels(
    tmp_path: Path, values: np.ndarray, options: dict, expected: list[int]
) -> None:
    path = save(tmp_path / "m.nii.gz", nifti_bytes(values.astype(np.float32).reshape(3, 1, 1)))
    mask = read_mask(path, **options)
    assert mask.labels[::-1, 0, 0].tolist() == expected  # AFFINE is stored leftwards


def test_scaled_bytes_are_rounded(tmp_path: Path) -> None:
    path = save(tmp_path / "m.nii", nifti_bytes(two_lungs() * 100, scl_slope=0.01))
    np.testing.assert_array_equal(read_mask(path).labels, two_lungs()[::-1, ::-1])


STRANGE = {
    "fractions": np.array([0, 0.3, 1]), "NaN": np.array([0, np.nan, 1]), "negative": np.array([0, -1, 1]),
    "too large": np.array([0, 256, 1]), "label without a name": np.array([0, 3, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_strange_values_are_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "m.nii", nifti_bytes(STRANGE[name].astype(np.float32).reshape(3, 1, 1)))
    with pytest.raises(ReadError) as caught:
        read_mask(path, LUNG_LABELS)
    assert caught.value.code == "IN-MSK-069"


def test_names_without_a_source(tmp_path: Path) -> None:
    assert read_mask(save(tmp_path / "m.nii", nifti_bytes(two_lungs()))).names == {1: "label 1", 2: "label 2"}
    empty = save(tmp_path / "e.nii", nifti_bytes(two_lungs() * 0))
    assert read_mask(empty).names == {1: "label 1"}
    assert read_mask(empty, LUNG_LABELS).names == LUNG_LABELS


@pytest.mark.parametrize("name", ["a.zip", "a.dcm"])
def test_masks_are_single_image_files(tmp_path: Path, name: str) -> None:
    head = b"PK\x03\x04" + bytes(400) if name == "a.zip" else bytes(128) + b"DICM" + bytes(400)
    (tmp_path / name).write_bytes(head)
    with pytest.raises(ReadError, match="expected a mask"):
        read_mask(tmp_path / name)


def test_damaged_masks_are_refused_as_scans_are(tmp_path: Path) -> None:
    path = scan_file(tmp_path, "m.nii.gz", qform_code=0, sform_code=0)
    with pytest.raises(ReadError) as caught:
        read_mask(path)
    assert caught.value.code == "IN-NII-060"


SCAN = build_grid(shape=(6, 5, 4), spacing_mm=(0.5, 0.8, 1.2))


def moved(**change: object) -> Grid:
    affine = SCAN.affine.copy()
    affine[:3, 3] += np.asarray(change.get("by", (0, 0, 0)))
    affine[:3, :3] *= np.asarray(change.get("times", 1.0))
    return Grid(change.get("shape", SCAN.shape), affine)  # type: ignore[arg-type]


OFF = {
    "6 x 5 x 3 voxels": moved(shape=(6, 5, 3)),
    "mirrored left-right": Grid(SCAN.shape, np.diag([-1, 1, 1, 1]) @ SCAN.affine).reorient(("R", "A", "S")),
    "mirrored front-back and head-foot": Grid(SCAN.shape, np.diag([1, -1, -1, 1]) @ SCAN.affine).reorient(
        ("R", "A", "S")
    ),
    "half a voxel": moved(by=(0.25, 0.4, 0.6)),
    "shifted by": moved(by=(10, 0, 0)),
    "spacing or direction": moved(times=1.1),
}


@pytest.mark.parametrize("words", OFF)
def test_masks_off_their_scan_say_how(words: str) -> None:
    with pytest.raises(ReadError, match=words) as caught:
        fit_mask(Mask.empty(OFF[words], {1: "x"}), SCAN)
    assert caught.value.code == "IN-MSK-069"


def test_mask_within_tolerance_takes_the_grid_of_its_scan() -> None:
    assert fit_mask(Mask.empty(moved(by=(1e-4, 0, 0)), {1: "x"}), SCAN).grid == SCAN


def test_extension_of_names() -> None:
    block = labels_extension({2: "left lung", 1: "rechte Lunge é"})
    assert len(block) % 16 == 0
    other = b"\x20\0\0\0\x02\0\0\0" + b"DICOM data here.........."[:24]
    assert labels_in_extensions(other + block, "<") == {1: "rechte Lunge é", 2: "left lung"}
    for broken in (b"", b"\x07\0\0\0\x06\0\0\0", block[:-3], b"\xff\xff\xff\x7f\x06\0\0\0", other):
        assert labels_in_extensions(broken, "<") is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"pneumoscope_labels": {"0": "x"}}', '{"pneumoscope_labels": 3}', "[" * 5000]
)
def test_names_of_others_are_not_read(text: str) -> None:
    assert parse_labels(text) is None
    assert parse_labels('{"pneumoscope_labels": {"1": "a\\nb\\u001b[31m"}}') == {1: "ab[31m"}


@pytest.mark.real
@pytest.mark.parametrize("case", ["id001", "id002"])
def test_real_scans_with_overshoot(real_data: Path, tmp_path: Path, case: str) -> None:
    folder = real_data / "ct-volumes" / "imlab"
    volume = read_volume(folder / f"{case}.nii.gz")
    assert volume.hu.min() == -1024
    assert [finding.code for finding in volume.findings] == ["IN-NII-067"]
    with pytest.raises(ReadError, match="threshold"):
        read_mask(folder / f"{case}-msk.nii.gz")
    with pytest.raises(ReadError) as caught:
        read_volume(folder / f"{case}-msk.nii.gz")
    assert caught.value.code == "IN-NII-067"
    lungs = fit_mask(read_mask(folder / f"{case}-msk.nii.gz", {1: "lungs"}, threshold=127), volume.grid)
    assert 4000 < lungs.volume_ml() < 8000
    assert np.median(volume.hu[lungs.any]) < -750
    write_mask(lungs, tmp_path / "m.nii.gz", volume.native)
    written, scan = nib.load(tmp_path / "m.nii.gz"), nib.load(folder / f"{case}.nii.gz")
    np.testing.assert_array_equal(written.affine, scan.affine)
    threshold = np.asarray(nib.load(folder / f"{case}-msk.nii.gz").dataobj) > 127
    np.testing.assert_array_equal(np.asarray(written.dataobj) > 0, threshold)
