"""Names for DICOM cases that do not identify the patient: a keyed hash of the series UID.

The key is a secret of the user, made on first use in ``$XDG_CONFIG_HOME/pneumoscope/salt`` (``~/.config`` when that is
not set), readable by the user alone. With the key, one series always gets one name; without it, nobody can find out
which series a name stands for, even with a list of all UIDs. ``PNEUMOSCOPE_SALT`` overrides the file, so that
machines can share names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pneumoscope.io.dicom.header import TAGS, Header, raw, sequence

SALT_VARIABLE = "PNEUMOSCOPE_SALT"
_NAME_DIGITS = 12


def case_name(series_uid: str) -> str:
    """``ct-`` and 12 hex digits of HMAC-SHA256(secret, UID): a safe file name, the same on every run."""
    digest = hmac.new(_salt(), series_uid.encode(), hashlib.sha256).hexdigest()
    return f"ct-{digest[:_NAME_DIGITS]}"


def uid_key() -> bytes:
    """The key by which UIDs of derived objects are made; reveals nothing about the secret."""
    return hmac.new(_salt(), b"pneumoscope derived UIDs", hashlib.sha256).digest()


def salt_path() -> Path:
    """Where the user's secret lies."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "pneumoscope" / "salt"


def has_lasting_salt() -> bool:
    """Whether names will be the same in the next process; makes the secret when it is missing."""
    _salt()
    return bool(os.environ.get(SALT_VARIABLE)) or _stored() is not None


def _salt() -> bytes:
    given = os.environ.get(SALT_VARIABLE)
    if given:
        return given.encode()
    return _stored() or _made() or _passing()


def _stored() -> bytes | None:
    try:
        return salt_path().read_bytes().strip() or None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None


def _made() -> bytes | None:
    """A new secret, put in place by a link so that two first runs agree on one; None when it cannot be stored."""
    try:
        path = salt_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".salt-{os.getpid()}-{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, secrets.token_hex(32).encode())
            os.fsync(handle)
            os.close(handle)
            path.hardlink_to(temporary)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        return _stored()
    except (OSError, RuntimeError):
        return None


@lru_cache(maxsize=1)
def _passing() -> bytes:
    return secrets.token_bytes(32)


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


def pack_header(header: Header) -> dict[str, Any]:
    """The elements of one header that `source_header` takes, as they are stored, in JSON values."""
    groups = {
        name: [{wrapper: [_stored_in(inner, _IMAGE) for inner in sequence(item, wrapper)] for wrapper in _GROUP_ITEMS}
               for item in sequence(header.tags, name)]
        for name in _GROUPS
    }  # fmt: skip
    return {
        "name": header.name,
        "syntax": header.syntax,
        "little": not header.big_endian,
        "elements": _stored_in(header.tags, [*_IDENTITY, *_UIDS, *_IMAGE]),
        "groups": groups,
    }


def _stored_in(tags: Any, names: Sequence[str]) -> dict[str, str]:
    return {name: data.decode("latin-1") for name in names if (data := raw(tags, name))}


def source_header(packed: Mapping[str, Any], key: bytes | None, series: str) -> Any:
    """The header of one source image as pydicom dataset, fit to be the source of a SEG or SR.

    Args:
        key: hashes UIDs and drops everything personal; None keeps identity as it is stored, as DICOM wants it of
            objects that belong to the same study.
        series: a name that all images of the series share; UIDs that are missing come from it where the series has
            none, and from the file's own name for the image.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import UID, ImplicitVRLittleEndian

    stored = _unpacked(packed["elements"], packed["little"])
    clean = Dataset()
    clean.file_meta = Dataset()  # type: ignore[assignment]
    clean.file_meta.TransferSyntaxUID = UID(packed["syntax"]) if packed["syntax"] else ImplicitVRLittleEndian
    for name in _IMAGE:
        if name in stored:
            setattr(clean, name, stored[name].value)
    for name in _UIDS:
        uid = str(stored.get(name) or "")
        whose = packed["name"] if name == "SOPInstanceUID" else str(stored.get("SeriesInstanceUID") or series)
        missing = hashed_uid(b"missing", whose + name)
        setattr(clean, name, UID(hashed_uid(key, uid) if key else uid or missing))
    for name, items in packed["groups"].items():
        if items:
            setattr(clean, name, [_places_only(item, packed["little"]) for item in items])
    for name in _BLANK:
        setattr(clean, name, "")
    clean.PositionReferenceIndicator = ""
    if key is None:
        for name in _IDENTITY:
            if name in stored and stored[name].value is not None:
                setattr(clean, name, stored[name].value)
    return clean


def _unpacked(elements: Mapping[str, str], little: bool) -> Any:
    """A dataset of stored values; they are converted when they are asked for."""
    from pydicom.charset import convert_encodings
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import Dataset
    from pydicom.tag import Tag

    values = {TAGS[name]: text.encode("latin-1") for name, text in elements.items()}
    raws = {Tag(tag): RawDataElement(Tag(tag), None, len(data), data, 0, True, little) for tag, data in values.items()}
    stored = Dataset(raws)  # type: ignore[arg-type]
    charset = stored.get("SpecificCharacterSet")
    stored.set_original_encoding(True, little, convert_encodings(charset) if charset else None)
    return stored


def _places_only(item: Mapping[str, Any], little: bool) -> Any:
    """A functional group with nothing but place, orientation and pixel size."""
    from pydicom.dataset import Dataset

    kept = Dataset()
    for name, inner in item.items():
        if inner:
            setattr(kept, name, [_unpacked(elements, little) for elements in inner])
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
