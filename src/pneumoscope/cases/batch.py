"""Many scans into case folders: one failed scan never stops the rest, times and memory of the run are in `run.json`."""

from __future__ import annotations

import csv
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from pneumoscope._version import __version__
from pneumoscope.cases.options import CaseOptions
from pneumoscope.cases.outputs import SUMMARY_COLUMNS, summary_of, write_case
from pneumoscope.errors import InputError
from pneumoscope.io.contents import scan_files
from pneumoscope.io.files import (
    atomic_path,
    csv_text,
    prepare_folder,
    read_json,
    require_no_other_run,
    write_json,
    write_text,
)
from pneumoscope.io.scans import ScanRef
from pneumoscope.jobs.lock import locks
from pneumoscope.jobs.machines import current, part_of
from pneumoscope.jobs.run import Job, JobRun, Opener, Outcome, Step
from pneumoscope.jobs.stamp import content_of_files
from pneumoscope.progress import Progress, silent
from pneumoscope.reports.case import CaseContent

RUN_FILE = "run.json"


@dataclass(frozen=True)
class CaseResult:
    """What became of one scan."""

    case: str
    status: Literal["done", "failed"]
    error: str | None = None  # the one-line message when it failed
    # how a command with this scan alone ends: 0 done, 1 failed while running, 2 the scan is unusable
    exit_code: int = 0
    # plain numbers for `cases.csv` (severity), empty when it failed
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by step
    kept: bool = False  # whether it was resumed from an earlier run
    memory_mib: int | None = None  # the most memory that the process which did it had held by then
    host: str | None = None  # that process's machine, where the run had several

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
            + (f"; {', '.join(states.split()).replace('_', ' ')}" if states else "")
        )


@dataclass(frozen=True)
class BatchResult:
    """All cases of a run in their order."""

    cases: tuple[CaseResult, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"seconds": round(self.seconds, 2), "cases": [asdict(case) for case in self.cases]}


class Run(TypedDict, total=False):
    """How a batch is run; keywords of all verbs that write case folders."""

    jobs: int  # scans worked on at the same time, each in its own process; 1
    overwrite: bool  # do every case again
    resume: bool  # keep the cases that are done and whose scan, masks, models and options are unchanged
    key: str | Path | None  # the private key file, see `Private`
    progress: Progress  # called per case and, with one job, by the work itself


@locks("out")
def run_batch(
    scans: Sequence[ScanRef], out: str | Path, opener: Opener, options: Mapping[str, Any], **run: Unpack[Run]
) -> BatchResult:
    """Work on scans into `out/<case>/` and write `cases.csv` and `run.json`, which grow as cases end.

    Args:
        scans: from `io.scans.find_scans`.
        out: refused when it holds a run, unless `overwrite` or `resume`.
        opener: see `case_step`; also called before anything is written, so that it can refuse, unless other machines
            do the work: with 0 where worker processes do it, so that this process loads nothing.
        options: what goes into `run.json`.
        run: see `Run`.

    Raises:
        InputError: nothing to do, two cases of one name, or `out` is in use. A scan that fails raises nothing.
    """
    jobs, resume, progress = run.get("jobs", 1), run.get("resume", False), run.get("progress", silent)
    scans = part_of(scans)
    twice = sorted(name for name, count in Counter(scan.case for scan in scans).items() if count > 1)
    if twice:
        raise InputError(f"two scans would be written as {twice[0]!r}; rename one or use a CSV manifest")
    started = time.perf_counter()
    progress("cases", 0, max(1, len(scans)), "loading")
    step = None if current().remote else opener(int(jobs == 1 or len(scans) == 1))
    private = Private(Path(out), run.get("key"))
    require_no_other_run(out, "cases.csv")
    folder = prepare_folder(out, marker=RUN_FILE, overwrite=run.get("overwrite", False), resume=resume)
    earlier = _seconds_before(folder) if resume else {}

    def result_of(outcomes: Sequence[Outcome]) -> BatchResult:
        cases = tuple(_result(outcome, earlier) for outcome in outcomes)
        return BatchResult(cases, time.perf_counter() - started)

    def write(outcomes: Sequence[Outcome], finished: bool) -> None:
        batch = result_of(outcomes)
        done = sum(case.status == "done" for case in batch.cases)
        state = {"finished": finished, "scans": len(scans), "results": done, **current().recorded()}
        private.write_errors(outcomes)
        write_text(folder / "cases.csv", _table(batch.cases, scans))
        write_json(folder / RUN_FILE, {**environment(), **state, "options": dict(options), **batch.as_dict()})

    work = [Job(scan.case, scan, folder / scan.case) for scan in scans]
    (folder / RUN_FILE).unlink(missing_ok=True)
    private.write_key(scans)
    outcomes = JobRun(work, step, write, opener=opener, side_by_side=jobs, resume=resume, progress=progress).run()
    return result_of(outcomes)


