"""Both volume systems on real chest CTs at reduced size: lungs as drawn, and lesions painted into the real lungs.

    python benchmarks/volumes_real.py --data ../shared/data/ct-volumes -o real [--what lungs lesions] [--resume]

Three scans have lung masks (see benchmarks/lungs.py); nobody drew infiltrate on any. Every scan is held out once
(3 folds by patient), the two others train; Dice is counted on the held-out scan's own grid.

``lungs``: the scans as they are, classes lungs and not lungs, beside a threshold on air fitted on the training scans.
``lesions``: each scan several times, with other synthetic lesions (`painted_lesions`), the recipe's own classes,
beside the threshold for infiltrate, fitted on the training scans too. Lesions are painted, the anatomy, noise, vessels
and the tumour of the one scan are real.

The recipes are the reduced ones of `study run`, so that a processor is enough.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from lungs import scans
from painted_lesions import paint_lesions
from pneumoscope.datasets.phantom.patient import LesionPlan
from pneumoscope.inference.lungs import split_sides
from pneumoscope.io.write import write_mask, write_volume
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.recipes.stages import build_volume_recipe
from pneumoscope.study.engine import run_study
from pneumoscope.study.scores.volumes import subject_of
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


def write_scans(data: Path, out: Path, what: str) -> Path:
    """Write scans, masks and the list ``lungs.csv`` or ``lesions.csv`` into `out`; a finished list is kept."""
    listed = out / f"{what}.csv"
    if listed.is_file():
        return listed
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for number, (volume, lungs) in enumerate(labelled(data)):
        mask = f"{volume.case}-lungs.nii.gz"
        write_mask(lungs, out / mask, volume.native)
        if what == "lungs":
            write_volume(volume, out / f"{volume.case}.nii.gz")
            rows.append(dict(zip(COLUMNS, (volume.case, f"{volume.case}.nii.gz", mask, "", volume.case), strict=True)))
            continue
        for variant, share in enumerate(SHARES):
            plan = LesionPlan(share, height=0.65, radius_mm=(11.0, 38.0), consolidation=0.35, dorsal=1.2)
            made = paint_lesions(volume, lungs, plan, seed=len(SHARES) * number + variant)
            assert made.infiltrate is not None
            case = f"{volume.case}-{variant}"
            image, drawn = f"{case}.nii.gz", f"{case}-infiltrate.nii.gz"
            write_volume(made.volume, out / image)
            write_mask(made.infiltrate, out / drawn, volume.native)
            rows.append(dict(zip(COLUMNS, (case, image, mask, drawn, volume.case), strict=True)))
    with listed.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return listed


def tell(what: str, done: int, total: int, note: str = "") -> None:
    """A line for every finished epoch."""
    if note.startswith("val loss"):
        print(what, f"{done} of {total}", note, flush=True)


def study(recipe: str, what: str, listed: Path, out: Path, settings: list[str], device: str, resume: bool) -> Any:
    """Every scan held out once; gives the study's result."""
    fixed = ["folds.by=patient", "folds.k=3", "folds.ablation=false"]
    classes = ["preparation.classes=lungs"] if what == "lungs" else []
    plan = with_overrides(build_volume_recipe(recipe), [*fixed, *classes, *settings])
    data = {plan.train_set.name: listed}
    return run_study(plan, out, data=data, resume=resume, device=device, progress=tell)


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
    rows = []
    for what in options.what:
        listed = write_scans(options.data, options.out / "scans", what)
        for recipe in options.recipe:
            begun = time.perf_counter()
            out = options.out / f"{what}-{recipe}"
            matrix = study(recipe, what, listed, out, options.settings, options.device, options.resume).matrix
            minutes = round((time.perf_counter() - begun) / 60, 1)
            for row in matrix[matrix["metric"] == "dice"].to_dict(orient="records"):
                if row["structure"] in (subject_of(matrix), "lungs"):
                    scores = {name: round(row[name], 3) for name in ("median", "mean", "lowest", "highest")}
                    rows.append({"what": what, "recipe": recipe, "method": row["setting"], "of": row["structure"],
                                 "scans": row["n_cases"], **scores, "minutes": minutes})  # fmt: skip
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
