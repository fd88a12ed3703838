"""Which device and precision to compute with: asked of the machine, never assumed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import torch

from pneumoscope.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["auto", "fp32", "bf16"]


def pick_device(device: str = "auto") -> torch.device:
    """The device for a name of the CLI: ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: a device this machine has not.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        picked = torch.device("meta")
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (picked.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(picked.type, False):
        raise InputError(f"device {device!r} is not on this machine; use auto, cpu, cuda, cuda:N or mps")
    return picked


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` computes in bf16 by itself; emulated on a CPU it is ten times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, bool)() for check in checks)
    return False


def pick_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """``auto`` made plain: bf16 where it is fast, else fp32."""
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision must be auto, fp32 or bf16, got {precision!r}")
    return precision


def make_fabric(device: str, precision: Precision) -> Fabric:
    """A Fabric on one device in the precision asked for.

    It runs in this one process wherever it is started: within a SLURM allocation, or on a login node with `srun` in its
    path, Fabric would look for further processes, or warn that `srun` was not used.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the precision stands in the run's own files
    picked = pick_device(device)
    kind = pick_precision(precision, picked)
    devices = [picked.index or 0] if picked.type == "cuda" else 1
    return Fabric(
        accelerator=picked.type,
        devices=devices,
        precision="bf16-mixed" if kind == "bf16" else "32-true",
        plugins=LightningEnvironment(),
    )
