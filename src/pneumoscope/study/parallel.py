"""Stages that do not wait for each other, trained by workers: processes of this machine, or those of Dask and SLURM.

A worker reads the sets again, takes the stages before from the folder, and leaves its stage there; the study then finds
all of them done. So what is made does not depend on how many workers made it, but for the threads each has.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pneumoscope.jobs.local import processors
from pneumoscope.jobs.run import Job, Outcome, Step, run_jobs
from pneumoscope.progress import NOTE, Noted, Progress, silent
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.forecast import needs
from pneumoscope.study.learners.registry import StageMaker
from pneumoscope.study.lungs import open_sets


def train_in_parallel(
    experiment: Experiment,
    folder: Path,
    roots: Mapping[int, Path],
    masks: Mapping[int, Path],
    *,
    jobs: int,
    device: str = "auto",
    progress: Progress = silent,
) -> None:
    """Make all stages of a study whose sets and lung network are ready in `folder`.

    Raises:
        RunError: a worker died over a stage twice; everything finished is kept, and the study can be resumed.
        PneumoscopeError: as a training does.
    """
    stages = [
        Job(stage.name, stage.name, folder / "stages" / stage.name, tuple(needs(experiment, stage.name)), marked=False)
        for stage in experiment.stages.chain
    ]
    opener = partial(_open, experiment, folder, dict(roots), dict(masks), device)
    outcomes = run_jobs(
        stages, None, lambda *_: None, opener=opener, side_by_side=jobs, strict=True, what="stages", progress=progress
    )
    for outcome in outcomes:
        for note in outcome.facts["notes"]:
            progress(NOTE, 1, 1, note)


def _open(
    experiment: Experiment, folder: Path, roots: dict[int, Path], masks: dict[int, Path], device: str, jobs: int
) -> Step:
    """Make a worker ready: its share of the processors, the sets, a maker of stages."""
    import torch

    if jobs > 1:
        torch.set_num_threads(max(1, processors() // jobs))
    sets = open_sets(experiment, folder, roots, device=device, masks=masks)
    noted = Noted()
    maker = StageMaker(experiment, sets, folder, device=device, resume=True, progress=noted)

    def make(job: Job, progress: Progress) -> Outcome:
        for stage in (*needs(experiment, job.name), job.name):
            if stage not in maker.models:
                maker.make(stage)
        notes, noted.notes = noted.notes, []
        return Outcome(job.name, facts={"notes": notes})

    return Step("stage", 1, work=make)
