"""One scan to be read with what belongs to it, and lists of scans as CSV files.

Columns: ``case,image[,lungs,infiltrate,patient,date,source]``.
"""

from __future__ import annotations

import csv
import io
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from pneumoscope.errors import Finding, InputError
from pneumoscope.io.kinds import case_name
from pneumoscope.io.stored import Place, open_regular


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
        lobes: lobe mask that came with it, or None. Masks may be folders with one file per structure.
        patient: patient id as the manifest gives it (groups scans of one person), or None.
        date: date or day as the manifest gives it, or None.
        source: hospital, dataset or scanner as the manifest gives it, or None.
        columns: name and value of the manifest's columns that are no paths, for `cases.csv`.
        series: which DICOM series, for `read_volume`; None for other files, and where the reader shall find it.
        identity: of a DICOM series, else empty.
        findings: what the search has to say about the scan.
    """

    case: str
    path: Path
    lungs: Path | None = None
    infiltrate: Path | None = None
    lobes: Path | None = None
    patient: str | None = None
    date: str | None = None
    source: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    series: str | None = field(default=None, repr=False)
    identity: Identity = field(default=Identity(), repr=False, compare=False)
    findings: tuple[Finding, ...] = field(default=(), compare=False)


REQUIRED = ("case", "image")
OPTIONAL = ("lungs", "infiltrate", "patient", "date", "source")
PATHS = ("case", "image", "lungs", "infiltrate")
"""Columns that do not come out again: paths may say too much, and the case has a column of its own."""

MAX_BYTES = 64 * 2**20


def read_manifest(path: str | Path) -> list[ScanRef]:
    """The scans a CSV manifest lists, in its order. Cells are stripped; all columns but paths are kept in `columns`.

    Cells stand between commas, semicolons or tabs.

    Paths count from the manifest's folder. Each image must exist (file or folder), masks must be files.

    Raises:
        InputError: not such a table, a row without case or image, a path to nothing or to a pipe, a repeated case
            name, or no row at all. The message names the line.
    """
    place = Place(Path(path), "IN-NII")
    with open_regular(place) as stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES >> 20} MiB, expected a list of scans", path=path)
    try:
        text = raw.decode("utf-8-sig")
        if first := re.match(r"sep=.\r?\n", text):  # Excel's own line
            text = text[first.end() :]
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"is no CSV table in UTF-8 ({error}); save it again as such", path=path) from None
    titles = [cell.strip() for cell in rows[0]] if rows else []
    header = [title.lower() for title in titles]
    missing = [name for name in REQUIRED if name not in header]
    if missing or len(set(header) & {*REQUIRED, *OPTIONAL}) != sum(name in (*REQUIRED, *OPTIONAL) for name in header):
        raise InputError(
            f"has the columns {', '.join(header[:12]) or 'none'}; expected case,image and any of "
            f"{','.join(OPTIONAL)}, each once",
            path=path,
        )
    refs: list[ScanRef] = []
    lines: dict[str, int] = {}
    for number, cells in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        own = zip(titles, cells, strict=False)
        columns = tuple((name, cell.strip()) for name, cell in own if name and name.lower() not in PATHS)
        ref = replace(_row(Path(path), number, header, cells), columns=columns)
        if ref.case in lines:
            raise InputError(f"line {number}: case {ref.case!r} stands in line {lines[ref.case]} too", path=path)
        lines[ref.case] = number
        refs.append(ref)
    if not refs:
        raise InputError("lists no scan; expected at least one line below the column names", path=path)
    return refs


def is_manifest(path: Path) -> bool:
    """Whether a file begins with the columns of a manifest."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        first = stream.readline(10_000).decode("utf-8-sig", "replace")
        if first.startswith("sep="):
            first = stream.readline(10_000).decode("utf-8-sig", "replace")
    return set(REQUIRED) <= {cell.strip().strip('"').lower() for cell in first.split(_separator(first))}


def _separator(text: str) -> str:
    """What stands between the cells of the first line: a comma, or the semicolon or tab of other spreadsheets."""
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _row(path: Path, number: int, header: list[str], cells: list[str]) -> ScanRef:
    if len(cells) > len(header):
        raise InputError(f"line {number} has {len(cells)} cells, expected {len(header)}", path=path)
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    empty = [name for name in REQUIRED if not row.get(name)]
    if empty:
        raise InputError(f"line {number} has no {' and no '.join(empty)}", path=path)

    def resolve(column: str) -> Path | None:
        cell = row.get(column)
        if not cell:
            return None
        target = path.parent / cell
        try:
            mode = target.stat().st_mode
        except (OSError, ValueError):
            raise InputError(f"line {number}: {column} {cell!r} does not exist", path=path) from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"line {number}: {column} {cell!r} is neither a file nor a folder", path=path)
        return target

    image = resolve("image")
    assert image is not None
    return ScanRef(
        case=case_name(row["case"].replace("/", ":")),  # a name, no path
        path=image,
        lungs=resolve("lungs"),
        infiltrate=resolve("infiltrate"),
        patient=row.get("patient") or None,
        date=row.get("date") or None,
        source=row.get("source") or None,
    )
