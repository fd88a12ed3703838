"""Masks as other programs' own libraries write them, against the arrays they were made of."""

import sys
from importlib.metadata import version
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from highdicom.seg import SegmentationTypeValues
from pydicom.sr.codedict import codes

from pneumoscope.cases.options import QuantifyOptions
from pneumoscope.cases.quantify import read_given, with_masks
from pneumoscope.errors import ReadError
from pneumoscope.io.read import read_volume
from pneumoscope.io.scans import find_scans
from pneumoscope.severity.regions import LOBES, lobe_lookup
from pneumoscope.volume import Mask, array_to_native

sys.path.append(str(Path(__file__).parents[1] / "io"))
from dicom_making import make_series, save
from test_io_dicom_results import ORIENTATIONS

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
SHAPE = (16, 12, 10)  # rows, columns, slices of the series


def given(folder, scan, part, source, threshold=None):
    """The mask that an option finds for the series, as a call on its folder does."""
    (ref,) = with_masks(find_scans(folder), QuantifyOptions(**{part: source}))
    return getattr(read_given(scan, ref, threshold), part)


@pytest.fixture(params=["upright", "oblique", "mirrored"])
def series(tmp_path, request):
    """A DICOM series and its datasets, from the first slice to the last as they lie in space."""
    slices = make_series(orientation=ORIENTATIONS[request.param])
    for one in slices:  # what the libraries copy from the images
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20200101", "120000", "1", "2"
        one.ReferringPhysicianName, one.PatientSex = "", "O"
    return save(slices, tmp_path / "series"), slices


def regions():
    """Two regions (rows, columns, slices) with a hole in one; neither touches the first or last slices."""
    right, left = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    right[3:12, 1:5, 2:8], left[4:13, 7:11, 3:9] = True, True
    right[6:9, 2:4, 4:6] = False
    return right, left


def expected(scan, frames):
    """The (rows, columns, slices) array on the scan's grid, by way of its own series."""
    return Mask.from_native(frames.transpose(1, 0, 2).astype(np.uint8), scan.native, {1: "a", 2: "b"}).labels


