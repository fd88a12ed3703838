"""What lies in a folder of results: cases, comparisons, studies; read as plain numbers and names, nothing else."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pneumoscope.errors import InputError

Kind = Literal["case", "comparison", "study"]

MARKERS: dict[str, Kind] = {"report.json": "case", "change.json": "comparison", "experiment.json": "study"}
"""The file that tells what a folder holds."""

MAX_DEPTH = 3
MAX_FOLDERS = 20_000
MAX_JSON_BYTES = 8 * 2**20
_LEAVES = {"points", "mesh", "stages", "splits", "figures", "data", "cache"}
"""Folders inside a result that hold no results of their own."""


@dataclass(frozen=True)
class Result:
    """One thing to look at.

    Attributes:
        kind: case, comparison or study.
        place: its folder below the root, ``.`` for the root itself; names it in addresses.
        title: what it is called.
        status: ``done``, or ``failed`` for a case of `cases.csv` that has no results.
        numbers: column -> value; None where it could not be measured.
        flags: states and warnings, in words.
        error: why it failed.
    """

    kind: Kind
    place: str
    title: str
    status: str = "done"
    numbers: dict[str, float | None] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    error: str = ""


def find_results(root: Path) -> list[Result]:
    """Everything at or below a folder, at most `MAX_DEPTH` deep, in order of name; links are not followed.

    Raises:
        InputError: no folder, or nothing of ours in it.
    """
    if not root.is_dir():
        raise InputError("is no folder; give a case folder, a folder of cases, or a study folder", path=root)
    found: list[Result] = []
    for seen, folder in enumerate(_folders(root, MAX_DEPTH)):
        if seen > MAX_FOLDERS:
            raise InputError(f"holds more than {MAX_FOLDERS} folders; give the folder of one run", path=root)
        place = folder.relative_to(root).as_posix()
        for marker, kind in MARKERS.items():
            if (folder / marker).is_file():
                found.append(_read(folder, place, kind))
        found += _failed(folder, place)
    if not found:
        raise InputError(
            "holds no results (no report.json, change.json or experiment.json); "
            "give the output folder of segment, quantify, compare, demo or study run",
            path=root,
        )
    return found


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth == 0:
        return
    for inside in sorted(folder.iterdir()):
        if (
            inside.is_dir()
            and not inside.is_symlink()
            and not inside.name.startswith(".")
            and inside.name not in _LEAVES
        ):
            yield from _folders(inside, depth - 1)


def _read(folder: Path, place: str, kind: Kind) -> Result:
    title = folder.name if place == "." else place
    if kind == "study":
        recipe = read_json(folder / "experiment.json").get("recipe")
        return Result(kind, place, f"{title}: {recipe}" if recipe else title)
    if kind == "comparison":
        return Result(kind, place, title)
    report = read_json(folder / "report.json")
    severity = report.get("severity") if isinstance(report.get("severity"), dict) else {}
    assert isinstance(severity, dict)
    total = severity.get("total") if isinstance(severity.get("total"), dict) else {}
    assert isinstance(total, dict)
    numbers = {
        name: finite(total.get(name)) for name in ("lung_ml", "infiltrate_ml", "share_percent", "infiltrate_mean_hu")
    }
    findings = report.get("findings") if isinstance(report.get("findings"), list) else []
    assert isinstance(findings, list)
    numbers["findings"] = float(len(findings))
    states = severity.get("states") if isinstance(severity.get("states"), list) else []
    assert isinstance(states, list)
    return Result(kind, place, str(report.get("case") or title), "done", numbers, tuple(str(s) for s in states))


def _failed(folder: Path, place: str) -> list[Result]:
    """Cases that `cases.csv` calls failed: they have no folder with a report."""
    table = folder / "cases.csv"
    if not table.is_file() or table.stat().st_size > MAX_JSON_BYTES:
        return []
    with table.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        Result("case", place, str(row.get("case") or "?"), "failed", error=str(row.get("error") or "failed"))
        for row in rows
        if row.get("status") not in ("done", None)
    ]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of one of our files; {} when it is damaged, too large or something else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def finite(value: Any) -> float | None:
    """A finite number, or None for whatever else stands there."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def sort_results(results: list[Result], key: str, descending: bool) -> list[Result]:
    """By title, status, flags or a number; what has no number comes last either way."""
    if key in ("title", "status"):
        return sorted(results, key=lambda r: str(getattr(r, key)).casefold(), reverse=descending)
    if key == "flags":
        return sorted(results, key=lambda r: (len(r.flags), r.title), reverse=descending)
    known = [r for r in results if r.numbers.get(key) is not None]
    unknown = [r for r in results if r.numbers.get(key) is None]
    return sorted(known, key=lambda r: r.numbers[key] or 0.0, reverse=descending) + unknown
