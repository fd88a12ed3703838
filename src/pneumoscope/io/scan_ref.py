"""One scan to be read, and what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScanRef:
    """Where a scan lies, before anything is read.

    Attributes:
        case: name for outputs; unique in a listing, safe as a file name.
        path: file, DICOM folder or zip, for `read_volume`.
        lungs: lung mask that came with it, or None.
        infiltrate: infiltrate mask that came with it, or None.
        patient: patient id as the manifest gives it (groups scans of one person), or None.
        date: date or day as the manifest gives it, or None.
        source: hospital, data set or scanner as the manifest gives it, or None.
    """

    case: str
    path: Path
    lungs: Path | None = None
    infiltrate: Path | None = None
    patient: str | None = None
    date: str | None = None
    source: str | None = None
