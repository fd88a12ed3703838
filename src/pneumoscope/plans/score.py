"""How good a model of own data is: what `segment` gives with it on scans it has not seen, and where that is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.datasets.case import Case
from pneumoscope.errors import RunError
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.models.options import ModelOptions
from pneumoscope.plans.data import LungFinder
from pneumoscope.plans.setup import TrainingSetup
from pneumoscope.plans.survey import TrainingPlan, memory_at_hand
from pneumoscope.progress import Progress
from pneumoscope.study.forecast import measure_step, peak_gigabytes

ON_VALIDATION = "the epoch was chosen on the very scans scored here, which flatters a little; --test-share avoids it"
ON_TEST = "the epoch was chosen on other patients; these were scored once, at the end"
ON_FOLDS = "the epoch of each fold was chosen on the scans it is scored on, which flatters a little"


def score_own(
    folder: Path, cases: Sequence[Case], device: str, precision: str, lungs_for: LungFinder, progress: Progress,
    what: str = "validation",
) -> pd.DataFrame:  # fmt: skip
    """Dice per scan of what `segment` gives with this model, on the scan's own grid."""
    from pneumoscope.inference.segmenter import Segmenter

    segmenter = Segmenter(ModelOptions(model=folder, device=device, precision=precision))  # type: ignore[arg-type]
    rows = []
    for done, case in enumerate(cases, start=1):
        scan = case.load()
        assert scan.infiltrate is not None  # `read_own_cases` asked
        lungs = scan.lungs if scan.lungs is not None else lungs_for(scan.volume)
        found = segmenter.run(scan.volume, lungs).infiltrate.labels > 0
        counts = count(found, scan.infiltrate.labels > 0)
        voxel = scan.volume.grid.voxel_volume_ml
        rows.append((case.case, case.patient, dice(counts), counts.referenced * voxel, counts.predicted * voxel))
        progress(what, done, len(cases))
    return pd.DataFrame(rows, columns=["case", "patient", "dice", "reference_ml", "predicted_ml"])


def numbers_of(validation: pd.DataFrame, test: pd.DataFrame | None) -> dict[str, Any]:
    """The numbers of a model's card: of the test scans where there are any, and what the epoch was chosen on."""
    scored, chosen_on = (validation, ON_VALIDATION) if test is None else (test, ON_TEST)
    numbers: dict[str, Any] = {
        "held_out_scans": len(scored),
        "mean_dice": float(scored["dice"].mean()),
        "lowest_dice": float(scored["dice"].min()),
        "highest_dice": float(scored["dice"].max()),
        "chosen_on": chosen_on,
    }
    if test is not None:
        numbers |= {"validation_scans": len(validation), "validation_mean_dice": float(validation["dice"].mean())}
    return numbers


def forecast_own(plan: TrainingPlan, setup: TrainingSetup, config: Any, max_minutes: float | None) -> str:
    """Time and memory to expect, in a sentence, from measured steps."""
    from pneumoscope.training.devices import pick_device

    device = str(pick_device(config.device))
    drawing, computing = measure_step(
        setup.model,
        setup.task,
        setup.train,
        plan.batch_size,
        device=config.device,
        precision=config.precision,
        steps=1,
    )
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
