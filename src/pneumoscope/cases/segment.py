"""Segment many scans into case folders: one model load, one failed scan never stops the rest.

A case folder's `report.json` is written last, `done.json` after it, so its presence says that the case is complete. The
same scan and models give the same bytes, but for the creation times that DICOM demands in `seg*.dcm` and `report.dcm`.
Times and memory are in `run.json`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pneumoscope.cases.batch import (
    RUN_FILE,
    BatchResult,
    CaseResult,
    Run,
    case_step,
    require_scans,
    run_batch,
    write_measured,
)
from pneumoscope.cases.options import SegmentOptions
from pneumoscope.cases.outputs import PAGE, REPORT_FILE, WRITING, write_case
from pneumoscope.cases.quantify import read_given, with_masks
from pneumoscope.errors import InputError
from pneumoscope.inference.segmenter import STATE_OF_FINDING, Segmentation, Segmenter
from pneumoscope.io.read import read_listed
from pneumoscope.io.scans import ScanRef
from pneumoscope.jobs.machines import current
from pneumoscope.jobs.run import Step
from pneumoscope.options import recorded, without_files
from pneumoscope.processes import processors, release_memory
from pneumoscope.progress import Progress, silent
from pneumoscope.reports.case import CaseContent
from pneumoscope.severity.measure import ProbabilityMap, Severity, assess
from pneumoscope.severity.states import STATES
from pneumoscope.volume import Mask, Volume

__all__ = ["RUN_FILE", "BatchResult", "CaseResult", "SegmentOptions", "segment_case", "segment_cases"]


def segmenter_of(options: SegmentOptions) -> Segmenter:
    """The models, loaded."""
    return Segmenter(options, uncertainty=options.uncertainty)


def engine_of(options: SegmentOptions) -> str:
    """What will compute on this machine, e.g. ``openvino fp32``.

    Raises:
        InputError: the device or the engine is not here.
    """
    from pneumoscope.inference.engines import engine_label

    return engine_label(options.engine, device=options.device, precision=options.precision)


def segment_cases(
    scans: Sequence[ScanRef], out: str | Path, options: SegmentOptions | None = None, **run: Unpack[Run]
) -> BatchResult:
    """Segment scans into `out/<case>/` and write `cases.csv` and `run.json`.

    `run` is that of `run_batch`. With several `jobs` each process has its share of the cores.

    Raises:
        InputError: nothing to do, two cases of one name, or `out` is in use. A scan that fails raises nothing.
    """
    options = options or SegmentOptions()
    require_scans(scans, "segment")
    scans = with_masks(scans, options)
    with ThreadPoolExecutor(1) as reader:  # the first scan, while torch and the models are loaded
        elsewhere = run.get("jobs", 1) > 1 or run.get("resume") or current().remote or current().part[0] > 1
        first = [] if elsewhere else scans[:1]
        reading = {scan.case: reader.submit(read_listed, scan, options.intensity) for scan in first}
        known = recorded(options) | ({} if current().remote else {"engine": engine_of(options)})
        return run_batch(scans, out, partial(_open, options, reading), known, **run)


def _open(options: SegmentOptions, reading: dict[str, Future[Volume]], jobs: int) -> Step:
    """Load the models once in a process that works, with its share of the cores; `reading` are scans by case."""
    if jobs > 1:
        import torch

        torch.set_num_threads(processors())
    from pneumoscope.inference.external import content_of
    from pneumoscope.training.devices import pick_device

    loaded = cache(partial(segmenter_of, options))
    if jobs:
        loaded()
    models = [options.model] if isinstance(options.model, (str, Path)) else options.model
    ways = {k: v for k, v in without_files(options).items() if k not in ("device", "engine")}
    return case_step(
        "segment",
        lambda scan, folder, progress: segment_case(
            scan, folder, loaded(), options, reading=reading.pop(scan.case, None), progress=progress
        ),
        lambda scan: {"masks": [scan.lungs, scan.infiltrate, scan.lobes]},
        shares={"reading": 12, "lungs": 30, "infiltrate": 30, "measuring": 5, WRITING: 20, PAGE: 3},
        models=[content_of(model) for model in (*models, options.lungs_model)],
        options={**ways, "computed by": [pick_device(options.device).type, engine_of(options)]},
    )


def segment_case(
    scan: ScanRef,
    folder: Path,
    segmenter: Segmenter,
    options: SegmentOptions | None = None,
    *,
    reading: Future[Volume] | None = None,
    progress: Progress = silent,
) -> CaseResult:
    """Read, segment, measure and write one scan; `report.json` comes last.

    Args:
        reading: of this scan, where it has been started; ``read`` of the result's seconds is then what was waited.

    Raises:
        PneumoscopeError: as reader, models and writers say.
    """
    options = options or SegmentOptions()
    started = time.perf_counter()
    (folder / REPORT_FILE).unlink(missing_ok=True)
    progress("reading", 0, 1)
    volume = read_listed(scan, options.intensity) if reading is None else reading.result()
    progress("reading", 1, 1)
    given = read_given(volume, with_masks([scan], options)[0], options.threshold)
    seconds = {"read": time.perf_counter() - started}
    found = segmenter.run(volume, given.lungs, progress=progress)
    seconds |= found.seconds
    started = time.perf_counter()
    progress("measuring", 0, 1)
    severity = assess_segmentation(volume, found, given.lobes)
    seconds["measure"] = time.perf_counter() - started
    content = replace(
        _content_of(found, volume, severity),
        truth=given.infiltrate,
        findings=(*scan.findings, *given.findings, *found.findings),
    )
    if not options.probability:
        content = replace(content, probability=None)
    del found  # and its map of probabilities, before writing makes copies of masks
    release_memory()
    return write_measured(scan, folder, content, options, seconds, progress)


def computing_of(found: Segmentation) -> dict[str, Any]:
    """What `report.json` says of how the networks were run."""
    facts: dict[str, Any] = {
        "engines": dict(sorted(found.engines.items())),
        "infiltrate_models": len(found.cards["infiltrate"].get("members", ())) or 1,
        "mirrored": found.mirrored,
        "distance_from_training_scans": None if found.distance is None else round(found.distance, 2),
    }
    if found.entropy is not None and found.variance is not None:
        inside = found.infiltrate.any
        facts["uncertainty"] = {
            "inside": "0 to 1 inside the lungs; of the averaged answer (entropy), among the votes (variance)",
            "mean_entropy_in_infiltrate": _mean_share(found.entropy, inside),
            "mean_variance_in_infiltrate": _mean_share(found.variance, inside),
        }
    return facts


def _mean_share(values: NDArray[np.uint8], where: NDArray[np.bool_]) -> float | None:
    """Mean of bytes as a share of 255, None where there is nowhere to look."""
    return round(float(values[where].mean()) / 255, 4) if where.any() else None


def assess_segmentation(volume: Volume, found: Segmentation, lobes: Mask | None = None) -> Severity:
    """Severity of what the networks found, with an interval from the infiltrate network's probability.

    Findings of the lung network that bear on the numbers are states as well.
    """
    card = found.cards["infiltrate"]
    probability = None
    if found.probability is not None:
        limits = float(card.get("threshold", 0.5)), float(card.get("smallest_ml", 0.0))
        probability = ProbabilityMap(found.probability, *limits)
    lobes = lobes or found.lobes
    severity = assess(volume, found.lungs, found.infiltrate, lobes=lobes, probability=probability)
    states = {*severity.states, *(STATE_OF_FINDING.get(finding.code) for finding in found.findings)}
    return replace(severity, states=tuple(name for name in STATES if name in states))


def _content_of(found: Segmentation, volume: Volume, severity: Severity) -> CaseContent:
    """What a case folder holds of a segmentation."""
    return CaseContent(
        volume=volume,
        lungs=found.lungs,
        infiltrate=found.infiltrate,
        severity=severity,
        probability=found.probability,
        entropy=found.entropy,
        variance=found.variance,
        computing=computing_of(found),
        findings=found.findings,
        cards=tuple({"name": task, **card} for task, card in sorted(found.cards.items())),
    )


def save_segmentation(found: Segmentation, folder: Path) -> Path:
    """Write a segmentation that knows its scan as a case folder, with the pages."""
    if found.scan is None:
        raise InputError("this segmentation has no scan; save its masks instead")
    content = _content_of(found, found.scan, found.severity)
    folder.mkdir(parents=True, exist_ok=True)
    write_case(folder, content, SegmentOptions(probability=True))
    return folder
