"""Seconds and memory of `pneumoscope segment` on one 512 x 512 x 300 synthetic chest CT, from file to report.

    python benchmarks/end_to_end.py [--slices 300] [--scan FILE] [--fast]

The command runs as a user's would, in a process of its own; its peak memory is what the system counted for it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pneumoscope.datasets.phantom import scan_patient
from pneumoscope.geometry import Grid
from pneumoscope.io import write_volume
from pneumoscope.preprocess.spatial import Resample


def make_scan(folder: Path, slices: int) -> Path:
    """A synthetic scan of site B, brought to 512 x 512 x `slices` over its own field of view."""
    volume = scan_patient("B", 0, size="full").scan.volume
    target = volume.grid.resize((512, 512, slices))
    if target.shape != volume.grid.shape:
        volume = Resample(Grid(target.shape, target.affine)).apply(volume)
    path = folder / "scan.nii.gz"
    write_volume(volume, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--scan", type=Path, help="another scan instead of the synthetic one")
    parser.add_argument("--fast", action="store_true", help="masks and numbers only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = options.scan or make_scan(folder, options.slices)
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "pneumoscope", "segment", "-i", str(scan), "-o", str(folder / "out"), "--quiet"]
            + ["--fast"] * options.fast,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - begun
        facts = json.loads((folder / "out" / "run.json").read_text())
        pages = [path.stat().st_size for path in (folder / "out").rglob("view.html")]
        written = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    result = {
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(peak),
        "threads": facts["threads"],
        "steps": facts["cases"][0]["seconds"],
        "summary": facts["cases"][0]["summary"],
        "written_mib": round(written / 2**20, 1),
        "view_html_mb": [round(size / 1e6, 1) for size in pages],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
