"""Devices: which one is used, at which precision; one training on several, a process each with a share of a batch.

All processes draw the whole batch and compute the loss of all outputs, and batch normalisation counts over all of them:
so the order of the data and the losses are those of one process, but for rounding and the rows that dropout takes.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, distributed, nn

from pneumoscope.errors import InputError, RunError
from pneumoscope.processes import WorkerProcess, end_workers, signals_held
from pneumoscope.progress import Progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOOK_SECONDS = 0.2
_rank, _world, _counts = 0, 1, True
_steps: Any = None  # Where a process says how far it is


def current() -> tuple[int, int]:
    """Number of this process and how many train together; (0, 1) for a training in one process."""
    return _rank, _world


def fit_on(world: int, progress: Progress, *given: Any) -> Any:
    """What `loop.fit` gives in the first of so many processes.

    Args:
        given: `loop.fit`, then its arguments by position, up to `resume`; picklable.

    Raises:
        RunError: a process ended.
        PneumoscopeError: as `loop.fit` does.
    """
    steps = get_context("spawn").Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, torch.get_num_threads() // world)
    packed = pickle.dumps(given)  # as bytes: tensors by themselves would share their memory among the processes
    workers = [WorkerProcess(_join, rank, world, port, threads, steps) for rank in range(world)]
    orderly = False
    try:
        with signals_held() as came:
            futures = [worker.submit(_fit, packed) for worker in workers]
            signalled, left = False, set(futures)
            while left and not any(future.done() and future.exception() for future in futures):
                left = wait(left, LOOK_SECONDS, FIRST_EXCEPTION).not_done
                while not steps.empty():
                    progress(*steps.get())
                if came() and not signalled:
                    signalled = True
                    for worker in workers:
                        worker.processes[0].terminate()  # it saves its checkpoint
            for worker, future in zip(workers, futures, strict=True):
                if future.done() and isinstance(future.exception(), BrokenProcessPool) and not came():
                    raise RunError(f"a training on {world} devices has ended: {worker.death()}; use --resume")
            for future in futures:
                if future.done() and (problem := future.exception()) and not came():
                    raise problem
            orderly = True
    finally:
        if not orderly:
            for process in (process for worker in workers for process in worker.processes):
                process.kill()  # it waits for one that has ended
        end_workers(workers, at_once=not orderly)
    return futures[0].result()


def _join(rank: int, world: int, port: int, threads: int, steps: Any) -> None:
    """Make this process one of several."""
    global _rank, _world, _steps
    _rank, _world, _steps = rank, world, steps
    torch.set_num_threads(threads)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _fit(packed: bytes) -> Any:
    fit, *most, resume = pickle.loads(packed)
    return fit(*most, resume=resume, progress=_tell)


def _tell(what: str, done: float, total: int, note: str = "") -> None:
    if not _rank:
        _steps.put((what, done, total, note))


def output(model: nn.Module, x: Tensor) -> Tensor:
    """Of a whole batch (n, ...), of which this process computes its share and gets the others'.

    Each process has the gradient of its own rows only, times their number, as DDP then takes the mean.
    """
    global _counts
    if _world == 1:
        whole: Tensor = model(x)
        return whole
    starts = [rank * len(x) // _world for rank in range(_world + 1)]
    size = starts[_rank + 1] - starts[_rank]
    _counts = size > 0  # without a row it computes the first one, which counts for nothing
    mine = model(x[starts[_rank] :][: max(1, size)])[:size].float()
    most = -(-len(x) // _world)
    padded = torch.cat([mine.detach(), mine.new_zeros((most - size, *mine.shape[1:]))])
    parts = [torch.empty_like(padded) for _ in range(_world)]
    distributed.all_gather(parts, padded)
    rows = [part[: starts[rank + 1] - starts[rank]] for rank, part in enumerate(parts)]
    if mine.requires_grad:
        mine.register_hook(lambda gradient: gradient * _world)
    rows[_rank] = mine
    return torch.cat(rows)


def join_batch_norms(model: nn.Module) -> None:
    """Let batch normalisation count over the whole batch; torch's own does so on CUDA only."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = partial(_normalised, module)  # type: ignore[method-assign]


def _normalised(module: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    if not module.training:
        plain: Tensor = type(module).forward(module, x)
        return plain
    axes = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    wide, weight = x.float(), float(_counts)
    number = _Total.apply(torch.tensor(weight * x.numel() / x.shape[1], device=x.device))
    mean = _Total.apply(weight * wide.sum(axes)) / number
    centred = wide - mean.view(shape)
    variance = _Total.apply(weight * centred.square().sum(axes)) / number
    if module.running_mean is not None and module.running_var is not None:
        assert module.num_batches_tracked is not None
        module.num_batches_tracked += 1
        share = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        with torch.no_grad():
            module.running_mean.lerp_(mean, share)
            module.running_var.lerp_(variance * number / (number - 1), share)
    result = centred * torch.rsqrt(variance + module.eps).view(shape)
    if module.affine:
        result = result * module.weight.view(shape) + module.bias.view(shape)
    return result.to(x.dtype)


class _Total(torch.autograd.Function):
    """Sum over the processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


def any_of(flag: bool) -> bool:
    """Whether it holds in any of the processes; all must ask."""
    if _world == 1:
        return flag
    flags: list[Any] = [None] * _world
    distributed.all_gather_object(flags, flag)
    return any(flags)


def total_of(total: float, counts: Tensor | None) -> tuple[float, Tensor | None]:
    """Sums over the processes, of which some had nothing to count."""
    if _world == 1:
        return total, counts
    parts: list[Any] = [None] * _world
    distributed.all_gather_object(parts, (total, None if counts is None else counts.cpu()))
    known = [part for _, part in parts if part is not None]
    return sum(part for part, _ in parts), sum(known[1:], known[0]) if known else None


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process do the block before the others."""
    if _rank:
        distributed.barrier()
    yield
    if _world > 1 and not _rank:
        distributed.barrier()


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
    """A Fabric in the precision asked for: on one device, or, in the processes of `training.devices`, on several.

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
