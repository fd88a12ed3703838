from __future__ import annotations

from pathlib import Path

import dicom_making as making
import numpy as np
import pytest

from pneumoscope.errors import ReadError
from pneumoscope.io.dicom.read import read_dicom
from pneumoscope.io.dicom.search import list_images


def test_images_are_listed_by_uid_and_place_whatever_the_file_order(tmp_path: Path) -> None:
    slices = making.make_series(5)
    making.save(slices[::-1], tmp_path / "one")
    index = list_images(tmp_path)
    assert (len(index.images), index.damaged, index.other) == (5, 0, 0)
    by_uid = {image.image_uid: image for image in index.images}
    for data in slices:
        image = by_uid[data.SOPInstanceUID]
        assert image.position_mm == pytest.approx([float(x) for x in data.ImagePositionPatient])
        assert (image.study_uid, image.series_uid) == (data.StudyInstanceUID, data.SeriesInstanceUID)
        assert (image.rows, image.columns) == (making.ROWS, making.COLUMNS)
        assert image.file.is_file()


def test_normals_and_places_agree_with_the_volume(tmp_path: Path) -> None:
    coronal = making.make_series(4, orientation=(1, 0, 0, 0, 0, -1))
    making.save(coronal, tmp_path)
    volume = read_dicom(tmp_path)
    for image in list_images(tmp_path).images:
        assert image.normal == pytest.approx((0, 1, 0))
        place = volume.native.index(np.array(image.position_mm) * (-1, -1, 1))
        assert place[:2] == pytest.approx((0, 0), abs=1e-6)
        assert place[2] == pytest.approx(round(place[2]), abs=1e-6)


def test_a_patient_id_is_told_only_when_it_is_a_public_subject_number(tmp_path: Path) -> None:
    slices = making.make_series(3)
    for data in slices[1:]:
        data.PatientID = "MIDRC-RICORD-1A-660042-000107"
    making.save(slices, tmp_path)
    assert {image.subject for image in list_images(tmp_path).images} == {""}
    told = [image.subject for image in list_images(tmp_path, subjects=r"MIDRC-RICORD-1A-\d+-\d+").images]
    assert told == ["", *["MIDRC-RICORD-1A-660042-000107"] * 2]


def test_what_is_no_image_is_counted(tmp_path: Path) -> None:
    slices = making.make_series(4)
    slices[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    del slices[1].ImagePositionPatient
    del slices[2].ImageOrientationPatient
    making.save(slices, tmp_path)
    (tmp_path / "IM0009.dcm").write_bytes((tmp_path / "IM0003.dcm").read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("x")
    making.save([making.make_enhanced(3)], tmp_path / "enhanced")
    index = list_images(tmp_path)
    assert (len(index.images), index.damaged, index.other) == (3, 1, 2)
    assert [image.position_mm is None for image in index.images] == [True, False, False]
    assert [image.normal is None for image in index.images] == [False, True, False]


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    assert list_images(tmp_path).images == ()
    with pytest.raises(ReadError, match="no such file or folder"):
        list_images(tmp_path / "absent")