def segmentation(slices, array, kind, names):
    described = [
        hd.seg.SegmentDescription(
            number, name, codes.SCT.Organ, codes.SCT.Lung, hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        ) for number, name in enumerate(names, start=1)
    ]  # fmt: skip
    return hd.seg.Segmentation(
        slices, array, kind, described, hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "1",
        omit_empty_frames=True,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segmentations_of_highdicom(tmp_path, series, kind):
    folder, slices = series
    right, left = regions()
    labels = (right + 2 * left).transpose(2, 0, 1).astype(np.uint8)
    seg = segmentation(slices, labels, SegmentationTypeValues[kind], ["Right Lung", "Left Lung"])
    (tmp_path / "masks").mkdir()
    seg.save_as(tmp_path / "masks" / "any_name.dcm")
    scan = read_volume(folder, intensity="hu")
    found = given(series[0], scan, "lungs", tmp_path / "masks" / "any_name.dcm")
    assert np.array_equal(found.labels, expected(scan, right + 2 * left))
    print(f"highdicom {version('highdicom')} {kind}: 0 of {found.labels.size} voxels differ")


def test_segmentations_of_fractions_are_cut_at_the_threshold(tmp_path, series):
    folder, slices = series
    values = np.random.default_rng(0).uniform(0, 1, (SHAPE[2], *SHAPE[:2])).astype(np.float32)
    values[:2] = 0  # frames without a value are left out of the file
    seg = segmentation(slices, values[..., None], SegmentationTypeValues.FRACTIONAL, ["infiltrate"])
    seg.save_as(tmp_path / "p.dcm")
    scan = read_volume(folder, intensity="hu")
    with pytest.raises(ReadError, match=r"holds fractions.*--threshold"):
        given(series[0], scan, "infiltrate", tmp_path / "p.dcm")
    stored = np.rint(values * 255) / 255
    for threshold in (0.25, 0.5):
        found = given(series[0], scan, "infiltrate", tmp_path / "p.dcm", threshold).labels
        assert np.array_equal(found, expected(scan, (stored > threshold).transpose(1, 2, 0)))


def test_structure_sets_of_rt_utils(tmp_path, series):
    rt_utils = pytest.importorskip("rt_utils")
    for one in series[1]:  # rt-utils exchanges the two spacings of a pixel
        one.PixelSpacing = [0.7, 0.7]
    folder = save(series[1], tmp_path / "square")
    right, left = regions()
    made = rt_utils.RTStructBuilder.create_new(str(folder))
    right |= (
        right[:, :, 2:3] & (np.arange(SHAPE[2]) > 1) & (np.arange(SHAPE[2]) < 8)
    )  # it would cut a channel to a hole
    left[6:9, 9:11] = False
    for name, region in (("Lung_R", right), ("Lung_L", left)):
        made.add_roi(mask=region, name=name)
    (tmp_path / "masks").mkdir()
    made.save(str(tmp_path / "masks" / "rs"))
    scan = read_volume(folder, intensity="hu")
    found = given(folder, scan, "lungs", tmp_path / "masks")
    wanted = expected(scan, right + 2 * left)
    differ = np.count_nonzero(found.labels != wanted)
    print(f"rt-utils {version('rt-utils')}: {differ} of {wanted.size} voxels differ")
    assert differ == 0


def test_cropped_segments_of_slicer_by_pynrrd(tmp_path, series):
    nrrd = pytest.importorskip("nrrd")
    scan = read_volume(series[0], intensity="hu")
    right, left = regions()
    frames = (right + 2 * left).transpose(1, 0, 2).astype(np.uint8)  # the file's own order: columns, rows, slices
    start, stop = [int(a.min()) for a in frames.nonzero()], [int(a.max()) + 1 for a in frames.nonzero()]
    crop = frames[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    lps = np.diag([-1, -1, 1, 1]) @ scan.native.affine
    header = {
        "type": "unsigned char", "dimension": 3, "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T, "space origin": (lps @ [*start, 1])[:3],
        "kinds": ["domain"] * 3, "encoding": "gzip",
        "Segmentation_ReferenceImageExtentOffset": " ".join(map(str, start)),
        "Segment0_ID": "Segment_1", "Segment0_Name": "right lung", "Segment0_LabelValue": "1", "Segment0_Layer": "0",
        "Segment1_ID": "Segment_2", "Segment1_Name": "left lung", "Segment1_LabelValue": "2", "Segment1_Layer": "0",
    }  # fmt: skip
    (tmp_path / "masks").mkdir()
    file = tmp_path / "masks" / f"{scan.case}.seg.nrrd"
    nrrd.write(str(file), crop, header)
    assert np.array_equal(given(series[0], scan, "lungs", tmp_path / "masks").labels, expected(scan, right + 2 * left))
    header["space origin"] = header["space origin"] + lps[:3, 0] / 2
    nrrd.write(str(file), crop, header)
    with pytest.raises(ReadError, match=r"the mask is .* from .* mm, the scan .* from .* mm"):
        given(series[0], scan, "lungs", tmp_path / "masks")
    print(f"pynrrd {version('pynrrd')}: a crop of {crop.size} of {frames.size} voxels is pasted, half a voxel refused")


def lobes_of(scan):
    """Five lobes (i, j, k) RAS+ in the order of `LOBES`, of two voxels each along k."""
    labels = np.zeros(scan.grid.shape, np.uint8)
    half = labels.shape[0] // 2
    for number, (side, k) in enumerate([(1, 6), (1, 4), (1, 2), (0, 6), (0, 2)], start=1):
        labels[half if side else 0 : None if side else half, 2:8, k : k + 2] = number
    return labels


@pytest.mark.parametrize("many", [True, False], ids=["one file", "a file per structure"])
def test_masks_of_totalsegmentator(tmp_path, series, many):
    pytest.importorskip("totalsegmentator")
    from totalsegmentator.map_to_binary import class_map
    from totalsegmentator.nifti_ext_header import save_multilabel_nifti

    scan = read_volume(series[0], intensity="hu")
    lobes, named = lobes_of(scan), {v: k for k, v in class_map["total"].items()}
    labels = np.zeros_like(lobes)
    for number, lobe in enumerate(LOBES, start=1):
        side, level, _ = lobe.split("_")
        labels[lobes == number] = named[f"lung_{level}_lobe_{side}"]
    labels[0, 0, :] = named["heart"]
    folder = tmp_path / "out"
    folder.mkdir()
    if many:
        save_multilabel_nifti(
            nib.Nifti1Image(labels, scan.grid.affine), folder / f"{scan.case}.nii.gz", class_map["total"]
        )
    else:
        (folder / scan.case).mkdir()
        for number, name in class_map["total"].items():
            image = nib.Nifti1Image((labels == number).astype(np.uint8), scan.grid.affine)
            nib.save(image, folder / scan.case / f"{name}.nii.gz")
    found = given(series[0], scan, "lobes", folder)
    assert np.array_equal(lobe_lookup(found)[found.labels], lobes)
    for threshold in (None, 0.5):
        sides = given(series[0], scan, "lungs", folder, threshold).labels
        assert np.array_equal(sides, np.where(lobes > 3, 2, (lobes > 0) * 1))
    print(
        f"TotalSegmentator {version('TotalSegmentator')}: lobes and lungs equal, {'one file' if many else 'a folder'}"
    )


@pytest.mark.parametrize("task", ["lung_nodules", "covid"])
def test_lesions_of_totalsegmentator(tmp_path, series, task):
    pytest.importorskip("totalsegmentator")
    from totalsegmentator.map_to_binary import class_map
    from totalsegmentator.nifti_ext_header import save_multilabel_nifti

    scan = read_volume(series[0], intensity="hu")
    lobes, names = lobes_of(scan), class_map[task]
    lesion = next(n for n, name in names.items() if "nodules" in name or "covid" in name)
    labels = np.where(lobes == 2, lesion, (lobes > 0) * min(names)).astype(np.uint8) if len(names) > 1 else (
        (lobes == 2) * np.uint8(lesion)
    )  # fmt: skip
    save_multilabel_nifti(nib.Nifti1Image(labels, scan.grid.affine), tmp_path / "m.nii.gz", names)
    assert np.array_equal(given(series[0], scan, "infiltrate", tmp_path / "m.nii.gz").labels, lobes == 2)
    if len(names) > 1:  # 1 = lung and 2 = lung_nodules are not right and left
        assert set(np.unique(given(series[0], scan, "lungs", tmp_path / "m.nii.gz").labels)) == {0, 1}


@pytest.mark.parametrize("classes", [2, 5])
def test_masks_that_lungmask_writes(tmp_path, series, classes):
    """lungmask writes one file through SimpleITK on the scan's grid: right = 1 and left = 2, or five lobes."""
    scan = read_volume(series[0], intensity="hu")
    lobes = lobes_of(scan)
    lookup = [0, 3, 4, 5, 1, 2] if classes == 5 else [0, 1, 1, 1, 2, 2]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series[0])))
    image = reader.Execute()
    labels = array_to_native(np.take(lookup, lobes).astype(np.uint8), scan.native).transpose(2, 1, 0)
    made = sitk.GetImageFromArray(np.ascontiguousarray(labels))
    made.CopyInformation(image)
    sitk.WriteImage(made, str(tmp_path / f"{scan.case}.nii.gz"))
    if classes == 5:
        found = given(series[0], scan, "lobes", tmp_path / f"{scan.case}.nii.gz")
        assert np.array_equal(lobe_lookup(found)[found.labels], lobes)
    sides = given(series[0], scan, "lungs", tmp_path / f"{scan.case}.nii.gz").labels
    assert np.array_equal(sides, np.where(lobes > 3, 2, (lobes > 0) * 1))
