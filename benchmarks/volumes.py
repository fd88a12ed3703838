"""Engines, sliding windows and memory: what inference on the CPU costs, each comparison within one run.

    python benchmarks/volumes.py [engines] [windows] [segment] [memory] [--threads N] [--json FILE]

``engines``: the shipped networks and a 3D U-Net in every installed engine and precision, in turns, best of several.
``windows``: our sliding window against MONAI's SlidingWindowInferer on the same network and the same places.
``segment``: a synthetic scan through the shipped models in each engine; Dice of the masks against torch in fp32.
``memory``: Mueller's network over a scan of 512 x 512 x 600 in a process of its own; its peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pneumoscope.geometry import Grid
from pneumoscope.inference.engines import Engine, installed_engines, make_engine
from pneumoscope.models.options import ModelOptions
from pneumoscope.models.unet import UNet3D, UNet3DConfig
from pneumoscope.training.devices import has_fast_bf16


def in_turns(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Best wall time of each, the contestants taking turns, after one warm-up each."""
    best = dict.fromkeys(work, float("inf"))
    for run in work.values():
        run()
    for _ in range(repeats):
        for name, run in work.items():
            begun = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begun)
    return best


def contestants(model: torch.nn.Module) -> dict[str, Engine]:
    """Every engine that is installed, in every precision that it and this processor compute in."""
    precisions = ("fp32", "bf16") if has_fast_bf16(torch.device("cpu")) else ("fp32",)
    made = {}
    for name in installed_engines():
        for precision in precisions:
            if (name, precision) != ("onnxruntime", "bf16"):
                engine = make_engine(model, name, device="cpu", precision=precision)  # type: ignore[arg-type]
                made[engine.label] = engine
    return made


def engines(repeats: int) -> dict[str, Any]:
    from pneumoscope.models.cards import find_model
    from pneumoscope.models.weights import load_model

    torch.manual_seed(0)
    volume = UNet3D(UNet3DConfig(1, 4, (16, 32, 64, 128, 256)))
    tasks = [
        ("infiltrate, 8 x 2 x 144 x 192", load_model(find_model("infiltrate"))[0], (8, 2, 144, 192)),
        ("lungs, 8 x 1 x 128 x 128", load_model(find_model("lungs"))[0], (8, 1, 128, 128)),
        ("3D U-Net of 16 to 256 maps, 96 x 96 x 96", volume, (1, 1, 96, 96, 96)),
    ]
    result: dict[str, Any] = {}
    for name, model, shape in tasks:
        images = np.random.default_rng(0).random(shape, np.float32)
        made = contestants(model)
        exact = made["torch fp32"].logits(images)
        seconds = in_turns({label: (lambda e=e, x=images: e.logits(x)) for label, e in made.items()}, repeats)
        result[name] = {
            label: {
                "seconds": round(seconds[label], 4),
                "times_torch_of_this_precision": round(seconds[f"torch {label.split()[1]}"] / seconds[label], 2),
                "largest_difference": float(np.abs(e.logits(images) - exact).max()),
            }
            for label, e in made.items()
        }
    return result


def windows(repeats: int) -> dict[str, Any]:
    from monai.inferers import SlidingWindowInferer

    from pneumoscope.inference.volumes import _probability
    from pneumoscope.inference.windows3d import WindowPlan, slide

    torch.manual_seed(0)
    model = UNet3D(UNet3DConfig(1, 4, (8, 16))).eval()
    image = np.random.default_rng(0).standard_normal((1, 64, 96, 96), dtype=np.float32)
    made = contestants(model)
    plan = WindowPlan((32, 48, 48))
    other = SlidingWindowInferer((32, 48, 48), overlap=0.5, mode="constant")

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            return other(torch.from_numpy(image[None]), lambda x: torch.softmax(model(x), 1)).numpy()[0]

    def ours(engine: Engine) -> np.ndarray:
        return np.concatenate([slab.probability for slab in slide(image, [_probability(engine)], plan)], axis=1)

    difference = float(np.abs(ours(made["torch fp32"]) - theirs()).max())
    work: dict[str, Callable[[], Any]] = {"monai, torch fp32": theirs}
    work |= {f"ours, {label}": (lambda e=e: ours(e)) for label, e in made.items()}
    seconds = in_turns(work, repeats)
    return {
        "volume": "64 x 96 x 96, patch 32 x 48 x 48, half overlap, mean",
        "largest_difference": difference,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "times_monai": {n: round(seconds["monai, torch fp32"] / v, 2) for n, v in seconds.items()},
    }


