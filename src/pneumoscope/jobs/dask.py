"""Jobs on Dask and SLURM: each Dask worker hands them to a worker process of its own, as this machine does.

So a scan that crashes its process is reported in the same words everywhere, libraries that block do not make a worker
miss its heartbeats, and a training gets SIGTERM in its main thread. SLURM jobs are Dask workers (dask-jobqueue); those
of a cluster of this machine are threads of this process, since they only wait for theirs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pneumoscope._version import __version__
from pneumoscope.errors import InputError, RunError
from pneumoscope.io.files import make_folder
from pneumoscope.jobs.executor import Done, Executor, JobProcess, WorkerLostError
from pneumoscope.jobs.graph import Job, Opener
from pneumoscope.jobs.machines import Machines
from pneumoscope.jobs.slurm import LOGS, queue_state, slurm_cluster
from pneumoscope.processes import processors

CONNECT_SECONDS = 15
PROBE_SECONDS = 15.0
"""How long a file may take to be seen by another machine: network file systems keep lists of names for a while."""

QUIET_SECONDS = 60.0  # After so long without any worker the user sees what the cluster says

SETTINGS = {
    "distributed.worker.daemon": False,  # workers have processes of their own
    "distributed.scheduler.allowed-failures": 0,  # the runner counts, job by job
    "distributed.admin.large-graph-warning-threshold": "1GB",
    "logging": {"distributed": "critical", "distributed.nanny": "critical", "distributed.worker": "critical"},
}


@dataclass(frozen=True)
class Run:
    """What a worker has to know of a run."""

    given: bytes  # of `JobProcess`
    threads: int | None  # of each worker; 0 takes those of the Dask worker, None leaves what the user has set
    probe: str  # a file in the output folder
    content: str  # its SHA-256
    version: str = __version__  # of pneumoscope


class DaskWorkers(Executor):
    """Workers of Dask: started on this machine, by SLURM, or there already."""

    remote = True

    def __init__(self, where: Machines, opener: Opener, folder: Path) -> None:
        super().__init__()
        self._where, self._opener, self._folder = where, opener, folder
        self._stack = ExitStack()
        self._started = self._seen = self._looked = 0.0
        self._workers: list[str] = []
        self._used: dict[Future[Any], str] = {}
        self._lost: set[Future[Any]] = set()
        self._any, self._ended_well = False, False
        self._threads: int | None = None
        self.advice = "give workers more memory" + (" (--cluster memory=...)" if where.on == "slurm" else "")

    def __enter__(self) -> DaskWorkers:
        import dask
        from distributed import Client

        with self._stack as stack:
            stack.enter_context(dask.config.set(SETTINGS))
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            address = self._start(stack)
            try:
                self._client = stack.enter_context(Client(address, timeout=CONNECT_SECONDS, set_as_default=False))
            except OSError as problem:
                raise InputError(
                    f"no Dask scheduler answers at {self._where.on}; start one, or use --on dask"
                ) from problem
            self._run = self._probed(stack)
            self._stack = stack.pop_all()
        if _has("bokeh") and self._client.dashboard_link:
            self.notes.append(f"dashboard: {self._client.dashboard_link}")
        self._started = self._seen = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended_well = problem is None
        for future in self._running:
            future.cancel()
        with suppress(Exception):  # workers that are gone need not end
            self._client.run(release, self._run.probe, on_error="ignore")
        self._stack.close()

    def _start(self, stack: ExitStack) -> Any:
        """The cluster, or the address of one."""
        where = self._where
        self._share = 1
        if where.on.startswith("dask://"):
            self._threads = 0
            return where.on.replace("dask://", "tcp://")
        if where.on == "slurm":
            self._threads = where.cluster.cpus
            stack.push(self._clear_logs)
            cluster = stack.enter_context(slurm_cluster(where.cluster, self._folder))
            count = where.jobs or where.cluster.workers
            cluster.adapt(minimum_jobs=count, maximum_jobs=count)  # replaces workers that are lost
            self._cluster = cluster
            return cluster
        from distributed import LocalCluster

        self._share = where.jobs or processors()
        return stack.enter_context(
            LocalCluster(
                n_workers=self._share, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1",
                dashboard_address="127.0.0.1:0", memory_limit=0,
            )
        )  # fmt: skip

    def _clear_logs(self, kind: object, problem: object, trace: object) -> None:
        """What SLURM jobs printed is kept where the run failed."""
        if self._ended_well:
            shutil.rmtree(self._folder / LOGS, ignore_errors=True)

    def _probed(self, stack: ExitStack) -> Run:
        """What workers have to know, with a file that they must see."""
        make_folder(self._folder)
        data = secrets.token_hex(512)
        probe = self._folder.resolve() / f".tmp-{os.getpid()}-probe"
        probe.write_text(data, encoding="ascii")
        stack.callback(probe.unlink, missing_ok=True)
        given = pickle.dumps((self._opener, self._share))
        return Run(given, self._threads, str(probe), hashlib.sha256(data.encode()).hexdigest())

    def width(self) -> int:
        """See `Executor`; looked up once a second."""
        now = time.monotonic()
        if now - self._looked > 1:
            self._looked = now
            try:
                self._workers = list(self._client.scheduler_info(n_workers=-1)["workers"])
            except (OSError, TypeError, KeyError):
                self._workers = []
            if self._workers:
                self._seen, self._any = now, True
                self._give_up_lost()
            else:
                self._complain(now)
        return min(len(self._workers), self._where.jobs or len(self._workers))

    def _give_up_lost(self) -> None:
        """Calls that wait for workers that are gone; a scheduler that allows failures would keep them for ever."""
        for future, worker in self._used.items():
            if worker not in self._workers and not future.done():
                self._lost.add(future)
                future.cancel()

    def _complain(self, now: float) -> None:
        """Say why there is no worker, from time to time.

        Raises:
            RunError: none has ever been there, and patience is over.
        """
        patience = self._where.patience_seconds
        if not self._any and patience is not None and now - self._started > patience:
            raise RunError(f"no worker has started in {patience:.0f} s: {self._state()}")
        if now - self._seen > QUIET_SECONDS:
            self._seen = now
            logging.getLogger(__name__).warning("waiting for workers: %s", self._state())

    def _state(self) -> str:
        if self._where.on != "slurm":
            return f"{self._where.on} has none"
        errors = sorted((self._folder / LOGS).glob("*.err"))
        last = errors[-1].read_text(errors="replace").strip().splitlines()[-1:] if errors else []
        return queue_state() + "".join(f"; a worker ended with: {line}" for line in last)

    def start(self, jobs: Sequence[Job], again: bool) -> Future[Any]:
        """See `Executor`; Dask itself would give a worker of several threads several calls, while others have none."""
        used = set(self._used.values())
        worker = next(address for address in self._workers if address not in used)
        calls = self._client.get_executor(pure=False, workers=worker)
        future: Future[Any] = calls.submit(work, self._run, list(jobs))
        self._used[future] = worker
        return future

    def ended(self, seconds: float) -> Iterator[tuple[list[Job], Future[Any]]]:
        """See `Executor`; a call whose worker is gone ends here, also when no job is left to give out."""
        self.width()
        yield from super().ended(seconds)

    def outcomes(self, future: Future[Any]) -> Done:
        """See `Executor`."""
        from distributed import KilledWorker

        self._used.pop(future)
        try:
            done: Done = future.result()
        except KilledWorker as problem:
            raise WorkerLostError("its worker was lost") from problem
        except CancelledError as problem:
            if future in self._lost:
                raise WorkerLostError("its worker was lost") from problem
            where = "scheduler of this run" if self._where.on in ("dask", "slurm") else f"scheduler at {self._where.on}"
            raise RunError(f"the {where} was lost; what is done is kept, continue with --resume") from problem
        return done


# -- in a Dask worker --------------------------------------------------------------------------------------------------

_locks: dict[str, threading.Lock] = {}
_mine: dict[str, tuple[str, JobProcess]] = {}
"""By the address of a Dask worker in this process: the probe of the current run, and the process that does its jobs."""


def work(run: Run, jobs: Sequence[Job]) -> Done:
    """Do those of the jobs that are not done in the process of this worker: Dask itself may call again for a lost one.

    Raises:
        InputError: this machine does not see the run's files, or has another version.
        WorkerLostError, OpeningError: see `Executor.outcomes`.
    """
    from distributed import get_worker

    worker = get_worker()
    with _locks.setdefault(worker.address, threading.Lock()):
        process = _process(run, worker)
        outcomes, seconds = process.result_of(process.start(jobs, again=True))
    host = socket.gethostname()
    return [replace(outcome, host=host) for outcome in outcomes], seconds


def release(probe: str) -> None:
    """End the processes that work for a run, and what they are doing."""
    for address, (of, process) in list(_mine.items()):
        if of == probe:
            del _mine[address]
            process.terminate()


def _process(run: Run, worker: Any) -> JobProcess:
    """The process of this worker for a run; that of an earlier run is ended."""
    from multiprocessing import current_process

    probe, process = _mine.get(worker.address, ("", None))
    if process is None or probe != run.probe:
        check_sight(run)
        if process is not None:
            process.terminate()
        current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # Dask's default forbids children
        if run.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(run.threads or worker.state.nthreads)
        process = JobProcess(run.given)
        _mine[worker.address] = run.probe, process
    return process


def check_sight(run: Run) -> None:
    """Require that this machine sees the run's output folder and may write there, and has the same pneumoscope.

    Raises:
        InputError: not so.
    """
    host, probe = socket.gethostname(), Path(run.probe)
    if run.version != __version__:
        raise InputError(
            f"{host} has pneumoscope {__version__}, the run was started by {run.version}; install one version"
        )
    deadline = time.monotonic() + PROBE_SECONDS
    while True:
        try:
            seen = hashlib.sha256(probe.read_bytes()).hexdigest()
            break
        except OSError as problem:
            if time.monotonic() > deadline:
                raise InputError(
                    f"is not seen by the worker on {host} ({problem.strerror}); write to a file system that all "
                    "machines share, under the same name",
                    path=probe.parent,
                ) from problem
            time.sleep(0.5)
    if seen != run.content:
        raise InputError(
            f"is another folder on {host}; write to a file system that all machines share", path=probe.parent
        )
    mine = probe.with_name(f"{probe.name}-{host}-{os.getpid()}-{threading.get_ident()}")
    try:
        mine.write_bytes(b"")
        mine.unlink()
    except OSError as problem:
        raise InputError(f"cannot be written to by {host} ({problem.strerror})", path=probe.parent) from problem


def _has(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
