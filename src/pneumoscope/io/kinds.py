"""What a file is, by its first bytes, not by its name."""

from __future__ import annotations

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
READABLE = ".nii, .nii.gz, .nrrd, .mha, .mhd, DICOM or a zip of one"

MAX_CASE_LENGTH = 80


def suffix_of(path: str | Path) -> str:
    """The suffix in lower case, with ``.nii.gz`` as one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def is_scan_name(path: str | Path) -> bool:
    """Whether a name ends like an image or a zip that may hold one."""
    return suffix_of(path) in IMAGE_SUFFIXES or suffix_of(path) == ".zip"


def case_name(path: str | Path) -> str:
    """A safe case name from a file or folder name: the stem without image suffixes, ASCII letters, digits, ``._-``."""
    name = Path(path).name
    while suffix_of(name) in IMAGE_SUFFIXES or suffix_of(name) in (".zip", ".gz", ".dcm"):
        name = name[: -len(suffix_of(name))]
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._-")
    return safe[:MAX_CASE_LENGTH].rstrip("._-") or "scan"


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
        raise ReadError(f"is no image that can be read; expected {READABLE}", code="IN-NII-053", path=path)
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
    from pneumoscope.io.dicom_files import is_dicom

    return bool(is_dicom(path))
