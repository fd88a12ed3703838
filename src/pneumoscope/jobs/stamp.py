"""The stamp: one fingerprint of everything that shapes a result; nothing else decides whether a kept one is valid.

A stamp covers the settings, the weights a computation starts from, the *content* of the data it reads, and the version
of the code that computes. A job is done when the `done.json` in its folder carries the stamp of now: it is written last
and removed before the job runs again, so a folder without it is half done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pneumoscope._version import __version__
from pneumoscope.errors import InputError
from pneumoscope.io.files import jsonable, read_json, sha256, write_json

if TYPE_CHECKING:
    import pandas as pd

DONE_FILE = "done.json"  # Marks a finished job folder and carries its stamp
STARTED_FILE = "started.json"  # Names the job whose files, finished or not, lie in the folder


def stamp(kind: str, *, revision: int, **parts: Any) -> str:
    """Hex SHA-256 over a kind of job, its code and all that shapes its result.

    Args:
        kind: what is computed, e.g. ``predictions``.
        revision: number of the computing code, raised whenever the same inputs give another result; the version of
            this package is part of the stamp as well.
        parts: settings and content sums by name; dataclass fields must be given as plain values. The order of keys
            does not count.

    Raises:
        TypeError: a part has no JSON form that is the same in every process.
    """
    made_of = {"kind": kind, "revision": revision, "version": __version__, "parts": jsonable(parts)}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def content_of_files(paths: Iterable[str | Path]) -> str:
    """Hex SHA-256 over the bytes of files; of a folder, over the relative names and bytes of all files below it.

    Where the files lie and what they are called does not count, their order does. The file in which a MetaImage header
    keeps its voxels is part of it.

    Raises:
        OSError: something is missing or cannot be read.
    """
    sums: list[Any] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            sums.append([[file.relative_to(path).as_posix(), sha256(file)] for file in files])
        else:
            sums.append(
                [sha256(file) for file in _with_voxels(path)] if path.suffix.lower() == ".mhd" else sha256(path)
            )
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _with_voxels(header: Path) -> list[Path]:
    with header.open("rb") as stream:
        named = re.search(rb"^ElementDataFile\s*=\s*(.+?)\s*$", stream.read(2**16), re.MULTILINE)
    voxels = header.with_name(Path(os.fsdecode(named[1])).name) if named else header
    return [header, voxels] if voxels != header and voxels.is_file() else [header]


def content_of_arrays(*arrays: ArrayLike | None) -> str:
    """Hex SHA-256 over type, shape and values of arrays in order; None (a missing mask) counts as itself."""
    total = hashlib.sha256()
    for array in arrays:
        if array is None:
            total.update(b"none;")
            continue
        values = np.ascontiguousarray(array)
        total.update(f"{values.dtype.str}{values.shape};".encode())
        total.update(values.astype("U").tobytes() if values.dtype.kind == "O" else values.data)
    return total.hexdigest()


def content_of_table(table: pd.DataFrame) -> str:
    """Hex SHA-256 over names, order and values of columns; the index does not count."""
    values = [table[name].to_numpy() for name in table]
    values = [v.astype(str) if v.dtype.kind not in "biufSU" else v for v in values]
    return content_of_arrays(np.array(list(table), dtype=np.str_), *values)


def is_done(folder: str | Path, wanted: str) -> bool:
    """Whether the folder holds the whole result of this stamp."""
    return read_done(folder).get("stamp") == wanted


def read_done(folder: str | Path) -> dict[str, Any]:
    """What `mark_done` wrote; empty where the job is not done or its mark is damaged."""
    try:
        content: dict[str, Any] = read_json(Path(folder) / DONE_FILE)
    except InputError:
        return {}
    return content


def mark_done(folder: str | Path, made: str, *, synced: bool = True, **facts: Any) -> None:
    """Say that the folder holds the whole result of this stamp; called after everything else is written.

    Args:
        synced: see `io.files.atomic_path`.
        facts: what else belongs into the mark (a row of a table, say), as JSON values.
    """
    write_json(Path(folder) / DONE_FILE, {"stamp": made, **facts}, synced=synced)


def mark_result(
    folder: Path, made: str, *, parts: Mapping[str, str], files: Iterable[Path] = (), facts: Mapping[str, Any]
) -> None:
    """`mark_done` with what `kept_result` compares: the sizes of all files in the folder and of `files` elsewhere.

    Args:
        parts: fingerprints by name of what the stamp was made of.
        facts: what the run's tables need, as JSON values.
    """
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name[0] != "."]
    sizes = {Path(os.path.relpath(path, folder)).as_posix(): path.stat().st_size for path in (*inside, *files)}
    mark_done(folder, made, synced=bool(sizes), parts=parts, files=sizes, facts=facts, sum=_sum_of(sizes, facts))


def kept_result(folder: Path, made: str, parts: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    """The facts of a result that `mark_result` marked, if still valid; else None and why, empty without a mark."""
    held = read_done(folder)
    if not held:
        return None, ""
    if held.get("stamp") != made:
        before = held.get("parts")
        known = before if isinstance(before, dict) else {}
        other = [name for name in parts if known.get(name) != parts[name]]
        return None, f"{', '.join(other) or 'the version of pneumoscope'} changed"
    files, facts = held.get("files"), held.get("facts")
    if not isinstance(facts, dict) or not isinstance(files, dict) or held.get("sum") != _sum_of(files, facts):
        return None, "its done.json is damaged"
    for name, size in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return None, f"{name} is missing or was changed"
    return facts, ""


def _sum_of(files: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Tells whether what a mark says of its result is as it was written."""
    return stamp("mark", revision=0, files=dict(files), facts=dict(facts))[:24]


def mark_started(folder: str | Path, wanted: str = "", **parts: Any) -> None:
    """Take the mark of a finished job away; called before a job writes into its folder.

    Args:
        wanted: its stamp; kept in `STARTED_FILE`, by which a killed job is known when it is resumed.
        parts: what the stamp was made of, in pieces that `what_changed` can name.
    """
    (Path(folder) / DONE_FILE).unlink(missing_ok=True)
    if wanted:
        write_json(Path(folder) / STARTED_FILE, {"stamp": wanted, "parts": jsonable(parts)})


def is_started(folder: str | Path, wanted: str) -> bool:
    """Whether what lies in the folder, finished or not, is of this stamp."""
    return _read_started(folder).get("stamp") == wanted


def what_changed(folder: str | Path, **parts: Any) -> list[str]:
    """Names of the parts that differ from those the job in the folder was started with; empty for a new folder."""
    before = _read_started(folder).get("parts")
    if not isinstance(before, dict):
        return []
    now = jsonable(parts)
    return [name.replace("_", " ") for name in now if before.get(name) != now[name]] or ["version of the software"]


def _read_started(folder: str | Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = read_json(Path(folder) / STARTED_FILE)
    except InputError:
        return {}
    return content
