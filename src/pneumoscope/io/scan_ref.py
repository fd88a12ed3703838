"""One scan to be read, and what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pneumoscope.errors import Finding


@dataclass(frozen=True)
class Identity:
    """Which DICOM series a case is: for the private key file, and for nothing else.

    Attributes:
        series_uid: SeriesInstanceUID.
        patient: PatientID.
        study_date: as DICOM writes it, YYYYMMDD.
    """

    series_uid: str = ""
    patient: str = ""
    study_date: str = ""


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
        columns: name and value of the manifest's columns that are no paths, for `cases.csv`.
        series: which DICOM series, for `read_volume`; None for other files, and where the reader shall find it.
        identity: of a DICOM series, else empty.
        findings: what the search has to say about the scan.
    """

    case: str
    path: Path
    lungs: Path | None = None
    infiltrate: Path | None = None
    patient: str | None = None
    date: str | None = None
    source: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    series: str | None = field(default=None, repr=False)
    identity: Identity = field(default=Identity(), repr=False, compare=False)
    findings: tuple[Finding, ...] = field(default=(), compare=False)
