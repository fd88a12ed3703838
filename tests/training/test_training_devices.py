"""Where and in what precision networks compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pneumoscope.training.devices import make_fabric


@pytest.mark.parametrize(
    "variables",
    [
        {},  # a login node: srun is in the path and is not used
        {"SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "1"},  # an interactive allocation
        {"SLURM_JOB_NAME": "study", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_NODELIST": "n[1-2]",
         "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"},
    ],
)  # fmt: skip
def test_one_process_is_one_process_where_there_is_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fabric = make_fabric("cpu", "fp32")  # warnings are errors here
    fabric.launch()
    assert (fabric.world_size, fabric.global_rank, fabric.device) == (1, 0, torch.device("cpu"))
