"""Many jobs into one output folder: each is done once, a failed one never stops the rest, and a killed run resumes.

A verb gives the runner its items and an `Opener`: a picklable function that prepares a process (loads models, say) and
returns the `Step` that does one item. A job's folder gets `done.json` last, with the job's stamp and its facts: what
the verb's tables need of it. The tables are written again as jobs end, so they are there after every kind of ending.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pneumoscope.errors import PneumoscopeError, shortage
from pneumoscope.io.files import clear_temporary, jsonable
from pneumoscope.io.kinds import short_hash
from pneumoscope.jobs.stamp import mark_done, mark_started, read_done, stamp
from pneumoscope.processes import death_of, worker_pool, workers_of
from pneumoscope.progress import OverJobs, Progress, silent

_log = logging.getLogger(__name__)

FOLDER = ".jobs"
"""Where a verb keeps the folders of its jobs when they are not results by themselves."""

MOST_BYTES = 200
"""Of the name of such a folder; file systems take 255."""

WRITING_SHARE = 0.05
"""At most this share of a run goes into writing its tables while it runs."""


@dataclass(frozen=True)
class Job:
    """One unit of work.

    Attributes:
        name: unique in the run.
        item: what the step gets; picklable.
        folder: where the job writes, and where its `done.json` lies.
    """

    name: str
    item: Any
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name: of the job.
        status: ``done`` or ``failed``.
        facts: what the run's tables need, as JSON values; empty when it failed.
        error: the one-line message when it failed.
        kind: class of the error.
        exit_code: how a command with this job alone ends: 0 done, 1 failed while running, 2 the input is unusable.
        seconds: wall time by step; empty when the result was kept.
        files: outside the job's folder that belong to the result.
        kept: whether an earlier run did it.
        problem: what was raised when it failed.
    """

    name: str
    status: Literal["done", "failed"] = "done"
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    kind: str = ""
    exit_code: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    kept: bool = False
    problem: Exception | None = field(default=None, compare=False, repr=False)


Work = Callable[[Job, Progress], Outcome]
Stream = Callable[[Iterator[Job], Progress], Iterator[Outcome]]


@dataclass(frozen=True)
class Step:
    """How the jobs of a run are done in one process.

    Attributes:
        kind: of job, for its stamp.
        revision: of the code, raised when the same input gives another result.
        made_of: of an item, everything that shapes its result, by name: settings, content sums of files, weights.
        work: does a job; an exception becomes its failed outcome.
        still: of an item and its kept facts, what they rest on that has changed besides; empty when nothing has.
        shares: of the steps that `work` reports, the usual share of a job's time; one bar then shows jobs and steps.
        stream: does many, where that is quicker than one by one; outcomes in any order, and it guards its jobs itself.
    """

    kind: str
    revision: int
    made_of: Callable[[Any], Mapping[str, Any]]
    work: Work | None = None
    still: Callable[[Any, Mapping[str, Any]], str] = lambda item, facts: ""
    shares: Mapping[str, float] = field(default_factory=dict)
    stream: Stream | None = None

    def each(self, jobs: Iterable[Job], progress: Progress = silent) -> Generator[Outcome, None, None]:
        """Do jobs in this process and mark those that are done."""
        pending: dict[str, tuple[Job, dict[str, str] | None]] = {}

        def feed() -> Iterator[Job]:
            for job in jobs:
                mark_started(job.folder)
                pending[job.name] = job, self.parts(job)
                yield job

        stream = self.stream or self.one_by_one
        for outcome in stream(feed(), progress):
            job, parts = pending.pop(outcome.name)
            try:
                yield self._marked(job, parts, outcome)
            except Exception as problem:
                yield failure(job.name, problem)

    def one_by_one(self, jobs: Iterator[Job], progress: Progress) -> Iterator[Outcome]:
        """Do jobs in this process and mark nothing."""
        assert self.work is not None
        for job in jobs:
            try:
                outcome = self.work(job, progress)
            except Exception as problem:
                outcome = failure(job.name, problem)
            yield outcome

    def parts(self, job: Job) -> dict[str, str] | None:
        """Fingerprints by name of what shapes the result; None when something of it cannot be read."""
        try:
            made_of = self.made_of(job.item)
            return {name: stamp(name, revision=0, value=value)[:24] for name, value in made_of.items()}
        except (OSError, PneumoscopeError):
            return None  # the work itself says what is wrong

    def stamp(self, parts: Mapping[str, str]) -> str:
        """The stamp of a job that is made of these parts."""
        return stamp(self.kind, revision=self.revision, **parts)

    def _marked(self, job: Job, parts: dict[str, str] | None, outcome: Outcome) -> Outcome:
        """The outcome with facts as they would be read back, and its mark written."""
        outcome = replace(outcome, facts=jsonable(dict(outcome.facts)))
        if outcome.status == "done" and parts is not None:
            inside = [path for path in sorted(job.folder.rglob("*")) if path.is_file() and path.name[0] != "."]
            found = (*inside, *outcome.files)
            files = {Path(os.path.relpath(path, job.folder)).as_posix(): path.stat().st_size for path in found}
            whole = _sum_of(files, outcome.facts)
            mark_done(job.folder, self.stamp(parts), parts=parts, files=files, facts=outcome.facts, sum=whole)
        return outcome

    def kept(self, job: Job) -> tuple[Outcome | None, str]:
        """The outcome of an earlier run where it is still valid; else why it is not, empty where there was none."""
        held = read_done(job.folder)
        if not held:
            return None, ""
        parts = self.parts(job)
        if parts is None:
            return None, "its files cannot be read"
        if held.get("stamp") != self.stamp(parts):
            before = held.get("parts")
            known = before if isinstance(before, dict) else {}
            other = [name for name in parts if known.get(name) != parts[name]]
            return None, f"{', '.join(other) or 'the version of pneumoscope'} changed"
        files, facts = held.get("files"), held.get("facts")
        if not isinstance(facts, dict) or not isinstance(files, dict) or held.get("sum") != _sum_of(files, facts):
            return None, "its done.json is damaged"
        for name, size in files.items():
            path = job.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None, f"{name} is missing or was changed"
        if changed := self.still(job.item, facts):
            return None, f"{changed} changed"
        return Outcome(job.name, facts=facts, kept=True), ""


