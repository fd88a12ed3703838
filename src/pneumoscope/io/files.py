"""Files that are whole or absent: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.errors import InputError, PneumoscopeError, shortage

if TYPE_CHECKING:
    import pandas as pd

MAX_JSON_DEPTH = 100
MAX_JSON_BYTES = 256 << 20
LARGEST_INTEGER = 2**64 - 1  # Limits of a JSON document of this package; more is a damaged or hostile file


@contextmanager
def atomic_path(path: str | Path, *, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    The temporary name keeps the suffixes (writers choose a format by them) and starts with a dot. The file is synced
    before and its folder after the rename, so that a killed or powered-off machine leaves the old file or the
    new one, never a part.

    Args:
        synced: without it, a file is whole after the process was killed but may be lost when the power goes: for what
            is cheap to make again, as a sync takes milliseconds.

    Raises:
        RunError: the disk is full, or another limit of the machine was met; the message names the file.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".tmp-{os.getpid()}-{final.name}"
    try:
        yield temporary
        if synced:
            _sync(temporary)
        temporary.replace(final)
        if synced:
            _sync(final.parent)
    except Exception as problem:
        short = shortage(problem, final)
        if short is None or isinstance(problem, PneumoscopeError):
            raise
        raise short from problem
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():  # folders cannot be synced on every file system; files must be
            raise
    finally:
        os.close(handle)


def clear_temporary(folder: str | Path) -> None:
    """Remove temporary files that a killed process left anywhere below `folder`; those of living processes stay."""
    import psutil

    for path in Path(folder).rglob(".tmp-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            path.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes, *, synced: bool = True) -> None:
    """Write a whole file or nothing; see `atomic_path`."""
    with atomic_path(path, synced=synced) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, *, synced: bool = True) -> None:
    """Write a whole UTF-8 file or nothing; see `readable` for names of files that have no such form."""
    write_bytes(path, readable(text).encode(), synced=synced)


def readable(text: str) -> str:
    """Text that has a UTF-8 form: bytes of a file's name that are no UTF-8 become ``\\xfc``, halves ``\\ud800``."""
    return _HALVES.sub(lambda half: f"{half[0]!a}"[1:-1].replace("\\udc", "\\x"), text)


_HALVES = re.compile("[\ud800-\udfff]")


def write_json(path: str | Path, value: Any, *, synced: bool = True) -> None:
    """Write JSON in the order given; NaN and infinity become null (they are not JSON)."""
    text = json.dumps(jsonable(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(path, text, synced=synced)


def read_json(
    path: str | Path,
    *,
    expected: type | tuple[type, ...] = dict,
    error: type[PneumoscopeError] = InputError,
    remedy: str = "restore the file or make it again",
) -> Any:
    """The value of a JSON file that this package, or a person with an editor, wrote.

    Args:
        path: the file; a byte order mark is allowed.
        remedy: what the reader of the message can do; ends it.

    Returns:
        Only what every reader can handle: finite numbers, whole numbers of at most 64 bits, text that has a UTF-8
        form, at most `MAX_JSON_DEPTH` levels.

    Raises:
        PneumoscopeError: of the class `error`, with the path: the file is missing, unreadable, no such JSON, or of
            another type.
    """
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES >> 20} MiB")
        value = parse_json(data)
        if not isinstance(value, expected):
            names = expected if isinstance(expected, tuple) else (expected,)
            raise ValueError(f"expected {' or '.join(_JSON_NAMES[kind] for kind in names)}")
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise error(f"cannot be read ({reason}); {remedy}", path=path) from problem
    except ValueError as problem:
        raise error(f"is damaged: no valid JSON of this kind ({problem}); {remedy}", path=path) from problem
    return value


_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
}


