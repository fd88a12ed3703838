"""Both volume systems on real chest CTs at reduced size: lungs as drawn, and lesions painted into the real lungs.

    python benchmarks/volumes_real.py --data ../shared/data/ct-volumes -o real [--what lungs lesions] [--resume]

Three scans have lung masks (see benchmarks/lungs.py); nobody drew infiltrate on any. Every scan is held out once
(3 folds by patient), the two others train; Dice is counted on the held-out scan's own grid.

``lungs``: the scans as they are, classes lungs and not lungs, beside a threshold on air fitted on the training scans.
``lesions``: each scan several times, with other synthetic lesions (datasets/painted.py), the recipe's own classes,
beside the threshold for infiltrate, fitted on the training scans too. Lesions are painted, the anatomy, noise, vessels
and the tumour of the one scan are real.

The recipes are the reduced ones of `study run`, so that a processor is enough.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lungs import scans
from pneumoscope.datasets.painted import paint_lesions
from pneumoscope.datasets.phantom_lesions import LesionPlan
from pneumoscope.experiments.access import with_overrides
from pneumoscope.experiments.volume_recipes import build_volume_recipe
from pneumoscope.inference.lungs import split_sides
from pneumoscope.io import write_mask, write_volume
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.study.volumes_run import run_volume_study
from pneumoscope.study.volumes_tables import subject_of
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

RECIPES = ("mueller-2021-reduced", "bressem-2021-reduced")
COLUMNS = ("case", "image", "lungs", "infiltrate", "patient")
SHARES = (0.05, 0.12, 0.2)
"""Part of the lungs that the painted variants of a scan have as lesions."""


def labelled(data: Path) -> Iterator[tuple[Volume, Mask]]:
    """The scans and their lungs, right and left."""
    for name, volume, reference, _ in scans(data):
        sides, _ = split_sides(to_slices(reference["both"]), volume.grid.spacing_mm)
        named = Volume(volume.hu, volume.grid, volume.native, name.replace(" ", "-"), volume.findings, volume.source)
        yield named, Mask(np.ascontiguousarray(from_slices(sides)), volume.grid, dict(LUNG_LABELS))


def write_scans(data: Path, out: Path) -> None:
    """Write scans, masks and the lists ``lungs.csv`` and ``lesions.csv`` into `out`; a finished folder is kept."""
    if (out / "lesions.csv").is_file():
        return
    rows: dict[str, list[dict[str, str]]] = {"lungs": [], "lesions": []}
    for number, (volume, lungs) in enumerate(labelled(data)):
        patient = volume.case
        mask = f"{patient}-lungs.nii.gz"
        write_mask(lungs, out / mask, volume.native)
        write_volume(volume, out / f"{patient}.nii.gz")
        rows["lungs"].append({"case": patient, "image": f"{patient}.nii.gz", "lungs": mask, "patient": patient})
        for variant, share in enumerate(SHARES):
            plan = LesionPlan(share, height=0.65, radius_mm=(11.0, 38.0), consolidation=0.35, dorsal=1.2)
            made = paint_lesions(volume, lungs, plan, seed=len(SHARES) * number + variant)
            case = f"{patient}-{variant}"
            assert made.infiltrate is not None
            write_volume(made.volume, out / f"{case}.nii.gz")
            write_mask(made.infiltrate, out / f"{case}-infiltrate.nii.gz", volume.native)
            rows["lesions"].append({"case": case, "image": f"{case}.nii.gz", "lungs": mask,
                                    "infiltrate": f"{case}-infiltrate.nii.gz", "patient": patient})  # fmt: skip
    for name, listed in rows.items():
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(listed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--what", nargs="+", choices=("lungs", "lesions"), default=["lungs", "lesions"])
    parser.add_argument("--recipe", choices=RECIPES, nargs="+", default=list(RECIPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    folder = options.out / "scans"
    folder.mkdir(parents=True, exist_ok=True)
    write_scans(options.data, folder)
    rows = []
    for what in options.what:
        for recipe in options.recipe:
            begun = time.perf_counter()
            plan = build_volume_recipe(recipe)
            settings = ["folds.by=patient", "folds.k=3", "folds.ablation=false", *options.settings]
            plan = with_overrides(plan, [*settings, *(["preparation.classes=lungs"] if what == "lungs" else [])])
            lists = {plan.train_set.name: folder / f"{what}.csv"}
            result = run_volume_study(
                plan, options.out / f"{what}-{recipe}", data=lists, resume=options.resume, device=options.device,
                progress=lambda *told: print(*told, flush=True) if told[3:] and told[3] else None,
            )  # fmt: skip
            matrix = result.matrix
            for row in matrix[matrix["metric"] == "dice"].to_dict(orient="records"):
                if row["structure"] in (subject_of(matrix), "lungs"):
                    rows.append({"what": what, "recipe": recipe} | {
                        name: round(row[name], 3) if isinstance(row[name], float) else row[name]
                        for name in ("setting", "structure", "n_cases", "median", "mean", "lowest", "highest")
                    } | {"minutes": round((time.perf_counter() - begun) / 60, 1)})  # fmt: skip
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