Opener = Callable[[int], Step]
"""Prepares a process, one of so many that work side by side."""

Write = Callable[[Sequence[Outcome], bool], None]
"""Writes the tables of a run: the outcomes so far in the order of the jobs, and whether these are all."""


def run_jobs(
    jobs: Sequence[Job],
    step: Step,
    write: Write,
    *,
    opener: Opener | None = None,
    side_by_side: int = 1,
    resume: bool = False,
    strict: bool = False,
    what: str = "cases",
    progress: Progress = silent,
) -> list[Outcome]:
    """Do all jobs that are not done.

    Args:
        jobs: in the order in which they are reported.
        step: of this process.
        write: called as jobs end, at the end, and when the run is interrupted.
        opener: makes the step of other processes; without one all jobs are done in this process.
        side_by_side: jobs worked on at the same time, each in its own process.
        resume: keep the jobs whose `done.json` is still valid.
        strict: raise what the first job to fail raised, and write no table before all are done.
        what: the name of the progress bar.
        progress: called per job and, with one process, by the work itself.

    Returns:
        One outcome per job, in their order. Unless `strict`, a job that fails raises nothing.
    """
    outcomes = _resumed(jobs, step, progress) if resume else {}
    left = [job for job in jobs if job.name not in outcomes]
    for job in left:
        mark_started(job.folder)  # from here on a mark is one of this run
    pace, bar = _Pace(), OverJobs(progress, what, len(jobs), step.shares, len(outcomes))

    def so_far() -> list[Outcome]:
        return [outcomes[job.name] for job in jobs if job.name in outcomes]

    done: Generator[Outcome, None, None]
    if opener is None or side_by_side <= 1 or len(left) <= 1:
        named = ((job.name, job) for job in left)
        done = step.each(bar.begun(named) if step.shares else left, bar)
    else:
        done = _in_processes(left, opener, side_by_side)
    try:
        with closing(done):  # workers must not outlive an exception here
            for outcome in done:
                if strict and outcome.problem is not None:
                    raise outcome.problem
                outcomes[outcome.name] = outcome
                bar.end(len(outcomes), outcome.name)
                if len(outcomes) < len(jobs) and not strict:
                    pace.now_and_then(lambda: write(so_far(), False))
    except BaseException as problem:
        for job in left:
            clear_temporary(job.folder)  # of workers that were ended in the middle of a file
            facts = read_done(job.folder).get("facts")
            if job.name not in outcomes and isinstance(facts, dict):  # done, but its worker was ended before it said so
                outcomes[job.name] = Outcome(job.name, facts=facts)
        if not (strict and isinstance(problem, Exception)):
            with suppress(PneumoscopeError, OSError):  # the first problem is the one to report
                write(so_far(), False)
        raise
    write(so_far(), True)
    return so_far()


