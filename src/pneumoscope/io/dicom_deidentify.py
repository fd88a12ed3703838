"""Source headers for derived DICOM objects: as they are, or without anything that says who the patient is.

PS3.15, annex E, lists what the Basic Application Level Confidentiality Profile removes. Here it is done the other way
round: a header keeps the elements that place the image in space, and nothing else; so an element that the list
does not know, or that a maker put elsewhere, cannot slip through. UIDs become keyed hashes (option U of the profile:
the same key gives the same new UID, so that objects still refer to each other); dates, times, names, numbers and
free text are blank. Runs in the reading process of `pneumoscope.io.dicom_worker`.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from pneumoscope.io.dicom_header import Header

METHOD = "pneumoscope: PS3.15 E.1 by keeping only what places the image in space; UIDs are keyed hashes"
PROFILE = ("113100", "DCM", "Basic Application Confidentiality Profile")
BLANK_DATE, BLANK_TIME = "19000101", "000000"
"""Stand in where DICOM wants a date and time of creation (option D of the profile)."""

_IDENTITY = (
    "SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyID",
)  # fmt: skip
_BLANK = (
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex", "StudyID",
)  # fmt: skip
"""Must be there in any image, and may be empty (type 2)."""

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_IMAGE = (
    "SOPClassUID", "Modality", "ImageType", "InstanceNumber", "SamplesPerPixel", "PhotometricInterpretation",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
)  # fmt: skip
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_GROUP_ITEMS = ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence")


def source_header(header: Header, key: bytes | None) -> Any:
    """The header of one source image as pydicom data set, fit to be the source of a SEG or SR.

    Args:
        header: the file.
        key: hashes UIDs and drops everything personal; None keeps identity as it is stored, as DICOM wants it of
            objects that belong to the same study.
    """
    from pydicom import dcmread
    from pydicom.dataset import Dataset
    from pydicom.uid import UID, ImplicitVRLittleEndian

    wanted = [*_IDENTITY, *_UIDS, *_IMAGE, *_GROUPS, "PositionReferenceIndicator"]
    stored = dcmread(header.found.path, stop_before_pixels=True, force=True, specific_tags=list(wanted))
    clean = Dataset()
    clean.file_meta = Dataset()  # type: ignore[assignment]
    clean.file_meta.TransferSyntaxUID = UID(header.syntax) if header.syntax else ImplicitVRLittleEndian
    for name in _IMAGE:
        if name in stored:
            setattr(clean, name, stored[name].value)
    for name in _UIDS:
        uid = str(stored.get(name) or "")
        setattr(clean, name, UID(hashed_uid(key, uid) if key else uid or hashed_uid(b"missing", header.name + name)))
    for name in _GROUPS:
        if name in stored:
            setattr(clean, name, [_places_only(item) for item in stored[name].value])
    for name in _BLANK:
        setattr(clean, name, "")
    clean.PositionReferenceIndicator = ""
    if key is None:
        for name in _IDENTITY:
            if name in stored and stored[name].value is not None:
                setattr(clean, name, stored[name].value)
    return clean


def _places_only(item: Any) -> Any:
    """A functional group with nothing but place, orientation and pixel size."""
    from pydicom.dataset import Dataset

    kept = Dataset()
    for name in _GROUP_ITEMS:
        if name in item:
            setattr(kept, name, item[name].value)
    return kept


def hashed_uid(key: bytes, uid: str) -> str:
    """A UID under 2.25 that depends on `uid` and cannot be traced back to it without the key."""
    digest = hmac.new(key, b"uid/" + uid.encode("utf-8", "replace"), hashlib.sha256).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def mark_deidentified(data: Any, case: str) -> None:
    """Say in a derived object that its patient was taken out, and blank what its maker added about the moment.

    Args:
        data: the object; changed in place.
        case: stands for the patient, a keyed hash.
    """
    from pydicom.dataset import Dataset

    data.PatientID = data.PatientName = case
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = METHOD[:64]
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = PROFILE
    data.DeidentificationMethodCodeSequence = [code]
    data.LongitudinalTemporalInformationModified = "REMOVED"
    for item in data.iterall():
        if item.VR == "DA" and item.value:
            item.value = BLANK_DATE
        elif item.VR == "TM" and item.value:
            item.value = BLANK_TIME
        elif item.VR == "DT" and item.value:
            item.value = BLANK_DATE + BLANK_TIME
    for name in ("StudyDate", "StudyTime"):
        setattr(data, name, "")
