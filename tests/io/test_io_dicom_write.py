"""Synthetic series out, file discovery, and names that hide the patient."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.dicom import deidentify as dicom_identity
from pneumoscope.io.dicom.deidentify import case_name, has_lasting_salt, salt_path
from pneumoscope.io.dicom.read import read_dicom
from pneumoscope.io.kinds import Found, discover, slice_like
from pneumoscope.io.write import write_dicom_series
from pneumoscope.volume import Volume


def ct_like(grid: Grid) -> Volume:
    hu = np.full(grid.shape, -1000, np.float32)
    hu[1:-1, 1:-1] = -0.4
    hu[0, 0, 0] = 612.4
    hu[-1, -1, -1] = -3000
    return Volume.from_native(hu, grid, case="made")


@pytest.mark.parametrize("kind", ["upright", "turned"])
def test_written_series_reads_back_and_suits_simpleitk(kind: str, tmp_path: Path) -> None:
    affine = np.diag([0.5, 0.8, 1.2, 1.0])
    if kind == "turned":
        from scipy.spatial.transform import Rotation

        affine[:3, :3] = Rotation.from_euler("xyz", (12, -7, 5), degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (10.25, -20.5, 33.125)
    volume = ct_like(Grid((4, 5, 6), affine))
    paths = write_dicom_series(volume, tmp_path / "out", seed=3)
    assert [path.name for path in paths] == [f"IM{n:04d}.dcm" for n in range(1, 7)]
    back = read_dicom(tmp_path / "out")
    assert back.findings == ()
    assert back.native.axis_codes == ("L", "P", "S")
    assert back.grid.is_same_space(volume.grid)
    np.testing.assert_allclose(back.hu, np.clip(np.rint(volume.hu), -1024, None))
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "out")))
    assert image.GetSize() == back.native.shape
    np.testing.assert_allclose(np.array(image.GetOrigin()) * (-1, -1, 1), back.native.origin_mm, atol=1e-4)


def test_same_volume_same_bytes_and_another_seed_other_uids(tmp_path: Path) -> None:
    volume = ct_like(Grid.from_spacing((4, 5, 6), (0.5, 0.8, 1.2)))
    one, two, other = (
        write_dicom_series(volume, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    first = [pydicom.dcmread(paths[0]) for paths in (one, other)]
    assert first[0].SeriesInstanceUID != first[1].SeriesInstanceUID
    assert first[0].StudyDate == ""
    assert len({pydicom.dcmread(path).SOPInstanceUID for path in one}) == 6
    for name in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        assert all(len(str(value)) <= 16 for value in first[0][name].value)


def test_a_used_folder_and_a_sheared_grid_are_refused(tmp_path: Path) -> None:
    volume = ct_like(Grid.from_spacing((4, 5, 6), (0.5, 0.8, 1.2)))
    write_dicom_series(volume, tmp_path / "out")
    with pytest.raises(InputError, match="not an empty folder"):
        write_dicom_series(volume, tmp_path / "out")
    write_dicom_series(volume, tmp_path / "out", overwrite=True)
    affine = np.diag([0.5, 0.8, 1.2, 1.0])
    affine[1, 2] = 0.3
    with pytest.raises(InputError, match="sheared"):
        write_dicom_series(ct_like(Grid((4, 5, 6), affine)), tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pydicom.dataset.FileDataset, "save_as", fail)
    with pytest.raises(OSError, match="disk full"):
        write_dicom_series(ct_like(Grid.from_spacing((4, 5, 6), (1, 1, 1))), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_files_that_look_like_lost_slices() -> None:
    def lost(slices: list[str], others: list[str]) -> list[str]:
        found = [[Found(Path(name), "file 1 of 9", "other", 0) for name in names] for names in (slices, others)]
        return [str(one.path) for one in slice_like(*found)]

    assert lost(["a/IM0001", "a/IM0002"], ["a/IM0003", "b/IM77", "x.txt", "README"]) == ["a/IM0003", "b/IM77"]
    assert lost(["1.2.840.5"], ["1.3.12.99.7", "notes"]) == ["1.3.12.99.7"]
    assert lost([], ["x.dcm", "y.txt"]) == ["x.dcm"]


def test_discovery_sorts_and_names_files_by_their_place(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1").write_bytes(b"x")
    (tmp_path / "z").write_bytes(b"")
    (tmp_path / ".z").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = discover(tmp_path)
    assert [(one.name, one.path.name, one.kind) for one in found] == [
        ("file 1 of 2", "z", "empty"),
        ("file 2 of 2", "1", "other"),
    ]


def test_the_secret_is_made_once_and_only_for_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PNEUMOSCOPE_SALT")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    name = case_name("1.2.3")
    assert name == case_name("1.2.3") != case_name("1.2.4")
    assert "1.2.3" not in name
    assert stat.S_IMODE(salt_path().stat().st_mode) == 0o600
    assert len(salt_path().read_bytes()) == 64
    assert [path.name for path in salt_path().parent.iterdir()] == ["salt"]
    assert has_lasting_salt()
    assert dicom_identity._made() == salt_path().read_bytes()  # another first run finds it there


def test_without_a_place_for_the_secret_names_last_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.delenv("PNEUMOSCOPE_SALT")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(blocked))
    assert not has_lasting_salt()
    assert case_name("1.2.3") == case_name("1.2.3")
    write_dicom_series(ct_like(Grid.from_spacing((4, 5, 6), (1, 1, 1))), tmp_path / "out")
    assert [finding.code for finding in read_dicom(tmp_path / "out").findings] == ["IN-DCM-104"]
    assert os.environ.get("PNEUMOSCOPE_SALT") is None
