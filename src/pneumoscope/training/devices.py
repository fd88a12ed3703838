"""Which device and precision to compute with: asked of the machine, never assumed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import torch

from pneumoscope.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["auto", "fp32", "bf16"]


def count_of(device: str) -> tuple[str, int]:
    """A device and how many of its kind: ``cuda*4`` is ``("cuda", 4)``, any other name one.

    Raises:
        InputError: no such number.
    """
    name, times, count = device.partition("*")
    if times and not (count.isascii() and count.isdigit() and int(count) >= 1):
        raise InputError(f"several devices are DEVICE*N, such as cuda*4, got {device!r}")
    return name, int(count) if times else 1


def pick_device(device: str = "auto") -> torch.device:
    """The device for a name of the CLI: ``auto`` takes CUDA, then MPS, then the CPU; the first of several.

    Raises:
        InputError: a device this machine has not.
    """
    device = count_of(device)[0]
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
    """A Fabric in the precision asked for: on one device, or, in the processes of `training.ranks`, on several.

    It starts no process wherever it runs: within a SLURM allocation, or on a login node with `srun` in its path, Fabric
    would look for further processes, or warn that `srun` was not used.

    Raises:
        InputError: so many devices are not there.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the precision stands in the run's own files
    picked = pick_device(device)
    kind = pick_precision(precision, picked)
    count = count_of(device)[1]
    if count > 1 and (picked.type == "mps" or (picked.type == "cuda" and count > torch.cuda.device_count())):
        there = torch.cuda.device_count() if picked.type == "cuda" else 1
        raise InputError(f"{count} devices were asked for, and this machine has {there} of {picked.type}")
    alone = [picked.index or 0] if picked.type == "cuda" else 1
    return Fabric(
        accelerator=picked.type,
        devices=alone if count == 1 else count,
        strategy="auto" if count == 1 else "ddp",
        precision="bf16-mixed" if kind == "bf16" else "32-true",
        plugins=LightningEnvironment(),
    )
