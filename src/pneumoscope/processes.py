"""Processes that end when they should: with their parent, and after a signal only where nothing is half done.

Worker processes leave Ctrl-C to their parent, and end with it however it ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.process import BaseProcess

LOOK_SECONDS = 0.5  # How often a child looks whether its parent is still there

GRACE_SECONDS = 60.0
"""How long a worker may take to save what it has when the run is ended: a step of a training on a busy machine."""

REAP_SECONDS = 10.0  # How long the status of a process that has ended may be in coming


def end_with_parent(parent: int | None = None) -> None:
    """End this process soon after its parent has ended, however that ended; called once, early, in a child.

    Args:
        parent: its process id; None takes who is the parent now, which is another process where it ended already.

    A parent killed by SIGKILL cannot end its children, and Linux's PR_SET_PDEATHSIG fires as soon as the *thread* that
    started the child is over. So a thread of the child watches who its parent is.
    """
    if os.name != "posix":  # there the parent may be a launcher, and its number does not change when it ends
        return
    expected = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    with suppress(RuntimeError):  # too little memory for a thread: the work will say so
        threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


_sharing = 1  # Processes that work side by side here, this one included


def share_processors(side_by_side: int) -> None:
    """Leave processors to the others of so many processes that work side by side; called once, early, in a child."""
    global _sharing
    _sharing = max(1, side_by_side)


def processors() -> int:
    """Processors that this process may use: its share of the machine's, at least 1."""
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, every // _sharing)


class WorkerProcess:
    """A fresh process, prepared by ``start(*given)``, that makes one call at a time; one that died is replaced."""

    def __init__(self, start: Callable[..., None], *given: Any) -> None:
        self._prepare = (start, given)
        self._pool: ProcessPoolExecutor | None = None
        self.processes: list[BaseProcess] = []

    def submit(self, call: Callable[..., Any], *given: Any) -> Future[Any]:
        """Call in the process; where none can be started, the future has the OSError."""
        try:
            try:
                future = self._running().submit(call, *given)
            except BrokenExecutor:  # it died while idle
                self._pool = None
                future = self._running().submit(call, *given)
        except OSError as problem:
            self._pool, future = None, Future()
            future.set_exception(problem)
        else:  # these outlast the pool's own record of them
            self.processes = list((self._running()._processes or {}).values())
        return future

    def _running(self) -> ProcessPoolExecutor:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start, self._prepare)
        return self._pool

    def death(self) -> str:
        """Why the process ended; the next call is made in another."""
        self._pool = None
        return death_of(self.processes)

    def close(self) -> None:
        """End the process when its call has ended."""
        if self._pool is not None:
            self._pool.shutdown()

    def terminate(self) -> None:
        """Send it SIGTERM, and do not wait."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        for process in self.processes:
            process.terminate()


def end_workers(workers: Sequence[WorkerProcess], *, at_once: bool) -> None:
    """End processes; `at_once` gives each SIGTERM and `GRACE_SECONDS` to reach a place where it can stop."""
    if not at_once:
        for worker in workers:
            worker.close()
        return
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in (process for worker in workers for process in worker.processes):
        process.join(max(0, deadline - time.monotonic()))
        process.kill()


def _start(start: Callable[..., None], given: tuple[Any, ...]) -> None:
    from multiprocessing import parent_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    end_with_parent(None if parent is None else parent.pid)
    start(*given)


def death_of(workers: Sequence[BaseProcess]) -> str:
    """Why one of some worker processes ended, as far as the system says.

    A pool's own thread may have waited for the process already and not yet noted its status, so it is asked for again.
    """
    deadline = time.monotonic() + REAP_SECONDS
    while True:
        for worker in workers:
            worker.join(0.01)
        codes = [code for worker in workers if (code := worker.exitcode) not in (None, 0, -signal.SIGTERM)]
        if codes or time.monotonic() > deadline or None not in [worker.exitcode for worker in workers]:
            break
        time.sleep(0.01)
    if not codes or codes[0] is None:
        stopped = -signal.SIGTERM in [worker.exitcode for worker in workers]
        return "its process was stopped (SIGTERM)" if stopped else "its process ended without a reason"
    if codes[0] > 0:
        return f"its process could not start, or ended with status {codes[0]}{_address_space()}"
    name = signal.Signals(-codes[0]).name
    often = ", most often because memory ran out" if name == "SIGKILL" else ""
    return f"its process {'was killed' if often else 'crashed'} ({name}){often}"


def _address_space() -> str:
    """The likeliest reason where the address space is limited: libraries end their process without a word then."""
    try:
        import resource
    except ImportError:
        return ""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return ""
    return f", most likely for want of address space ({limit >> 20} MiB by ulimit -v)"


def release_memory() -> None:
    """Give freed memory back to the system where the C library can (glibc): networks leave 150 MB and more behind."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def signals_held() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back, so that the block can stop where nothing is half done.

    Yields a function that says whether one has come; the block should then save and leave. At the end the signal takes
    effect. A second one takes effect at once. Outside the main thread nothing is held back: signals do not come there.
    """
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            restore()
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if handler is not None and handler != signal.SIG_IGN:
                before[number] = handler
                signal.signal(number, note)
    try:
        yield lambda: bool(came)
    finally:
        pending = bool(before) and bool(came)
        restore()
        if pending:
            signal.raise_signal(came[0])


def peak_bytes() -> int:
    """The most memory that this process has held so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
