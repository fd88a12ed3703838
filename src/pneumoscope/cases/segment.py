"""Segment many scans into case folders: one model load, one failed scan never stops the rest.

A case folder's `report.json` is written last, so its presence says that the case is complete. Case files hold no
times or dates: the same scan and models give the same bytes. Times and memory are in `run.json`.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pneumoscope.cases.outputs import REPORT_FILE, CaseContent, OutputOptions, given_masks, summary_of, write_case
from pneumoscope.errors import InputError, PneumoscopeError
from pneumoscope.inference.segment import DEFAULT_LUNGS_MODEL, DEFAULT_MODEL, Segmenter
from pneumoscope.io.files import prepare_folder, write_json, write_text
from pneumoscope.progress import Progress, silent

if TYPE_CHECKING:
    from pneumoscope.io.scans import ScanRef

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


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How scans are segmented.

    Attributes:
        model: infiltrate model, a shipped name or a model folder.
        lungs_model: lung model, likewise.
        lungs: one lung mask made elsewhere, for a single scan; a manifest's own goes before it.
        series: which DICOM series (number or UID), for a single scan that holds several.
        intensity: ``auto`` refuses what does not look like Hounsfield units, ``hu`` takes it unchecked.
        device: see `Segmenter`.
        precision: likewise.
        probability: also write `probability.nii.gz`.
    """

    model: str | Path = DEFAULT_MODEL
    lungs_model: str | Path = DEFAULT_LUNGS_MODEL
    lungs: str | Path | None = None
    series: str | None = None
    intensity: Literal["auto", "hu"] = "auto"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    probability: bool = False

    def segmenter(self) -> Segmenter:
        """The models, loaded."""
        return Segmenter(self.model, self.lungs_model, device=self.device, precision=self.precision)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with file names instead of paths: a run's record says nothing of the machine."""
        return {
            name: Path(value).name if value and name in ("model", "lungs_model", "lungs") else value
            for name, value in asdict(self).items()
        }


