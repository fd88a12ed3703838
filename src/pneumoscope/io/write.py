"""Results out: masks, volumes and probability maps on exactly the scan's own grid, the format chosen by suffix; and as
images of other libraries.

A synthetic volume is written as a clean CT series, too (`write_dicom_series`), for phantoms and tests, never for
patients' scans. Everything in it is derived from the arguments: no clock, no random numbers, no user or machine names.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import LPS_TO_RAS, Grid
from pneumoscope.io.formats.nifti import FAST_LEVEL, LABEL_LEVEL, save_nifti
from pneumoscope.io.formats.nrrd_metaimage import save_metaimage, save_nrrd
from pneumoscope.io.kinds import suffix_of
from pneumoscope.volume import RAS, Mask, Volume, array_to_native

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset


WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")


def write_mask(mask: Mask, path: str | Path, native: Grid) -> None:
    """Write a mask on the scan's own grid with its label names inside.

    Args:
        mask: labels, (i, j, k) RAS+; an empty one is written as all zeros.
        path: ends in .nii.gz, .nii, .nrrd or .mha; replaced when it exists, whole or not at all.
        native: the scan's `Volume.native`; must be the mask's place up to permuted and flipped axes.

    Raises:
        GeometryError: `native` is another place.
        InputError: another suffix.
    """
    _save(mask.to_native(native), native, path, labels=mask.names, is_mask=True)


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write a volume in whole HU (int16, values beyond it clipped) on its native grid; suffixes as `write_mask`."""
    hu: NDArray[np.int16] = np.empty(volume.grid.shape, np.int16)
    for k in range(volume.grid.shape[2]):  # slice by slice: no second float copy of the whole
        hu[:, :, k] = np.clip(np.rint(volume.hu[:, :, k]), -32768, 32767)
    _save(array_to_native(hu, volume.native), volume.native, path)


def write_image(array: NDArray[np.generic], native: Grid, path: str | Path, *, scaled: bool = False) -> None:
    """Write any finite array, e.g. a probability map, on the scan's own grid.

    Args:
        array: (i, j, k) RAS+, numbers; float64 and half are stored as float32, booleans as uint8.
        native: the scan's `Volume.native`.
        scaled: the array holds bytes of 255ths, stored as they are with slope 1/255 (NIfTI only).

    Raises:
        GeometryError: the shape does not fit, values are not finite, or no bytes with `scaled`.
        InputError: another suffix.
    """
    if array.shape != native.reorient(RAS).shape:
        raise GeometryError(f"the image has shape {array.shape}, its grid {native.reorient(RAS).shape}", path=path)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise GeometryError("the image holds NaN or infinite values; replace them before writing", path=path)
    if scaled:
        if suffix_of(path) not in (".nii", ".nii.gz"):
            raise InputError(f"scaled images are written as .nii or .nii.gz, got {suffix_of(path)!r}", path=path)
        if array.dtype != np.uint8:
            raise GeometryError(f"expected bytes of 255ths, got {array.dtype}", path=path)
        _save(array_to_native(array, native), native, path, slope=1 / 255)
        return
    if array.dtype.kind in "fb":
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.uint8, copy=False)
    _save(array_to_native(array, native), native, path)


def _save(
    array: NDArray[np.generic],
    native: Grid,
    path: str | Path,
    *,
    labels: Mapping[int, str] | None = None,
    slope: float = 1.0,
    is_mask: bool = False,
) -> None:
    final, suffix = Path(path), suffix_of(path)
    if suffix in (".nii", ".nii.gz"):
        level = LABEL_LEVEL if is_mask else FAST_LEVEL
        save_nifti(array, native, final, labels=labels, slope=slope, level=level)
    elif suffix == ".nrrd":
        save_nrrd(array, native, final, labels=labels)
    elif suffix == ".mha":
        save_metaimage(array, native, final, labels=labels)
    else:
        raise InputError(f"ends in {suffix!r}, expected one of {', '.join(WRITABLE)}", path=final)


def stored_voxels(image: Volume | Mask) -> tuple[NDArray[Any], Grid]:
    """Voxels in the order of the scan's file, and their grid."""
    native = image.native or image.grid
    return array_to_native(image.voxels, native), native


def save(image: Volume | Mask, path: str | Path) -> None:
    """Write an image, see `pneumoscope.io.write`."""
    if isinstance(image, Volume):
        write_volume(image, path)
    else:
        write_mask(image, path, image.native or image.grid)


def to_nibabel(image: Volume | Mask) -> Any:
    """See `Voxels.to_nibabel`."""
    import nibabel as nib

    array, grid = stored_voxels(image)
    made = nib.Nifti1Image(array, grid.affine)
    made.header.set_xyzt_units("mm")
    return made


def to_sitk(image: Volume | Mask) -> Any:
    """See `Voxels.to_sitk`."""
    return sitk_image(*stored_voxels(image))


def sitk_image(array: NDArray[Any], grid: Grid) -> Any:
    """An ITK image, in LPS+, of an array (i, j, k) on its grid.

    Raises:
        GeometryError: the axes are not perpendicular.
    """
    import SimpleITK as sitk  # noqa: N813

    if not grid.is_orthogonal:
        raise GeometryError(f"the axes of {grid} are not perpendicular, which ITK does not know; resample it first")
    affine, steps = LPS_TO_RAS @ grid.affine, np.asarray(grid.spacing_mm)
    made = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    made.SetSpacing(steps.tolist())
    made.SetOrigin(affine[:3, 3].tolist())
    made.SetDirection((affine[:3, :3] / steps).ravel().tolist())
    return made


