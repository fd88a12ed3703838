"""What a file is, by its first bytes, not by its name."""

from __future__ import annotations

import hashlib
import re
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Literal

from pneumoscope.errors import ReadError
from pneumoscope.io.stored import GZIP_MAGIC, Place, open_regular

Kind = Literal["nifti", "nrrd", "metaimage", "dicom", "zip"]

IMAGE_SUFFIXES: dict[str, Kind] = {
    ".nii": "nifti", ".nii.gz": "nifti", ".nrrd": "nrrd", ".mha": "metaimage", ".mhd": "metaimage",
}  # fmt: skip
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
NO_PICTURES = (
    "a picture has no Hounsfield units and no third dimension: for chest X-rays use `pneumoscope xray predict`, for CT "
    "give the DICOM or NIfTI scan that the picture was made from"
)
READABLE = ".nii, .nii.gz, .nrrd, .mha, .mhd, DICOM or a zip of one"

MAX_CASE_BYTES = 120

RESERVED = re.compile(
    r"(con|prn|aux|nul|(com|lpt)[0-9\u00b9\u00b2\u00b3])(\..*)?|private|parts?|logs|points|mesh|stages|splits|figures|data|cache|.*\.(json|csv|html|lock|log|tmp)",
    re.IGNORECASE,
)
"""Names of Windows devices, and what our own files and folders beside the case folders are called."""


def suffix_of(path: str | Path) -> str:
    """The suffix in lower case, with ``.nii.gz`` as one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def is_scan_name(path: str | Path) -> bool:
    """Whether a name ends like an image or a zip that may hold one."""
    return suffix_of(path) in IMAGE_SUFFIXES or suffix_of(path) == ".zip"


def case_name(path: str | Path) -> str:
    """A case's name from a file or folder name: its stem, safe as the name of a folder on any system.

    Letters, marks and digits of every script stay, in the composed form (NFC), and single blanks become ``_``. Whatever
    else must change (separators, control characters, a leading dot, names of Windows devices and of our own files, more
    than `MAX_CASE_BYTES`) leaves a short hash of the stem behind the name, so that two names stay two, whatever other
    files there are.
    """
    name = Path(path).name
    while suffix_of(name) in IMAGE_SUFFIXES or suffix_of(name) in (".zip", ".gz", ".dcm"):
        name = name[: -len(suffix_of(name))]
    stem = re.sub(r"(?<=\S) (?=\S)", "_", unicodedata.normalize("NFC", name))
    safe = "".join(c if c in "._-+=@,()" or unicodedata.category(c)[0] in "LMN" else "\0" for c in stem)
    safe = re.sub(r"_*\0[_\0]*", "_", safe).lstrip(".-+=@").rstrip(".")
    if RESERVED.fullmatch(safe):
        safe = safe.replace(".", "_")
    elif safe == stem and len(safe.encode()) <= MAX_CASE_BYTES:
        return safe
    return f"{shortened(safe, MAX_CASE_BYTES - 7).strip('._-') or 'scan'}-{short_hash(stem)}"


def shortened(text: str, most_bytes: int) -> str:
    """The beginning of a text in at most so many bytes of UTF-8; no character is cut apart."""
    return text.encode()[:most_bytes].decode("utf-8", "ignore")


def short_hash(text: str) -> str:
    """Six hex digits that tell names apart; the same on every machine."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]


def kind_of(path: str | Path) -> Kind | None:
    """The kind of a regular file, None when it is none of ours.

    Raises:
        ReadError: the file cannot be opened, is not a regular file, or is empty (row 53).
    """
    place = Place(Path(path), "IN-NII")
    with open_regular(place) as stream:
        head = stream.read(4096)
    if not head:
        raise place.error(53, "is empty (0 bytes), expected an image; fetch it again")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"NRRD"):
        return "nrrd"
    if head[128:132] == b"DICM":
        return "dicom"
    if _is_nifti(_inflated(head) if head.startswith(GZIP_MAGIC) else head):
        return "nifti"
    if re.match(rb"\s*(ObjectType|NDims|Comment|ObjectSubType)\s*=", head):
        return "metaimage"
    return "dicom" if _is_bare_dicom(path) else None


def require_kind(path: str | Path) -> Kind:
    """`kind_of`, refusing files of no known kind.

    Raises:
        ReadError: row 53.
    """
    kind = kind_of(path) or IMAGE_SUFFIXES.get(suffix_of(path))  # a damaged .nii is refused as such by its reader
    if kind is None:
        hint = f"; {NO_PICTURES}" if suffix_of(path) in PICTURES else ""
        raise ReadError(f"is no image that can be read; expected {READABLE}{hint}", code="IN-NII-053", path=path)
    return kind


def _is_nifti(head: bytes) -> bool:
    sizes = {struct.unpack(order + "i", head[:4])[0] for order in "<>"} if len(head) >= 4 else set()
    return bool(sizes & {348, 540})


def _inflated(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, 600)
    except zlib.error:
        return b""


def _is_bare_dicom(path: str | Path) -> bool:
    """Whether the DICOM reader takes a file without preamble."""
    from pneumoscope.io.dicom.files import is_dicom

    return bool(is_dicom(path))
