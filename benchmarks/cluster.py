"""What many machines cost and keep: the same bytes everywhere, two workers against one, empty jobs, kills.

python benchmarks/cluster.py same --scans 24 [--slurm]     case folders and cases.csv by local, Dask and SLURM
python benchmarks/cluster.py speed --scans 24              segment by one and by two Dask workers, one thread each
python benchmarks/cluster.py empty --jobs 1000 100000      seconds and memory of jobs that do nothing, through Dask
python benchmarks/cluster.py kills --workers 40 --submits 10
For SLURM without one: scripts/slurm_node.sh python benchmarks/cluster.py same --slurm
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def scans(root: Path, count: int, size: str = "tiny", masks: bool = True, finer: int = 1) -> Path:
    """A manifest of scans, with masks or to be segmented, each a little denser than the one before.

    `finer` repeats each slice so often; full size takes 20 s a scan to make and as long to segment.
    """
    from pneumoscope.datasets.phantom.folder import scan_patient
    from pneumoscope.io.write import write_mask, write_volume

    made = scan_patient("B", 0, size=size)
    volume = made.scan.volume
    if finer > 1:
        assert not masks
        grids = [grid.resize((*grid.shape[:2], grid.shape[2] * finer)) for grid in (volume.grid, volume.native)]
        volume = replace(volume, hu=np.repeat(volume.hu, finer, axis=2), grid=grids[0], native=grids[1])
    if masks:
        write_mask(made.lungs, root / "lungs.nii.gz", volume.native)
        write_mask(made.scan.truth, root / "infiltrate.nii.gz", volume.native)
    lines = ["case,image" + (",lungs,infiltrate" if masks else "")]
    for number in range(count):
        write_volume(replace(volume, hu=volume.hu + np.float32(number)), root / f"s{number:02}.nii.gz")
        lines.append(f"s{number:02},s{number:02}.nii.gz" + (",lungs.nii.gz,infiltrate.nii.gz" if masks else ""))
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    return root / "cases.csv"


def ran(command: list[str], **environment: str) -> None:
    """Run a command, and show what it said where it fails."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")