def to_torch(image: Volume | Mask) -> Any:
    """See `Voxels.to_torch`; called by its name, because nothing at this height of the package needs PyTorch."""
    return _installed("torch", "PyTorch").from_numpy(np.ascontiguousarray(image.voxels)[None].copy())


def to_monai(image: Volume | Mask) -> Any:
    """See `Voxels.to_monai`."""
    return _installed("monai.data", "MONAI").MetaTensor(image.to_torch(), affine=np.array(image.grid.affine))


def to_torchio(image: Volume | Mask) -> Any:
    """See `Voxels.to_torchio`."""
    torchio = _installed("torchio", "TorchIO")
    kind = torchio.ScalarImage if isinstance(image, Volume) else torchio.LabelMap
    return kind(tensor=image.to_torch(), affine=np.array(image.grid.affine))


def _installed(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise InputError(f"{name} is not installed; run `pip install {name.lower()}`") from None


_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
INTERCEPT_HU = -1024


def write_dicom_series(
    volume: Volume,
    folder: str | Path,
    *,
    seed: str | int = 0,
    patient: str = "phantom",
    kernel: str = "SYNTHETIC",
    overwrite: bool = False,
) -> list[Path]:
    """Write axial slices ``IM0001.dcm``, ... into a folder that appears only when all are written.

    Rows run to the patient's left, columns to the back, slices to the head, for an upright volume; an oblique one
    keeps its angles. Values are rounded to whole HU and kept within [-1024, 31743].

    Args:
        volume: any orthogonal volume.
        folder: must not exist, or be empty, unless `overwrite` (which replaces the whole folder).
        seed: with the case name, decides the UIDs.
        patient: an invented identifier, written as name and id.
        kernel: written as it is.
        overwrite: replace what is there.

    Raises:
        InputError: the folder is in use, or the grid is sheared (slices cannot be written upright).
    """
    final = Path(folder)
    if final.exists() and not (final.is_dir() and not any(final.iterdir())) and not overwrite:
        raise InputError("is not an empty folder; use another name or overwrite", path=final)
    if not volume.grid.is_orthogonal:
        raise InputError("a sheared grid cannot be written as upright slices; resample it first", path=final)
    native = volume.grid.reorient(("L", "P", "S"))
    stored = np.clip(np.rint(array_to_native(volume.hu, native)), -1024, 32767 + INTERCEPT_HU) - INTERCEPT_HU
    slices = np.ascontiguousarray(stored.astype("<i2").transpose(2, 1, 0))  # (k, rows, columns)
    affine = LPS_TO_RAS @ native.affine
    work = final.parent / f".tmp-{final.name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for index, pixels in enumerate(slices):
            data = _dicom_slice(affine, index, len(slices), f"{seed}/{volume.case}", pixels)
            data.PatientName = data.PatientID = patient
            data.ConvolutionKernel = kernel
            data.BodyPartExamined = "CHEST"
            data.save_as(work / f"IM{index + 1:04d}.dcm", enforce_file_format=True)
        if final.exists():
            shutil.rmtree(final)
        work.replace(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return sorted(final.glob("IM*.dcm"))


def _dicom_slice(affine: np.ndarray, index: int, count: int, name: str, pixels: np.ndarray) -> FileDataset:
    """One slice as a dataset; `affine` is (column, row, slice) to LPS+ mm, `pixels` (rows, columns) stored values."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_CT_CLASS)
    meta.MediaStorageSOPInstanceUID = UID(_made_uid(name, "image", index))
    meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    meta.ImplementationClassUID = UID(_made_uid("pneumoscope", "implementation", 0))
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SpecificCharacterSet = "ISO_IR 192"
    data.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    data.SOPClassUID, data.SOPInstanceUID = _CT_CLASS, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = _made_uid(name, "study", 0), _made_uid(name, "series", 0)
    data.FrameOfReferenceUID = _made_uid(name, "frame", 0)
    for empty in (
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID", "PatientBirthDate",
        "PatientSex", "PositionReferenceIndicator",
    ):  # fmt: skip
        setattr(data, empty, "")
    data.Modality, data.Manufacturer = "CT", "pneumoscope"
    data.PatientIdentityRemoved, data.DeidentificationMethod = "YES", "synthetic"
    data.PatientPosition, data.KVP = "HFS", "120"
    data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 1, 1, count - index
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :2] / spacing[:2]
    data.ImagePositionPatient = [_decimal(x) for x in affine[:3, 3] + index * affine[:3, 2]]
    data.ImageOrientationPatient = [_decimal(x) for x in directions.T.ravel()]
    data.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    data.SliceThickness = _decimal(spacing[2])
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = str(INTERCEPT_HU), "1", "HU"
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    return data


def _made_uid(*parts: str | int) -> str:
    """A UID under 2.25 (made from a UUID's 128 bits) that depends on the parts only."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _decimal(value: float) -> str:
    """At most 16 characters, as a decimal string allows."""
    for digits in range(12, 3, -1):
        text = f"{float(value):.{digits}g}"
        if len(text) <= 16:
            return "0" if float(text) == 0 else text
    return f"{float(value):.4g}"
