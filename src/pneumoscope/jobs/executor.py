"""What all executors share: their interface, and the worker process that does the jobs wherever it runs; those here."""

from __future__ import annotations

import pickle
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from types import TracebackType
from typing import Any

from pneumoscope.errors import PneumoscopeError
from pneumoscope.jobs.graph import Job, Opener, Outcome, Step
from pneumoscope.processes import WorkerProcess, end_workers, share_processors
from pneumoscope.progress import OverJobs

MOST_JOBS = 256  # Of one call

CALL_SECONDS = 5.0
"""After so long a worker gives back those of its jobs that it has not started: some take longer than those before."""

AT_WORK, ENDED = 1, 101  # States of a job; between them a job that is so many hundredths done

Done = tuple[list[Outcome], float]  # Outcomes of the jobs that were done, and the seconds they took


class WorkerLostError(Exception):
    """A worker ended in the middle of its jobs.

    Attributes:
        reason: as far as it is known.
        at_work: names of the jobs that were started and not ended; empty where nobody knows.
        stopped: whether it was ended from outside (SIGTERM, walltime), which no job is to blame for.
    """

    def __init__(self, reason: str, at_work: Sequence[str] = (), stopped: bool = False) -> None:
        super().__init__(reason, at_work, stopped)
        self.reason, self.at_work, self.stopped = reason, tuple(at_work), stopped

    def __str__(self) -> str:
        return self.reason


class OpeningError(Exception):
    """A worker could not be prepared; carries what was raised."""

    def __init__(self, problem: Exception) -> None:
        super().__init__(problem)
        self.problem = problem


