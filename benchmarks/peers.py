"""Models of other programs, by us and by these programs themselves.

    python benchmarks/peers.py equal
    python benchmarks/peers.py speed --model nnUNetTrainer__nnUNetPlans__3d_fullres --scan scan.nii.gz
    python benchmarks/peers.py matrix OUT

``equal`` runs the tests of `make test-peers` and prints how many voxels differ. ``speed`` runs `pneumoscope segment
--model nnunet:...` and `nnUNetv2_predict_from_modelfolder` in turn, each as a process of its own from the file of the
scan to files of masks, and prints the wall times; ``--no-mirror`` is nnU-Net's ``--disable_tta``. ``matrix`` trains an
nnU-Net, two BasicUNets of MONAI (one kept as a bundle, one as ONNX) and a network of ours on tiny phantoms of site A,
and scores them and the shipped model with `study score` on phantoms of three sites. Needs nnunetv2, monai and lungmask.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
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


def pneumoscope(*words: str | Path) -> None:
    """Print and run a command of ours."""
    print("pneumoscope", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "pneumoscope", *map(str, words)], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def basic_unet(raw: Path, seed: int, codes: str, steps: int = 120) -> tuple[Any, dict[str, Any]]:
    """A BasicUNet of MONAI trained on whole tiny scans, and the arguments it was made with.

    The axes are those of MONAI's RAS (i, j, k) or SPL (k, j, i), the slices filled up to 16.
    """
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    fields = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "features": [4, 4, 8, 8, 8, 4]}
    torch.manual_seed(seed)
    network, loss = BasicUNet(**fields), DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    pairs = []
    for file in sorted((raw / "labelsTr").glob("*.nii.gz")):
        scan = raw / "imagesTr" / file.name.replace(".nii.gz", "_0000.nii.gz")
        image, mask = (nib.load(f).get_fdata(dtype=np.float32) for f in (scan, file))
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(nib.load(file).affine), nib.orientations.axcodes2ornt(codes)
        )
        turned = [
            nib.orientations.apply_orientation(values, turn) for values in (np.clip((image + 1000) / 1400, 0, 1), mask)
        ]
        thin = codes.index("S")
        fill = [(0, 16 - n if axis == thin else 0) for axis, n in enumerate(turned[0].shape)]
        pairs.append([torch.from_numpy(np.pad(values, fill)) for values in turned])
    for step in range(steps):
        x, y = pairs[step % len(pairs)]
        optimiser.zero_grad()
        loss(network(x[None, None]), y[None, None]).backward()
        optimiser.step()
    return network.eval(), fields


def matrix(out: Path) -> int:
    """Three foreign models and two of ours on three test sets, in one report."""
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    from inference.external_models import bundle

    pneumoscope("data", "phantom", "-o", out / "train", "--site", "A", "--patients", "8", "--size", "tiny", "-q")
    for site in "ABC":
        place = ("-o", out / f"site_{site}", "--site", site, "--patients", "4", "--seed", "7", "--size", "tiny")
        pneumoscope("data", "phantom", *place, "-q")
    pneumoscope("data", "convert", "phantom", out / "train", "-o", out / "raw", "--to", "nnunet", "-q")
    script = ROOT / "tests" / "peers" / "train_nnunet.py"
    subprocess.run([sys.executable, script, out / "raw", out, "16", "3d_fullres:1"], check=True, capture_output=True)
    network, fields = basic_unet(out / "raw", 0, "RAS")
    bundle(out / "bundle", network, {"_target_": "BasicUNet", **fields}, patch=(64, 64, 16))
    network, _ = basic_unet(out / "raw", 1, "SPL")
    torch.onnx.export(network, (torch.zeros(1, 1, 16, 64, 64),), str(out / "basic.onnx"), dynamo=False)
    labels = ("--label", "0=background", "--label", "1=ground-glass", "--label", "2=consolidation")
    pneumoscope("model", "describe", out / "basic.onnx", "--patch", "16x64x64", "--spacing", "26x5.3x5.3",
                "--orientation", "SPL", "--window", "-1000:400", *labels)  # fmt: skip
    pneumoscope("train", "--data", f"phantom={out / 'train'}", "-o", out / "ours", "--dims", "2d", "--size", "64",
                "--epochs", "30", "-q")  # fmt: skip
    results = out / "nnunet" / "results" / "Dataset001_phantom" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    models = {"nnunet": f"nnunet:{results}", "monai": f"bundle:{out / 'bundle'}", "onnx": f"onnx:{out / 'basic.onnx'}",
              "shipped": "infiltrate", "trained": out / "ours"}  # fmt: skip
    data = [word for site in "ABC" for word in ("--data", f"phantom:{site}={out / f'site_{site}'}")]
    rows = [word for name, model in models.items() for word in ("--model", f"{name}={model}")]
    pneumoscope("study", "score", out / "study", *data, *rows)
    return 0


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
    verbs.add_parser("matrix").add_argument("out", type=Path)
    args, more = parser.parse_known_args()
    if args.verb == "matrix":
        return matrix(args.out)
    if args.verb == "equal":
        return equal()
    return speed(args.model, args.scan, args.fold, args.repeats, mirror=args.mirror, more=more)


if __name__ == "__main__":
    sys.exit(main())
