"""Seconds and memory to write the point table of the lungs of a 512 x 512 x 300 scan, every voxel and thinned.

    python benchmarks/points.py

The promise is 5 s and 500 MB. The arrays of the scan itself are counted apart: they are there before.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from pneumoscope.geometry import Grid
from pneumoscope.surfaces.files import stride_for, write_points

SHAPE = (512, 512, 300)
LUNG_SHARE = 0.14
MAX_POINTS = 2_000_000


def main() -> None:
    rng = np.random.default_rng(0)
    hu = np.empty(SHAPE, np.float32)
    for i in range(SHAPE[0]):
        hu[i] = rng.integers(-1000, 100, SHAPE[1:])
    grid = Grid.from_spacing(SHAPE, (0.7, 0.7, 1.0), (-179.2, -179.2, -150.0))
    where = np.zeros(SHAPE, np.bool_)
    side = [int(n * LUNG_SHARE ** (1 / 3)) for n in SHAPE]  # one block of a lung's usual part of the scan
    where[tuple(slice(n // 4, n // 4 + s) for n, s in zip(SHAPE, side, strict=True))] = True
    before = peak_mib()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stride in (1, stride_for(where, MAX_POINTS)):
            path = Path(folder) / "points.csv"
            begun = time.perf_counter()
            table = write_points(path, hu, where, grid, stride=stride)
            rows.append(
                {
                    "stride": stride,
                    "points": table.points,
                    "seconds": round(time.perf_counter() - begun, 2),
                    "mib": round(path.stat().st_size / 2**20, 1),
                }
            )
    print(json.dumps({"arrays_mib": before, "more_memory_mib": peak_mib() - before, "tables": rows}, indent=2))


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
