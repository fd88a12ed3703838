"""Stages that do not wait for each other, trained in processes of their own.

A worker reads the sets again, takes the stages before from the folder, and leaves its stage there; the study then finds
all of them done. So what is made does not depend on how many processes made it, but for the threads each has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pneumoscope.errors import RunError
from pneumoscope.processes import death_of, worker_pool, workers_of
from pneumoscope.progress import NOTE, Noted, Progress, silent
from pneumoscope.recipes.schema import Experiment
from pneumoscope.study.forecast import needs
from pneumoscope.study.learners.registry import StageMaker
from pneumoscope.study.lungs import open_sets

_MAKER: list[StageMaker] = []
"""A worker's own maker of stages; empty in the main process."""


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
        RunError: a process died; everything finished is kept, and the study can be resumed.
    """
    waiting = [stage.name for stage in experiment.stages.chain]
    total, done = len(waiting), set[str]()
    given = (experiment, folder, dict(roots), dict(masks), device, jobs)
    running: dict[Future[tuple[str, list[str]]], str] = {}
    with worker_pool(jobs, _open, given) as pool:
        while waiting or running:
            ready = [name for name in waiting if set(needs(experiment, name)) <= done]
            for name in ready[: jobs - len(running)]:
                running[pool.submit(_make, name)] = name
                waiting.remove(name)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                name = running.pop(future)
                try:
                    made, notes = future.result()
                except BrokenProcessPool as problem:
                    raise RunError(
                        f"{name} is not trained: {death_of(workers_of(pool))}; continue with --resume and fewer --jobs",
                        path=folder,
                    ) from problem
                done.add(made)
                for note in notes:
                    progress(NOTE, 1, 1, note)
                progress("stages", len(done), total, name)


def _open(
    experiment: Experiment, folder: Path, roots: dict[int, Path], masks: dict[int, Path], device: str, jobs: int
) -> None:
    """Make a worker ready: its share of the processors, the sets, a maker of stages."""
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs if hasattr(os, "sched_getaffinity") else 1))
    sets = open_sets(experiment, folder, roots, device=device, masks=masks)
    _MAKER[:] = [StageMaker(experiment, sets, folder, device=device, resume=True, progress=Noted())]


def _make(name: str) -> tuple[str, list[str]]:
    """Make a stage; its name, and the notes of it."""
    maker = _MAKER[0]
    for stage in (*needs(maker.experiment, name), name):
        if stage not in maker.models:
            maker.make(stage)
    assert isinstance(maker.progress, Noted)  # as `_open` made it
    notes, maker.progress.notes = maker.progress.notes, []
    return name, notes
