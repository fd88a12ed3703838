"""What leads from cases back to patients: a key file and the files behind errors, readable by the user alone.

Cases of DICOM scans are called by a keyed hash, and nothing that may be shared names their files. The key says which
scan a case was; it belongs beside the results, not into them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.errors import InputError
from pneumoscope.io.files import atomic_path, csv_text

if TYPE_CHECKING:
    from pneumoscope.io.scans import ScanRef
    from pneumoscope.jobs.run import Outcome

FOLDER, KEY_FILE, ERRORS_FILE = "private", "key.csv", "errors.csv"
KEY_COLUMNS = ("case", "path", "series_uid", "patient", "study_date")
ERROR_COLUMNS = ("case", "file", "error")


class Private:
    """The private files of a run.

    Args:
        out: the run's folder.
        key: where the key goes; None means `private/key.csv` in `out`, ``none`` that no private file is written. The
            files behind errors stand beside the key.

    Raises:
        InputError: there is a file that is no key.
    """

    def __init__(self, out: Path, key: str | Path | None) -> None:
        self._key: Path | None = None if str(key) == "none" else Path(key or out / FOLDER / KEY_FILE)
        self._rows = _rows(self._key, KEY_COLUMNS)
        errors = ERRORS_FILE if key is None else f"{Path(key).stem}-{ERRORS_FILE}"
        self._errors = self._key and self._key.with_name(errors)
        self._failed = _rows(self._errors, ERROR_COLUMNS)

    def write_key(self, scans: Sequence[ScanRef]) -> None:
        """Add scans to the key; rows of other cases, from runs before, stay."""
        if self._key is None:
            return
        for scan in scans:
            known = scan.identity
            self._rows[scan.case] = (
                scan.case,
                str(scan.path.absolute()),
                known.series_uid,
                known.patient or scan.patient or "",
                known.study_date or scan.date or "",
            )
        _write(self._key, KEY_COLUMNS, self._rows.values())

    def write_errors(self, outcomes: Sequence[Outcome]) -> None:
        """Say which file made a case fail; a case that is done has no row any more."""
        if self._errors is None:
            return
        before = dict(self._failed)
        for outcome in outcomes:
            self._failed.pop(outcome.name, None)
            if file := getattr(outcome.problem, "file", None):
                self._failed[outcome.name] = (outcome.name, file, outcome.error or "")
        if self._failed != before:
            _write(self._errors, ERROR_COLUMNS, self._failed.values())


def read_key(out: Path) -> dict[str, dict[str, str]]:
    """The rows of a run's own key file by case; empty where it was not kept or cannot be read."""
    try:
        rows = _rows(out / FOLDER / KEY_FILE, KEY_COLUMNS)
    except InputError:
        return {}
    return {case: dict(zip(KEY_COLUMNS, row, strict=True)) for case, row in rows.items()}


def _rows(path: Path | None, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Rows of an earlier run by case."""
    if path is None or not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            table = list(csv.reader(stream, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot be read as the key of a run ({error}); move it away", path=path) from None
    if table and table[0] != list(columns):
        known = ",".join(columns)
        raise InputError(f"is not the key file of a run, which has the columns {known}; name another", path=path)
    return {row[0]: tuple(row) for row in table[1:] if len(row) == len(columns)}


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table that only the user may read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with atomic_path(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as stream:  # noqa: PTH123 - a descriptor, not a path
            stream.write(csv_text(columns, list(rows)).encode("utf-8", "surrogateescape"))
