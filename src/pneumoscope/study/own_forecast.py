"""Before a training on own data: how long, how much memory; and advice when that was not enough."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np

from pneumoscope.errors import RunError
from pneumoscope.study.forecast import peak_gigabytes
from pneumoscope.study.own_common import TrainingPlan, memory_at_hand
from pneumoscope.study.own_setup import Setup

TIMED = 2
"""Steps that are made on a copy of the network."""


def forecast_own(plan: TrainingPlan, setup: Setup, config: Any, max_minutes: float | None) -> str:
    """Time and memory to expect, in a sentence, from measured steps."""
    drawing, computing, device = _seconds(plan, setup, config)
    steps, looks = (-(-len(source) // plan.batch_size) for source in (setup.train, setup.val))
    epoch = steps * (drawing + computing) + looks * (drawing + 0.4 * computing)
    minutes = epoch * plan.epochs / 60
    limit = f", stopped after {max_minutes:g}" if max_minutes is not None and max_minutes < minutes else ""
    return (
        f"{len(setup.train)} training and {len(setup.val)} validation {setup.kind}, at most {plan.epochs} epochs of "
        f"{steps} steps of {drawing + computing:.2f} s: up to about {minutes:.1f} minutes{limit}; a step about "
        f"{plan.step_gigabytes():.2g} GB{_measured(device)}, this process so far {peak_gigabytes():.1f} GB, "
        f"{memory_at_hand(device):.1f} GB free"
    )


def _seconds(plan: TrainingPlan, setup: Setup, config: Any) -> tuple[float, float, str]:
    """Seconds to draw a batch and to learn from it, and the device."""
    import torch

    from pneumoscope.training.data import Batch
    from pneumoscope.training.devices import make_fabric

    model = deepcopy(setup.model).train()
    fabric = make_fabric(config.device, config.precision)
    model.to(fabric.device)
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    rows = np.resize(np.arange(len(setup.train)), plan.batch_size)
    taken = []
    for step in range(TIMED):
        begun = time.perf_counter()
        drawn = setup.train.batch(rows, np.random.default_rng(step))
        middle = time.perf_counter()
        batch = Batch(drawn.x.to(fabric.device), drawn.y.to(fabric.device), drawn.names)
        with fabric.autocast():
            output = model(batch.x)
        setup.task.loss(output.float(), batch).backward()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        taken.append((middle - begun, time.perf_counter() - middle))
    return min(t[0] for t in taken), min(t[1] for t in taken), str(fabric.device)


def _measured(device: str) -> str:
    """What the timed steps held on the graphics card; nothing elsewhere, where the process's peak says it."""
    if not device.startswith("cuda"):
        return ""
    import torch

    return f" ({torch.cuda.max_memory_allocated(device) / 1e9:.1f} measured)"


@contextmanager
def out_of_memory_advice(plan: TrainingPlan) -> Iterator[None]:
    """Turn a machine that is out of memory into advice.

    Raises:
        RunError: instead of what torch or numpy say.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        text = str(problem).lower()
        if not isinstance(problem, MemoryError) and "out of memory" not in text and "allocate memory" not in text:
            raise
        raise RunError(f"out of memory {plan.advice()}") from problem