def _sum_of(files: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Tells whether what a mark says of its result is as it was written."""
    return stamp("mark", revision=0, files=dict(files), facts=dict(facts))[:24]


def failure(name: str, problem: Exception) -> Outcome:
    """A failed outcome: whatever goes wrong with one job stays with it."""
    known = problem if isinstance(problem, PneumoscopeError) else shortage(problem)
    if known is None:
        text = f"internal fault, {type(problem).__name__}: {' '.join(str(problem).split())}"
        return Outcome(name, "failed", error=text, kind=type(problem).__name__, exit_code=1, problem=problem)
    kind, code = type(known).__name__, known.exit_code
    return Outcome(name, "failed", error=str(known), kind=kind, exit_code=code, problem=known)


def job_folder(out: Path, name: str) -> Path:
    """Where a job of any name keeps its mark, in verbs without a folder per case."""
    safe = quote(os.fsencode(name), safe="")
    if len(safe) > MOST_BYTES or safe.startswith("."):
        safe = f"{safe[:MOST_BYTES]}-{short_hash(name)}".lstrip(".")
    return out / FOLDER / safe


def _resumed(jobs: Sequence[Job], step: Step, progress: Progress) -> dict[str, Outcome]:
    """Outcomes that are still valid; what is kept, and what is not and why, is logged."""
    kept: dict[str, Outcome] = {}
    again: list[str] = []
    for number, job in enumerate(jobs):
        progress("resume", number, len(jobs), job.name)
        outcome, why = step.kept(job)
        if outcome is not None:
            kept[job.name] = outcome
        elif why:
            again.append(f"{job.name} ({why})")
    progress("resume", len(jobs), len(jobs))
    if kept or again:
        _log.warning("resumed: %d of %d done before are kept", len(kept), len(jobs))
    if again:
        more = f" and {len(again) - 10} more" if len(again) > 10 else ""
        _log.warning("computed again: %s%s", ", ".join(again[:10]), more)
    return kept


class _Pace:
    """Calls a function often, but gives it at most `WRITING_SHARE` of the time."""

    def __init__(self) -> None:
        self._due = 0.0

    def now_and_then(self, function: Callable[[], None]) -> None:
        begun = time.monotonic()
        if begun >= self._due:
            function()
            ended = time.monotonic()
            self._due = ended + (ended - begun) / WRITING_SHARE


# -- processes ---------------------------------------------------------------------------------------------------------


def _in_processes(jobs: Sequence[Job], opener: Opener, side_by_side: int) -> Generator[Outcome, None, None]:
    """Jobs in worker processes; when one dies, what is left is done in a fresh process each."""
    left = {job.name: job for job in jobs}
    given = (pickle.dumps((opener, side_by_side)),)  # unpickled where a failure has an outcome
    with suppress(BrokenProcessPool, OSError), worker_pool(min(side_by_side, len(jobs)), _start_worker, given) as pool:
        for future in as_completed([pool.submit(_work, job) for job in jobs]):
            outcome = future.result()
            del left[outcome.name]
            yield outcome
    for job in left.values():
        workers: list[BaseProcess] = []
        try:
            with worker_pool(1, _start_worker, given) as pool:
                future = pool.submit(_work, job)
                workers = workers_of(pool)
                outcome = future.result()
        except OSError as problem:  # no process can be started
            outcome = failure(job.name, problem)
        except BrokenProcessPool:
            outcome = Outcome(job.name, "failed", error=f"{death_of(workers)}; try --jobs 1", exit_code=1)
        yield outcome


_step: Step | Exception | None = None


def _start_worker(given: bytes) -> None:
    """Prepare a worker process once; what fails here is the outcome of every job."""
    global _step
    try:
        opener, side_by_side = pickle.loads(given)
        _step = opener(side_by_side)
    except Exception as problem:
        _step = problem


def _work(job: Job) -> Outcome:
    assert _step is not None
    return failure(job.name, _step) if isinstance(_step, Exception) else next(_step.each([job]))
