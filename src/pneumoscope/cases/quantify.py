"""Case folders from masks made elsewhere: the severity report and 3D of `segment`, without a network (and torch)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from pneumoscope.cases.batch import BatchResult, CaseResult, Run, case_step, require_scans, run_batch, write_measured
from pneumoscope.cases.given_masks import read_given, with_masks
from pneumoscope.cases.options import QuantifyOptions
from pneumoscope.cases.outputs import PAGE, REPORT_FILE, WRITING
from pneumoscope.errors import InputError
from pneumoscope.options import recorded, without_files
from pneumoscope.progress import Progress, silent
from pneumoscope.reports.case import CaseContent

if TYPE_CHECKING:
    from pneumoscope.io.scans import ScanRef
    from pneumoscope.jobs.run import Step


def quantify_cases(
    scans: Sequence[ScanRef], out: str | Path, options: QuantifyOptions | None = None, **run: Unpack[Run]
) -> BatchResult:
    """Measure scans with masks made elsewhere into `out/<case>/`; files and endings as `segment_cases`.

    `run` is that of `run_batch`; scans of a manifest bring their masks.

    Raises:
        InputError: nothing to do, a scan without masks, two cases of one name, or `out` is in use.
    """
    options = options or QuantifyOptions()
    require_scans(scans, "quantify")
    scans = with_masks(scans, options)
    for scan in scans:
        missing = [what for what in ("lungs", "infiltrate") if not getattr(scan, what)]
        if missing:
            raise InputError(
                f"{scan.case} comes without a mask of {' and of '.join(missing)}; give --lungs and --infiltrate, or a "
                "manifest with the columns lungs and infiltrate"
            )
    return run_batch(scans, out, partial(_open, options), recorded(options), **run)


def _open(options: QuantifyOptions, jobs: int) -> Step:
    return case_step(
        "quantify",
        lambda scan, folder, progress: quantify_case(scan, folder, options, progress=progress),
        lambda scan: {"masks": [scan.lungs, scan.infiltrate, scan.lobes]},
        shares={"reading": 30, "measuring": 10, WRITING: 50, PAGE: 10},
        options=without_files(options),
    )


def quantify_case(
    scan: ScanRef, folder: Path, options: QuantifyOptions | None = None, *, progress: Progress = silent
) -> CaseResult:
    """Read a scan and its masks, measure and write; `report.json` comes last.

    Raises:
        PneumoscopeError: as readers and writers say; `InputError` when a mask is missing.
    """
    from pneumoscope.io.read import read_listed
    from pneumoscope.severity.measure import assess

    options = options or QuantifyOptions()
    started = time.perf_counter()
    (folder / REPORT_FILE).unlink(missing_ok=True)
    progress("reading", 0, 1)
    volume = read_listed(scan, options.intensity)
    given = read_given(volume, with_masks([scan], options)[0], options.threshold)
    lungs, infiltrate, lobes = given.lungs, given.infiltrate, given.lobes
    if lungs is None or infiltrate is None:
        raise InputError(f"{scan.case} needs a lung mask and an infiltrate mask; give both")
    seconds = {"read": time.perf_counter() - started}
    started = time.perf_counter()
    progress("measuring", 0, 1)
    severity = assess(volume, lungs, infiltrate, lobes=lobes)
    seconds["measure"] = time.perf_counter() - started
    findings = (*scan.findings, *given.findings)
    content = CaseContent(volume=volume, lungs=lungs, infiltrate=infiltrate, severity=severity, findings=findings)
    return write_measured(scan, folder, content, options, seconds, progress)
