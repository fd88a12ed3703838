"""The executor of this machine: worker processes, each prepared once; one that dies is replaced."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from pneumoscope.jobs.executor import Done, Executor, JobProcess
from pneumoscope.jobs.graph import Job, Opener
from pneumoscope.processes import end_workers


class LocalWorkers(Executor):
    """Processes of this machine.

    Args:
        opener: prepares each.
        width: how many.
    """

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
