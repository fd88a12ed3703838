"""Every real file there is, through the reader that takes it, against a second implementation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image, ImageOps

from pneumoscope.errors import ReadError
from pneumoscope.geometry import LPS_TO_RAS
from pneumoscope.io.dicom.read import read_dicom
from pneumoscope.io.formats.radiograph import SUFFIXES, read_radiograph
from pneumoscope.io.read import read_mask, read_volume
from pneumoscope.volume import array_to_native

pytestmark = pytest.mark.real


def itk_affine(image: SimpleITK.Image) -> np.ndarray:
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ lps


def test_dicom_series_as_simpleitk_reads_them(real_data: Path) -> None:
    per_folder = Counter(path.parent for path in real_data.rglob("*.dcm"))
    series = [folder for folder, count in per_folder.items() if count > 20]
    assert series
    for folder in series:
        volume = read_volume(folder)
        image = SimpleITK.ReadImage(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
        np.testing.assert_allclose(volume.native.affine, itk_affine(image), atol=1e-4)
        expected = np.maximum(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), -1024)
        np.testing.assert_array_equal(array_to_native(volume.hu, volume.native), expected)


def test_single_slices_as_pydicom_reads_them(real_data: Path) -> None:
    per_folder = Counter(path.parent for path in real_data.rglob("*.dcm"))
    paths = [path for path in real_data.rglob("*.dcm") if per_folder[path.parent] <= 20]
    assert paths
    for path in paths:
        tags = pydicom.dcmread(path)
        if tags.get("Modality") != "CT":
            continue
        hu = tags.pixel_array * float(tags.RescaleSlope) + float(tags.RescaleIntercept)
        padding = tags.get("PixelPaddingValue")
        expected = np.where(tags.pixel_array == padding, -1024, np.maximum(hu, -1024))
        volume = read_dicom(path, min_slices=1)
        np.testing.assert_allclose(array_to_native(volume.hu, volume.native)[:, :, 0].T, expected, atol=1e-3)
        np.testing.assert_allclose(volume.native.spacing_mm[:2], tags.PixelSpacing[::-1], rtol=1e-6)


def test_nifti_files_as_nibabel_reads_them(real_data: Path) -> None:
    paths = [*real_data.rglob("*.nii.gz"), *real_data.rglob("*.nii")]
    assert paths
    for path in paths:
        image = nib.load(path)
        stored = np.asarray(image.dataobj, np.float32)
        if "-msk" in path.name:
            mask = read_mask(path, threshold=127)
            native = mask.grid.reorient(nib.aff2axcodes(image.affine))
            np.testing.assert_array_equal(mask.to_native(native), stored > 127)
            np.testing.assert_allclose(native.affine, image.affine, atol=1e-4)
            continue
        volume = read_volume(path)
        np.testing.assert_allclose(volume.native.affine, image.affine, atol=1e-4)
        np.testing.assert_allclose(array_to_native(volume.hu, volume.native), np.maximum(stored, -1024), atol=1e-3)


@pytest.mark.parametrize("folder", ["xray", "ct-slices"])
def test_pictures_as_pillow_reads_them(real_data: Path, folder: str) -> None:
    """Grey levels by Pillow's own weights, where it rounds to whole levels; only empty or tiny ones are refused."""
    paths = [path for path in (real_data / folder).rglob("*") if path.suffix.lower() in SUFFIXES]
    assert len(paths) > 100
    refused: Counter[str | None] = Counter()
    for path in paths:
        with Image.open(path) as picture:
            grey = np.asarray(ImageOps.exif_transpose(picture).convert("L"), np.float32) / 255
            plain = picture.mode in ("L", "RGB")
        try:
            read = read_radiograph(path)
        except ReadError as error:
            empty, tiny = np.ptp(grey) < 2 / 255, min(grey.shape) < 64
            refused[
                error.code if (error.code, True) in (("IN-XRY-086", empty), ("IN-XRY-083", tiny)) else str(error)
            ] += 1
            continue
        assert read.pixels.shape == grey.shape
        if plain:
            np.testing.assert_allclose(read.pixels, grey, atol=1.01 / 255)
    assert set(refused) <= {"IN-XRY-083", "IN-XRY-086"}
    assert refused.total() < len(paths) / 2
