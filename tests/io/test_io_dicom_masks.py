"""SEG and RTSTRUCT as masks: the voxels they were made of, on upright, tipped and mirrored series."""

from copy import deepcopy

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_making import SERIES_UID, make_series
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset, FileMetaDataset
from skimage import measure
from test_io_dicom_results import ORIENTATIONS, written

from pneumoscope.errors import ReadError
from pneumoscope.io.masks import place_mask, read_dicom_mask, series_of_mask
from pneumoscope.volume import array_to_native


@pytest.mark.parametrize("orientation", ["upright", "coronal", "tipped"])
def test_our_own_segmentations_come_back(tmp_path, orientation):
    volume, (lungs, spots), files = written(tmp_path, make_series(orientation=ORIENTATIONS[orientation]))
    for file, mask in zip(files[:2], (lungs, spots), strict=True):
        found = place_mask(read_dicom_mask(file, volume.grid), volume.grid)
        for name in mask.names.values():
            assert np.array_equal(found.of(name), mask.of(name))
        assert SERIES_UID in series_of_mask(file)
    with pytest.raises(ReadError, match="modality SR, expected SEG or RTSTRUCT"):
        read_dicom_mask(files[2], volume.grid)
    assert series_of_mask(files[2]) == set()


def structure_set(path, volume, regions):
    """An RTSTRUCT whose contours run halfway around the voxels of each region, slice by slice."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    made.SeriesInstanceUID, made.Modality = "1.2.3", "RTSTRUCT"
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    for number, (name, region) in enumerate(regions.items(), start=4):
        roi, contours = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        contours.ReferencedROINumber, contours.ContourSequence = number, []
        for k in range(region.shape[2]):
            for line in measure.find_contours(np.pad(region[:, :, k], 1).astype(float), 0.5):
                item = Dataset()
                world = volume.grid.world(np.column_stack((line[:-1] - 1, np.full(len(line) - 1, k)))) * [-1, -1, 1]
                item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(world)
                item.ContourData = [f"{value:.5f}" for value in world.ravel()]
                contours.ContourSequence.append(item)
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(contours)
    made.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("orientation", ["mirrored", "oblique"])
def test_contours_are_filled_with_their_holes(tmp_path, orientation):
    volume, (lungs, _), _ = written(tmp_path, make_series(orientation=ORIENTATIONS[orientation]))
    right, left = lungs.of("right lung").copy(), lungs.of("left lung")
    right[3, 4, 2:4] = False
    file = structure_set(tmp_path / "rs.dcm", volume, {"Lung_R": right, "Lung_L": left})
    found = read_dicom_mask(file, volume.grid)
    assert found.names == {1: "Lung_R", 2: "Lung_L"}
    assert np.array_equal(found.labels, right + 2 * left)


def test_voxels_on_a_contour_belong_to_what_is_around_them(tmp_path):
    """Programs that trace masks draw through the middle of the outermost voxels, around holes as well."""
    volume, _, _ = written(tmp_path, make_series())
    region = np.zeros(volume.grid.shape, bool)
    region[2:7, 3:9, 4] = True
    file = structure_set(tmp_path / "rs.dcm", volume, {"Lung": region})
    made = pydicom.dcmread(file)
    contours = made.ROIContourSequence[0].ContourSequence
    corners = {"hole": [(3, 4), (5, 4), (5, 7), (3, 7)], "region": [(2, 3), (6, 3), (6, 8), (2, 8)]}
    contours[:] = [deepcopy(contours[0]) for _ in corners]
    for item, points in zip(contours, corners.values(), strict=True):
        world = volume.grid.world(np.column_stack((np.array(points, float), np.full(4, 4)))) * [-1, -1, 1]
        item.NumberOfContourPoints, item.ContourData = 4, [f"{value:.5f}" for value in world.ravel()]
    made.save_as(file, enforce_file_format=True)
    region[4, 5:7, 4] = False
    assert np.array_equal(read_dicom_mask(file, volume.grid).any, region)


def test_segments_of_fractions_need_a_threshold(tmp_path):
    volume, _, files = written(tmp_path, make_series())
    images = [pydicom.dcmread(file) for file in sorted((tmp_path / "series").iterdir())]
    for image in images:
        image.PatientSex, image.AccessionNumber, image.StudyID, image.StudyDate, image.StudyTime = "O", "1", "2", "", ""
    first = pydicom.dcmread(files[0]).SegmentSequence[0]
    values = np.random.default_rng(0).uniform(0, 1, (len(images), images[0].Rows, images[0].Columns, 1))
    described = highdicom.seg.SegmentDescription(
        1, "infiltrate", CodedConcept.from_dataset(first.SegmentedPropertyCategoryCodeSequence[0]),
        CodedConcept.from_dataset(first.SegmentedPropertyTypeCodeSequence[0]), "MANUAL",
    )  # fmt: skip
    seg = highdicom.seg.Segmentation(
        images, values.astype(np.float32), "FRACTIONAL", [described], highdicom.UID(), 1, highdicom.UID(), 1, "a", "b",
        "1", "2",
    )  # fmt: skip
    seg.save_as(tmp_path / "p.dcm")
    with pytest.raises(ReadError, match="holds fractions, expected whole segments; cut it with --threshold"):
        read_dicom_mask(tmp_path / "p.dcm", volume.grid)
    found = place_mask(read_dicom_mask(tmp_path / "p.dcm", volume.grid, 0.3), volume.grid)
    wanted = np.rint(values[..., 0] * 255) / 255 > 0.3  # frames, rows, columns
    assert np.array_equal(array_to_native(found.labels, volume.native), wanted.transpose(2, 1, 0))


def test_contours_of_another_scan_are_refused(tmp_path):
    volume, (lungs, _), _ = written(tmp_path, make_series())
    file = structure_set(tmp_path / "rs.dcm", volume, {"Lung": lungs.any})
    moved = volume.grid.affine.copy()
    moved[:3, 3] += moved[:3, 2] * 0.5
    with pytest.raises(ReadError, match="between or beside the slices of the scan"):
        read_dicom_mask(file, type(volume.grid)(volume.grid.shape, moved))
    (tmp_path / "broken.dcm").write_bytes(b"no dicom")
    with pytest.raises(ReadError, match="cannot be read as a DICOM mask"):
        read_dicom_mask(tmp_path / "broken.dcm", volume.grid)
