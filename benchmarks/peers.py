"""Models of other programs, by us and by these programs themselves.

    python benchmarks/peers.py equal
    python benchmarks/peers.py speed --model nnUNetTrainer__nnUNetPlans__3d_fullres --scan scan.nii.gz

``equal`` runs the tests of `make test-peers` and prints how many voxels differ. ``speed`` runs `pneumoscope segment
--model nnunet:...` and `nnUNetv2_predict_from_modelfolder` in turn, each as a process of its own from the file of the
scan to files of masks, and prints the wall times; ``--no-mirror`` is nnU-Net's ``--disable_tta``. Needs nnunetv2, monai
and lungmask.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK

ROOT = Path(__file__).parent.parent


def equal() -> int:
    """Exit code of the tests."""
    how = ("-m", "peers", "-q", "-s", "--no-header", "--timeout", "3000")
    call = [sys.executable, "-m", "pytest", *how, "tests/peers"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if " differ" in line:
            print(line.lstrip(".F"))
    print(done.stdout.strip().splitlines()[-1])
    return done.returncode


def seconds_of(call: list[str], env: dict[str, str]) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    done = subprocess.run(call, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - started


def speed(model: Path, scan: Path, fold: str, repeats: int, *, mirror: bool, more: list[str]) -> int:
    """1 where a mask differs, else 0."""
    theirs = [str(Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder")), "-m", str(model), "-f", fold]
    ours = [sys.executable, "-m", "pneumoscope", "segment", "--model", f"nnunet:{model}@{fold}", "--quiet", *more]
    theirs += ["-device", "cpu", "--disable_progress_bar", *([] if mirror else ["--disable_tta"])]
    ours += ["--device", "cpu", *([] if mirror else ["--no-mirror"])]
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    spent: dict[str, list[float]] = {"pneumoscope segment": [], "nnUNetv2_predict": []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "in").mkdir()
        (work / "in" / "scan_0000.nii.gz").symlink_to(scan.resolve())
        for turn in range(repeats):
            out = work / f"theirs{turn}"
            spent["nnUNetv2_predict"].append(seconds_of([*theirs, "-i", str(work / "in"), "-o", str(out)], env))
            expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / "scan.nii.gz")))
            out = work / f"ours{turn}"
            spent["pneumoscope segment"].append(seconds_of([*ours, "-i", str(scan), "-o", str(out)], env))
            found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(next(out.glob("*/infiltrate.nii.gz")))))
            if turn == 0:
                differ = np.count_nonzero(found != expected)
                print(f"{differ} of {expected.size} voxels differ, {np.count_nonzero(expected)} labelled")
    for program, times in spent.items():
        print(f"{program}: {', '.join(f'{t:.1f}' for t in times)} s")
    print(f"ratio of the shortest times: {min(spent['pneumoscope segment']) / min(spent['nnUNetv2_predict']):.2f}")
    return int(differ > 0)


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("equal")
    timed = verbs.add_parser("speed")
    timed.add_argument("--model", type=Path, required=True)
    timed.add_argument("--scan", type=Path, required=True)
    timed.add_argument("--fold", default="0")
    timed.add_argument("--repeats", type=int, default=2)
    timed.add_argument("--no-mirror", dest="mirror", action="store_false")
    args, more = parser.parse_known_args()
    if args.verb == "equal":
        return equal()
    return speed(args.model, args.scan, args.fold, args.repeats, mirror=args.mirror, more=more)


if __name__ == "__main__":
    sys.exit(main())
