"""What the cache saves: time and files opened by the second start of a study.

    python benchmarks/cache.py [--cases 4] [--shape 512 512 120] [--size 320] [--json FILE]

Scans with lung and infiltrate masks are written as ``.nii.gz``. A fresh process then builds the slice set without a
cache, with an empty one, and with the filled one. Every process counts the compressed files it opens, and sums what it
built: the sums must agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def write_data(folder: Path, cases: int, shape: tuple[int, ...]) -> None:
    """Noisy scans with two ellipsoids for lungs and a lesion in each: noise, as in scans, hardly compresses."""
    from pneumoscope.geometry import Grid
    from pneumoscope.io.write import write_mask, write_volume
    from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    grid = Grid.from_spacing(shape, (0.7, 0.7, 2.5))
    rows = ["case,image,lungs,infiltrate"]
    for n in range(cases):
        lungs = np.zeros(shape, np.uint8)
        lesion = np.zeros(shape, np.uint8)
        for side, centre in ((1, 0.4), (2, -0.4)):
            lungs[((x - centre) / 0.3) ** 2 + (y / 0.6) ** 2 + (z / 0.9) ** 2 <= 1] = side
            lesion[((x - centre) / 0.1) ** 2 + ((y + 0.2) / 0.2) ** 2 + (z / 0.3) ** 2 <= 1] = 1
        hu = np.where(lungs > 0, -850, 30) + np.where(lesion > 0, 400, 0) + rng.normal(0, 20, shape)
        volume = Volume.from_native(np.rint(hu).astype(np.float32), grid, case=f"c{n}")
        write_volume(volume, folder / f"c{n}.nii.gz")
        write_mask(Mask(lungs, grid, LUNG_LABELS), folder / f"c{n}-lungs.nii.gz", grid)
        write_mask(Mask(lesion, grid, INFILTRATE_LABEL), folder / f"c{n}-infiltrate.nii.gz", grid)
        rows.append(f"c{n},c{n}.nii.gz,c{n}-lungs.nii.gz,c{n}-infiltrate.nii.gz")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def child(folder: str, cache_folder: str, size: int) -> None:
    """One process: build the slice set."""
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    from pneumoscope.datasets.cache import ArrayCache
    from pneumoscope.datasets.formats.manifest import read_manifest_cases
    from pneumoscope.datasets.tensors import SliceRecipe, build_slice_set
    from pneumoscope.preprocess.slices import HuWindow

    cases = read_manifest_cases(folder)
    cache = None if cache_folder == "off" else ArrayCache(cache_folder)
    recipe = SliceRecipe((HuWindow(-970, -150), HuWindow(-700, -450), HuWindow(-450, -150)), size)
    begun = time.perf_counter()
    slices = build_slice_set(cases, recipe, cache=cache)
    seconds = time.perf_counter() - begun
    content = hashlib.sha256(slices.images.tobytes() + slices.target.tobytes() + slices.lungs.tobytes())
    compressed = sum(name.endswith(".nii.gz") for name in opened)
    print(json.dumps({"seconds": round(seconds, 3), "gz_opened": compressed, "sum": content.hexdigest()[:16]}))


def run(folder: Path, cache: str, size: int) -> dict[str, Any]:
    argv = [sys.executable, __file__, "--child", str(folder), cache, "--size", str(size)]
    return dict(json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 120))
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.size)
        return
    result: dict[str, Any] = {"cases": options.cases, "shape": list(options.shape), "size": options.size}
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary) / "data", str(Path(temporary) / "cache")
        folder.mkdir()
        write_data(folder, options.cases, tuple(options.shape))
        time.sleep(2.5)  # files younger than two seconds are summed on every look
        found = {
            "without": run(folder, "off", options.size),
            "first_start": run(folder, cache, options.size),
            "second_start": run(folder, cache, options.size),
        }
        assert len({one["sum"] for one in found.values()}) == 1, found
        assert found["second_start"]["gz_opened"] == 0, found
        result["slices"] = {
            **found, "times_faster": round(found["without"]["seconds"] / found["second_start"]["seconds"], 1),
        }  # fmt: skip
        result["cache_mb"] = round(sum(p.stat().st_size for p in Path(cache).rglob("*") if p.is_file()) / 2**20)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
