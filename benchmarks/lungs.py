"""The lung model on whole chest CTs against references, and on the same chests with disease painted into them.

    python benchmarks/lungs.py --data ../shared/data/ct-volumes                  # the scans as they are
    python benchmarks/lungs.py --data ../shared/data/ct-volumes --painted        # every condition on every scan

References: `nsclc-LUNG1-001` its RTSTRUCT (voxels of `GTV-1` are left out of the count), `imlab/idNNN` the masks beside
them, `reduced` and `covid-ct-md/normal002` density (`lung_references.by_density`). What the model was trained on stands
in its card; `trained` says it of each row. Kept is the share of the aerated lung (below -500 HU, off the border) that
the mask holds, outside the millilitres of the mask that lie more than 3 mm off the reference.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from lung_references import REDUCED, WORK_MM, by_density, contours, working
from painted_chest import CONDITIONS, LEFT, RIGHT, Chest
from pneumoscope.geometry import Grid
from pneumoscope.inference.lungs import STATE_OF_FINDING, find_lungs, lungs_input
from pneumoscope.io.read import read_mask, read_volume
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.models.cards import find_model
from pneumoscope.models.weights import load_model
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.severity.measure import assess
from pneumoscope.volume import Mask, Volume

TRAINED = ("nsclc-LUNG1-001", *REDUCED)
EXPECTED = {
    "white_lung": {"lung_dense"},
    "white_lobe": {"lung_dense", "solid_region"},
    "effusion": {"pleural_fluid"},
    "pneumothorax": {"pleural_air"},
    "pneumonectomy": {"one_lung_only"},
    "emphysema": {"lung_thin"},
    "cut_field": {"lung_incomplete"},
}
"""The states of which each condition should set one; others have none of their own. Less than 30 % of a lung, as a
white middle lobe, is no `lung_dense`."""

Finder = Callable[[Volume], tuple[Mask, Any]]


def scans(data: Path) -> Iterator[tuple[str, Volume, dict[str, NDArray[np.bool_]], NDArray[np.bool_]]]:
    """Name, scan, reference masks (i, j, k) by name, and the voxels that count."""
    folder = data / "nsclc-LUNG1-001"
    if folder.is_dir():
        volume = read_volume(folder / "image")
        drawn = contours(next((folder / "mask_rtstruct").iterdir()), volume)
        counted = ~drawn["GTV-1"]
        right, left = drawn["Lung-Right"], drawn["Lung-Left"]
        yield "nsclc-LUNG1-001", volume, {"right": right, "left": left, "both": right | left}, counted
    for path in sorted((data / "imlab").glob("id???.nii.gz")):
        volume = read_volume(path)
        mask = read_mask(path.with_name(path.name.replace(".nii.gz", "-msk.nii.gz")), threshold=127)
        yield f"imlab {path.name[:5]}", volume, {"both": mask.any}, np.ones(volume.grid.shape, bool)


def chests(data: Path, more: Sequence[Path] = ()) -> Iterator[tuple[str, Chest]]:
    """Every scan with a reference as a chest with classes; those without sides get them by shape, `more` by density."""
    for name, volume, reference, counted in scans(data):
        from pneumoscope.inference.lungs import split_sides

        lungs = np.ascontiguousarray(to_slices(reference["both"]))
        classes = split_sides(lungs, volume.grid.spacing_mm)[0].astype(np.int8)
        classes[~to_slices(counted)] = -1
        chest = Chest(np.ascontiguousarray(to_slices(volume.hu)), classes, volume.grid.spacing_mm[::-1])
        yield name, working(volume, classes) if min(volume.grid.spacing_mm) < 1.5 else chest
    for name in REDUCED:
        chest = working(read_volume(data / "reduced" / f"{name}.nii.gz"))
        yield name, Chest(chest.hu, by_density(chest.hu), WORK_MM)
    if (data / "covid-ct-md" / "normal002").is_dir():
        more = (data / "covid-ct-md" / "normal002", *more)
    for path in more:
        chest = working(read_volume(path))
        yield path.stem, Chest(chest.hu, by_density(chest.hu), WORK_MM)


def threshold_baseline(volume: Volume) -> NDArray[np.bool_]:
    """Air below -400 HU that does not reach the border in plane, the two largest pieces, holes closed per slice."""
    air = volume.hu < -400
    pieces = cc3d.connected_components(air, connectivity=6)
    edge = np.unique(
        np.concatenate([pieces[0].ravel(), pieces[-1].ravel(), pieces[:, 0].ravel(), pieces[:, -1].ravel()])
    )
    sizes = np.bincount(pieces.ravel())
    sizes[edge] = 0
    sizes[0] = 0
    keep = np.argsort(sizes)[-2:]
    lungs = np.isin(pieces, keep[sizes[keep] > 0.1 * sizes.max()])
    for k in range(lungs.shape[2]):
        lungs[:, :, k] = ndimage.binary_fill_holes(lungs[:, :, k])
    return lungs


def as_they_are(data: Path, finder: Finder) -> dict[str, Any]:
    """Dice and seconds per scan, beside the plain threshold."""
    rows: dict[str, Any] = {}
    for name, volume, reference, counted in scans(data):
        started = time.process_time()
        found, findings = finder(volume)
        seconds = time.process_time() - started
        parts = {"right": found.of(1), "left": found.of(2), "both": found.any}
        rows[name] = {
            part: round(dice(count(parts[part] & counted, ref & counted)), 4) for part, ref in reference.items()
        }
        plain = threshold_baseline(volume)
        rows[name]["threshold_both"] = round(dice(count(plain & counted, reference["both"] & counted)), 4)
        rows[name] |= {"cpu_seconds": round(seconds, 1), "findings": [finding.code for finding in findings]}
    return rows


def scored(chest: Chest, finder: Finder) -> dict[str, Any]:
    """Dice, sides, kept and outside of one chest, and the states that it sets."""
    grid = Grid.from_spacing(chest.hu.shape[::-1], chest.spacing_mm[::-1])
    volume = Volume(from_slices(chest.hu), grid, grid)
    started = time.process_time()
    mask, findings = finder(volume)
    seconds = time.process_time() - started
    found = np.ascontiguousarray(to_slices(mask.labels))
    counted, lung = chest.classes >= 0, chest.lung()
    apart = [ndimage.distance_transform_edt(chest.classes != side, sampling=chest.spacing_mm) for side in (LEFT, RIGHT)]
    own = [(chest.classes == side) & (found > 0) & (far > 10) for side, far in zip((RIGHT, LEFT), apart, strict=True)]
    sided = sum(int(np.count_nonzero(where)) for where in own)
    right = sum(int(np.count_nonzero(found[where] == side)) for side, where in zip((RIGHT, LEFT), own, strict=True))
    aerated = lung & (chest.hu < -500) & ndimage.binary_erosion(lung)
    far = ndimage.distance_transform_edt(~lung, sampling=chest.spacing_mm) > 3
    ml = float(np.prod(chest.spacing_mm)) / 1000
    none = Mask.empty(grid, {1: "infiltrate"})
    states = {*assess(volume, mask, none).states, *(STATE_OF_FINDING.get(f.code, "") for f in findings)}
    return {
        "dice": round(dice(count((found > 0) & counted, lung & counted)), 4),
        "sides": round(right / sided, 5) if sided else None,
        "kept": round(float(np.mean(found[aerated] > 0)), 4) if aerated.any() else None,
        "outside_ml": round(float(np.count_nonzero((found > 0) & far & counted)) * ml, 1),
        "cpu_seconds": round(seconds, 1),
        "states": sorted(states - {"", "no_infiltrate_found"}),
    }


def paint(chest: Chest, condition: str, seed: list[int]) -> Chest:
    """The chest with the condition painted in; one that sets a state is drawn until it shows in 2 % of the lungs."""
    for attempt in range(20):
        made = CONDITIONS[condition](chest, np.random.default_rng(seed + [attempt] * (attempt > 0)))
        if condition not in EXPECTED or shown_share(chest, made) >= 0.02:
            break
    return made


def shown_share(chest: Chest, made: Chest) -> float:
    """Share of the lungs whose density or class a condition has changed; 1 where the chest itself has another shape."""
    if not np.array_equal(chest.classes > 0, made.classes > 0):
        return 1.0
    changed = (np.abs(made.hu - chest.hu) > 50) | (made.classes != chest.classes)
    return float(np.mean(changed[chest.lung()]))


def painted(data: Path, finder: Finder, only: str | None, more: Sequence[Path]) -> dict[str, Any]:
    """Every condition on every chest, the same paint in every call."""
    rows: dict[str, Any] = {}
    for name, chest in chests(data, more):
        if only and only not in name:
            continue
        rows[name] = {"trained": name in TRAINED, "as it is": scored(chest, finder)}
        for condition in CONDITIONS:
            row = scored(paint(chest, condition, [7, *name.encode(), *condition.encode()]), finder)
            if condition in EXPECTED:
                row["named"] = not EXPECTED[condition].isdisjoint(row["states"])
            rows[name][condition] = row
            print(f"{name}: {condition} {row}", file=sys.stderr, flush=True)
    return rows


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Per condition the Dice of every chest, its mean, the least share of right sides, and how often it was named."""
    table: dict[str, Any] = {}
    for condition in ("as it is", *CONDITIONS):
        cells = {name: row[condition] for name, row in rows.items() if condition in row}
        named = [cell["named"] for cell in cells.values() if "named" in cell]
        table[condition] = {
            "dice": {name: cell["dice"] for name, cell in cells.items()},
            "mean": round(float(np.mean([cell["dice"] for cell in cells.values()])), 4),
            "least_sides": min((cell["sides"] for cell in cells.values() if cell["sides"] is not None), default=None),
            **({"named": f"{sum(named)} of {len(named)}"} if named else {}),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with imlab, reduced, ... (data/ct-volumes)")
    parser.add_argument("--model", default="lungs")
    parser.add_argument("--painted", action="store_true", help="paint every condition into every scan")
    parser.add_argument("--only", default=None, help="scans with this in their name")
    parser.add_argument("--chest", type=Path, action="append", default=[], help="to paint too, reference by density")
    options = parser.parse_args()
    model, card = load_model(find_model(options.model))
    preprocessing = lungs_input(card)

    def finder(volume: Volume) -> tuple[Mask, Any]:
        return find_lungs(volume, model, preprocessing)

    if options.painted:
        rows = painted(options.data, finder, options.only, options.chest)
        out = {"chests": rows, "conditions": summary(rows)}
    else:
        out = {"dice": as_they_are(options.data, finder)}
    if not next(iter(out.values())):
        sys.exit(f"{options.data} holds none of the scans; give the folder with imlab and reduced in it")
    out["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
