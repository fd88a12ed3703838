"""Memory of drawing boxes from mapped volumes against the bound that `PatchSource.resident_bytes` states.

    python benchmarks/volumes_memory.py [--size 160 160 80] [--batch 2] [--batches 2] [--plain]

The volumes lie on disk and are mapped, as the cache gives them. Counted is the process's own memory (RssAnon of
/proc/self/status, looked at every 2 ms) above what it was before the first batch; pages of the mapped files are the
system's to take back and are given beside. Every kind of variation is drawn for every box. Linux only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from pneumoscope.datasets.tensors import PreparedVolume
from pneumoscope.geometry import Grid
from pneumoscope.training.augment import VolumeAugment
from pneumoscope.training.data import PatchSource

ALWAYS = {f"{kind}_p": 1.0 for kind in
          ("scale", "rotate", "elastic", "mirror", "brightness", "contrast", "gamma", "noise")}  # fmt: skip


class Watch(threading.Thread):
    """Highest RssAnon and RssFile, in bytes, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anon = self.file = 0
        self.over = threading.Event()

    def run(self) -> None:
        """Look until told that it is over."""
        while not self.over.is_set():
            anon, file = resident()
            self.anon, self.file = max(self.anon, anon), max(self.file, file)
            time.sleep(0.002)


def resident() -> tuple[int, int]:
    """The process's own pages and pages of files, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    held = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
            if name in ("RssAnon", "RssFile")}  # fmt: skip
    return held["RssAnon"], held["RssFile"]


def mapped(folder: Path, shape: tuple[int, int, int], number: int) -> PreparedVolume:
    """A volume of noise on disk, written slice by slice."""
    image = np.lib.format.open_memmap(folder / f"{number}.npy", "w+", np.float32, shape)
    labels = np.lib.format.open_memmap(folder / f"{number}-labels.npy", "w+", np.uint8, shape)
    rng = np.random.default_rng(number)
    for k in range(shape[0]):
        image[k] = rng.standard_normal(shape[1:], dtype=np.float32)
    del image, labels
    arrays = [np.load(folder / f"{number}{end}.npy", mmap_mode="r") for end in ("", "-labels")]
    grid = Grid.from_spacing(shape[::-1], (1.0, 1.0, 1.0))
    return PreparedVolume(f"v{number}", f"v{number}", *arrays, np.empty((0, 3), np.int32), grid, -5.0)


def measure(size: tuple[int, int, int], batch: int, batches: int, *, varied: bool) -> dict[str, object]:
    """Draw some batches of boxes of `size` (i, j, k) out of volumes half again as large."""
    i, j, k = size
    shape = (k * 3 // 2, j * 3 // 2, i * 3 // 2)
    with tempfile.TemporaryDirectory() as folder:
        volumes = [mapped(Path(folder), shape, number) for number in range(2)]
        augment = VolumeAugment(**ALWAYS) if varied else None  # type: ignore[arg-type]
        small = PatchSource(volumes, (8, 8, 8), 4, 0.0, augment)
        small.batch(np.arange(2), np.random.default_rng(0))  # what is loaded on first use is not the boxes'
        source = PatchSource(volumes, (k, j, i), batch * batches, 0.0, augment)
        before, _ = resident()
        watch = Watch()
        watch.start()
        rng, begun = np.random.default_rng(1), time.perf_counter()
        for number in range(batches):
            source.batch(np.arange(number * batch, (number + 1) * batch), rng)
        seconds = time.perf_counter() - begun
        watch.over.set()
        watch.join()
        bound = source.resident_bytes(batch)
    return {
        "boxes": f"{batch} of {i} x {j} x {k}",
        "varied": varied,
        "bound_mb": round(bound / 1e6, 1),
        "measured_mb": round((watch.anon - before) / 1e6, 1),
        "share_of_bound": round((watch.anon - before) / bound, 3),
        "mapped_pages_mb": round(watch.file / 1e6, 1),
        "volumes_mb": round(2 * 5 * int(np.prod(shape)) / 1e6, 1),
        "seconds_per_box": round(seconds / (batch * batches), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(160, 160, 80))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="no variation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = tuple(options.size)
    print(json.dumps(measure(size, options.batch, options.batches, varied=not options.plain)))


if __name__ == "__main__":
    main()