def parse_json(data: str | bytes) -> Any:
    """The value of a JSON document within the limits of `read_json`.

    Raises:
        ValueError: it is none, or exceeds a limit.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [part for item in level for part in _parts_of(item)]
        if not level:
            break
    else:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(value, ensure_ascii=False).encode()  # half a character: UnicodeEncodeError is a ValueError
    return value


def _parts_of(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > 21 or abs(int(text)) > LARGEST_INTEGER:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def read_csv(
    path: str | Path, needed: Sequence[str] = (), *, error: type[PneumoscopeError] = InputError
) -> list[dict[str, str]]:
    """Rows of a CSV by column; cells and column names are stripped, unnamed columns and empty rows left out.

    Raises:
        PneumoscopeError: of the class `error`: no CSV in UTF-8 (a web page that was saved under its name, say), or one
            without the columns that are needed.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            table = [[cell.strip() for cell in row] for row in csv.reader(stream, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise error(f"is no CSV table in UTF-8 ({type(problem).__name__}); fetch it again", path=path) from None
    header = table[0] if table else []
    missing = [name for name in needed if name not in header]
    if missing:
        raise error(f"has no column {', '.join(missing)}; expected {', '.join(needed)}", path=path)
    return [{name: cell for name, cell in zip(header, row, strict=False) if name} for row in table[1:] if any(row)]


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> str:
    """A table as CSV; cells with commas, quotes or line ends are quoted, None is empty.

    Args:
        columns: its header; of rows that are mappings these entries are written.
        rows: cells in the order of the columns, or by name.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(name) for name in columns] if isinstance(row, Mapping) else row for row in rows)
    return text.getvalue()


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> None:
    """Write `csv_text`, a whole file or nothing."""
    write_text(path, csv_text(columns, rows))


def write_frame(path: str | Path, table: pd.DataFrame, number: str | None = "%.6f") -> None:
    """Write a data frame as CSV, a whole file or nothing; missing values are empty, None writes floats in full."""
    write_text(path, table.to_csv(index=False, float_format=number, lineterminator="\n"))


def jsonable(value: Any) -> Any:
    """`value` with NumPy scalars, arrays, paths, sets (sorted), non-finite floats and text as plain JSON values."""
    if isinstance(value, dict):
        return {readable(str(k)): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, (set, frozenset)):  # in an order that is the same in every process
        return sorted((jsonable(v) for v in value), key=repr)
    if isinstance(value, Path):
        return readable(str(value))
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(path: str | Path) -> Path:
    """Make an output folder, with its parents.

    Raises:
        InputError: the path is a file, or cannot be made.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, expected an output folder; choose another name", path=folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot be made an output folder ({reason}); choose another place", path=folder) from error
    return folder


def prepare_folder(path: str | Path, *, marker: str, overwrite: bool = False, resume: bool | None = None) -> Path:
    """Make an output folder; refuse one that holds another run.

    Args:
        marker: a file name that tells a finished or started run of this kind, e.g. ``run.json``. A JSON marker with
            ``"results": 0`` (every case failed) does not count.
        overwrite: write over what is there (files are replaced one by one, nothing else is deleted).
        resume: continue what is there; None where the verb cannot.

    Raises:
        InputError: the path is a file, cannot be made, or holds a run and neither flag is given.
    """
    folder = Path(path)
    if not (overwrite or resume) and (held := _held_run(folder / marker)):
        ways = "--overwrite" if resume is None else "--resume, --overwrite"
        raise InputError(f"already holds {held} ({marker}); use {ways} or another folder", path=folder)
    make_folder(folder)
    clear_temporary(folder)
    return folder


RUNS = {
    "cases.csv": "cases of segment or quantify", "predictions.csv": "radiographs of xray predict",
    "summary.json": "an evaluation or a cross-validation", "audit.json": "an audit", "change.json": "a comparison",
    "experiment.json": "a study", "started.json": "a training",
}  # fmt: skip
"""The file by which the run of each verb is known, and what it stands for."""


def require_no_other_run(folder: str | Path, *own: str) -> None:
    """Refuse a folder with the run of another verb, which neither a resumed nor a new run may be mixed with.

    Args:
        folder: may be missing.
        own: names in `RUNS` that the verb itself writes.

    Raises:
        InputError: there is one.
    """
    for name, what in RUNS.items():
        if name not in own and (Path(folder) / name).exists():
            raise InputError(f"holds {what} ({name}); choose another folder", path=folder)


def _held_run(marker: Path) -> str:
    """What a marker stands for, in words; empty where there is none, or no result behind it."""
    if not marker.exists():
        return ""
    try:
        content = read_json(marker)
    except InputError:
        return "a run"
    if content.get("results") == 0:
        return ""
    return "an unfinished run" if content.get("finished") is False else "a run"