def segment(repeats: int) -> dict[str, Any]:
    from pneumoscope.datasets.phantom.folder import scan_patient
    from pneumoscope.inference.segmenter import Segmenter

    volume = scan_patient("B", 1, size="small").scan.volume
    precisions = ("fp32", "bf16") if has_fast_bf16(torch.device("cpu")) else ("fp32",)
    segmenters = {
        f"{name} {precision}": Segmenter(ModelOptions(engine=name, precision=precision, device="cpu"))  # type: ignore[arg-type]
        for name in installed_engines()
        for precision in precisions
        if (name, precision) != ("onnxruntime", "bf16")
    }
    found = {name: segmenter.run(volume) for name, segmenter in segmenters.items()}
    exact = found["torch fp32"]
    seconds = in_turns({n: (lambda s=s: s.run(volume)) for n, s in segmenters.items()}, repeats)

    def dice(a: np.ndarray, b: np.ndarray) -> float:
        return round(2 * np.count_nonzero(a & b) / max(1, np.count_nonzero(a) + np.count_nonzero(b)), 6)

    return {
        "scan": f"synthetic, {volume.grid.shape}",
        **{
            name: {
                "seconds": round(seconds[name], 2),
                "dice_lungs": dice(result.lungs.any, exact.lungs.any),
                "dice_infiltrate": dice(result.infiltrate.any, exact.infiltrate.any),
            }
            for name, result in found.items()
        },
    }


def memory(threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", "--threads", str(threads)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(ran.stdout))


def child() -> dict[str, Any]:
    """One process: the scan, the network of the paper in the default engine, uncertainty maps and all."""
    from pneumoscope.inference.volumes import VolumeInput, predict_volume
    from pneumoscope.inference.windows3d import WindowPlan
    from pneumoscope.preprocess.slices import HuWindow
    from pneumoscope.volume import Volume

    shape = (512, 512, 600)
    grid = Grid.from_spacing(shape, (0.7, 0.7, 1.0))
    hu = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    hu *= 300
    plan = WindowPlan((80, 160, 160), (0.375, 0.5, 0.5))
    prepared = VolumeInput(HuWindow(-1250, 250), plan, (1.58, 1.58, 2.7), normalise="zscore", grey_levels=256)
    torch.manual_seed(0)
    engine = make_engine(UNet3D(), device="cpu")
    begun = time.perf_counter()
    found = predict_volume(Volume(hu, grid, grid), [engine], prepared, uncertainty=True)
    d, h, w = prepared.grid(grid).shape[::-1]
    return {
        "scan": "512 x 512 x 600 at 0.7 x 0.7 x 1 mm, Mueller's network of 32 to 512 maps",
        "engine": found.engines[0],
        "windows": int(np.prod([len(s) for s in plan.starts((d, h, w))])),
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "formula_without_network_mib": round(prepared.peak_bytes(grid, 4, maps=3) / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["engines", "windows", "segment"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(child()))
        return
    result: dict[str, Any] = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": has_fast_bf16(torch.device("cpu")),
        "threads": options.threads,
        "load": round(os.getloadavg()[0], 1),
    }
    parts: dict[str, Callable[[], Any]] = {
        "engines": lambda: engines(options.repeats),
        "windows": lambda: windows(options.repeats),
        "segment": lambda: segment(options.repeats),
        "memory": lambda: memory(options.threads),
    }
    for name in options.what:
        result[name] = parts[name]()
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
