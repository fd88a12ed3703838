"""Many scans into case folders: one failed scan never stops the rest, and a run's times and memory are in `run.json`.

What is done with a scan is said by an opener: a picklable function that prepares a process (loads models, say) and
gives the function that does one case.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pneumoscope.cases.outputs import SUMMARY_COLUMNS
from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.io.files import prepare_folder, write_json, write_text
from pneumoscope.progress import Progress, silent

if TYPE_CHECKING:
    from pneumoscope.io.scan_ref import ScanRef

RUN_FILE = "run.json"


@dataclass(frozen=True)
class CaseResult:
    """What became of one scan.

    Attributes:
        case: its name.
        status: ``done`` or ``failed``.
        error: the one-line message when it failed.
        exit_code: how a command with this scan alone ends: 0 done, 1 failed while running, 2 the scan is unusable.
        summary: plain numbers for `cases.csv` (severity), empty when it failed.
        seconds: wall time by step.
    """

    case: str
    status: Literal["done", "failed"]
    error: str | None = None
    exit_code: int = 0
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        """One line for people."""
        if self.error:
            return self.error
        share = self.summary.get("share_percent")
        infiltrate, lung = self.summary.get("infiltrate_ml", 0), self.summary.get("lung_ml", 0)
        states = self.summary.get("states")
        return (
            f"{infiltrate:.0f} ml of infiltrate in {lung:.0f} ml of lung"
            + (f" ({share:.1f} %)" if share is not None else "")
            + (f"; {states}" if states else "")
        )


@dataclass(frozen=True)
class BatchResult:
    """All cases of a run in their order."""

    cases: tuple[CaseResult, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"seconds": round(self.seconds, 2), "cases": [asdict(case) for case in self.cases]}


Work = Callable[["ScanRef", Path, Progress], CaseResult]
"""Does one scan into its folder."""

Opener = Callable[[int], Work]
"""Prepares a process, one of so many that work side by side."""


def run_batch(
    scans: Sequence[ScanRef],
    out: str | Path,
    opener: Opener,
    *,
    options: Mapping[str, Any],
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress = silent,
) -> BatchResult:
    """Work on scans into `out/<case>/` and write `cases.csv` and `run.json`.

    Args:
        scans: from `io.find_scans`.
        out: refused when it holds a finished run, unless `overwrite`. A run that was killed is done again.
        opener: see the module; also called before anything is written, so that it can refuse.
        options: what goes into `run.json`.
        jobs: scans worked on at the same time, each in its own process.
        overwrite: write over a finished run.
        progress: called per case and, with one job, by the work itself.

    Raises:
        InputError: nothing to do, two cases of one name, or `out` is in use. A scan that fails raises nothing.
    """
    names = [scan.case for scan in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two scans would be written as {twice[0]!r}; rename one or use a CSV manifest")
    begun = time.perf_counter()
    work = opener(1)
    folder = prepare_folder(out, marker=RUN_FILE, overwrite=overwrite)
    (folder / RUN_FILE).unlink(missing_ok=True)
    done: dict[str, CaseResult] = {}
    runs: Iterable[CaseResult]
    if jobs <= 1:
        runs = (_guarded(scan, folder, work, progress) for scan in scans)
    else:
        runs = _side_by_side(scans, folder, opener, jobs)
    for result in runs:
        done[result.case] = result
        progress("cases", len(done), len(scans), result.case)
    batch = BatchResult(tuple(done[name] for name in names), time.perf_counter() - begun)
    write_text(folder / "cases.csv", _table(batch.cases))
    write_json(folder / RUN_FILE, {**environment(), "options": dict(options), **batch.as_dict()})
    return batch


def require_single(scans: Sequence[ScanRef], given: Mapping[str, object], verb: str) -> None:
    """Refuse an empty list, and options meant for one scan when there are several.

    Raises:
        InputError: either.
    """
    if not scans:
        raise InputError(f"there is no scan to {verb}; give a file, a DICOM folder, or a folder of scans")
    for name, value in given.items():
        if value is not None and len(scans) > 1:
            raise InputError(
                f"--{name} is for one scan, but there are {len(scans)} scans; use a manifest or one call each"
            )


def _side_by_side(scans: Sequence[ScanRef], out: Path, opener: Opener, jobs: int) -> Iterator[CaseResult]:
    """Cases in worker processes; when one is killed, what is left is done in a fresh process each."""
    left = {scan.case: scan for scan in scans}
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(min(jobs, len(scans)), context, _start_worker, (out, opener, jobs)) as pool:
            for future in as_completed([pool.submit(_work, scan) for scan in scans]):
                result = future.result()
                del left[result.case]
                yield result
    except BrokenProcessPool:
        for scan in left.values():
            try:
                with ProcessPoolExecutor(1, context, _start_worker, (out, opener, jobs)) as pool:
                    yield pool.submit(_work, scan).result()
            except BrokenProcessPool:
                message = "its process was killed, probably for want of memory; try --jobs 1"
                yield CaseResult(scan.case, "failed", message, 1)


_worker: tuple[Path, Work] | None = None


def _start_worker(out: Path, opener: Opener, jobs: int) -> None:
    """Prepare a worker process once."""
    global _worker
    _worker = out, opener(jobs)


def _work(scan: ScanRef) -> CaseResult:
    assert _worker is not None
    return _guarded(scan, *_worker, silent)


def _guarded(scan: ScanRef, out: Path, work: Work, progress: Progress) -> CaseResult:
    """One case; whatever goes wrong becomes its result."""
    try:
        return work(scan, out / scan.case, progress)
    except PneumoscopeError as problem:
        return CaseResult(scan.case, "failed", str(problem), problem.exit_code)
    except MemoryError:
        return CaseResult(scan.case, "failed", "out of memory; close other programs or use a machine with more", 1)
    except Exception as problem:
        message = f"internal fault, {type(problem).__name__}: {' '.join(str(problem).split())}"
        return CaseResult(scan.case, "failed", message, 1)


def _table(cases: Sequence[CaseResult]) -> str:
    """`cases.csv`: one row per case, the same columns whether it succeeded or not."""
    first, more = SUMMARY_COLUMNS[:5], SUMMARY_COLUMNS[5:]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("case", "status", *first, "error", *more))
    for case in cases:
        values = {c: "" if case.summary.get(c) is None else case.summary[c] for c in SUMMARY_COLUMNS}
        row = [values[c] for c in first], [values[c] for c in more]
        writer.writerow((case.case, case.status, *row[0], case.error or "", *row[1]))
    return stream.getvalue()


def environment() -> dict[str, Any]:
    """Versions, threads and the peak memory of this process; no host or user names, and no torch where none is used."""
    import platform
    import resource

    from pneumoscope import __version__

    torch = sys.modules.get("torch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "pneumoscope": __version__,
        "python": platform.python_version(),
        **({"torch": torch.__version__, "threads": torch.get_num_threads()} if torch else {}),
        "peak_memory_mib": round(peak / 1024),
    }
