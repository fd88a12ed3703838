"""A data set into the layout of other tools: nnU-Net's raw data, folders of slices, or NIfTI files with a manifest.

Scans are written as the reader gives them: in Hounsfield units, on the grid and in the voxel order of the file they
came from. Volumes of whole Hounsfield units are stored as int16, others as float32; both come back bit for bit.

Everything is made in a hidden folder inside the output folder and moved to its place at the end, the file that readers
look for last: a killed run leaves nothing that looks like a data set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.convert_layouts import LAYOUTS, SOURCE_COLUMNS, SOURCES, Run, one_meaning, table
from pneumoscope.datasets.registry import read_dataset
from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.io.files import prepare_folder, read_json, write_json, write_text
from pneumoscope.io.kinds import case_name
from pneumoscope.jobs.lock import LOCK_FILE, locks
from pneumoscope.progress import Progress, silent

MARKER = "convert.json"


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        folder: where.
        to: the layout.
        cases: names, in order.
        without_infiltrate: those that nobody drew on.
        labels: of the infiltrate masks, number -> name; plain infiltrate where some masks do not tell kinds apart.
        failed: case -> why it could not be read; the others are written.
    """

    folder: Path
    to: str
    cases: tuple[str, ...]
    without_infiltrate: tuple[str, ...]
    labels: Mapping[int, str]
    failed: Mapping[str, str]


def convert_dataset(
    name: str, root: str | Path, out: str | Path, to: str, *, overwrite: bool = False, progress: Progress = silent,
    **options: Any,
) -> Converted:  # fmt: skip
    """Read a data set and write it in another layout, one case in memory at a time.

    Args:
        name: a key of `pneumoscope.datasets.registry.DATASETS`.
        root: its folder.
        out: the folder to write; new, empty, or one that an earlier conversion made.
        to: ``nnunet``, ``slices`` or ``manifest``.
        overwrite: replace an earlier conversion; nothing else in the folder is touched.
        progress: called after each case.
        options: keywords of the set's reader.

    Raises:
        InputError: an unknown layout, an output folder in use or inside the data set, a set that cannot be read, or
            one of which no case can be read.
    """
    if to not in LAYOUTS:
        raise InputError(f"cannot convert to {to!r}; expected one of {', '.join(LAYOUTS)}")
    if name != "manifest" and Path(out).resolve().is_relative_to(Path(root).resolve()):
        raise InputError("lies in the data set's own folder; choose another place", path=out)
    cases = read_dataset(name, root, **options)
    return convert_cases(cases, out, to, overwrite=overwrite, progress=progress)


def convert_cases(
    cases: Sequence[Case], out: str | Path, to: str, *, overwrite: bool = False, progress: Progress = silent
) -> Converted:
    """As `convert_dataset`, for cases that are there already."""
    names = file_names(cases)
    return _convert(cases, names, _prepared(Path(out), overwrite), to, progress)


@locks("folder")
def _convert(cases: Sequence[Case], names: Sequence[str], folder: Path, to: str, progress: Progress) -> Converted:
    layout = LAYOUTS[to]
    work = folder / f".tmp-{os.getpid()}-convert"
    work.mkdir()
    try:
        run, failed = Run(work), {}
        for number, (case, name) in enumerate(zip(cases, names, strict=True)):
            progress(f"convert to {to}", number, len(cases), name)
            try:
                scan = case.load()
            except PneumoscopeError as problem:
                failed[name] = str(problem)
                continue
            layout.case(run, case, scan, name)
            del scan
        if not run.rows:
            raise InputError(f"no case could be read; the first: {next(iter(failed.values()), 'there is none')}")
        labels = one_meaning(run)
        layout.finish(run, labels)
        write_text(work / SOURCES, table(SOURCE_COLUMNS, [[row[c] for c in SOURCE_COLUMNS] for row in run.rows]))
        _put_in_place(work, folder, layout.last, to)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"convert to {to}", len(cases), len(cases))
    undrawn = tuple(row["case"] for row in run.rows if not row["drawn"])
    return Converted(folder, to, tuple(row["case"] for row in run.rows), undrawn, labels, failed)


def file_names(cases: Sequence[Case]) -> list[str]:
    """Safe, different names for the cases."""
    names = [case_name(case.case) for case in cases]
    folded = [name.casefold() for name in names]
    twice = [name for name, key in zip(names, folded, strict=True) if folded.count(key) > 1]
    if twice:
        raise InputError(f"two cases would both be written as {twice[0]!r}; rename one")
    return names


def _prepared(folder: Path, overwrite: bool) -> Path:
    """The output folder: new, empty, or an earlier conversion that may be replaced or was not finished."""
    held = _held(folder)
    if held is None and folder.is_dir():
        others = [p.name for p in folder.iterdir() if not p.name.startswith((".tmp-", LOCK_FILE))]
        if others:
            raise InputError(
                f"is not empty ({', '.join(sorted(others)[:3])}) and no conversion; choose a new folder", path=folder
            )
    unfinished = held is not None and not held.get("finished")
    for left in folder.glob(".tmp-*-convert"):
        if not _is_alive(left.name.split("-")[1]):
            shutil.rmtree(left, ignore_errors=True)
    prepare_folder(folder, marker=MARKER, overwrite=overwrite or unfinished)
    return folder


def _held(folder: Path) -> dict[str, Any] | None:
    try:
        held: dict[str, Any] = read_json(folder / MARKER)
    except InputError:
        return None
    return held if isinstance(held.get("entries"), list) else None


def _is_alive(pid: str) -> bool:
    import psutil

    return pid.isdecimal() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))


def _put_in_place(work: Path, folder: Path, last: str, to: str) -> None:
    """Move everything out of the hidden folder; what an earlier conversion left goes first."""
    made = sorted(p.name for p in work.iterdir())
    earlier = [str(name) for name in (_held(folder) or {}).get("entries", [])]
    mine = sorted({name for name in (*made, *earlier) if Path(name).name == name and name not in ("", ".", "..")})
    write_json(folder / MARKER, {"to": to, "finished": False, "entries": mine})
    for name in sorted(mine, key=lambda name: name != last):  # the description first: no reader takes what is going
        _remove(folder / name)
    for name in sorted(made, key=lambda name: name == last):
        (work / name).replace(folder / name)
    write_json(folder / MARKER, {"to": to, "finished": True, "entries": made})


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