def case_step(
    kind: str,
    work: Callable[[ScanRef, Path, Progress], CaseResult],
    files: Callable[[ScanRef], Mapping[str, Sequence[str | Path | None]]],
    *,
    shares: Mapping[str, float],
    **made_of: Any,
) -> Step:
    """The step of a verb that writes case folders.

    Args:
        kind: of the verb.
        work: does one scan into its folder.
        files: of a scan, the files and folders besides it that shape the result, by what they are; None for none.
        shares: of the steps of a case, see `Step`.
        made_of: what else shapes the result, by name, as JSON values.
    """

    def parts(scan: ScanRef) -> dict[str, Any]:
        masks = {what: [path and content_of_files([path]) for path in paths] for what, paths in files(scan).items()}
        sums = {"scan": content_of_files(scan_files(scan.path)), **masks}
        return {"case name": scan.case, "series": scan.series, **sums, **made_of}

    def one(job: Job, progress: Progress) -> Outcome:
        result = work(job.item, job.folder, progress)
        return Outcome(job.name, facts=result.summary, seconds=result.seconds)

    return Step(kind, 1, parts, one, shares=shares)


def write_measured(
    scan: ScanRef, folder: Path, content: CaseContent, options: CaseOptions, seconds: Mapping[str, float],
    progress: Progress,
) -> CaseResult:  # fmt: skip
    """Write what was measured of a scan, `report.json` last; `seconds` are those of the steps before."""
    started, spent = time.perf_counter(), dict[str, float]()
    write_case(folder, content, options, spent=spent, progress=progress)
    steps = {**seconds, "write": time.perf_counter() - started}
    steps |= {f"write {step}": spent[step] for step in sorted(spent)}
    return CaseResult(scan.case, "done", None, 0, summary_of(content), {k: round(v, 2) for k, v in steps.items()})


def _result(outcome: Outcome, earlier: Mapping[str, dict[str, float]]) -> CaseResult:
    seconds = earlier.get(outcome.name, {}) if outcome.kept else dict(outcome.seconds)
    return CaseResult(
        outcome.name, outcome.status, outcome.error, outcome.exit_code, dict(outcome.facts), seconds, outcome.kept,
        outcome.memory_mib, outcome.host,
    )  # fmt: skip


def _seconds_before(folder: Path) -> dict[str, dict[str, float]]:
    """Wall times of the cases that the run before this one did; what cannot be read is left out."""
    try:
        cases = read_json(folder / RUN_FILE).get("cases")
        return {case["case"]: dict(case["seconds"]) for case in cases}
    except (InputError, TypeError, KeyError, ValueError):
        return {}


def require_scans(scans: Sequence[ScanRef], verb: str) -> None:
    """Refuse an empty list.

    Raises:
        InputError: there is no scan.
    """
    if not scans:
        raise InputError(f"there is no scan to {verb}; give a file, a DICOM folder, or a folder of scans")