def call(verb: str, table: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pneumoscope", verb, "-i", str(table), "-o", str(out), "--fast", *more]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that hold times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {n: p.read_bytes() for n, p in sorted(files.items()) if n not in ("run.json", ".lock") and ".tmp-" not in n}


def same(root: Path, options: argparse.Namespace) -> None:
    table = scans(root, options.scans)
    ways = {"local": [], "local --jobs 2": ["--jobs", "2"], "dask": ["--on", "dask", "--jobs", "2"]}
    if options.slurm:
        settings = ["cpus=1", "memory=1500MB", "walltime=01:00:00"]
        ways["slurm"] = ["--on", "slurm", "--jobs", "2", *(f"--cluster={value}" for value in settings)]
    first: dict[str, bytes] = {}
    for name, more in ways.items():
        begun = time.perf_counter()
        ran(call(options.verb, table, root / name, *more), OMP_NUM_THREADS="1")
        made = contents(root / name)
        first = first or made
        differing = [file for file in first.keys() | made.keys() if first.get(file) != made.get(file)]
        spent = time.perf_counter() - begun
        print(
            f"{name}: {len(made)} files, {len(differing)} differ from local {differing[:3]}, {spent:.0f} s", flush=True
        )


def speed(root: Path, options: argparse.Namespace) -> None:
    table = scans(root, options.scans, options.size, False, options.finer)
    spent: dict[int, float] = {}
    for count in (1, 2) * options.repeats:
        begun, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
        more = ["--on", "dask", "--jobs", str(count), "--overwrite"]
        ran(call("segment", table, root / "out", *more), OMP_NUM_THREADS="1")
        seconds, own = time.perf_counter() - begun, own_seconds() - own
        spent[count] = min(spent.get(count, 1e9), seconds)
        others = (busy_seconds() - busy - own) / seconds
        print(f"{count} workers: {seconds:.1f} s, {own:.1f} s of processor; others had {others:.2f} of "
              f"{os.cpu_count()} processors", flush=True)  # fmt: skip
    print(f"{options.scans} scans: {spent[1] / spent[2]:.2f} times")


def busy_seconds() -> float:
    """Of all processors of this machine."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + getattr(times, "steal", 0.0)


def own_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def nothing(side_by_side: int) -> object:
    from pneumoscope.jobs.run import Outcome, Step

    return Step("nothing", 1, work=lambda job, progress: Outcome(job.name))


def empty(root: Path, options: argparse.Namespace) -> None:
    from pneumoscope.jobs.machines import machines
    from pneumoscope.jobs.run import Job, run_jobs

    for count in options.jobs:
        jobs = [Job(f"job {n:07}", n, root / f"{n}", marked=False) for n in range(count)]
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = time.perf_counter()
        with machines("dask", jobs=2):
            outcomes = run_jobs(jobs, None, lambda *_: None, opener=nothing)
        spent, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
        assert [o.name for o in outcomes] == [job.name for job in jobs]
        own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{count} jobs: {spent:.1f} s, {own:.1f} s of processor here, {1000 * own / count:.3f} ms a job, "
              f"{after.ru_maxrss / 1024:.0f} MiB", flush=True)  # fmt: skip


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Processes that compute, and the Dask workers around them."""
    with suppress(psutil.Error):
        return [p for p in process.children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    return []


def kills(root: Path, options: argparse.Namespace) -> None:
    table = scans(root, options.scans)
    ran(call("quantify", table, root / "whole"))
    whole, chance, out = contents(root / "whole"), random.Random(1), root / "out"
    more = ["--on", "dask", "--jobs", "2", "--resume"]
    left = {"worker": options.workers, "submit": options.submits}
    runs, done = 0, dict[str, int]()
    while left["worker"] or left["submit"] or runs == 0:
        process = subprocess.Popen(call("quantify", table, out, *more), **QUIET)
        runs += 1
        while process.poll() is None:
            time.sleep(chance.uniform(0.2, 1.5))
            kind = chance.choice([name for name, count in left.items() if count] or ["none"])
            targets = workers_of(psutil.Process(process.pid)) if kind == "worker" and process.poll() is None else []
            if targets:
                with suppress(psutil.Error):
                    chance.choice(targets).kill()
                    left["worker"] -= 1
            elif kind == "submit" and chance.random() < 0.3 and process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                left["submit"] -= 1
        half = [
            n for n, data in contents(out).items() if n != "cases.csv" and "private" not in n and data != whole.get(n)
        ]
        now = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/done.json")}
        twice = [name for name, when in done.items() if now.get(name) != when]
        print(f"run {runs} ended with {process.returncode}; kills left {left}; {len(done)} cases done before, "
              f"{len(now)} now; done again: {twice}; files with other bytes: {half}", flush=True)  # fmt: skip
        done = now
        if process.returncode == 0:
            print("all is done; the same bytes:", contents(out) == whole, flush=True)
            shutil.rmtree(out)
            done = {}
    ran(call("quantify", table, out, *more))
    print("at the end the same bytes:", contents(out) == whole)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["same", "speed", "empty", "kills"])
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--size", choices=["tiny", "small", "full"], default="small", help="of the scans of speed")
    parser.add_argument("--finer", type=int, default=1, help="how often each slice of speed is repeated")
    parser.add_argument("--repeats", type=int, default=1, help="of speed; the shortest counts")
    parser.add_argument("--verb", choices=["segment", "quantify"], default="segment")
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--workers", type=int, default=40)
    parser.add_argument("--submits", type=int, default=10)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        {"same": same, "speed": speed, "empty": empty, "kills": kills}[options.what](Path(folder), options)


if __name__ == "__main__":
    main()
