"""Many jobs into one output folder: each is done once, a failed one never stops the rest, and a killed run resumes.

Ready jobs go to an executor: this process, processes of this machine, or workers of Dask and SLURM (`machines`). A job
whose worker died is done again, alone; when its worker dies again it has failed. The run's
tables are written again as jobs end, so they are there after every kind of ending.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace

from pneumoscope.errors import PneumoscopeError, RunError
from pneumoscope.io.files import clear_temporary
from pneumoscope.jobs.executor import MOST_JOBS, Executor, LocalWorkers, OpeningError, WorkerLostError
from pneumoscope.jobs.graph import FOLDER, Job, Opener, Outcome, Queue, Step, failure, job_folder
from pneumoscope.jobs.machines import current
from pneumoscope.jobs.stamp import DONE_FILE
from pneumoscope.progress import FORECAST, NOTE, OverJobs, Progress, silent

__all__ = ["FOLDER", "Job", "JobRun", "Opener", "Outcome", "Step", "Write", "job_folder"]

_log = logging.getLogger(__name__)

WRITING_SHARE = 0.05  # At most this share of a run goes into writing its tables while it runs
TASK_SECONDS = 1.0  # Short jobs go to a worker so many at a time that sending them costs little

MOST_DEATHS, MOST_STOPS = 2, 20
"""How often a worker may die over a job, or be ended from outside while at it, until the job has failed."""

LONG_SECONDS = 120.0  # A run of this machine that takes longer is forecast
LOOK_SECONDS = 1.0  # How often the number of workers is looked up: those of a cluster come and go

Write = Callable[[Sequence[Outcome], bool], None]
"""Writes the tables of a run: the outcomes so far in the order of the jobs, and whether these are all."""


@dataclass(frozen=True)
class JobRun:
    """Jobs of one output folder, and how they are done."""

    jobs: Sequence[Job]  # in the order in which they are reported
    step: Step | None  # of this process; None where other machines do the work
    write: Write  # called as jobs end, at the end, and when the run is interrupted
    opener: Opener | None = None  # makes the step of other processes; without one all jobs are done in this process
    side_by_side: int = 1  # jobs worked on at the same time, each in its own process
    resume: bool = False  # keep the jobs whose `done.json` is still valid
    strict: bool = False  # raise what the first job to fail raised, and write no table before all are done
    what: str = "cases"  # the name of the progress bar
    progress: Progress = silent  # called per job and as jobs advance; with one process by the work itself

    def run(self) -> list[Outcome]:
        """Do all jobs that are not done.

        Returns:
            One outcome per job, in their order. Unless `strict`, a job that fails raises nothing.
        """
        jobs, step, executor = self.jobs, self.step, self._executor()
        remote = executor is not None and executor.remote
        kept = self.resume and not remote and step is not None
        outcomes = _resumed(jobs, step, self.progress) if kept and step is not None else {}
        left = [job for job in jobs if job.name not in outcomes]
        before = {job.name: _mark_of(job) for job in left} if self.resume and remote else {}
        for job in left if not before else ():
            job.start()  # from here on a mark is one of this run
        bar = OverJobs(self.progress, self.what, len(jobs), {} if step is None else step.shares, len(outcomes))
        done: Generator[Outcome, None, None]
        if executor is not None and (remote or len(left) > 1):
            done = _on_workers(left, executor, self.resume and remote, bar)
        else:
            assert step is not None
            done = _in_this_process(left, step, bar)
        try:
            with closing(done):  # workers must not outlive an exception here
                self._collect(done, outcomes, bar)
        except BaseException as problem:
            for job in left:
                clear_temporary(job.folder)  # of workers that were ended in the middle of a file
                facts = job.facts() if _mark_of(job) != before.get(job.name) else None
                if job.name not in outcomes and facts is not None:  # done, but its worker was ended before it said so
                    outcomes[job.name] = Outcome(job.name, facts=facts)
            if not (self.strict and isinstance(problem, Exception)):
                with suppress(PneumoscopeError, OSError):  # the first problem is the one to report
                    self.write(self._so_far(outcomes), False)
            raise
        if before:
            _log.warning("resumed: %d of %d done before are kept", sum(o.kept for o in outcomes.values()), len(jobs))
        self.write(self._so_far(outcomes), True)
        return self._so_far(outcomes)

    def _executor(self) -> Executor | None:
        """Who does the jobs; None for this process."""
        if self.opener is None or not self.jobs:
            return None
        if current().remote:
            from pneumoscope.jobs.dask import DaskWorkers

            return DaskWorkers(current(), self.opener, self.jobs[0].folder.parent)
        width = min(self.side_by_side, len(self.jobs))
        return LocalWorkers(self.opener, width) if width > 1 else None

    def _collect(self, done: Iterable[Outcome], outcomes: dict[str, Outcome], bar: OverJobs) -> None:
        """Take outcomes as they come, and write the tables in between for at most `WRITING_SHARE` of the time."""
        due = 0.0
        for outcome in done:
            if self.strict and outcome.status == "failed":
                raise outcome.problem or RunError(f"{outcome.name}: {outcome.error}")
            outcomes[outcome.name] = outcome
            bar.end(len(outcomes), outcome.name)
            started = time.monotonic()
            if len(outcomes) < len(self.jobs) and not self.strict and started >= due:
                self.write(self._so_far(outcomes), False)
                ended = time.monotonic()
                due = ended + (ended - started) / WRITING_SHARE

    def _so_far(self, outcomes: Mapping[str, Outcome]) -> list[Outcome]:
        return [outcomes[job.name] for job in self.jobs if job.name in outcomes]


def _mark_of(job: Job) -> tuple[int, int] | None:
    """Tells a mark from one that is written later."""
    try:
        known = (job.folder / DONE_FILE).stat()
    except OSError:
        return None
    return known.st_ino, known.st_mtime_ns


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


def _in_this_process(jobs: Sequence[Job], step: Step, bar: OverJobs) -> Generator[Outcome, None, None]:
    queue = Queue(jobs)
    ready = queue.drain()
    for outcome in step.each(bar.over((job.name, job) for job in ready) if step.shares else ready, bar):
        yield from queue.ended(outcome)


def _on_workers(jobs: Sequence[Job], executor: Executor, resume: bool, bar: OverJobs) -> Generator[Outcome, None, None]:
    """Jobs by an executor; what a lost worker was working on is done again, each job alone.

    A death counts against the jobs that were at work, or, where nobody knows, against a job that was alone.
    """
    queue, deaths, stops = Queue(jobs), Counter[str](), Counter[str]()
    did, new, spent, forecast = 0, 0, 0.0, True
    with executor:
        for note in executor.notes:
            bar.progress(NOTE, 1, 1, note)
        while queue or executor.busy():
            while queue:
                several, again = _how_many(queue, executor.width(), spent, did), bool(queue.again)
                if executor.free() <= 0:  # asked last: workers come and go
                    break
                executor.submit(queue.take(several), resume or again)
            if parts := executor.at_work():
                bar.side_by_side(parts)
            for part, call in executor.ended(LOOK_SECONDS):
                try:
                    outcomes, seconds = executor.outcomes(call)
                    did, spent = did + len(outcomes), spent + seconds
                    new += sum(not outcome.kept for outcome in outcomes)
                    ended = {outcome.name for outcome in outcomes}
                    queue.ready.extendleft(job for job in reversed(part) if job.name not in ended)
                except WorkerLostError as problem:
                    outcomes = []
                    blamed = problem.at_work or ([part[0].name] if len(part) == 1 else [])
                    count, most = (stops, MOST_STOPS) if problem.stopped else (deaths, MOST_DEATHS)
                    count.update(blamed)
                    for job in part:
                        if count[job.name] < most or job.name not in blamed:
                            queue.again.append(job)
                        else:
                            often = f"for the {'second' if most == 2 else f'{most}th'} time"
                            text = f"{problem}, {often}; {executor.advice}"
                            outcomes.append(Outcome(job.name, "failed", error=text, exit_code=1))
                except OpeningError as problem:
                    if not did:
                        raise _known(problem.problem) from problem
                    outcomes = [failure(job.name, problem.problem) for job in part]
                except PneumoscopeError:  # what ends the run: other machines see other files, say
                    raise
                except Exception as problem:  # no process can be started, a job cannot be pickled
                    if not did:
                        raise _known(problem) from problem
                    outcomes = [failure(job.name, problem) for job in part]
                for outcome in outcomes:
                    yield from queue.ended(outcome if resume else replace(outcome, kept=False))
            if forecast and new >= (width := max(1, executor.width())):
                forecast, left = False, len(jobs) - did + new
                seconds = spent / new * left / width
                if executor.remote or seconds > LONG_SECONDS:
                    workers = f"{width} worker{'s' if width > 1 else ''}"
                    bar.progress(FORECAST, 1, 1, f"{left} {bar.what}, about {_duration(seconds)} on {workers}")


def _known(problem: Exception) -> PneumoscopeError:
    """Why no worker can do anything, for users."""
    if isinstance(problem, PneumoscopeError):
        return problem
    text = f"workers cannot do the work ({type(problem).__name__}: {problem}); install the same pneumoscope there"
    return RunError(text)


def _how_many(queue: Queue, width: int, spent: float, did: int) -> int:
    """Jobs for one call: one until their time is known, and never so many that workers are left without."""
    if not did:
        return 1
    fair = math.ceil(len(queue.ready) / (2 * max(1, width)))
    return max(1, min(MOST_JOBS, fair, int(TASK_SECONDS * did / max(spent, 1e-6))))


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{math.ceil(seconds / 60)} min"
