"""Cases through the array cache: what an entry of a case is made of, and scans with their masks as entries.

A key is a sum over the bytes of a case's files, how they were read, and the settings. Reading every file again to sum
it would cost what the cache is to save, so sums are remembered beside a stamp of the file: device, inode, size, and
times of change of content and of entry, in nanoseconds. The second of these (ctime) cannot be set back by programs: an
editor that restores a file's date is noticed. A file that changed less than two seconds ago is summed every time, for
the clock of a file system can be that coarse. What is left to chance: a file system that does not keep ctime. For
those there is ``ArrayCache(..., trust_stamps=False)``: every file is summed on every look.

What comes back equals what would have been made, to the bit; a case that cannot be named is made each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from pneumoscope.datasets.cache import ArrayCache, Entry
from pneumoscope.datasets.case import Case, CaseFiles
from pneumoscope.errors import InputError
from pneumoscope.io.files import read_json, sha256, write_text
from pneumoscope.jobs.stamp import stamp

RACY_NS = 2_000_000_000  # A file younger than this may change again without its stamp showing it
DETACHED = (".mhd", ".nhdr", ".hdr", ".img")  # Headers whose voxels lie in another file, which is not known here


def entry_of(
    cache: ArrayCache | None, case: Case, kind: str, settings: Mapping[str, Any], make: Callable[[], Entry]
) -> Entry:
    """What `make` makes of a case, from the cache where it has been made before.

    Nothing is kept where the cache cannot name the case (`content_of`), or where its files change while they are read.

    Args:
        kind: what is stored, e.g. ``slices``.
        settings: JSON values that shape it besides.
    """

    def content() -> dict[str, Any] | None:
        try:
            return content_of(case, cache.folder / "stamps", trust_stamps=cache.trust_stamps) if cache else None
        except OSError:
            return None  # the reader says what is wrong with the file

    def steady() -> Entry:
        entry = make()
        return entry if content() == before else replace(entry, keep=False)

    before = content()
    if cache is None or before is None:
        return make()
    return cache.get(stamp(kind, revision=1, content=before, **settings)[:40], steady)


def content_of(case: Case, stamps: Path, *, trust_stamps: bool = True) -> dict[str, Any] | None:
    """What a loaded case depends on, as JSON values; None when that is unknown.

    It cannot for cases without files, for headers with their voxels elsewhere, and for readers whose settings cannot be
    written down (a closure, an object without a lasting description). The files' paths are part of it where the reader
    was given them: a dataset that was moved is read again.

    Args:
        stamps: folder for remembered sums.
        trust_stamps: believe that a file whose stamp is unchanged is unchanged.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    reader = _reader_of(case)
    if case.files is None or reader is None:
        return None
    paths = {n: p for n in ("image", "lungs", "infiltrate") if (p := getattr(case.files, n)) is not None}
    if any(path.name.lower().endswith(DETACHED) for path in paths.values()):
        return None
    sums: dict[Path, str] = {}
    for path in paths.values():
        if path not in sums:
            sums[path] = remembered_content(path, stamps, trust_stamps=trust_stamps)
    return {
        "dataset": case.dataset,
        "case": case.case,
        "patient": case.patient,
        "reader": reader,
        "files": {name: sums[path] for name, path in paths.items()},
        "meaning": {f.name: repr(getattr(case.files, f.name)) for f in fields(CaseFiles) if f.name not in paths},
    }


def _reader_of(case: Case) -> str | None:
    """Function and arguments that load a case, as text that is the same in every process; None where there is none."""
    arguments = isinstance(case.load, partial) and bool(case.load.args or case.load.keywords)
    text = _described(case.load)
    return text if arguments and text is not None and " at 0x" not in text else None


def _described(value: Any) -> str | None:
    """A value as text; functions by their names, partial ones with their arguments, which may be such again."""
    if isinstance(value, partial):
        parts = [_described(part) for part in (value.func, *value.args)]
        parts += [None if (t := _described(v)) is None else f"{k}={t}" for k, v in sorted(value.keywords.items())]
        return None if None in parts else f"({', '.join(str(part) for part in parts)})"
    if callable(value) and hasattr(value, "__qualname__"):
        name = f"{value.__module__}:{value.__qualname__}"
        return None if "<" in name else name
    return repr(value)


def remembered_content(path: str | Path, stamps: Path, *, trust_stamps: bool = True) -> str:
    """Sum over the bytes of a file, or over the names and bytes of all files below a folder.

    Raises:
        OSError: something is missing or cannot be read.
    """
    root = Path(path)
    memory = stamps / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:40]}.json"
    known = _recall(memory) if trust_stamps else {}
    found: dict[str, list[Any]] = {}
    for file in [root] if not root.is_dir() else sorted(p for p in root.rglob("*") if p.is_file()):
        name = "" if file == root else file.relative_to(root).as_posix()
        before = _stamp(file)
        remembered = known.get(name)
        if remembered and remembered[0] == before:
            found[name] = remembered
            continue
        content = sha256(file)
        steady = _stamp(file) == before and time.time_ns() - max(before[-2:]) > RACY_NS
        found[name] = [before if steady else None, content]
    if found != known:
        with suppress(OSError):  # summed again next time
            write_text(memory, json.dumps(found))
    text = json.dumps([[name, content] for name, (_, content) in sorted(found.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(path: Path) -> list[int]:
    at = path.stat()
    return [at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns]


def _recall(memory: Path) -> dict[str, list[Any]]:
    """Remembered stamps and sums by name; nothing when the memory is missing or damaged."""
    try:
        stored = read_json(memory)
        return {
            name: [stamp, content]
            for name, (stamp, content) in stored.items()
            if isinstance(content, str) and len(content) == 64
        }
    except (InputError, ValueError, TypeError, AttributeError):
        return {}
