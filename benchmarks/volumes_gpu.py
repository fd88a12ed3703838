"""Training of mueller-2021 and bressem-2021 at the papers' sizes: seconds per epoch, memory, share of the card's peak.

    python benchmarks/volumes_gpu.py [--device cuda] [--epochs 3] [--steps N] [--precision fp32|bf16] [--json FILE]
    python benchmarks/volumes_gpu.py --recipe mueller-2021 --device cpu --steps 2 --set phases.fit.size=16,16,8

Volumes are synthetic (noise around a dense ball) and in memory; network, loss, boxes, variation, optimiser and loop are
those of `study run`. An epoch is timed in the loop: drawing the boxes, training, looking at the validation boxes, the
checkpoint. Beside it stands a step on a batch that lies on the device already: what the arithmetic alone takes. The
first epoch is left out where there are several. ``--steps`` shortens the epochs; the seconds are then those of the
paper's number of steps, carried over from the shorter ones.

Arithmetic is counted by torch.utils.flop_counter (convolutions and matrix products, a multiply-add is two), forward and
backward. The peak is that of the card's data sheet, dense, in the precision that is used, or ``--peak-tflops``.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pneumoscope.datasets.tensors import CLASS_NAMES, PreparedVolume
from pneumoscope.geometry import Grid
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.recipes.stages import build_volume_recipe
from pneumoscope.recipes.volumes import Phase, VolumeExperiment
from pneumoscope.study.learners.volumes import new_network, phase_config, volume_augment
from pneumoscope.training.data import PatchSource
from pneumoscope.training.devices import make_fabric, pick_device, pick_precision
from pneumoscope.training.loop import fit
from pneumoscope.training.multiclass import MulticlassTask

RECIPES = ("mueller-2021", "bressem-2021")
SCANS = {"mueller-2021": (16, 4), "bressem-2021": (100, 17)}
"""Training and validation scans of the papers (Mueller's 5-fold cross-validation)."""
PAPER = {
    "fit": (150.0, "2 x Quadro RTX 6000, 24 GB: 182 h / (14 models x 312 epochs), section 3"),
    "decoder": (45.0, "RTX 2080 Ti, 11 GB: the lower resolution, section 2.4"),
    "low": (45.0, "RTX 2080 Ti, 11 GB: the lower resolution, section 2.4"),
    "high": (150.0, "RTX 2080 Ti, 11 GB: the higher resolution, section 2.4"),
}
PEAKS = {  # TFLOP/s of NVIDIA's data sheets, dense: fp32, TF32 (0: has none), bf16
    "H100": (67.0, 494.0, 989.0),
    "H200": (67.0, 494.0, 989.0),
    "A100": (19.5, 156.0, 312.0),
    "L40S": (91.6, 183.0, 362.0),
    "RTX 2080 Ti": (13.4, 0.0, 0.0),
    "RTX 6000": (16.3, 0.0, 0.0),
}
DISTINCT = 6
"""Different volumes in memory; an epoch goes round them."""


def volumes(shape: tuple[int, int, int], classes: int) -> list[PreparedVolume]:
    """Noise with a brighter ball of the last class in it, and a slab of every other class."""
    found = []
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in shape)]
    ball = sum(axis**2 for axis in axes) < 0.3
    for number in range(DISTINCT):
        rng = np.random.default_rng(number)
        labels = np.zeros(shape, np.uint8)
        for label in range(1, classes - 1):
            labels[:, :, label * shape[2] // classes :] = label
        labels[ball] = classes - 1
        image = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2) + labels
        places = np.argwhere(ball)[:4096].astype(np.int32)
        grid = Grid.from_spacing(shape[::-1], (1.0, 1.0, 1.0))
        found.append(PreparedVolume(f"v{number}", f"v{number}", image, labels, places, grid, float(image.min())))
    return found


