"""Arrays that were dear to make, kept on disk and mapped into memory.

An entry is a folder: one ``.npy`` file per array and ``entry.json`` with the facts that belong to them, and the sums of
both. Entries are named by what they were made of, so a changed file or setting has another name and an entry is never
out of date. The rules:

- An entry appears whole or not at all: it is written beside and renamed. Who comes second waits for who is making it.
- Sizes and sums are checked when an entry is first opened. A damaged entry is removed and made again.
- The folder stays below a bound; entries unused for longest go first. Arrays in use by another process stay readable.
- A full or broken disk costs speed, never a result: what cannot be stored is returned as it was made.

The arrays are of patients: the folder can be read by its owner only, and names nobody.

The name of a case's entry is a sum over the bytes of its files, how they were read, and the settings. Reading every
file again to sum it would cost what the cache is to save, so sums are remembered beside a stamp of the file: device,
inode, size, and times of change of content and of entry, in nanoseconds. The second of these (ctime) cannot be set back
by programs. A file that changed less than two seconds ago is summed every time, for the clock of a file system can be
that coarse. For file systems that do not keep ctime there is ``ArrayCache(..., trust_stamps=False)``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, CaseFiles
from pneumoscope.errors import InputError
from pneumoscope.io.files import read_json, sha256, write_text
from pneumoscope.jobs.stamp import stamp

MAX_BYTES = 20 * 2**30  # Default bound. The 4617 lung slices of Maganaris 2022b take 4.4 GiB (320 x 320, four channels)
STALE_SECONDS = 24 * 3600  # Unfinished entries older than this belong to processes that were killed

VARIABLE, SIZE_VARIABLE = "PNEUMOSCOPE_CACHE", "PNEUMOSCOPE_CACHE_GB"
FORMAT = "v1"


@dataclass(frozen=True, eq=False)
class Entry:
    """What is cached."""

    arrays: Mapping[str, NDArray[Any]]  # by name; read-only when they come from disk
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON values that belong to them
    keep: bool = True  # whether it may be stored; False for what was made while its files changed


@dataclass
class CacheCounts:
    """What a cache did since it was opened: entries found, made, made again because they were damaged, dropped for
    room, and made but not stored."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    evicted: int = 0
    not_stored: int = 0