class Executor(ABC):
    """Does jobs in other processes, a few at a time in each.

    Attributes:
        remote: whether workers may be other machines than this one.
        advice: what to do about jobs whose workers end.
        notes: what the user should know once it has started.
    """

    remote = False
    advice = "try --jobs 1"

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._running: dict[Future[Any], list[Job]] = {}

    @abstractmethod
    def __enter__(self) -> Executor:
        """Start."""

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all workers; after an exception at once."""

    @abstractmethod
    def width(self) -> int:
        """Workers that are there now."""

    @abstractmethod
    def start(self, jobs: Sequence[Job], again: bool) -> Future[Any]:
        """Give jobs to a worker; `again` keeps those that are done."""

    @abstractmethod
    def outcomes(self, future: Future[Any]) -> Done:
        """What became of the jobs of an ended call.

        Raises:
            WorkerLostError: its worker ended.
            OpeningError: its worker could not be prepared.
        """

    def at_work(self) -> Mapping[str, float]:
        """Jobs that workers are at by name, and which part of each is done, where that is known."""
        return {}

    def submit(self, jobs: list[Job], again: bool) -> None:
        """Give jobs to a free worker."""
        self._running[self.start(jobs, again)] = jobs

    def free(self) -> int:
        """Workers without jobs."""
        return self.width() - len(self._running)

    def busy(self) -> bool:
        """Whether any worker has jobs."""
        return bool(self._running)

    def ended(self, seconds: float) -> Iterator[tuple[list[Job], Future[Any]]]:
        """Calls that have ended, after waiting up to so long for the first."""
        if not self._running:
            time.sleep(seconds)
        wait(self._running, seconds, FIRST_COMPLETED)
        for future in [one for one in self._running if one.done()]:  # `wait` leaves out what was just cancelled
            yield self._running.pop(future), future


class JobProcess(WorkerProcess):
    """A worker process that does jobs, and tells which of them it was at when it died.

    Args:
        given: pickled opener, and how many such processes there are.
    """

    def __init__(self, given: bytes) -> None:
        self._states: Any = get_context("spawn").Array("b", MOST_JOBS, lock=False)
        self._jobs: Sequence[Job] = ()
        super().__init__(open_step, given, self._states)

    def start(self, jobs: Sequence[Job], again: bool) -> Future[Done]:
        """Give jobs to the process, see `do_jobs`."""
        assert len(jobs) <= MOST_JOBS
        self._jobs, self._states[:] = jobs, bytes(MOST_JOBS)
        return self.submit(do_jobs, jobs, again)

    def at_work(self) -> dict[str, float]:
        """See `Executor`."""
        at = zip(self._jobs, self._states, strict=False)
        return {job.name: (state - AT_WORK) / (ENDED - AT_WORK) for job, state in at if AT_WORK <= state < ENDED}

    def result_of(self, future: Future[Done]) -> Done:
        """What became of the jobs; waits for it.

        Raises:
            WorkerLostError: the process ended, or could not be started.
        """
        try:
            return future.result()
        except BrokenProcessPool:
            reason = self.death()
            stopped = {process.exitcode for process in self.processes} == {-signal.SIGTERM}
            raise WorkerLostError(reason, list(self.at_work()), stopped) from None


_step: Step | Exception | None = None
_states: Any = None  # Of the jobs of the current call, by place; memory that the parent sees


def open_step(given: bytes, states: Any) -> None:
    """Prepare a worker process once; what fails here is the outcome of every job."""
    global _step, _states
    _states = states
    try:
        opener, side_by_side = pickle.loads(given)
        share_processors(side_by_side)
        _step = opener(side_by_side)
    except Exception as problem:
        _step = problem


def do_jobs(jobs: Sequence[Job], again: bool) -> Done:
    """Do jobs in a prepared process.

    Args:
        jobs: in any number; after `CALL_SECONDS` no other is started.
        again: keep those whose mark is valid.

    Raises:
        OpeningError: it could not be prepared.
    """
    if isinstance(_step, Exception):
        raise OpeningError(_portable(_step))
    assert _step is not None
    started = time.perf_counter()
    kept = {job.name: _step.kept(job)[0] for job in jobs} if again else {}
    left = [job for job in jobs if kept.get(job.name) is None]
    outcomes = [outcome for outcome in kept.values() if outcome is not None]
    places = {job.name: place for place, job in enumerate(jobs)}
    now = ""

    def each() -> Iterator[tuple[str, Job]]:
        nonlocal now
        for job in left:
            if job is not left[0] and time.perf_counter() - started > CALL_SECONDS:
                return
            now = job.name
            yield now, job

    def advance(what: str, done: float, total: int, note: str = "") -> None:
        if what in ("", now) and _states[places[now]] != ENDED:  # the whole job; other work is a part of it
            _states[places[now]] = min(ENDED - 1, AT_WORK + int((ENDED - AT_WORK) * done / total))

    bar = OverJobs(advance, "", 1, _step.shares)
    for outcome in _step.each(bar.over(each()), bar):
        _states[places[outcome.name]] = ENDED
        problem = outcome.problem
        outcomes.append(outcome if problem is None else replace(outcome, problem=_portable(problem)))
    return outcomes, time.perf_counter() - started


def _portable(problem: Exception) -> Exception:
    """The exception as it goes to another process: ours as they are, of others what can be pickled."""
    if isinstance(problem, PneumoscopeError):
        return problem
    try:
        pickle.loads(pickle.dumps(problem))
    except Exception:
        return RuntimeError(f"{type(problem).__name__}: {problem}")
    return problem


class LocalWorkers(Executor):
    """Processes of this machine."""

    def __init__(self, opener: Opener, width: int) -> None:
        super().__init__()
        given = pickle.dumps((opener, width))  # unpickled where a failure has an outcome
        self._workers = [JobProcess(given) for _ in range(width)]
        self._idle = list(self._workers)
        self._used: dict[Future[Any], JobProcess] = {}

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_workers(self._workers, at_once=problem is not None)

    def width(self) -> int:
        """See `Executor`."""
        return len(self._workers)

    def at_work(self) -> dict[str, float]:
        """See `Executor`."""
        return {name: far for worker in self._used.values() for name, far in worker.at_work().items()}

    def start(self, jobs: Sequence[Job], again: bool) -> Future[Any]:
        """See `Executor`."""
        worker = self._idle.pop()
        future = worker.start(jobs, again)
        self._used[future] = worker
        return future

    def outcomes(self, future: Future[Any]) -> Done:
        """See `Executor`."""
        worker = self._used.pop(future)
        self._idle.append(worker)
        return worker.result_of(future)
