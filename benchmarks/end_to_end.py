"""Times, memory and megabytes of `pneumoscope segment` on one scan, from DICOM files to the last output.

    python benchmarks/end_to_end.py [--slices 64 134 300] [--scan PATH ...] [--beside CHECKOUT] [--save NAMES] [--fast]

Synthetic chests of 512 x 512 x N, written as DICOM; `--scan` takes others instead. The command runs as a user's would.
Wall time depends on what else the machine does, so the processor time (user and system, of the command and its
children) and the load stand beside it. Memory is the largest sum over the command and its children (PSS where the
system knows it). With `--beside` every scan is also segmented by the code of another checkout, with its own default
outputs. The network of lungmask's R231 (Hofmanninger et al. 2020: U-Net of depth 5, 64 to 1024 maps, 256 x 256, batches
of 20) runs with random weights in the same minutes, without reading, post-processing or writing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ENVIRONMENT = dict(os.environ)


def make_scan(folder: Path, slices: int) -> Path:
    """A synthetic scan of site B, brought to 512 x 512 x `slices` over its own field of view, as DICOM."""
    from pneumoscope.datasets.phantom.folder import scan_patient
    from pneumoscope.geometry import Grid
    from pneumoscope.io.write import write_dicom_series
    from pneumoscope.preprocess.spatial import Resample

    volume = scan_patient("B", 0, size="full").scan.volume
    target = volume.grid.resize((512, 512, slices))
    if target.shape != volume.grid.shape:
        volume = Resample(Grid(target.shape, target.affine)).apply(volume)
    write_dicom_series(volume, folder)
    return folder


def memory_mib(process: psutil.Process) -> float:
    """Of a process and its children now; what ends meanwhile counts nothing."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            full = one.memory_full_info()
            total += getattr(full, "pss", full.rss)
        except psutil.Error:
            continue
    return total / 2**20


def run(checkout: Path, scan: Path, out: Path, more: list[str]) -> dict[str, Any]:
    """Segment a scan with the code of a checkout."""
    command = [sys.executable, "-m", "pneumoscope", "segment", "-i", str(scan), "-o", str(out), "--quiet", *more]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(checkout / "src")}
    before, begun, peak = os.times(), time.perf_counter(), 0.0
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                peak = max(peak, memory_mib(process))
            except psutil.Error:
                break
            time.sleep(0.1)
    wall, after = time.perf_counter() - begun, os.times()
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    (case,) = json.loads((out / "run.json").read_text())["cases"]
    folder = out / case["case"]
    files = {str(f.relative_to(folder)): f.stat().st_size / 1e6 for f in sorted(folder.rglob("*")) if f.is_file()}
    return {
        "wall_s": round(wall, 1),
        "cpu_s": round(after.children_user + after.children_system - before.children_user - before.children_system, 1),
        "peak_mib": round(peak),
        "mb": round(sum(files.values()), 1),
        "load": round(os.getloadavg()[0], 1),
        "steps_s": case["seconds"],
        "files_mb": {name: round(size, 2) for name, size in files.items()},
    }


def r231(slices: int) -> dict[str, float]:
    """Seconds of lungmask's network for so many slices, in the precision that pneumoscope would choose here."""
    import torch
    from torch import nn

    from pneumoscope.training.devices import pick_device, pick_precision

    def block(inputs: int, maps: int) -> nn.Module:
        parts: list[nn.Module] = []
        for n in (inputs, maps):
            parts += [nn.Conv2d(n, maps, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(maps)]
        return nn.Sequential(*parts)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            maps = [64, 128, 256, 512, 1024]
            self.down = nn.ModuleList(block(a, b) for a, b in zip([1, *maps], maps, strict=False))
            self.up = nn.ModuleList(
                nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(b, a, 1))
                for a, b in zip(maps[-2::-1], maps[:0:-1], strict=True)
            )
            self.join = nn.ModuleList(block(b, a) for a, b in zip(maps[-2::-1], maps[:0:-1], strict=True))
            self.last = nn.Conv2d(64, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = []
            for n, down in enumerate(self.down):
                x = down(x)
                if n < len(self.down) - 1:
                    kept.append(x)
                    x = nn.functional.avg_pool2d(x, 2)
            for up, join in zip(self.up, self.join, strict=True):
                x = join(torch.cat([up(x), kept.pop()], 1))
            return self.last(x)

    net = Net().eval().to(memory_format=torch.channels_last)
    bf16 = pick_precision("auto", pick_device("cpu")) == "bf16"
    begun, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for start in range(0, slices, 20):
            net(torch.zeros(min(20, slices - start), 1, 256, 256).to(memory_format=torch.channels_last))
    return {"wall_s": round(time.perf_counter() - begun, 1), "cpu_s": round(time.process_time() - processor, 1)}


def main() -> None:
    """Print a JSON document per scan; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="*", default=[64, 134, 300])
    parser.add_argument("--scan", type=Path, nargs="+", help="other scans instead of the synthetic ones")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout of pneumoscope")
    parser.add_argument("--save", help="as for segment")
    parser.add_argument("--fast", action="store_true", help="as for segment")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command sets it
    more = (["--save", options.save] if options.save else []) + ["--fast"] * options.fast
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = {str(path): path for path in options.scan or ()}
        if not scans:
            scans = {f"512 x 512 x {n}": make_scan(folder / f"scan-{n}", n) for n in options.slices}
        for number, (title, scan) in enumerate(scans.items()):
            result: dict[str, Any] = {"scan": title, "now": run(here, scan, folder / f"now-{number}", more)}
            report = next((folder / f"now-{number}").rglob("report.json"))
            slices = min(json.loads(report.read_text())["scan"]["shape"])
            if options.beside:
                result["beside"] = run(options.beside.resolve(), scan, folder / f"beside-{number}", [])
            result["r231_network_alone"] = r231(slices)
            print(json.dumps(result, indent=1), flush=True)


if __name__ == "__main__":
    main()
