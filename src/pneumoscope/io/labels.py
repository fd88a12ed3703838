"""Label names inside the files: JSON in a NIfTI header extension, or in a key of NRRD and MetaImage headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

LABELS_ECODE = 6
"""NIfTI extension code "comment": plain text."""

LABELS_KEY = "pneumoscope_labels"


def labels_in_extensions(block: bytes, endianness: str) -> Mapping[int, str] | None:
    """Label names from our own header extension; other extensions, which may hold identities, are passed over."""
    at = 0
    while at + 8 <= len(block):
        size, code = struct.unpack(endianness + "ii", block[at : at + 8])
        if size < 16 or at + size > len(block):
            return None
        if code == LABELS_ECODE and (names := parse_labels(block[at + 8 : at + size])):
            return names
        at += size
    return None


def labels_text(names: Mapping[int, str]) -> str:
    """Label names as the JSON that our files carry."""
    return json.dumps({LABELS_KEY: {str(k): names[k] for k in sorted(names)}}, ensure_ascii=True, sort_keys=False)


def parse_labels(text: bytes | str) -> dict[int, str] | None:
    """Label names from `labels_text`; None for anything else. Names are cut to 64 printable characters."""
    try:
        raw = text.decode("ascii") if isinstance(text, bytes) else text
        table = json.loads(raw.rstrip("\0 \n"))[LABELS_KEY]
        names = {int(k): "".join(c for c in str(v)[:64] if c.isprintable()) for k, v in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return names if names and all(0 < k < 256 for k in names) else None


def labels_extension(names: Mapping[int, str]) -> bytes:
    """One little-endian NIfTI extension with the names, padded to a multiple of 16 bytes."""
    text = labels_text(names).encode("ascii")
    size = -(-(len(text) + 8) // 16) * 16
    return struct.pack("<ii", size, LABELS_ECODE) + text.ljust(size - 8, b"\0")
