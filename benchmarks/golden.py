"""Does a change of the code change results? The same small runs by two checkouts, compared byte by byte.

    python benchmarks/golden.py record before          # in the checkout before the change
    python benchmarks/golden.py record after           # after it, on the same machine; with names, only these parts
    python benchmarks/golden.py compare before after
    python benchmarks/golden.py time OLD_CHECKOUT NEW_CHECKOUT      # processor time of the same calls, in turn

Runs the demo (transfer study and one segmented case), a study on volumes, an X-ray study, trainings on own data and
`segment` of a synthetic scan, each by the command line of the checkout this file lies in. Of every file the SHA-256 is
kept; JSON and CSV first lose what differs from run to run: times, memory, versions, stamps. Pages and checkpoints,
which hold such numbers, are left out; tables, masks, weights, splits and settings are in. About five minutes on two
cores. Results are comparable only between runs on one processor with one number of threads.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = re.compile(
    r"(\.ckpt|\.html|\.png|run\.json|environment\.json|cost\.json|timing\.json|done\.json|cell\.json|key\.csv|owner\.json)$"
    r"|/(data|private|predictions)/"
)
VARYING = re.compile(
    r"second|timing|time|reasons|version|stamp|identity|sha256|memory|gigabytes|peak|forecast|torch|pneumoscope|^key$"
)

XRAY = (
    "data.per_class_1=20,20,20 training.repeats=1 training.max_epochs=2 training.precision=fp32 pictures.side=24 "
    "network.features=2,4 scoring.interval_resamples=10 scoring.timed_pictures=1 honest.penalties=0.1 "
    "honest.networks=border honest.held_out_networks=false"
)
VOLUMES = "phases.fit.max_epochs=2 phases.fit.steps=3 folds.k=2 folds.ablation=false"


def settings(text: str) -> list[str]:
    """`--set` for each of the values."""
    return [word for value in text.split() for word in ("--set", value)]


def run(*arguments: str | Path, root: Path = ROOT) -> None:
    """The command line of a checkout; its output only when it fails."""
    command = [sys.executable, "-m", "pneumoscope", *map(str, arguments)]
    path = os.pathsep.join(filter(None, (str(root / "src"), os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")


def demo(out: Path) -> None:
    """The transfer study on synthetic sites, and one case segmented with its networks."""
    alone = ["--jobs", "1"] if "--jobs" in help_of("demo") else []  # bytes depend on the threads of a stage
    run("demo", "--out", out / "demo", "--device", "cpu", *alone)


def volumes(out: Path) -> None:
    """A study on volumes."""
    synthetic = ["--synthetic"] if "--synthetic" in help_of("study", "run") else []
    run("study", "run", "mueller-2021-small", "-o", out / "volumes", *synthetic, *settings(VOLUMES))


def xray(out: Path) -> None:
    """An X-ray study on made-up radiographs."""
    sys.path.insert(0, str(ROOT / "tests" / "study"))
    from made_up_radiographs import write_sets

    roots = write_sets(out / "data" / "radiographs", children=12)
    data = [word for name, root in roots.items() for word in ("--data", f"{name}={root}")]
    run("study", "run", "katsamenis-2020", "-o", out / "xray", *data, *settings(XRAY))


def own(out: Path) -> None:
    """A training and a cross-validation on own data, and `segment` of one of the scans."""
    scans = out / "data" / "scans"
    run("data", "phantom", "-o", scans, "--site", "A", "--patients", "6", "--size", "tiny", "--seed", "3")
    quick = ["--epochs", "2", "--precision", "fp32", "--device", "cpu"]
    manifest = scans / "manifest.csv"
    run("train", "--data", manifest, "-o", out / "own", "--dims", "2d", "--size", "64", *quick)
    run(
        "crossval",
        "--data",
        manifest,
        "-o",
        out / "folds",
        "--dims",
        "3d",
        "--patch",
        "8x16x16",
        "--folds",
        "2",
        *quick,
    )
    run("segment", "-i", next((scans / "images").glob("*.nii.gz")), "-o", out / "cases", "--precision", "fp32")


PARTS = (demo, volumes, xray, own)


def help_of(*verb: str, root: Path = ROOT) -> str:
    """The help text of a verb of a checkout."""
    command = [sys.executable, "-m", "pneumoscope", *verb, "--help"]
    surroundings = {**os.environ, "PYTHONPATH": str(root / "src"), "COLUMNS": "200"}
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True).stdout


TIMED_STUDY = (
    "stages.first.max_epochs=4 stages.retrain.max_epochs=4 lung.budget.max_epochs=3 data.sites.1.phantom_patients=10 "
    "data.sites.2.phantom_patients=10 data.sites.3.phantom_patients=10 split.train_slices=60 split.validation_slices=20"
)
ROUNDS = 3


def take_times(checkouts: list[Path], scratch: Path) -> None:
    """Print the processor and wall seconds of a short demo study and of `segment`, by each checkout in turn."""
    run("data", "phantom", "-o", scratch / "site", "--site", "A", "--patients", "1", "--size", "small", "--seed", "3")
    scan = next((scratch / "site" / "images").glob("*.nii.gz"))
    for number in range(ROUNDS):
        for place, root in enumerate(checkouts):
            synthetic = ["--synthetic"] if "--synthetic" in help_of("study", "run", root=root) else []
            study = ("study", "run", "maganaris-2022b-demo", "--device", "cpu", *synthetic, *settings(TIMED_STUDY))
            for call in (study, ("segment", "-i", scan, "--device", "cpu", "--precision", "fp32")):
                out = scratch / f"{number}-{place}-{call[0]}"
                before, since = os.times(), time.perf_counter()
                run(*call, "-o", out, root=root)
                spent, wall = os.times(), time.perf_counter() - since
                own, system = (getattr(spent, k) - getattr(before, k) for k in ("children_user", "children_system"))
                print(f"{call[0]:8} {root} processor {own + system:.1f} s, wall {wall:.1f} s", flush=True)


def steady(value: Any) -> Any:
    """JSON without the entries whose names say that they differ from run to run."""
    if isinstance(value, dict):
        return {name: steady(part) for name, part in value.items() if not VARYING.search(name)}
    return [steady(part) for part in value] if isinstance(value, list) else value


def sum_of(path: Path) -> str:
    """SHA-256 of a file, of JSON and CSV without what varies."""
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(steady(json.loads(content)), sort_keys=True).encode()
    elif path.suffix == ".csv":
        rows = list(csv.reader(content.decode().splitlines()))
        kept = [n for n, name in enumerate(rows[0] if rows else ()) if not VARYING.search(name)]
        content = "\n".join(json.dumps([row[n] for n in kept if n < len(row)]) for row in rows).encode()
    return hashlib.sha256(content).hexdigest()


def record(out: Path, names: list[str]) -> None:
    """Run the parts named, or all, and write the sums of what lies in `out` to `golden.json`."""
    if out.exists() and not names:
        shutil.rmtree(out)
    for part in PARTS:
        if not names or part.__name__ in names:
            part(out)
    files = sorted(p for p in out.rglob("*") if p.is_file() and not LEFT_OUT.search(p.relative_to(out).as_posix()))
    sums = {path.relative_to(out).as_posix(): sum_of(path) for path in files if not path.is_relative_to(out / "data")}
    (out / "golden.json").write_text(json.dumps(sums, indent=1))
    print(f"{len(sums)} files in {out}")


def compare(before: Path, after: Path) -> int:
    """Print what differs; the number of files that do."""
    old, new = (json.loads((folder / "golden.json").read_text()) for folder in (before, after))
    lines = [f"only {where}: {name}" for where, a, b in (("before", old, new), ("after", new, old))
             for name in a if name not in b]  # fmt: skip
    lines += [f"differs: {name}" for name in old if name in new and old[name] != new[name]]
    print("\n".join(lines) or f"all {len(old)} files are equal")
    return len(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare", "time"))
    parser.add_argument(
        "folders", nargs="+", help="record: the folder, then the parts if not all; compare, time: both folders"
    )
    given = parser.parse_args()
    first, *rest = given.folders
    if given.what == "record":
        record(Path(first).resolve(), rest)
        return 0
    if given.what == "time":
        with tempfile.TemporaryDirectory() as scratch:
            take_times([Path(name).resolve() for name in given.folders], Path(scratch))
        return 0
    return min(compare(Path(first), Path(rest[0])), 1)


if __name__ == "__main__":
    sys.exit(main())
