"""The main job on synthetic data, from nothing to a page to open: the transfer study, then one case."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.errors import RunError
from pneumoscope.jobs.lock import locks
from pneumoscope.processes import processors
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.papers.maganaris_2022b import four_channel_demo
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.base import StudyResult
from pneumoscope.study.engine import run_study
from pneumoscope.study.lungs import LUNG_STAGE
from pneumoscope.study.report import write_report
from pneumoscope.study.scores.matrix import best_stage
from pneumoscope.training.devices import pick_device

if TYPE_CHECKING:
    from pneumoscope.io.scans import ScanRef

CASE_SITE = 1  # The set whose synthetic hospital the case comes from; the best stage on that set segments it
NEW_PATIENT = 900  # Number of the synthetic patient; far beyond those of the sets, so that no network has seen it


@locks("out")
def run_demo(out: str | Path, *, experiment: Experiment | None = None, **options: Any) -> StudyResult:
    """Run the demo study into `out` and segment one case into `out/cases/<case>`.

    Args:
        experiment: another profile; by default `four_channel_demo`.
        options: fields of `StudyOptions`, ``device`` and ``progress`` also for the case. Without ``jobs`` two stages
            are trained side by side where processors train and there are two.

    Returns:
        The study, with `case_folder` set; its `report` links the case.
    """
    if options.get("jobs") is None:
        on_processors = pick_device(options.get("device", "auto")).type == "cpu"
        options["jobs"] = 2 if on_processors and processors() > 1 else 1
    study = run_study(experiment or four_channel_demo(), out, synthetic=True, **options)
    started = time.perf_counter()
    case_folder = segment_new_patient(
        study, **{name: options[name] for name in ("device", "progress") if name in options}
    )
    seconds = {**study.seconds, "case": round(time.perf_counter() - started, 2)}
    return replace(study, case_folder=case_folder, report=write_report(study.folder), seconds=seconds)


def segment_new_patient(study: StudyResult, *, device: str = "auto", progress: Progress = silent) -> Path:
    """Make a scan of a new synthetic patient and segment it with the study's own networks.

    Returns:
        The case folder: masks, severity, points, report.

    Raises:
        RunError: the case could not be segmented.
    """
    from pneumoscope.cases.options import SAVABLE, SegmentOptions
    from pneumoscope.cases.segment import segment_case
    from pneumoscope.inference.segmenter import Segmenter

    experiment = study.experiment
    stage = best_stage(study.matrix).get(CASE_SITE, experiment.stages.chain[0].name)
    options = SegmentOptions(
        model=study.folder / "stages" / stage,
        lungs_model=study.folder / "stages" / LUNG_STAGE,
        device=device,
        precision=experiment.training.precision,  # type: ignore[arg-type]
        save=SAVABLE,
    )
    scan = _new_patient(experiment, study.folder / "data" / "case")
    folder = study.folder / "cases" / scan.case
    result: Any = segment_case(scan, folder, Segmenter(options), options, progress=progress)
    if result.status != "done":
        raise RunError(f"the demo's case failed: {result.error}", path=folder)
    progress("case", 1, 1, result.sentence())
    return folder


def _new_patient(experiment: Experiment, folder: Path) -> ScanRef:
    """Write the scan of a patient that is in no set, and what the site's reader annotated on it."""
    from pneumoscope.datasets.phantom.folder import make_phantom
    from pneumoscope.io.scans import ScanRef
    from pneumoscope.io.write import write_mask, write_volume

    site = experiment.site(CASE_SITE).phantom_site
    made = make_phantom(site, NEW_PATIENT, seed=experiment.data.phantom_seed, size=experiment.data.phantom_size)
    volume = made.volume
    image, drawn = folder / f"{volume.case}.nii.gz", folder / f"{volume.case}-infiltrate.nii.gz"
    write_volume(volume, image)
    if made.infiltrate is not None:
        write_mask(made.infiltrate, drawn, volume.native)
    return ScanRef(volume.case, image, infiltrate=drawn if made.infiltrate is not None else None)
