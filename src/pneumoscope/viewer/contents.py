"""What lies in a folder of results (cases, comparisons, studies, audits, radiographs); reads names and numbers only."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pneumoscope.errors import InputError
from pneumoscope.io.files import read_json

Kind = Literal["case", "comparison", "study", "audit", "radiographs"]

MARKERS: dict[str, Kind] = {
    "report.json": "case",
    "change.json": "comparison",
    "experiment.json": "study",
    "audit.json": "audit",
    "predictions.csv": "radiographs",
}
"""The file that says what a folder holds."""

MAX_DEPTH = 3
MAX_FOLDERS = 20_000
MAX_TABLE_BYTES = 8 * 2**20
MAX_TEXT, MAX_FLAGS = 300, 20  # Characters of a text, and flags of a case, that a page shows

_LEAVES = {"points", "mesh", "stages", "splits", "figures", "data", "cache"}
"""Folders inside a result that hold no results of their own."""


@dataclass(frozen=True)
class Result:
    """One thing to look at."""

    kind: Kind  # what it is
    place: str  # its folder below the root, ``.`` for the root itself; names it in addresses
    title: str  # what it is called
    # ``done``, or ``failed``: a case of `cases.csv` that has no results, or files that cannot be read
    status: str = "done"
    # column -> value; None where it could not be measured
    numbers: dict[str, float | None] = field(default_factory=dict)
    flags: tuple[str, ...] = ()  # states and warnings, in words
    error: str = ""  # why it failed


def find_results(root: Path) -> list[Result]:
    """Everything at or below a folder, at most `MAX_DEPTH` deep, in order of name; links are not followed.

    Raises:
        InputError: no folder, or nothing of ours in it.
    """
    if not root.is_dir():
        raise InputError("is not a folder; give a case folder, a folder of cases, or a study folder", path=root)
    found: list[Result] = []
    for seen, folder in enumerate(_folders(root, MAX_DEPTH, found)):
        if seen > MAX_FOLDERS:
            raise InputError(f"holds more than {MAX_FOLDERS} folders; give the folder of one run", path=root)
        place = folder.relative_to(root).as_posix()
        for marker, kind in MARKERS.items():
            if (folder / marker).is_file():
                found.append(_read(folder, place, kind, marker))
        found += _failed(folder, place)
    if not found:
        raise InputError(
            f"holds no results (none of {', '.join(MARKERS)}); "
            "give the output folder of segment, quantify, compare, data audit, xray predict, demo or study run",
            path=root,
        )
    return found


def _folders(folder: Path, depth: int, bad: list[Result]) -> Iterator[Path]:
    """A folder and those in it; what cannot be opened becomes a row of `bad`."""
    try:
        inside = sorted(folder.iterdir()) if depth else []
        folder.as_posix().encode()
    except OSError as problem:
        bad.append(_unreadable(folder, f"cannot be opened ({problem.strerror}); check its permissions"))
        return
    except UnicodeEncodeError:
        bad.append(_unreadable(folder, "has a name that is not UTF-8, so no address leads to it; rename it"))
        return
    yield folder
    for path in inside:
        hidden = path.name.startswith(".") or path.name in _LEAVES
        if not hidden and path.is_dir() and not path.is_symlink():
            yield from _folders(path, depth - 1, bad)


def _unreadable(path: Path, error: str, *, kind: Kind = "case", place: str = "", title: str = "") -> Result:
    return Result(kind, place, title or as_text(path.name), "failed", error=as_text(f"{path.name} {error}"))


def _read(folder: Path, place: str, kind: Kind, marker: str) -> Result:
    title = folder.name if place == "." else place
    if marker.endswith(".csv"):
        return Result(kind, place, as_text(title))
    try:
        content = read_json(folder / marker, remedy="run it again")
    except InputError as problem:
        return _unreadable(folder / marker, problem.message, kind=kind, place=place, title=title)
    if kind == "study":
        recipe = content.get("recipe")
        return Result(kind, place, as_text(f"{title}: {recipe}") if isinstance(recipe, str) else title)
    if kind != "case":
        return Result(kind, place, as_text(title))
    severity = _entry(content, "severity", dict)
    total = _entry(severity, "total", dict)
    numbers = {
        name: finite(total.get(name)) for name in ("lung_ml", "infiltrate_ml", "share_percent", "infiltrate_mean_hu")
    }
    numbers["findings"] = float(len(_entry(content, "findings", list)))
    states = [as_text(state) for state in _entry(severity, "states", list)[:MAX_FLAGS]]
    case = content.get("case")
    return Result(kind, place, as_text(case if isinstance(case, str) and case else title), "done", numbers, (*states,))


def _entry(content: dict[str, Any], name: str, kind: type[Any]) -> Any:
    value = content.get(name)
    return value if isinstance(value, kind) else kind()


def _failed(folder: Path, place: str) -> list[Result]:
    """Cases that `cases.csv` calls failed: they have no folder with a report."""
    table = folder / "cases.csv"
    if not table.is_file():
        return []
    try:
        header, *rows = read_rows(table)
    except InputError as problem:
        return [_unreadable(table, problem.message, place=place)]
    named = [dict(zip(header, row, strict=False)) for row in rows]
    return [
        Result("case", place, row.get("case") or "?", "failed", error=row.get("error") or "failed")
        for row in named
        if row.get("status", "done") != "done"
    ]


def read_rows(path: Path, limit: int | None = None) -> list[list[str]]:
    """Rows of one of our tables as short texts, at least one.

    Raises:
        InputError: unreadable, too large, or a cell longer than any of ours.
    """
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"cannot be read (larger than {MAX_TABLE_BYTES >> 20} MiB); run it again", path=path)
        with path.open(encoding="utf-8", errors="replace", newline="") as stream:
            rows = [[as_text(cell) for cell in row] for row in islice(csv.reader(stream), limit)]
    except (OSError, csv.Error) as problem:
        raise InputError(f"cannot be read ({problem}); run it again", path=path) from problem
    return rows or [[]]


def as_text(value: object) -> str:
    """A name, flag or message as text of bounded length that every page can hold."""
    return str(value)[:MAX_TEXT].encode("utf-8", "replace").decode()


def finite(value: Any) -> float | None:
    """A finite number, or None for whatever else stands there."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def filter_results(results: list[Result], text: str, show: str) -> list[Result]:
    """Those whose title holds the text, whatever the case; `show` is ``flagged``, ``failed`` or everything else."""
    wanted = [r for r in results if text.casefold() in r.title.casefold()]
    if show == "flagged":
        return [r for r in wanted if r.flags]
    return [r for r in wanted if r.status == "failed"] if show == "failed" else wanted


def sort_results(results: list[Result], key: str, descending: bool) -> list[Result]:
    """By title, status, flags or a number; what has no number comes last either way."""
    if key in ("title", "status"):
        return sorted(results, key=lambda r: str(getattr(r, key)).casefold(), reverse=descending)
    if key == "flags":
        return sorted(results, key=lambda r: (len(r.flags), r.title), reverse=descending)
    known = [r for r in results if r.numbers.get(key) is not None]
    unknown = [r for r in results if r.numbers.get(key) is None]
    return sorted(known, key=lambda r: r.numbers[key] or 0.0, reverse=descending) + unknown
