"""Stages that do not wait for each other, made by workers: processes of this machine, or those of Dask and SLURM.

A worker reads the data again, takes the stages before from the folder, and leaves its stage there; the study then finds
all of them done. So what is made does not depend on how many workers made it, but for the threads each has.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.jobs.local import processors
from pneumoscope.jobs.run import Job, Outcome, Step, run_jobs
from pneumoscope.progress import NOTE, Progress, silent

if TYPE_CHECKING:
    from pneumoscope.study.base import Study, StudyOptions


def make_in_parallel(study: Study, jobs: int) -> None:
    """Make all stages of a study of any kind whose data are ready in its folder.

    Raises:
        RunError: a worker died over a stage twice; everything finished is kept, and the study can be resumed.
        PneumoscopeError: as a training does.
    """
    stages = [
        Job(name, name, study.folder / "stages" / name, needs, marked=False) for name, needs in study.stages().items()
    ]
    options = replace(study.options, resume=True, overwrite=False, jobs=1, progress=silent)
    opener = partial(_open, type(study), study.experiment, options, study.folder)
    outcomes = run_jobs(
        stages, None, lambda *_: None, opener=opener, side_by_side=jobs, strict=True, what="stages",
        progress=study.progress,
    )  # fmt: skip
    for outcome in outcomes:
        for note in outcome.facts["notes"]:
            study.progress(NOTE, 1, 1, note)


def _open(kind: type[Study], experiment: Any, options: StudyOptions, folder: Path, jobs: int) -> Step:
    """Make a worker ready: its share of the processors, and the study with its data."""
    import torch

    if jobs > 1:
        torch.set_num_threads(max(1, processors() // jobs))
    study = kind(experiment, options)
    study.open(folder)
    needs, made = study.stages(), set[str]()
    study.progress.notes = []

    def make(job: Job, progress: Progress) -> Outcome:
        for name in (*needs[job.name], job.name):
            if name not in made:
                study.make_stage(name)
                made.add(name)
        notes, study.progress.notes = study.progress.notes, []
        return Outcome(job.name, facts={"notes": notes})

    return Step("stage", 1, work=make)