class ArrayCache:
    """A folder of entries, shared between processes.

    Args:
        folder: made when it is missing, readable by its owner only.
        max_bytes: bound of all entries together; an entry larger than that is not stored.
        trust_stamps: believe that a file is unchanged whose stamp is.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | Path, max_bytes: int = MAX_BYTES, *, trust_stamps: bool = True) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.trust_stamps = trust_stamps
        self.counts = CacheCounts()
        self._checked: set[str] = set()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in (FORMAT, "locks", "stamps"):
                (self.folder / name).mkdir(mode=0o700, exist_ok=True)
            if not os.access(self.folder / FORMAT, os.W_OK):
                raise PermissionError(13, "not writable")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(
                f"cannot be made a cache folder ({reason}); set {VARIABLE} to another folder, or to off", path=folder
            ) from error
        self._drop_unfinished()

    def get(self, key: str, make: Callable[[], Entry]) -> Entry:
        """The entry of that hexadecimal name, from disk, or made now and stored.

        `make` runs in one process at a time, and must not ask for the same key.
        """
        found = self._open(key)
        if found is None:
            with self._lock(key):
                found = self._open(key)  # whoever held the lock has made it
                if found is None:
                    self.counts.misses += 1
                    made = make()
                    return (self._open(key) or made) if self._store(key, made) else made
        self.counts.hits += 1
        return found

    def clear(self) -> None:
        """Remove all entries, and the remembered sums of files."""
        for entry in read_entries(self.folder):
            self._remove(entry.folder)
        for memory in (self.folder / "stamps").glob("*.json"):
            memory.unlink(missing_ok=True)

    def _home(self, key: str) -> Path:
        return self.folder / FORMAT / key

    def _open(self, key: str) -> Entry | None:
        """The entry when it is there and whole; a damaged one is removed."""
        home = self._home(key)
        if not home.is_dir():
            return None
        try:
            stored = json.loads((home / "entry.json").read_text(encoding="utf-8"))
            body = stored["body"]
            if stored["sum"] != stamp("cache entry", revision=1, body=body):
                raise ValueError("entry.json")
            arrays = {name: self._array(home, key, name, wanted) for name, wanted in body["arrays"].items()}
            with suppress(OSError):  # somebody else's entry may not be touched
                os.utime(home / "entry.json")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            if home.is_dir():  # else another process has just dropped it
                self.counts.damaged += 1
                self._remove(home)
            return None
        self._checked.add(key)
        return Entry(arrays, body["facts"])

    def _array(self, home: Path, key: str, name: str, wanted: Mapping[str, Any]) -> NDArray[Any]:
        path = home / f"{name}.npy"
        if path.stat().st_size != wanted["bytes"]:
            raise ValueError(name)
        if key not in self._checked and sha256(path) != wanted["sha256"]:
            raise ValueError(name)
        mapped = np.load(path, mmap_mode="r" if wanted["mapped"] else None, allow_pickle=False)
        return np.asarray(mapped)

    def _store(self, key: str, entry: Entry) -> bool:
        """Write an entry and make room for it; False when it cannot be."""
        if not entry.keep or sum(array.nbytes for array in entry.arrays.values()) > self.max_bytes:
            self.counts.not_stored += 1
            return False
        unfinished = self.folder / FORMAT / f".tmp-{os.getpid()}-{key}"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o700)
            arrays = {}
            for name, array in entry.arrays.items():
                path = unfinished / f"{name}.npy"
                np.save(path, array, allow_pickle=False)
                arrays[name] = {"bytes": path.stat().st_size, "sha256": sha256(path), "mapped": array.size > 0}
            body = {"arrays": arrays, "facts": dict(entry.facts)}
            whole = {"body": body, "sum": stamp("cache entry", revision=1, body=body)}
            (unfinished / "entry.json").write_text(json.dumps(whole), encoding="utf-8")
            unfinished.rename(self._home(key))
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            self.counts.not_stored += 1
            return False
        self._checked.add(key)  # summed as it was written
        self._make_room(self._home(key))
        return True

    def _make_room(self, newest: Path) -> None:
        with self._lock("evict"):
            entries = sorted(read_entries(self.folder))
            total = sum(entry.size_bytes for entry in entries)
            for entry in entries:
                if total <= self.max_bytes:
                    break
                if entry.folder != newest:
                    self._remove(entry.folder)
                    self.counts.evicted += 1
                    total -= entry.size_bytes

    def _remove(self, folder: Path) -> None:
        """Take an entry away at once, then delete it, so that nobody opens half of it."""
        self._checked.discard(folder.name)
        aside = folder.with_name(f".tmp-{os.getpid()}-{time.monotonic_ns()}")
        with suppress(OSError):
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _drop_unfinished(self) -> None:
        for path in (self.folder / FORMAT).glob(".tmp-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Keep other processes (and threads) out; the system lets go when a process dies.

        Where the system has no such locks, work may be done twice, and entries are still whole.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        path = self.folder / "locks" / f"{name}.lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with suppress(OSError):  # some network file systems refuse
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            path.unlink(missing_ok=True)  # who waits on this one and who makes a new one may both work: harmless
            os.close(handle)


class Stored(NamedTuple):
    """An entry on disk: when it was last used, in nanoseconds, its size and its folder."""

    used_ns: int
    size_bytes: int
    folder: Path


def read_entries(folder: str | Path) -> list[Stored]:
    """The entries of a cache, in no order; empty where there is no cache."""
    home, found = Path(folder) / FORMAT, []
    for entry in home.iterdir() if home.is_dir() else ():
        if entry.name.startswith("."):
            continue
        with suppress(OSError):  # dropped by another process meanwhile
            used = (entry / "entry.json").stat().st_mtime_ns if (entry / "entry.json").exists() else 0
            found.append(Stored(used, sum(p.stat().st_size for p in entry.iterdir()), entry))
    return found


def is_on() -> bool:
    """Whether runs keep anything: only when PNEUMOSCOPE_CACHE names a folder, or says ``on``."""
    return os.environ.get(VARIABLE, "").lower() not in ("", "off")


def cache_folder() -> Path:
    """The folder of PNEUMOSCOPE_CACHE, else ``pneumoscope`` in the user's cache folder (XDG_CACHE_HOME or
    ``~/.cache``); it need not exist."""
    place = os.environ.get(VARIABLE, "")
    if place.lower() not in ("", "off", "on"):
        return Path(place)
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "pneumoscope"


def open_cache(where: str | Path | None = None) -> ArrayCache | None:
    """The cache a run works with; None without one, which is the default: a cache is a copy of patients' scans.

    Args:
        where: a folder; ``off`` for none; None for what PNEUMOSCOPE_CACHE says: a folder, ``on`` for the user's cache
            folder, nothing or ``off`` for none. PNEUMOSCOPE_CACHE_GB sets another bound.

    Raises:
        InputError: the folder cannot be used, or the bound is no positive number.
    """
    if str(where).lower() == "off" or (where is None and not is_on()):
        return None
    bound = os.environ.get(SIZE_VARIABLE, "")
    try:
        max_bytes = int(float(bound) * 2**30) if bound else MAX_BYTES
    except (ValueError, OverflowError):
        max_bytes = 0
    if max_bytes <= 0:
        raise InputError(f"{SIZE_VARIABLE} is a positive number of GiB, got {bound!r}")
    return ArrayCache(cache_folder() if where is None else where, max_bytes)


RACY_NS = 2_000_000_000  # A file younger than this may change again without its stamp showing it
DETACHED = (".mhd", ".nhdr", ".hdr", ".img")  # Headers whose voxels lie in another file, which is not known here


def entry_of(
    cache: ArrayCache | None, case: Case, kind: str, settings: Mapping[str, Any], make: Callable[[], Entry]
) -> Entry:
    """What `make` makes of a case, from the cache where it has been made before.

    Nothing is kept where the cache cannot name the case (`content_of`), or where its files change while they are read.
    `kind` says what is stored, e.g. ``slices``; `settings` are JSON values that shape it besides.
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

    It is for cases without files, for headers with their voxels elsewhere, and for readers whose settings cannot be
    written down (a closure, an object without a lasting description). The files' paths are part of it where the reader
    was given them: a dataset that was moved is read again. `stamps` is the folder for remembered sums.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    reader = _reader_of(case)
    if case.files is None or reader is None:
        return None
    paths = {n: p for n in ("image", "lungs", "infiltrate") if (p := getattr(case.files, n)) is not None}
    if any(path.name.lower().endswith(DETACHED) for path in paths.values()):
        return None
    sums = {path: remembered_content(path, stamps, trust_stamps=trust_stamps) for path in set(paths.values())}
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
        before = _file_state(file)
        remembered = known.get(name)
        if remembered and remembered[0] == before:
            found[name] = remembered
            continue
        content = sha256(file)
        steady = _file_state(file) == before and time.time_ns() - max(before[-2:]) > RACY_NS
        found[name] = [before if steady else None, content]
    if found != known:
        with suppress(OSError):  # summed again next time
            write_text(memory, json.dumps(found))
    text = json.dumps([[name, content] for name, (_, content) in sorted(found.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def _file_state(path: Path) -> list[int]:
    at = path.stat()
    return [at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns]


def _recall(memory: Path) -> dict[str, list[Any]]:
    """Remembered stamps and sums by name; nothing when the memory is missing or damaged."""
    with suppress(InputError, ValueError, TypeError):
        return {name: [state, content] for name, (state, content) in read_json(memory).items() if len(content) == 64}
    return {}
