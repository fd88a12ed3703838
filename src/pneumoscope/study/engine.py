"""The engine: every experiment is run here, in one order, into one kind of folder.

The jobs are: read the data; for each stage train, predict and score; write the tables; write the page. Stages that do
not wait for each other may be made by workers (processes of this machine, Dask, SLURM): a worker reads the data again,
takes the stages before from the folder and leaves its own there, so that the study then finds all of them done and what
is made does not depend on how many workers made it. What differs between slices, volumes and radiographs is said by
their `base.Modality`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pneumoscope.errors import InputError, PneumoscopeError, RunError
from pneumoscope.io.files import write_frame, write_json
from pneumoscope.jobs.lock import locks
from pneumoscope.jobs.machines import current
from pneumoscope.jobs.run import Job, JobRun, Outcome, Step
from pneumoscope.options import made_of, recorded
from pneumoscope.processes import processors
from pneumoscope.progress import NOTE, Progress, silent
from pneumoscope.recipes.papers.maganaris_2022b import four_channel_demo
from pneumoscope.recipes.registry import build_any
from pneumoscope.recipes.schema import Experiment
from pneumoscope.reports.figures import marked
from pneumoscope.study.base import Modality, StudyResult
from pneumoscope.study.folder import EXPERIMENT_FILE, SYNTHETIC, mark_tables, write_environment, write_run
from pneumoscope.study.lungs import LUNG_STAGE
from pneumoscope.study.options import ScoreOptions, StudyOptions
from pneumoscope.study.report import modality_of, write_report
from pneumoscope.study.scores.matrix import best_stage
from pneumoscope.study.scores.table import write_scores
from pneumoscope.training.devices import pick_device

if TYPE_CHECKING:
    from pneumoscope.io.scans import ScanRef


class Study:
    """One run of an experiment."""

    def __init__(self, modality: Modality) -> None:
        # what reads, makes and scores; what is run, and how
        self.modality, self.experiment, self.options = modality, modality.experiment, modality.options
        self.progress = self.modality.progress
        self.seconds: dict[str, float] = {}  # wall time by part
        self._since = time.perf_counter()

    def run(self, out: str | Path) -> StudyResult:
        """Run everything into `out`.

        Raises:
            InputError: the folder holds another study, data are missing, or an option is of another modality.
            RunError: a training failed; the study can be resumed.
        """
        modality = self.modality
        self._require_understood()
        modality.check()
        folder = modality.folder = modality.open(out)
        self._note_environment(folder)
        try:
            modality.read()
        except PneumoscopeError:
            if not modality.resume:  # nothing was made: the corrected call may have the folder
                (folder / EXPERIMENT_FILE).unlink(missing_ok=True)
            raise
        self._lap("reading")
        with marked(modality.mark()):
            per_case = pd.concat(self._stages(folder).values(), ignore_index=True)
            tables, scores = modality.tables(per_case), modality.scores(per_case)
            if scores.forgetting is not None:
                tables["forgetting"] = scores.forgetting
            for name, table in tables.items():
                write_frame(folder / f"{name}.csv", table)
            write_scores(folder, scores)
        self._lap("tables and figures")
        return self._finished(folder, tables)

    def _stages(self, folder: Path) -> dict[str, pd.DataFrame]:
        """Train and score all stages, with several jobs each as soon as those it needs are there; their rows."""
        modality = self.modality
        jobs = modality.side_by_side(self.options.jobs)
        self._lap("forecast")
        if jobs > 1 or current().remote:
            self._by_workers(folder, jobs)
            modality.resume = modality.by_workers = True  # all of them are there
        rows = {}
        for name in modality.stages():
            modality.train(name)
            self._lap("training")
            rows[name] = modality.score(name)
            self._lap("predicting and scoring")
        return rows

    def _by_workers(self, folder: Path, jobs: int) -> None:
        """Make all stages of a study whose data are ready in its folder.

        Raises:
            RunError: a worker died over a stage twice; everything finished is kept, and the study can be resumed.
            PneumoscopeError: as a training does.
        """
        stages = [
            Job(name, name, self.modality.stage_folder(name), needs, marked=False)
            for name, needs in self.modality.stages().items()
        ]
        options = replace(self.options, resume=True, overwrite=False, jobs=1, progress=silent)
        opener = partial(_open, type(self.modality), self.experiment, options, folder)
        outcomes = JobRun(
            stages, None, lambda *_: None, opener=opener, side_by_side=jobs, strict=True, what="stages",
            progress=self.progress,
        ).run()  # fmt: skip
        for outcome in outcomes:
            for note in outcome.facts["notes"]:
                self.progress(NOTE, 1, 1, note)

    def _finished(self, folder: Path, tables: Mapping[str, pd.DataFrame]) -> StudyResult:
        """What a reader needs beside the tables, and the page."""
        modality, notes, mark = self.modality, self.progress.notes, self.modality.mark()
        if "synthetic" in modality.takes:
            mark_tables(folder, mark or "real")
        for line in modality.left_out:
            self.progress("left out", 1, 1, line)
        facts = {"synthetic": mark == SYNTHETIC, "mark": mark, "left_out": modality.left_out}
        write_json(folder / "study.json", {**modality.summary(), **facts, "notes": notes, "seconds": self.seconds})
        facts = {"options": recorded(self.options), **modality.facts()}
        write_run(folder, notes, resumed=self.options.resume, synthetic=bool(mark), **facts)
        refusal = modality.judge()
        return StudyResult(
            folder,
            self.experiment,
            tables,
            modality.shown(tables),
            write_report(folder) if modality.title else folder,
            dict(self.seconds),
            tuple(modality.left_out),
            refusal,
        )

    def _lap(self, part: str) -> None:
        """Note the wall time since the last lap under a name."""
        now = time.perf_counter()
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self._since, 2)
        self._since = now

    def _require_understood(self) -> None:
        options = self.options
        given = {
            "lungs": bool(options.lungs),
            "accept_if_forgetting_below": options.accept_if_forgetting_below is not None,
            "synthetic": options.synthetic,
        }
        for name, there in given.items():
            if there and name not in self.modality.takes:
                raise InputError(f"{name} is not for {self.experiment.recipe}, a study of another kind; leave it out")

    def _note_environment(self, folder: Path) -> None:
        import torch

        from pneumoscope.training.devices import pick_device, pick_precision

        device = pick_device(self.options.device)
        precision = pick_precision(self.experiment.training.precision, device)
        write_environment(folder, device=device.type, precision=precision, threads=torch.get_num_threads())


def _open(kind: type[Modality], experiment: Any, options: StudyOptions, folder: Path, jobs: int) -> Step:
    """Make a worker ready: its share of the processors, and the study with its data."""
    import torch

    if jobs > 1:
        torch.set_num_threads(processors())
    modality = kind(experiment, options)
    modality.folder = folder
    modality.check()
    modality.read()
    needs, made = modality.stages(), set[str]()
    modality.progress.notes = []

    def make(job: Job, progress: Progress) -> Outcome:
        modality.progress.progress = progress
        for name in (*needs[job.name], job.name):
            if name not in made:
                modality.train(name)
                made.add(name)
        modality.score(job.name)
        notes, modality.progress.notes = modality.progress.notes, []
        return Outcome(job.name, facts={"notes": notes})

    return Step("stage", 1, work=make)


@locks("out")
def run_study(experiment: Any, out: str | Path, **options: Any) -> StudyResult:
    """Run an experiment or a recipe into a study folder.

    A study killed at any moment is continued by ``resume=True`` and ends with the same tables (CPU, same number of
    threads).

    Args:
        experiment: a recipe's name or an experiment of your own making.
        options: fields of `StudyOptions`.

    Raises:
        InputError: no such recipe, key or option, a value out of bounds, the folder holds another study, data are
            missing, or an option is of another kind of study.
        RunError: a training failed; the study can be resumed.
    """
    made = made_of(StudyOptions, options)
    built = build_any(experiment, made.settings, seed=made.seed, seeds=made.seeds, precision=made.precision)
    return Study(modality_of(built)(built, made)).run(out)


def score_study(out: str | Path, **options: Any) -> StudyResult:
    """A transfer matrix of models as they are, without training: `matrix.csv` and the report of a study.

    Args:
        options: fields of `ScoreOptions`: ``data``, name of a set -> folder (see `learners.external.score_experiment`),
            ``models``, name of a row -> what `segment` takes as model, ``predictions``, name of a row -> folder with a
            mask per case, or one of these per set by the set's label, ``trained_on``, name of a row -> labels of sets.

    Raises:
        InputError: nothing to score, a set or a mask is not there, or a model is refused.
    """
    from pneumoscope.study.learners.external import score_experiment

    made = vars(made_of(ScoreOptions, options))
    parts = ("data", "models", "predictions", "trained_on")
    named = [{name: str(value) for name, value in made.pop(part).items()} for part in parts]
    roots = {str(number): root for number, root in enumerate(named[0].values(), start=1)}
    return run_study(score_experiment(*named), out, data=roots, **made)


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
