"""A job: a name, what it needs, a stamp, a folder; and how the jobs of a verb are done in one process.

A verb gives the runner its items and an `Opener`: a picklable function that prepares a process (loads models, say) and
returns the `Step` that does one item. A job's folder gets `done.json` last, with the job's stamp and its facts: what
the verb's tables need of it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pneumoscope.errors import PneumoscopeError, shortage
from pneumoscope.io.files import jsonable
from pneumoscope.io.kinds import short_hash
from pneumoscope.jobs.stamp import kept_result, mark_result, mark_started, read_done, stamp
from pneumoscope.processes import peak_bytes
from pneumoscope.progress import Progress, silent

FOLDER = ".jobs"  # Where a verb keeps the folders of its jobs when they are not results by themselves
MOST_BYTES = 200  # Of the name of such a folder; file systems take 255


@dataclass(frozen=True)
class Job:
    """One unit of work."""

    name: str  # unique in the run
    item: Any  # what the step gets; picklable
    folder: Path  # where the job writes, and where its `done.json` lies
    # names of the jobs that must be done before; those that are not part of the run count as done
    needs: tuple[str, ...] = ()
    marked: bool = True  # whether `done.json` is kept there; not where the work keeps marks of its own

    def start(self) -> None:
        """Take the mark of an earlier run away."""
        if self.marked:
            mark_started(self.folder)

    def facts(self) -> dict[str, Any] | None:
        """What the mark says; None where the job is not done."""
        facts = read_done(self.folder).get("facts") if self.marked else None
        return facts if isinstance(facts, dict) else None


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    name: str  # of the job
    status: Literal["done", "failed"] = "done"
    # what the run's tables need, as JSON values; empty when it failed
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None  # the one-line message when it failed
    kind: str = ""  # class of the error
    # how a command with this job alone ends: 0 done, 1 failed while running, 2 the input is unusable
    exit_code: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall time by step; empty when the result was kept
    files: tuple[Path, ...] = ()  # outside the job's folder that belong to the result
    kept: bool = False  # whether an earlier run did it
    # the most memory that the process which did it had held by then; None when the result was kept
    memory_mib: int | None = None
    host: str | None = None  # that process's machine, where the run has several
    problem: Exception | None = field(default=None, compare=False, repr=False)  # what was raised when it failed


Work = Callable[[Job, Progress], Outcome]
Stream = Callable[[Iterator[Job], Progress], Iterator[Outcome]]


@dataclass(frozen=True)
class Step:
    """How the jobs of a run are done in one process."""

    kind: str  # of job, for its stamp
    revision: int  # of the code, raised when the same input gives another result
    # of an item, everything that shapes its result, by name: settings, content sums of files, weights
    made_of: Callable[[Any], Mapping[str, Any]] = lambda item: {}
    work: Work | None = None  # does a job; an exception becomes its failed outcome
    # of an item and its kept facts, what they rest on that has changed besides; empty when nothing has
    still: Callable[[Any, Mapping[str, Any]], str] = lambda item, facts: ""
    # of the steps that `work` reports, the usual share of a job's time; one bar then shows jobs and steps
    shares: Mapping[str, float] = field(default_factory=dict)
    # does many, where that is quicker than one by one; outcomes in any order, and it guards its jobs itself
    stream: Stream | None = None

    def each(self, jobs: Iterable[Job], progress: Progress = silent) -> Generator[Outcome, None, None]:
        """Do jobs in this process and mark those that are done."""
        pending: dict[str, tuple[Job, dict[str, str] | None]] = {}

        def feed() -> Iterator[Job]:
            for job in jobs:
                job.start()
                pending[job.name] = job, self.parts(job)
                yield job

        stream = self.stream or self.one_by_one
        for outcome in stream(feed(), progress):
            job, parts = pending.pop(outcome.name)
            try:
                yield replace(self._marked(job, parts, outcome), memory_mib=round(peak_bytes() / 2**20) or None)
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
        if not job.marked:
            return None
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
            mark_result(job.folder, self.stamp(parts), parts=parts, files=outcome.files, facts=outcome.facts)
        return outcome

    def kept(self, job: Job) -> tuple[Outcome | None, str]:
        """The outcome of an earlier run where it is still valid; else why it is not, empty where there was none."""
        if not (job.marked and read_done(job.folder)):
            return None, ""
        parts = self.parts(job)
        if parts is None:
            return None, "its files cannot be read"
        facts, why = kept_result(job.folder, self.stamp(parts), parts)
        if facts is None:
            return None, why
        if changed := self.still(job.item, facts):
            return None, f"{changed} changed"
        return Outcome(job.name, facts=facts, kept=True), ""


Opener = Callable[[int], Step]  # Prepares a process, one of so many that work side by side


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


class Queue:
    """Jobs that can be done now, in their order: each follows those it needs, and fails when one of them does."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        names = {job.name for job in jobs}
        self.ready: deque[Job] = deque()  # what to do next
        self.again: deque[Job] = deque()  # jobs that a lost worker was at; each is done alone
        self._unmet: dict[str, int] = {}
        self._after: dict[str, list[Job]] = {}
        for job in jobs:
            needs = [name for name in job.needs if name in names]
            for name in needs:
                self._after.setdefault(name, []).append(job)
            self._unmet[job.name] = len(needs)
            if not needs:
                self.ready.append(job)

    def __len__(self) -> int:
        return len(self.ready) + len(self.again)

    def take(self, most: int) -> list[Job]:
        """The next job that is done alone, or up to so many others."""
        if self.again:
            return [self.again.popleft()]
        return [self.ready.popleft() for _ in range(min(most, len(self.ready)))]

    def drain(self) -> Iterator[Job]:
        """One after the other, those that become ready meanwhile too."""
        while self.ready:
            yield self.ready.popleft()

    def ended(self, outcome: Outcome) -> Iterator[Outcome]:
        """Take note of an outcome; gives it, and a failed one for each job that cannot be done any more."""
        yield outcome
        for job in self._after.pop(outcome.name, ()):
            self._unmet[job.name] -= 1
            if outcome.status == "failed" and self._unmet[job.name] >= 0:
                self._unmet[job.name] = -1  # fails once, however many of its needs do
                text = f"needs {outcome.name}, which failed"
                yield from self.ended(Outcome(job.name, "failed", error=text, exit_code=1))
            elif self._unmet[job.name] == 0:
                self.ready.append(job)
