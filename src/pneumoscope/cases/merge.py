"""One run of the parts that ``--part K/N`` made: one table in the order of the input, and every part's files.

Files are linked where the file system can and copied elsewhere; the parts stay as they are. Of verbs that compute over
all their cases (`evaluate`, `data audit`, `crossval`) the work is put together, and the verb itself writes its tables:
the same call with ``--resume`` on the merged folder finds everything done.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pneumoscope.cases.batch import ERRORS_FILE, FOLDER, KEY_FILE, write_private
from pneumoscope.errors import InputError
from pneumoscope.io.files import prepare_folder, read_json, write_csv, write_json
from pneumoscope.jobs.lock import LOCK_FILE, locks

RUN_FILE = "run.json"
TABLES = {"cases.csv": "cases", "predictions.csv": "images"}
"""Tables with a row per job, and where `run.json` lists these jobs if it does."""

UNMERGED = (
    *TABLES, RUN_FILE, LOCK_FILE, FOLDER, "report.html", "per_case.csv", "summary.json", "findings.csv", "audit.json",
    "audit.html", "study.json", "scores.csv", "intervals.csv",
)  # fmt: skip
"""What tells of a part as a whole."""

OF_ANY = ("environment.json", "plan.json")
"""What every part holds, with words about its machine; that of the first is taken."""


@dataclass(frozen=True)
class Merged:
    """What was put together."""

    table: Path | None  # that was written; None where the verb itself must write its tables
    rows: int = 0  # of it
    failed: int = 0  # rows of failed jobs


@locks("out")
def merge_parts(out: str | Path, parts: Sequence[str | Path], *, overwrite: bool = False) -> Merged:
    """Put parts of one run together.

    Args:
        out: the folder to write; refused when it holds a run, unless `overwrite`.
        parts: folders that ``--part`` wrote, in any order; folders of whole runs are put one after the other.
        overwrite: write over the run in `out`.

    Raises:
        InputError: a part is missing, given twice, unfinished, of another run, or holds a case of another part.
    """
    folders = [Path(part) for part in parts]
    for folder in folders:
        if not folder.is_dir():
            raise InputError("is no folder; give the output folders of the parts", path=folder)
        if folder.resolve() == Path(out).resolve():
            raise InputError("is both a part and where to write; name another folder first", path=folder)
    kinds = {tuple(name for name in (*TABLES, "summary.json", "audit.json") if (f / name).is_file()) for f in folders}
    if len(kinds) != 1:
        raise InputError(f"the parts are not of one verb: {' and '.join(str(f) for f in folders[:3])}")
    table = next((name for name in next(iter(kinds)) if name in TABLES), None)
    runs = [_run_of(folder) for folder in folders] if table else []
    folders, runs = _in_order(folders, runs)
    folder = prepare_folder(out, marker=RUN_FILE, overwrite=overwrite)
    for part in folders:
        _link(part, folder, overwrite)
    if table is None:
        return Merged(None)
    for name in (KEY_FILE, ERRORS_FILE):
        if there := [path for part in folders if (path := part / FOLDER / name).is_file()]:
            write_private(folder / FOLDER / name, *_together(there))
    columns, rows = _together([part / table for part in folders])
    write_csv(folder / table, columns, rows)
    write_json(folder / RUN_FILE, _merged_run(runs, TABLES[table]))
    return Merged(folder / table, len(rows), sum(row.get("status") == "failed" for row in rows))


def _run_of(folder: Path) -> dict[str, Any]:
    run: dict[str, Any] = read_json(folder / RUN_FILE)
    if run.get("finished") is not True:
        raise InputError("is not finished; continue it with --resume before it is merged", path=folder)
    return run


def _in_order(folders: list[Path], runs: list[dict[str, Any]]) -> tuple[list[Path], list[dict[str, Any]]]:
    """Parts by their number; runs that are no parts as they came."""
    names = [run.get("part") for run in runs]
    if not any(names):
        return folders, runs
    for folder, name in zip(folders, names, strict=True):
        if not name:
            raise InputError("was not made with --part as the others were", path=folder)
        if names.count(name) > 1:
            raise InputError(f"part {name} is given twice", path=folder)
    counts = {int(str(name).partition("/")[2]) for name in names}
    if len(counts) > 1 or any(run.get("options") != runs[0].get("options") for run in runs):
        raise InputError(f"the parts are not of one run: {', '.join(map(str, names))} or their options differ")
    missing = sorted({f"{number}/{count}" for count in counts for number in range(1, count + 1)} - set(map(str, names)))
    if missing:
        raise InputError(f"part {', '.join(missing)} is missing; run it, or give its folder too")
    order = sorted(range(len(names)), key=lambda place: int(str(names[place]).partition("/")[0]))
    return [folders[place] for place in order], [runs[place] for place in order]


def _link(part: Path, out: Path, overwrite: bool) -> None:
    """Every file of a part but those of `UNMERGED`."""
    for path in sorted(p for p in part.rglob("*") if p.is_file()):
        inside = path.relative_to(part)
        if inside.parts[0] in UNMERGED or path.name == LOCK_FILE or ".tmp-" in path.name:
            continue
        target = out / inside
        if target.exists():
            if str(inside) in OF_ANY or target.samefile(path) or target.read_bytes() == path.read_bytes():
                continue
            if not overwrite:
                raise InputError(f"{inside} is in two of the parts, or was there before", path=part)
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:  # another file system, or one without links
            shutil.copy2(path, target)


def _together(paths: Sequence[Path]) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of tables: the first of each part, then the second of each, in the order of the input."""
    columns: dict[str, None] = {}
    tables = []
    for path in paths:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream)
            tables.append(list(reader))
            columns |= dict.fromkeys(reader.fieldnames or ())
    return list(columns), [row for turn in zip_longest(*tables) for row in turn if row is not None]


def _merged_run(runs: Sequence[dict[str, Any]], jobs: str) -> dict[str, Any]:
    """The first part's record with the jobs and counts of all."""
    result = {name: value for name, value in runs[0].items() if name != "part"}
    for name in ("scans", "results"):
        if name in result:
            result[name] = sum(run[name] for run in runs)
    if jobs in result:
        result[jobs] = [job for turn in zip_longest(*(run[jobs] for run in runs)) for job in turn if job is not None]
    if isinstance(result.get("seconds"), (int, float)):
        result["seconds"] = round(sum(run["seconds"] for run in runs), 2)
    return result | {"merged_parts": len(runs)}
