"""Infiltrate recipes side by side: cross-validated Dice, and what they find on whole scans that they never saw.

    python benchmarks/infiltrate.py --data ../shared/data                        # the shipped model on whole scans
    python benchmarks/infiltrate.py --data ../shared/data --run RUN [--model DIR] [--overlays FOLDER]

`RUN` is the folder of `scripts/train_infiltrate.py`: `dice.csv`, and `<recipe>-<fold>/model` of the folds that were
trained. A scan is shown to the model of the fold that left it out; `normal002` and `P002` are in no training and are
shown to every fold, of which the mean is printed. `infiltrate` is the shipped model and `final` that of
`RUN/final/model`, which may have seen all but these two; `--model` adds another. The numbers go into `RUN/scans.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from infiltrate_data import tumour
from infiltrate_folds import FOLDS, SCAN_FOLD, gains, summary
from pneumoscope.inference.segmenter import LungFinder, Segmenter
from pneumoscope.io.read import read_volume
from pneumoscope.models.options import ModelOptions
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import Mask, Volume

DENSE_HU = -650.0
"""Lung denser than this counts where a model's find is compared with the shipped one's in the ill lung of P002."""

RECIPES = ("appearance", "hounsfield")


def scans(data: Path) -> Iterator[tuple[str, Volume]]:
    """The whole scans at hand, by name."""
    folder = data / "ct-volumes"
    for name in ("normal002", "P002"):
        if (folder / "covid-ct-md" / name).is_dir():
            yield name, read_volume(folder / "covid-ct-md" / name)
    for path in sorted((folder / "reduced").glob("*.nii.gz")):
        yield path.name.removesuffix(".nii.gz"), read_volume(path)
    if (folder / "nsclc-LUNG1-001").is_dir():
        yield "LUNG1-001", read_volume(folder / "nsclc-LUNG1-001" / "image")


def slice_auc(found_per_slice: NDArray[np.generic], infected: NDArray[np.bool_]) -> float:
    """Area under the curve of infiltrate per slice against the radiologists' mark of the slice; ties count half."""
    ill, well = found_per_slice[infected][:, None], found_per_slice[~infected][None]
    return float(np.mean((ill > well) + 0.5 * (ill == well)))


def measures(
    name: str, volume: Volume, lungs: Mask, found: NDArray[np.bool_], today: NDArray[np.bool_], data: Path
) -> dict[str, float]:
    """What is asked of one scan."""
    ml, inside = volume.grid.voxel_volume_ml, lungs.any
    if name == "P002":
        marks = json.loads((data / "ct-volumes" / "covid-ct-md" / "labels.json").read_text())[name]["infected_by_z"]
        dense = lungs.of(2) & (volume.hu > DENSE_HU)
        return {
            "slice_auc": slice_auc(found.sum(axis=(0, 1)), np.asarray(marks) > 0),
            "right_percent": 100 * np.count_nonzero(found & lungs.of(1)) / max(1, np.count_nonzero(lungs.of(1))),
            "left_of_todays_dense": np.count_nonzero(found & dense) / max(1, np.count_nonzero(today & dense)),
        }
    if name == "LUNG1-001":
        grown = ndimage.binary_dilation(tumour(data / "ct-volumes" / "nsclc-LUNG1-001", volume), iterations=6)
        found = found & ~grown
    return {"ml": np.count_nonzero(found) * ml, "percent": 100 * np.count_nonzero(found) / np.count_nonzero(inside)}


def models_for(name: str, run: Path | None, extra: list[str]) -> dict[str, list[str]]:
    """Which models a scan is shown to, by recipe."""
    out = {Path(model).name: [model] for model in extra}
    if run is None:
        return out
    if (run / "final" / "model" / "card.json").is_file():
        out["final"] = [str(run / "final" / "model")]
    for recipe in RECIPES:
        folds = [SCAN_FOLD[name]] if name in SCAN_FOLD else range(FOLDS)
        folders = [run / f"{recipe}-{fold}" / "model" for fold in folds]
        out[recipe] = [str(folder) for folder in folders if (folder / "card.json").is_file()]
    return {recipe: models for recipe, models in out.items() if models}


def overlay(folder: Path, name: str, volume: Volume, lungs: Mask, found: NDArray[np.bool_]) -> None:
    """Sixteen slices with lungs (green) and infiltrate (red) as contours, in a lung window."""
    hu, inside, marks = (to_slices(array) for array in (volume.hu, lungs.any, found))
    rows = np.flatnonzero(inside.any(axis=(1, 2)))
    tiles = []
    for k in rows[np.linspace(0, len(rows) - 1, 16).astype(int)]:
        grey = np.clip((hu[k] + 1350) / 1500 * 255, 0, 255).astype(np.uint8)
        tile = np.repeat(cv2.resize(grey, (384, 384), interpolation=cv2.INTER_AREA)[..., None], 3, axis=2)
        for mask, colour in ((inside[k], (0, 160, 0)), (marks[k], (0, 0, 255))):
            big = cv2.resize(mask.astype(np.uint8), (384, 384), interpolation=cv2.INTER_NEAREST)
            lines, _ = cv2.findContours(big, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(tile, lines, -1, colour, 1)
        tiles.append(tile)
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.concatenate([np.concatenate(tiles[n : n + 4], axis=1) for n in range(0, 16, 4)], axis=0)
    cv2.imwrite(str(folder / f"{name}.png"), picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ct-slices and ct-volumes")
    parser.add_argument("--run", type=Path, help="folder of scripts/train_infiltrate.py")
    parser.add_argument("--model", action="append", default=[], help="another model to show the scans to; repeatable")
    parser.add_argument("--overlays", type=Path, help="also write contours of every scan into this folder")
    options = parser.parse_args()
    for recipe, row in (summary(options.run / "dice.csv") if options.run else {}).items():
        for source, (mean, number, folds) in row.items():
            print(f"{recipe:12} {source:12} Dice {mean:.3f}  ({number} scans, {folds} folds)")
    for source, gain in (gains(options.run / "dice.csv", "pretrained", "appearance") if options.run else {}).items():
        print(f"pretrained - appearance {source:12} {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
    lung_model, segmenters = LungFinder(), dict[str, Segmenter]()
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, volume in scans(options.data):
        lungs = lung_model(volume)
        shown = models_for(name, options.run, options.model)
        found: dict[str, list[NDArray[np.bool_]]] = {}
        for recipe, models in {"infiltrate": ["infiltrate"], **shown}.items():
            for model in models:
                if model not in segmenters:
                    segmenters[model] = Segmenter(ModelOptions(model=model))
                found.setdefault(recipe, []).append(segmenters[model].run(volume, lungs).infiltrate.any)
        for recipe, masks in found.items():
            rows = [measures(name, volume, lungs, mask, found["infiltrate"][0], options.data) for mask in masks]
            means = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
            table.setdefault(recipe, {})[name] = means
            shown_means = "  ".join(f"{key} {value:.3f}" for key, value in means.items())
            print(f"{recipe:12} {name:16} {shown_means}  ({len(rows)} models)", flush=True)
            if options.overlays:
                overlay(options.overlays / recipe, name, volume, lungs, masks[0])
    if options.run:
        (options.run / "scans.json").write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
