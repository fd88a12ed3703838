"""One run per output folder: a lock that names its owner, refuses a second run and outlives no process.

The lock is the file ``.lock`` with process id, host and start time. A lock whose process has ended on this host is
taken over; one of another host can only be judged by a person, who is shown its age and which file to remove.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

import psutil

from pneumoscope.errors import InputError
from pneumoscope.io.files import make_folder

LOCK_FILE = ".lock"
_MOST_BYTES = 4096
_log = logging.getLogger(__name__)
_held: dict[Path, int] = {}  # Folders locked by this process, and the thread that locked them

P = ParamSpec("P")
R = TypeVar("R")


def locks(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that writes a run: the output folders in its arguments `names` are locked while it runs."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            with ExitStack() as stack:
                for folder in (given.get(name) for name in names):
                    if folder is not None:
                        stack.enter_context(locked(folder))
                return function(*args, **kwargs)

        return call

    return decorate


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of an output folder; the folder is made, and removed again if nothing was written into it.

    A thread may lock a folder that it holds already (a run within a run).

    Raises:
        InputError: another run holds it, or the folder cannot be made.
    """
    folder = Path(path)
    key = folder.resolve()
    if _held.get(key) == threading.get_ident():
        yield
        return
    new = [part for part in (folder, *folder.parents) if not part.exists()]
    make_folder(folder)
    lock = folder / LOCK_FILE
    try:
        _take(lock)
        _held[key] = threading.get_ident()
        yield
    finally:
        if _held.get(key) == threading.get_ident():
            del _held[key]
            lock.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: it holds results
            for part in new:
                part.rmdir()


def _take(lock: Path) -> None:
    """Put our lock in place at once and whole, or refuse."""
    own = lock.with_name(f".tmp-{os.getpid()}-{threading.get_ident()}-lock")
    try:
        own.write_text(json.dumps(_owner()), encoding="utf-8")
    except OSError as problem:
        reason = problem.strerror or type(problem).__name__
        raise InputError(f"cannot be written to ({reason}); choose another place", path=lock.parent) from problem
    try:
        while not _placed(own, lock):
            with suppress(FileNotFoundError), _opened(lock) as stream:  # released meanwhile: try again
                _lock_file(stream.fileno())
                if os.fstat(stream.fileno()).st_ino != lock.stat().st_ino:
                    continue  # somebody else took it over meanwhile
                age = time.time() - os.fstat(stream.fileno()).st_mtime
                _require_stale(lock, stream.read(_MOST_BYTES), age)
                own.replace(lock)
                return
    finally:
        own.unlink(missing_ok=True)


def _opened(lock: Path) -> BinaryIO:
    """A lock of anybody.

    Raises:
        FileNotFoundError: it has been released.
        InputError: it cannot be read, or is no regular file.
    """
    try:
        if not stat.S_ISREG(lock.lstat().st_mode):
            raise _unreadable(lock, "is no regular file")
        return lock.open("rb")
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise _unreadable(lock, problem.strerror or type(problem).__name__) from problem


def _placed(own: Path, lock: Path) -> bool:
    try:
        os.link(own, lock)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as stream:
            stream.write(own.read_bytes())
    return True


def _lock_file(handle: int) -> None:
    """Let one process at a time judge a lock; without such locks two might take over one at the same instant."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


def _owner() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": _since_boot(psutil.Process()), "host": socket.gethostname()}


def _since_boot(process: psutil.Process) -> float:
    """Seconds from the start of the machine to that of a process: a clock that is set moves both times of day."""
    return process.create_time() - psutil.boot_time()


def _require_stale(lock: Path, content: bytes, age_s: float) -> None:
    """Return when the owner is gone and say that its lock is taken over.

    Raises:
        InputError: it runs, or may run on another host.
    """
    try:
        owner = json.loads(content)
        pid, started, host = int(owner["pid"]), float(owner["started"]), str(owner["host"])
        if pid <= 0:
            raise ValueError(pid)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise _unreadable(lock, f"{_age(age_s)} old") from None
    if host != socket.gethostname():
        raise InputError(
            f"is locked by process {pid} on the host {host}, {_age(age_s)} ago; wait for it or choose another folder, "
            f"or, if that run is over, remove {lock}",
            path=lock.parent,
        )
    if _runs(pid, started):
        raise InputError(
            f"is in use by another run (process {pid}, for {_age(age_s)}); wait for it or choose another folder",
            path=lock.parent,
        )
    _log.warning("%s: took over the lock of process %d, which has ended (locked %s ago)", lock.parent, pid, _age(age_s))


def _unreadable(lock: Path, why: str) -> InputError:
    return InputError(
        f"holds a lock that cannot be read ({why}); if no run uses the folder, remove {lock}", path=lock.parent
    )


def _runs(pid: int, started: float) -> bool:
    """Whether the process is alive and is the one that was meant: numbers are used again."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(_since_boot(process) - started) < 2
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
