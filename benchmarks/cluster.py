"""What many machines cost and keep: the same bytes everywhere, two workers against one, empty jobs, kills.

python benchmarks/cluster.py same --scans 24 [--slurm]     case folders and cases.csv by local, Dask and SLURM
python benchmarks/cluster.py speed --scans 24              segment by one and by two Dask workers, one thread each
python benchmarks/cluster.py empty --jobs 1000 100000      seconds and memory of jobs that do nothing, through Dask
python benchmarks/cluster.py kills --workers 40 --submits 10 --schedulers 1
python benchmarks/cluster.py study                         six independent stages, one or two at a time
For SLURM without one: scripts/slurm_node.sh python benchmarks/cluster.py same --slurm
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import socket
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
    from pneumoscope.jobs.run import Job, JobRun

    for count in options.jobs:
        jobs = [Job(f"job {n:07}", n, root / f"{n}", marked=False) for n in range(count)]
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = time.perf_counter()
        with machines("dask", jobs=2):
            outcomes = JobRun(jobs, None, lambda *_: None, opener=nothing).run()
        spent, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
        assert [o.name for o in outcomes] == [job.name for job in jobs]
        own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{count} jobs: {spent:.1f} s, {own:.1f} s of processor here, {1000 * own / count:.3f} ms a job, "
              f"{after.ru_maxrss / 1024:.0f} MiB", flush=True)  # fmt: skip


class Nodes:
    """A scheduler and two nodes of one Dask worker each, as somebody would start them; for --on dask nothing."""

    def __init__(self, root: Path, on: str) -> None:
        self.root, self.on, self.processes = root, on, list[psutil.Popen]()
        self.port = 0
        if on == "dask://":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
            self.on = f"dask://127.0.0.1:{self.port}"
            self.start()

    def start(self) -> None:
        """Whatever of it does not run."""
        for number in range(3) if self.port else ():
            if len(self.processes) > number and self.processes[number].poll() is None:
                continue
            tool = "scheduler" if number == 0 else "worker"
            more = [f"--port={self.port}", "--host=127.0.0.1"]
            if number:
                more = [
                    f"tcp://127.0.0.1:{self.port}",
                    "--nthreads=1",
                    f"--local-directory={self.root}",
                    "--no-dashboard",
                ]
            command = [sys.executable, "-m", f"distributed.cli.dask_{tool}", *more]
            log = (self.root / f"{tool}-{number}.log").open("a")
            process = psutil.Popen(command, env={**os.environ, "DASK_DISTRIBUTED__WORKER__DAEMON": "False"},
                                   stdout=log, stderr=log)  # fmt: skip
            self.processes[number : number + 1] = [process]

    def targets(self, command: psutil.Process) -> list[list[psutil.Process]]:
        """What is killed together: a process that computes, the Dask worker around it, or a whole node."""
        roots = self.processes[1:] or [command]
        found = list[list[psutil.Process]]()
        for process in roots:
            with suppress(psutil.Error):
                inside = process.children(recursive=True)
                found += [[p] for p in inside if "spawn_main" in " ".join(p.cmdline())]
                found += [[process, *inside]] if self.port and inside else []
        return found

    def stop(self) -> None:
        """End all of it."""
        for process in self.processes:
            with suppress(psutil.Error):
                for one in [*process.children(recursive=True), process]:
                    one.kill()
        for process in self.processes:
            process.wait()


def kills(root: Path, options: argparse.Namespace) -> None:
    table = scans(root, options.scans)
    ran(call("quantify", table, root / "whole"))
    whole, chance, out = contents(root / "whole"), random.Random(1), root / "out"
    left = {"worker": options.workers, "submit": options.submits}
    left |= {"scheduler": options.schedulers} if options.on == "dask://" else {}
    nodes = Nodes(root, options.on)
    more = ["--on", nodes.on, "--jobs", "2", "--resume"]
    runs, done = 0, dict[str, int]()
    while any(left.values()) or runs == 0:
        nodes.start()
        process = psutil.Popen(call("quantify", table, out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        runs += 1
        while process.poll() is None:
            time.sleep(chance.uniform(0.2, 1.5))
            if process.poll() is not None:
                break
            nodes.start()
            kind = chance.choice([name for name, count in left.items() if count] or ["none"])
            targets = nodes.targets(process) if kind == "worker" else []
            if targets:
                for target in chance.choice(targets):
                    with suppress(psutil.Error):
                        target.kill()
                left["worker"] -= 1
            elif kind == "scheduler" and len(list(out.glob("*/done.json"))) > 2:
                nodes.stop()  # with it the nodes, whose nannies would wait for it without a worker
                left["scheduler"] -= 1
            elif kind == "submit" and chance.random() < 0.3:
                process.kill()
                left["submit"] -= 1
        said = process.stderr.read().decode().strip().splitlines()[-1:] if process.wait() > 0 else ""
        half = [
            n for n, data in contents(out).items() if n != "cases.csv" and "private" not in n and data != whole.get(n)
        ]
        now = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/done.json")}
        twice = [name for name, when in done.items() if now.get(name) != when]
        print(f"run {runs} ended with {process.returncode} {said}; kills left {left}; "
              f"{len(done)} cases done before, {len(now)} now; done again: {twice}; files with other bytes: {half}",
              flush=True)  # fmt: skip
        done = now
        if process.returncode == 0:
            print("all is done; the same bytes:", contents(out) == whole, flush=True)
            shutil.rmtree(out)
            done = {}
    nodes.start()
    ran(call("quantify", table, out, *more))
    print("at the end the same bytes:", contents(out) == whole)
    nodes.stop()


def six_stages() -> object:
    """A transfer study whose stages do not wait for each other: three sites, each learnt by two systems."""
    from pneumoscope.recipes.papers.transfer import transfer_systems_small
    from pneumoscope.recipes.settings import with_overrides

    small = with_overrides(transfer_systems_small(), ["stages.first.max_epochs=60", "stages.first.patience=60"])
    first = [stage for stage in small.stages.chain if stage.name in ("Tr1-2d", "Tr1-2.5d")]
    chain = [replace(stage, name=f"{stage.name}-{site}", site=site) for site in (1, 2, 3) for stage in first]
    return replace(small, stages=replace(small.stages, chain=tuple(chain)))


def study(root: Path, options: argparse.Namespace) -> None:
    from pneumoscope.jobs.machines import machines
    from pneumoscope.study.engine import run_study

    os.environ["OMP_NUM_THREADS"] = "1"
    tables = dict[str, bytes]()
    for name, on, jobs in (("first", "local", 1), ("one process", "local", 1), ("two processes", "local", 2),
                           ("two Dask workers", "dask", 2)):  # fmt: skip
        begun = time.perf_counter()
        with machines(on, jobs=jobs):
            run_study(six_stages(), root / name, device="cpu", synthetic=True, jobs=jobs)
        spent = time.perf_counter() - begun
        made = {path.name: path.read_bytes() for path in (root / name).glob("*.csv")}
        tables = tables or made
        differing = [file for file in tables.keys() | made.keys() if tables.get(file) != made.get(file)]
        print(f"{name}: {spent:.1f} s, {len(made)} tables, other bytes: {differing}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["same", "speed", "empty", "kills", "study"])
    parser.add_argument("--scans", type=int, default=24)
    parser.add_argument("--size", choices=["tiny", "small", "full"], default="small", help="of the scans of speed")
    parser.add_argument("--finer", type=int, default=1, help="how often each slice of speed is repeated")
    parser.add_argument("--repeats", type=int, default=1, help="of speed; the shortest counts")
    parser.add_argument("--verb", choices=["segment", "quantify"], default="segment")
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--workers", type=int, default=40)
    parser.add_argument("--submits", type=int, default=10)
    parser.add_argument("--schedulers", type=int, default=1)
    parser.add_argument("--on", choices=["dask", "dask://"], default="dask://", help="of kills: whose scheduler it is")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        {"same": same, "speed": speed, "empty": empty, "kills": kills, "study": study}[options.what](
            Path(folder), options
        )


if __name__ == "__main__":
    main()
