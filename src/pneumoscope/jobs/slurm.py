"""SLURM jobs that are Dask workers: the job script (dask-jobqueue), whether SLURM accepts it, what the queue says."""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.jobs.machines import Cluster

LOGS = ".slurm"  # Where the output of SLURM jobs goes, in the output folder


def slurm_cluster(settings: Cluster, folder: Path) -> Any:
    """SLURM jobs that are Dask workers; none is submitted yet."""
    from dask_jobqueue import SLURMCluster

    python = sys.executable
    if settings.container:
        gpu = " --nv" if settings.gpus else ""
        python = f"apptainer exec{gpu} {shlex.quote(settings.container)} python3"
    directives = [*settings.directives, *([f"--gres=gpu:{settings.gpus}"] if settings.gpus else [])]
    cluster = SLURMCluster(
        queue=settings.partition,
        account=settings.account,
        walltime=settings.walltime,
        memory=settings.memory,
        cores=1,  # threads of the Dask worker, which takes one call at a time
        job_cpu=settings.cpus,
        processes=1,
        python=python,
        interface=settings.interface,
        job_extra_directives=directives,
        job_script_prologue=["export DASK_DISTRIBUTED__WORKER__DAEMON=False", *settings.preamble],
        log_directory=str(folder.resolve() / LOGS),
        scheduler_options={"dashboard_address": ":0"},
        name="pneumoscope",
    )
    try:
        _require_accepted(cluster.job_script())
    except BaseException:
        cluster.close()
        raise
    return cluster


def _require_accepted(script: str) -> None:
    """Let SLURM judge a job script without running it.

    Raises:
        InputError: it would refuse it; says why.
    """
    try:
        judged = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise InputError(f"SLURM cannot be asked ({problem}); use --on slurm where sbatch works") from problem
    if judged.returncode:
        lines = [line.removeprefix("sbatch: error: ") for line in judged.stderr.strip().splitlines()]
        raise InputError(f"SLURM refuses the job: {'; '.join(lines) or judged.returncode}; change it with --cluster")


def queue_state() -> str:
    """What SLURM says of this user's jobs of ours."""
    call = ["squeue", "--me", "--noheader", "--name=pneumoscope,dask-worker", "--format=%T %r"]
    with suppress(OSError, subprocess.SubprocessError):
        lines = subprocess.run(call, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
        states = sorted({line.strip() for line in lines if line.strip()})
        return f"SLURM says {'; '.join(states)}" if states else "SLURM has no job of this run"
    return "squeue does not answer"
