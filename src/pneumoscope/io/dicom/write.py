"""A volume as a clean synthetic CT series, one file per slice: for phantoms and tests, never for patients' scans.

Everything is derived from the arguments: no clock, no random numbers, no user or machine names, so that the same
volume gives the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID

from pneumoscope.errors import InputError
from pneumoscope.geometry import LPS_TO_RAS
from pneumoscope.volume import Volume, array_to_native

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

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
            data = _slice(affine, index, len(slices), f"{seed}/{volume.case}", pixels)
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


def _slice(affine: np.ndarray, index: int, count: int, name: str, pixels: np.ndarray) -> FileDataset:
    """One slice as a dataset; `affine` is (column, row, slice) to LPS+ mm, `pixels` (rows, columns) stored values."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_CT_CLASS)
    meta.MediaStorageSOPInstanceUID = UID(_uid(name, "image", index))
    meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    meta.ImplementationClassUID = UID(_uid("pneumoscope", "implementation", 0))
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SpecificCharacterSet = "ISO_IR 192"
    data.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    data.SOPClassUID, data.SOPInstanceUID = _CT_CLASS, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = _uid(name, "study", 0), _uid(name, "series", 0)
    data.FrameOfReferenceUID = _uid(name, "frame", 0)
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


def _uid(*parts: str | int) -> str:
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