def segment_cases(
    scans: Sequence[ScanRef],
    out: str | Path,
    options: SegmentOptions | None = None,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    progress: Progress = silent,
) -> BatchResult:
    """Segment scans into `out/<case>/` and write `cases.csv` and `run.json`.

    Args:
        scans: from `io.find_scans`.
        out: refused when it holds a finished run, unless `overwrite`. A run that was killed is done again.
        options: see `SegmentOptions`.
        jobs: scans worked on at the same time, each in its own process with its share of the cores.
        overwrite: write over a finished run.
        progress: called per case and, with one job, per batch of slices.

    Raises:
        InputError: nothing to do, two cases of one name, or `out` is in use. A scan that fails raises nothing.
    """
    options = options or SegmentOptions()
    if not scans:
        raise InputError("there is no scan to segment; give a file, a DICOM folder, or a folder of scans")
    for name in ("lungs", "series"):
        if getattr(options, name) is not None and len(scans) > 1:
            raise InputError(
                f"--{name} is for one scan, but there are {len(scans)} scans; use a manifest or one call each"
            )
    names = [scan.case for scan in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two scans would be written as {twice[0]!r}; rename one or use a CSV manifest")
    begun = time.perf_counter()
    segmenter = options.segmenter()  # says what is wrong with models and device before anything is written
    folder = prepare_folder(out, marker=RUN_FILE, overwrite=overwrite)
    (folder / RUN_FILE).unlink(missing_ok=True)
    done: dict[str, CaseResult] = {}
    runs: Iterable[CaseResult]
    if jobs <= 1:
        runs = (_guarded(scan, folder, segmenter, options, progress) for scan in scans)
    else:
        runs = _side_by_side(scans, folder, options, jobs)
    for result in runs:
        done[result.case] = result
        progress("cases", len(done), len(scans), result.case)
    batch = BatchResult(tuple(done[name] for name in names), time.perf_counter() - begun)
    write_text(folder / "cases.csv", _table(batch.cases))
    write_json(folder / RUN_FILE, {**_environment(), "options": options.as_dict(), **batch.as_dict()})
    return batch


def _side_by_side(scans: Sequence[ScanRef], out: Path, options: SegmentOptions, jobs: int) -> Iterator[CaseResult]:
    """Cases in worker processes; when one is killed, what is left is done in a fresh process each."""
    left = {scan.case: scan for scan in scans}
    context = get_context("spawn")
    try:
        with ProcessPoolExecutor(min(jobs, len(scans)), context, _start_worker, (out, options, jobs)) as pool:
            for future in as_completed([pool.submit(_work, scan) for scan in scans]):
                result = future.result()
                del left[result.case]
                yield result
    except BrokenProcessPool:
        for scan in left.values():
            try:
                with ProcessPoolExecutor(1, context, _start_worker, (out, options, jobs)) as pool:
                    yield pool.submit(_work, scan).result()
            except BrokenProcessPool:
                message = "its process was killed, probably for want of memory; try --jobs 1"
                yield CaseResult(scan.case, "failed", message, 1)


_worker: tuple[Path, Segmenter, SegmentOptions] | None = None


def _start_worker(out: Path, options: SegmentOptions, jobs: int) -> None:
    """Load the models once in a worker, with its share of the cores."""
    global _worker
    import os

    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    _worker = out, options.segmenter(), options


def _work(scan: ScanRef) -> CaseResult:
    assert _worker is not None
    return _guarded(scan, *_worker, silent)


def _guarded(scan: ScanRef, out: Path, segmenter: Segmenter, options: SegmentOptions, progress: Progress) -> CaseResult:
    """One case; whatever goes wrong becomes its result."""
    try:
        return segment_case(scan, out / scan.case, segmenter, options, progress=progress)
    except PneumoscopeError as problem:
        return CaseResult(scan.case, "failed", str(problem), problem.exit_code)
    except MemoryError:
        return CaseResult(scan.case, "failed", "out of memory; close other programs or use a machine with more", 1)
    except Exception as problem:
        message = f"internal fault, {type(problem).__name__}: {' '.join(str(problem).split())}"
        return CaseResult(scan.case, "failed", message, 1)


def segment_case(
    scan: ScanRef,
    folder: Path,
    segmenter: Segmenter,
    options: SegmentOptions | None = None,
    *,
    progress: Progress = silent,
) -> CaseResult:
    """Read, segment, measure and write one scan; `report.json` comes last.

    Raises:
        PneumoscopeError: as reader, models and writers say.
    """
    from pneumoscope.io import read_volume
    from pneumoscope.severity.measure import measure

    options = options or SegmentOptions()
    begun = time.perf_counter()
    (folder / REPORT_FILE).unlink(missing_ok=True)
    volume = read_volume(scan.path, series=options.series, intensity=options.intensity, case=scan.case)
    lung_mask, truth = given_masks(volume, scan, options.lungs, None)
    seconds = {"read": time.perf_counter() - begun}
    found = segmenter.run(volume, lung_mask, progress=progress)
    seconds |= found.seconds
    begun = time.perf_counter()
    severity = measure(volume, found.lungs, found.infiltrate)
    seconds["measure"] = time.perf_counter() - begun
    begun = time.perf_counter()
    content = CaseContent(
        volume=volume,
        lungs=found.lungs,
        infiltrate=found.infiltrate,
        severity=severity,
        probability=found.probability,
        truth=truth,
        findings=found.findings,
        cards=tuple({"name": task, **card} for task, card in sorted(found.cards.items())),
    )
    write_case(folder, content, OutputOptions(probability=options.probability))
    seconds["write"] = time.perf_counter() - begun
    rounded = {k: round(v, 2) for k, v in seconds.items()}
    return CaseResult(scan.case, "done", None, 0, summary_of(content), rounded)


def _table(cases: Sequence[CaseResult]) -> str:
    """`cases.csv`: one row per case, the same columns whether it succeeded or not."""
    columns = ("lung_ml", "infiltrate_ml", "share_percent", "states", "findings")
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("case", "status", *columns, "error"))
    for case in cases:
        values = ["" if case.summary.get(c) is None else case.summary[c] for c in columns]
        writer.writerow((case.case, case.status, *values, case.error or ""))
    return stream.getvalue()


def _environment() -> dict[str, Any]:
    """Versions, threads and the peak memory of this process; no host or user names."""
    import platform
    import resource

    import torch

    from pneumoscope import __version__

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "pneumoscope": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "peak_memory_mib": round(peak / 1024),
    }
