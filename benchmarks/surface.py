"""Surface scores against MONAI's and SimpleITK's, in one run: time, and peak memory of a process of its own.

    python benchmarks/surface.py [--shape 512 512 300] [--lesions 12] [--repeats 5] [--json FILE]

All score the same pair of masks: a dozen lesions scattered over a chest CT, and the same lesions shifted, grown and
shrunk by a voxel, one missed, one made up. MONAI's surface Dice uses the same surfels (``use_subvoxels=True``), its
HD95 and mean distance the mask's own border voxels. SimpleITK has no surface Dice; its HD95 and mean distance are taken
together, from Maurer's distance maps at the voxels of the contours, as its notebooks do. Ours gives all three at once.
Times are taken in turns, best of several, on masks that lie in memory; memory is the highest resident set of a fresh
process (imports and masks included), and beside it the same less what the process held before the first score. Needs
Linux.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SPACING_MM = (0.7, 0.7, 1.0)
TOLERANCE_MM = 3.0


def make_masks(shape: tuple[int, ...], lesions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A reference with ellipsoids in the middle two thirds of each axis, and a prediction that is a little off."""
    rng = np.random.default_rng(seed)
    ref, pred = np.zeros(shape, bool), np.zeros(shape, bool)
    grid = np.stack(np.meshgrid(*[np.arange(-30, 31)] * 3, indexing="ij"), -1)
    for n in range(lesions):
        centre = np.array([rng.integers(max(s // 6, 31), s - max(s // 6, 31)) for s in shape])
        radii = rng.uniform(6, 24, 3)
        for mask, shift, grow in ((ref, 0, 0.0), (pred, rng.integers(-2, 3, 3), rng.uniform(-1.5, 1.5))):
            if (n == 0 and mask is pred) or (n == 1 and mask is ref):
                continue
            inside = (((grid - shift) / (radii + grow)) ** 2).sum(-1) <= 1
            box = tuple(slice(c - 30, c + 31) for c in centre)
            mask[box] |= inside
    return pred, ref


def ours(pred: np.ndarray, ref: np.ndarray) -> dict[str, Callable[[], float]]:
    from pneumoscope.metrics.surface import surface_scores

    return {"all": lambda: surface_scores(pred, ref, SPACING_MM, TOLERANCE_MM).nsd}


def monai(pred: np.ndarray, ref: np.ndarray) -> dict[str, Callable[[], float]]:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    y_pred, y = torch.from_numpy(pred)[None, None], torch.from_numpy(ref)[None, None]
    common: dict[str, Any] = {"include_background": True, "spacing": SPACING_MM}
    return {
        "nsd": lambda: float(compute_surface_dice(y_pred, y, [TOLERANCE_MM], use_subvoxels=True, **common)),
        "hd95": lambda: float(compute_hausdorff_distance(y_pred, y, percentile=95, **common)),
        "msd": lambda: float(compute_average_surface_distance(y_pred, y, symmetric=True, **common)),
    }


def simpleitk(pred: np.ndarray, ref: np.ndarray) -> dict[str, Callable[[], float]]:
    import SimpleITK

    def image(mask: np.ndarray) -> Any:
        made = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
        made.SetSpacing(SPACING_MM[::-1])  # SimpleITK counts axes from the last
        return made

    def distances(of: Any, to: Any) -> np.ndarray:
        """From the contour of a mask to the contour of another, in mm."""
        marked = SimpleITK.LabelContour(to)
        apart = SimpleITK.Abs(SimpleITK.SignedMaurerDistanceMap(marked, squaredDistance=False, useImageSpacing=True))
        contour = SimpleITK.LabelContour(of)  # a view does not keep its image alive
        at = SimpleITK.GetArrayViewFromImage(contour) > 0
        return SimpleITK.GetArrayViewFromImage(apart)[at]

    def both() -> float:
        a, b = image(pred), image(ref)
        there, back = distances(a, b), distances(b, a)
        float(np.concatenate([there, back]).mean())
        return float(max(np.percentile(there, 95), np.percentile(back, 95)))

    return {"hd95 and msd": both}


SIDES = {"pneumoscope": ours, "monai": monai, "simpleitk": simpleitk}
SCORES = (
    ("pneumoscope", "all"),
    ("monai", "nsd"),
    ("monai", "hd95"),
    ("monai", "msd"),
    ("simpleitk", "hd95 and msd"),
)


def resident_mb() -> float:
    """Highest resident set of this process so far. (`ru_maxrss` would count the parent's too.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory_of(side: str, score: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak of a fresh process that makes the masks and computes one score."""
    call = [sys.executable, "-W", "ignore", __file__, "--child", side, score, "--lesions", str(options.lesions)]
    done = subprocess.run([*call, "--shape", *map(str, options.shape)], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def child(options: argparse.Namespace) -> None:
    side, score = options.child
    work = SIDES[side](*make_masks(tuple(options.shape), options.lesions))[score]
    before = resident_mb()
    work()
    print(json.dumps({"peak_mb": resident_mb(), "above_start_mb": resident_mb() - before}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--lesions", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    memory = {(side, score): memory_of(side, score, options) for side, score in SCORES}
    masks = make_masks(tuple(options.shape), options.lesions)
    works = {(side, score): work for side, make in SIDES.items() for score, work in make(*masks).items()}
    values = {key: work() for key, work in works.items()}  # warm-up
    best = dict.fromkeys(works, float("inf"))
    for _ in range(options.repeats):
        for key, work in works.items():
            begun = time.perf_counter()
            work()
            best[key] = min(best[key], time.perf_counter() - begun)
    own = ("pneumoscope", "all")
    theirs = [key for key in works if key != own]
    result = {
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "shape": list(options.shape),
        "lesions": options.lesions,
        "seconds": {" ".join(key): round(seconds, 3) for key, seconds in best.items()},
        "values": {" ".join(key): value for key, value in values.items()},
        "memory": {" ".join(key): {k: round(v) for k, v in found.items()} for key, found in memory.items()},
        "times_faster_than": {" ".join(key): round(best[key] / best[own], 2) for key in theirs},
        "share_of_memory": {
            " ".join(key): {k: round(memory[own][k] / memory[key][k], 3) for k in memory[own]} for key in theirs
        },
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
