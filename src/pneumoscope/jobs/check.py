"""A tiny job on other machines: whether a worker starts, what it is, and if none does, why."""

from __future__ import annotations

import os
import platform
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pneumoscope._version import __version__
from pneumoscope.errors import RunError
from pneumoscope.jobs.machines import current, patience
from pneumoscope.jobs.run import Job, JobRun, Outcome, Step
from pneumoscope.processes import processors
from pneumoscope.progress import Progress, silent


def check_machines(folder: str | Path, *, wait_seconds: float = 300.0, progress: Progress = silent) -> dict[str, Any]:
    """Let one worker tell what it is.

    Args:
        folder: that all machines must see; removed again when it was not there before.
        wait_seconds: for the worker to start.

    Raises:
        InputError: the worker sees other files, has another version, or settings are wrong.
        RunError: no worker starts; says what the cluster says.
    """
    folder, new = Path(folder), not Path(folder).exists()
    started = time.monotonic()
    job = Job("check", None, folder / "check", marked=False)
    try:
        with patience(wait_seconds):
            (outcome,) = JobRun([job], None, lambda *_: None, opener=_open, what="checks", progress=progress).run()
    finally:
        if new:
            with suppress(OSError):
                shutil.rmtree(folder)
    if outcome.status == "failed":
        raise RunError(f"the job failed: {outcome.error}")
    seconds = round(time.monotonic() - started, 1)
    return {"on": current().on, "host": outcome.host, **outcome.facts, "seconds": seconds}


def _open(side_by_side: int) -> Step:
    return Step("check", 1, work=_look)


def _look(job: Job, progress: Progress) -> Outcome:
    import psutil

    return Outcome(
        job.name,
        facts={
            "pneumoscope": __version__,
            "python": platform.python_version(),
            "processors": processors(),
            "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpus": _gpus(),
        },
    )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