def _table(cases: Sequence[CaseResult], scans: Sequence[ScanRef]) -> str:
    """`cases.csv`: one row per case, the same columns whether it succeeded or not; a manifest's own come last."""
    first, more = SUMMARY_COLUMNS[:5], SUMMARY_COLUMNS[5:]
    given = {scan.case: dict(scan.columns) for scan in scans}
    own = list(dict.fromkeys(name for columns in given.values() for name in columns))
    ours = ("case", "status", *first, "error", *more)
    rows = []
    for case in cases:
        values = {c: "" if case.summary.get(c) is None else case.summary[c] for c in SUMMARY_COLUMNS}
        row = [values[c] for c in first], [values[c] for c in more]
        rows.append(
            (case.case, case.status, *row[0], case.error or "", *row[1], *(given[case.case].get(c, "") for c in own))
        )
    return csv_text((*ours, *(f"manifest_{name}" if name in ours else name for name in own)), rows)


def environment() -> dict[str, Any]:
    """Versions, threads and the peak memory of this process; no host or user names, and no torch where none is used."""
    import resource

    torch = sys.modules.get("torch")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "pneumoscope": __version__,
        "python": platform.python_version(),
        **({"torch": torch.__version__, "threads": torch.get_num_threads()} if torch else {}),
        "peak_memory_mib": round(peak / 1024),
    }


FOLDER, KEY_FILE, ERRORS_FILE = "private", "key.csv", "errors.csv"
KEY_COLUMNS = ("case", "path", "series_uid", "patient", "study_date")
ERROR_COLUMNS = ("case", "file", "error")


class Private:
    """The private files of a run.

    Args:
        out: the run's folder.
        key: where the key goes; None means `private/key.csv` in `out`, ``none`` that no private file is written. The
            files behind errors stand beside the key.

    Raises:
        InputError: there is a file that is no key.
    """

    def __init__(self, out: Path, key: str | Path | None) -> None:
        self._key: Path | None = None if str(key) == "none" else Path(key or out / FOLDER / KEY_FILE)
        self._rows = _rows(self._key, KEY_COLUMNS)
        errors = ERRORS_FILE if key is None else f"{Path(key).stem}-{ERRORS_FILE}"
        self._errors = self._key and self._key.with_name(errors)
        self._failed = _rows(self._errors, ERROR_COLUMNS)

    def write_key(self, scans: Sequence[ScanRef]) -> None:
        """Add scans to the key; rows of other cases, from runs before, stay."""
        if self._key is None:
            return
        for scan in scans:
            known = scan.identity
            self._rows[scan.case] = (
                scan.case,
                str(scan.path.absolute()),
                known.series_uid,
                known.patient or scan.patient or "",
                known.study_date or scan.date or "",
            )
        write_private(self._key, KEY_COLUMNS, self._rows.values())

    def write_errors(self, outcomes: Sequence[Outcome]) -> None:
        """Say which file made a case fail; a case that is done has no row any more."""
        if self._errors is None:
            return
        before = dict(self._failed)
        for outcome in outcomes:
            self._failed.pop(outcome.name, None)
            if file := getattr(outcome.problem, "file", None):
                self._failed[outcome.name] = (outcome.name, file, outcome.error or "")
        if self._failed != before:
            write_private(self._errors, ERROR_COLUMNS, self._failed.values())


def read_key(out: Path) -> dict[str, dict[str, str]]:
    """The rows of a run's own key file by case; empty where it was not kept or cannot be read."""
    try:
        rows = _rows(out / FOLDER / KEY_FILE, KEY_COLUMNS)
    except InputError:
        return {}
    return {case: dict(zip(KEY_COLUMNS, row, strict=True)) for case, row in rows.items()}


def _rows(path: Path | None, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Rows of an earlier run by case."""
    if path is None or not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            table = list(csv.reader(stream, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot be read as the key of a run ({error}); move it away", path=path) from None
    if table and table[0] != list(columns):
        known = ",".join(columns)
        raise InputError(f"is not the key file of a run, which has the columns {known}; name another", path=path)
    return {row[0]: tuple(row) for row in table[1:] if len(row) == len(columns)}


def write_private(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str] | Mapping[str, str]]) -> None:
    """Write a table that only the user may read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with atomic_path(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as stream:  # noqa: PTH123 - a descriptor, not a path
            stream.write(csv_text(columns, list(rows)).encode("utf-8", "surrogateescape"))