def sources(plan: VolumeExperiment, phase: Phase, steps: int) -> tuple[PatchSource, PatchSource]:
    """Boxes of an epoch of `steps`, and of its validation in proportion."""
    i, j, k = phase.size
    patch = (k, j, i)
    shape = patch if phase.whole else (k + k // 4, j + j // 4, i + i // 4)
    made = volumes(shape, len(CLASS_NAMES[plan.preparation.classes]))
    held_out = SCANS[plan.recipe][1] if phase.whole else plan.training.validation_boxes
    share = max(1, round(held_out * steps / full_steps(plan, phase)))
    train = PatchSource(made, patch, steps * phase.batch_size, plan.training.foreground, volume_augment(plan))
    return train, PatchSource(made, patch, share, plan.training.foreground)


def full_steps(plan: VolumeExperiment, phase: Phase) -> int:
    """Steps of the paper's epoch."""
    return phase.steps or -(-SCANS[plan.recipe][0] // phase.batch_size)


def one_step(
    plan: VolumeExperiment, phase: Phase, source: PatchSource, device: torch.device, repeats: int = 3
) -> tuple[float, int]:
    """A training step on a batch that lies on the device: seconds (middle of several after a warm-up), operations."""
    from torch.utils.flop_counter import FlopCounterMode

    fabric = make_fabric(str(device), plan.training.precision)  # type: ignore[arg-type]
    network, _ = new_network(plan)
    config = phase_config(plan, phase, network, str(device))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not any(name.startswith(f + ".") for f in config.frozen))
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    optimiser = kind([p for p in network.parameters() if p.requires_grad], lr=config.learning_rate)
    model, optimiser = fabric.setup(network.train(), optimiser)
    task = MulticlassTask(CLASS_NAMES[plan.preparation.classes], plan.training.loss)
    drawn = source.batch(np.arange(phase.batch_size), np.random.default_rng(0))
    batch = type(drawn)(drawn.x.to(fabric.device), drawn.y.to(fabric.device), drawn.names)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        fabric.backward(task.loss(model(batch.x), batch))
        optimiser.step()

    with FlopCounterMode(display=False) as counter:
        step()
    took = []
    for _ in range(repeats):
        begun = now(device)
        step()
        took.append(now(device) - begun)
    return float(np.median(took)), int(counter.get_total_flops())


def now(device: torch.device) -> float:
    """Wall time after all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_tflops(name: str, precision: str, given: float | None) -> float | None:
    """Of the card by its name, in TFLOP/s; None for a device that is not known."""
    if given:
        return given
    for card, (fp32, tf32, bf16) in PEAKS.items():
        if card in name:
            if precision == "bf16" and bf16:
                return bf16
            return tf32 if tf32 and torch.backends.cudnn.allow_tf32 else fp32
    return None


def measure(plan: VolumeExperiment, phase: Phase, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One phase of a recipe."""
    steps = min(options.steps or full_steps(plan, phase), full_steps(plan, phase))
    train, val = sources(plan, phase, steps)
    network, _ = new_network(plan)
    task = MulticlassTask(CLASS_NAMES[plan.preparation.classes], plan.training.loss)
    alone, flops = one_step(plan, phase, train, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def note_epoch(what: str, done: int, total: int, note: str = "") -> None:
        if what == "run" and note.startswith("val loss"):
            ends.append(now(device))

    config = replace(
        phase_config(plan, phase, network, str(device)), max_epochs=options.epochs, patience=None, schedule="constant"
    )
    with tempfile.TemporaryDirectory() as folder:
        ends = [now(device)]
        fit(network, task, train, val, config, Path(folder) / "run", progress=note_epoch)
    epochs = np.diff(ends)
    seconds = float(np.mean(epochs[1:] if len(epochs) > 1 else epochs)) * full_steps(plan, phase) / steps
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    precision = pick_precision(plan.training.precision, device)  # type: ignore[arg-type]
    peak = peak_tflops(name, precision, options.peak_tflops)
    memory = (
        torch.cuda.max_memory_allocated(device) / 2**30
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    whole = flops * full_steps(plan, phase)
    paper, where = PAPER[phase.name]
    return {
        "recipe": plan.recipe,
        "phase": phase.name,
        "box": "x".join(map(str, phase.size)),
        "batch": phase.batch_size,
        "steps": full_steps(plan, phase),
        "steps_measured": steps * (len(epochs) - (len(epochs) > 1)),
        "seconds_per_epoch": round(seconds, 3),
        "paper_seconds_per_epoch": paper,
        "paper_card": where,
        "seconds_per_epoch_of_arithmetic_alone": round(alone * full_steps(plan, phase), 3),
        "memory_gib": round(memory, 2),
        "memory_is": "allocated on the card" if device.type == "cuda" else "peak of this process so far",
        "gflop_per_step": round(flops / 1e9, 3),
        "tflops": round(whole / seconds / 1e12, 3),
        "tflops_of_arithmetic_alone": round(flops / alone / 1e12, 3),
        "peak_tflops": peak,
        "share_of_peak": round(whole / seconds / 1e12 / peak, 4) if peak else None,
        "share_of_peak_of_arithmetic_alone": round(flops / alone / 1e12 / peak, 4) if peak else None,
        "device": name,
        "precision": precision,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, action="append")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, help="at most so many steps an epoch")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    rows = []
    for recipe in options.recipe or RECIPES:
        plan = with_overrides(
            build_volume_recipe(recipe), [f"training.precision={options.precision}", *options.settings]
        )
        for phase in plan.phases:
            row = measure(plan, phase, options, device)
            rows.append(row)
            print(json.dumps(row, indent=2), flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
