"""Follow-up: what became of the infiltrates of one patient between two or more dates.

The dates are laid over each other by the lungs (`pneumoscope.preprocess.registration`), twice from different starts;
how far the two maps differ is part of the noise floor. A map that cannot be right is refused, with the reason in one
line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.cases.batch import read_key
from pneumoscope.cases.outputs import COPY_FILE, REPORT_FILE, write_copy
from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import read_json, write_json
from pneumoscope.io.read import read_mask, read_stored, read_volume
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.preprocess.registration import (
    OUTSIDE_HU,
    Registration,
    RegistrationRules,
    WorkingCopy,
    register,
    working_copy,
)
from pneumoscope.preprocess.spatial import Crop, Resample, crop_to
from pneumoscope.progress import Progress, silent
from pneumoscope.severity.change import (
    FATES,
    Aligned,
    Change,
    FateVolume,
    RegionChange,
    fate_map,
    noise_ml,
    region_change,
    surface_mm2,
)
from pneumoscope.severity.regions import ZONES, sides_of, zone_map
from pneumoscope.volume import LUNG_LABELS, Mask, Volume

if TYPE_CHECKING:
    from pneumoscope.inference.segmenter import Segmentation

CASE_FILES = (REPORT_FILE, "lungs.nii.gz", "infiltrate.nii.gz", COPY_FILE)  # What a comparison reads of a case folder


@dataclass(frozen=True, eq=False)
class Timepoint:
    """What a comparison needs of one date."""

    name: str
    lungs: Mask  # on the scan's grid
    infiltrate: Mask  # on the scan's grid
    scan: Volume  # densities; a coarse copy around the lungs is enough, the whole scan serves as well
    native: Grid  # the scan's grid as it lies on disk; masks are written on it
    date: date | None = None  # of the study, from the key file beside the case; None where there is none


def is_case_folder(path: Path) -> bool:
    """Whether a folder is a finished case of `segment` or `quantify`."""
    return (path / REPORT_FILE).is_file() and (path / "lungs.nii.gz").is_file()


def read_timepoint(folder: Path) -> Timepoint:
    """Read a case folder.

    Raises:
        InputError: it is no finished case, no lung was found in it, or it was written before comparisons existed.
        ReadError: a file in it is damaged.
    """
    missing = [name for name in CASE_FILES if not (folder / name).is_file()]
    if missing == [COPY_FILE]:
        raise InputError(
            f"holds no {COPY_FILE}: no lung was found in this case, or it was written with --fast; segment it again",
            path=folder,
        )
    if missing:
        what = ", ".join(missing)
        raise InputError(f"is not a finished case: {what} is missing; segment the scan first", path=folder)
    name = read_json(folder / REPORT_FILE, remedy="segment the scan again").get("case")
    if not isinstance(name, str) or not name:
        raise InputError("names no case; segment the scan again", path=folder / REPORT_FILE)
    lungs = read_mask(folder / "lungs.nii.gz")
    infiltrate = read_mask(folder / "infiltrate.nii.gz")
    lungs.grid.require_same_space(infiltrate.grid, "the infiltrate mask")
    native = read_stored(folder / "lungs.nii.gz", "nifti", sparse=True).grid
    scan = read_volume(folder / COPY_FILE, intensity="hu", case=name)
    return Timepoint(name, lungs, infiltrate, scan, native, study_date(folder, name))


def study_date(folder: Path, case: str) -> date | None:
    """The date of a case by the key file beside its folder; None without a key, a row or a date in it."""
    text = read_key(folder.resolve().parent).get(case, {}).get("study_date", "")
    try:
        return date.fromisoformat(text)  # 20200317 and 2020-03-17
    except ValueError:
        return None


def write_timepoint(found: Segmentation, folder: Path) -> Path:
    """Write what a comparison reads of a segmentation that knows its scan; gives the folder.

    Raises:
        InputError: it has no scan, or no lung was found.
    """
    if found.scan is None or not found.lungs.any.any():
        raise InputError("this segmentation has no scan or no lung, so it cannot be compared")
    folder.mkdir(parents=True, exist_ok=True)
    found.lungs.save(folder / "lungs.nii.gz")
    found.infiltrate.save(folder / "infiltrate.nii.gz")
    write_copy(folder / COPY_FILE, found.scan, found.lungs)
    write_json(folder / REPORT_FILE, {"case": found.scan.case})
    return folder


LEAST_SIMILARITY = 0.2
"""Correlation of the vessels inside the lungs. One patient on two days: 0.6; two people, or a mirrored scan: below 0.1
(synthetic patients, docs/concepts/severity.md)."""

LEAST_DICE = 0.85
MOST_FOLDED = 0.01
VOLUME_RATIO = (0.5, 2.0)

REPEAT_START_MM = (5.0, -5.0, 5.0)

DISAGREE_MM = 1.5  # Maps from two starts that lie further apart than this call for a third


def compare_dates(
    baseline: Timepoint, followup: Timepoint, rules: RegistrationRules | None = None, *, progress: Progress = silent
) -> Aligned:
    """Lay a follow-up over its baseline, an earlier date of the same patient, and measure the change.

    Raises:
        InputError: no lung on a date, or the scans cannot be laid over each other (another patient, a mirrored scan, a
            part of the lungs only); the message says which measure failed.
    """
    rules = rules or RegistrationRules()
    copies = [
        working_copy(dated.scan, dated.lungs, dated.infiltrate, spacing_mm=rules.spacing_mm)
        for dated in (baseline, followup)
    ]
    _require_whole(baseline, followup)
    registration, repeat_mm = _best_map(copies, rules, progress)
    quality = quality_of(registration, *copies)
    require_quality(quality, baseline.name, followup.name)
    followup_hu = registration.warp(
        copies[1].volume.hu, copies[1].volume.grid, registration.grid, order=1, outside=OUTSIDE_HU
    )
    later = _on_baseline(registration, followup.infiltrate, baseline.lungs.grid, registration.grid)
    density, healthy_hu = _density_change(copies[0], followup_hu, registration, copies[1])
    fates = _lesion_status(baseline, later, density, registration.grid)
    progress("registration", 3, 3)
    change = _change(baseline, followup, later, fates, repeat_mm)
    both = baseline.infiltrate.any & later
    change = replace(
        change,
        density_change_hu=_mean_at(density, registration.grid, both, baseline.lungs.grid),
        healthy_change_hu=healthy_hu,
        registration=quality,
        days=(followup.date - baseline.date).days if followup.date and baseline.date else None,
    )
    return Aligned(
        change,
        Mask(fates, baseline.lungs.grid, dict(FATES)),
        Mask(later.astype(np.uint8), baseline.lungs.grid, {1: "infiltrate of the follow-up"}),
        copies[0],
        followup_hu,
    )


def _best_map(
    copies: Sequence[WorkingCopy], rules: RegistrationRules, progress: Progress
) -> tuple[Registration, float]:
    """The map with the most similar vessels of two from different starts, of three when those two disagree.

    Returns:
        The best map, and the root mean square difference of the best two inside the lungs, per axis, in mm.
    """
    starts = [(0.0, 0.0, 0.0), REPEAT_START_MM, tuple(-v for v in REPEAT_START_MM)]
    inside = copies[0].lungs > 0.5
    maps: list[Registration] = []
    apart_mm = np.inf
    for number, start_mm in enumerate(starts, start=1):
        if apart_mm <= DISAGREE_MM:
            break
        progress("registration", number - 1, 3)
        maps.append(register(copies[0], copies[1], rules, start_mm=start_mm, seed=number))
        maps.sort(key=lambda found: -found.stages["deformable"])
        if len(maps) > 1:
            apart = (maps[0].displacement_mm - maps[1].displacement_mm)[inside].astype(np.float64)
            apart_mm = float(np.sqrt((apart**2).mean()))
    return maps[0], apart_mm


def quality_of(registration: Registration, baseline: WorkingCopy, followup: WorkingCopy) -> dict[str, float]:
    """Measures that need no landmarks: lung Dice, similarity of vessels, and how the map stretches and folds."""
    lungs = registration.warp(followup.lungs, followup.volume.grid, registration.grid, order=1) > 0.5
    own = baseline.lungs > 0.5
    jacobian = registration.jacobian()[own]
    return {
        "lung_dice": dice(count(lungs, own)),
        "similarity_affine": registration.stages["affine"],
        "similarity": registration.stages["deformable"],
        "jacobian_low": float(np.percentile(jacobian, 1)),
        "jacobian_high": float(np.percentile(jacobian, 99)),
        "folded_share": float((jacobian <= 0).mean()),
    }


def require_quality(quality: dict[str, float], baseline: str, followup: str) -> None:
    """Refuse a map that cannot be right.

    Raises:
        InputError: one line with the measure that failed.
    """
    what = ""
    if quality["similarity"] < LEAST_SIMILARITY:
        what = (
            f"the vessels in the lungs do not match (correlation {quality['similarity']:.2f}, expected at least "
            f"{LEAST_SIMILARITY}); is it another patient, or is one scan mirrored?"
        )
    elif quality["lung_dice"] < LEAST_DICE:
        what = (
            f"the lungs do not cover each other (Dice {quality['lung_dice']:.2f}, expected at least {LEAST_DICE}); "
            "does one scan or lung mask hold only a part of the lungs?"
        )
    elif quality["folded_share"] > MOST_FOLDED:
        what = f"the map folds in {quality['folded_share']:.1%} of the lungs; check the lung masks"
    if what:
        raise InputError(f"{followup} cannot be laid over {baseline}: {what}")


def _require_whole(baseline: Timepoint, followup: Timepoint) -> None:
    before, after = baseline.lungs.volume_ml(), followup.lungs.volume_ml()
    ratio = after / before
    if not VOLUME_RATIO[0] <= ratio <= VOLUME_RATIO[1]:
        raise InputError(
            f"{followup.name} cannot be laid over {baseline.name}: its lungs have {after:.0f} ml, the baseline's "
            f"{before:.0f} ml; does one scan or lung mask hold only a part of the lungs?"
        )


def _on_baseline(registration: Registration, mask: Mask, target: Grid, working: Grid) -> NDArray[np.bool_]:
    """A mask of the follow-up on the baseline's grid; only the part that the working grid covers is computed."""
    result = np.zeros(target.shape, bool)
    index = target.index(working.corners())
    low = np.clip(np.floor(index.min(0)).astype(int), 0, np.asarray(target.shape) - 1)
    high = np.clip(np.ceil(index.max(0)).astype(int) + 1, low + 1, target.shape)
    step = Crop(tuple(low.tolist()), tuple((high - low).tolist()))  # type: ignore[arg-type]
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    if not mask.any.any():
        return result
    part = crop_to(mask, 3.0)
    labels, source = part.move(mask.labels, mask.grid)
    inside = target.crop(step.start, step.shape)
    result[box] = registration.warp((labels > 0).astype(np.float32), source, inside, order=1) > 0.5
    return result


def _density_change(
    baseline: WorkingCopy, followup_hu: NDArray[np.float32], registration: Registration, followup: WorkingCopy
) -> tuple[NDArray[np.float32], float | None]:
    """Change of density on the working grid, smoothed, less that of healthy lung; and healthy lung's own."""
    grid = registration.grid
    warped = [registration.warp(v, followup.volume.grid, grid, order=1) for v in (followup.lungs, followup.infiltrate)]
    difference = followup_hu - baseline.volume.hu
    healthy = (baseline.lungs > 0.99) & (warped[0] > 0.99) & (baseline.infiltrate < 0.01) & (warped[1] < 0.01)
    common = float(np.median(difference[healthy])) if healthy.any() else None
    lung = ((baseline.lungs > 0.5) & (warped[0] > 0.5)).astype(np.float32)
    sigma = 3.0 / grid.spacing_mm[0]
    weight = ndimage.gaussian_filter(lung, sigma)
    smooth = ndimage.gaussian_filter(difference * lung, sigma) / np.maximum(weight, 1e-3)
    return (smooth - (common or 0.0)).astype(np.float32), common


def _lesion_status(
    baseline: Timepoint, later: NDArray[np.bool_], density: NDArray[np.float32], working: Grid
) -> NDArray[np.uint8]:
    """`fate_map` on the baseline's grid, computed only around what is marked on either date."""
    grid = baseline.lungs.grid
    before = baseline.infiltrate.any
    fates = np.zeros(grid.shape, np.uint8)
    marked = Mask((before | later).astype(np.uint8), grid, {1: "marked"})
    if not marked.any.any():
        return fates
    crop = crop_to(marked)
    box = tuple(slice(a, a + n) for a, n in zip(crop.start, crop.shape, strict=True))
    there, _ = Resample(grid.crop(crop.start, crop.shape), fill_hu=0.0).move(density, working)
    fates[box] = fate_map(before[box], later[box], there)
    return fates


def _mean_at(values: NDArray[np.float32], source: Grid, where: NDArray[np.bool_], grid: Grid) -> float | None:
    chosen = np.argwhere(where)
    if not len(chosen):
        return None
    index = source.index(grid.world(chosen[:: max(1, len(chosen) // 200_000)])).T
    return float(ndimage.map_coordinates(values, index, order=1, mode="nearest").mean())


def _change(
    baseline: Timepoint, followup: Timepoint, later: NDArray[np.bool_], fates: NDArray[np.uint8], repeat_mm: float
) -> Change:
    """Numbers of lungs on their own grids and of zones on the baseline's; density is filled in later."""
    lung_ml = baseline.lungs.volume_ml(), followup.lungs.volume_ml()
    surfaces = tuple(surface_mm2(d.infiltrate.any, d.infiltrate.grid) for d in (baseline, followup))
    regions = {**_own(baseline, followup), **_zones(baseline, later, repeat_mm)}
    floor = noise_ml(surfaces[0], surfaces[1], repeat_mm)
    ml = baseline.lungs.grid.voxel_volume_ml
    counts = np.bincount(fates.ravel(), minlength=6) * ml
    volumes = {name: float(counts[label]) for label, name in FATES.items()}
    volumes["persistent"] = float(counts[3:6].sum())
    return Change(
        baseline=baseline.name,
        followup=followup.name,
        lung_ml=lung_ml,
        lung_change_percent=100 * (lung_ml[1] / lung_ml[0] - 1) if lung_ml[0] else None,
        regions=regions,
        fates={name: FateVolume(value, floor, value > floor) for name, value in volumes.items()},
        density_change_hu=None,
        healthy_change_hu=None,
        registration={},
        repeat_mm=repeat_mm,
    )


def _own(baseline: Timepoint, followup: Timepoint) -> dict[str, RegionChange]:
    """Both lungs and each, every date on its own grid: the map between them plays no part."""
    found = {}
    sides = {"total": None, **{name.split()[0]: name for name in LUNG_LABELS.values()}}
    for region, label in sides.items():
        if label is not None and any(label not in d.lungs.names.values() for d in (baseline, followup)):
            continue
        numbers: list[tuple[float, float, float]] = []
        for dated in (baseline, followup):
            lung = sides_of(dated.lungs.names)[dated.lungs.labels]
            inside = (lung > 0) if label is None else (lung == (1 if region == "right" else 2))
            affected, ml = inside & dated.infiltrate.any, dated.lungs.grid.voxel_volume_ml
            area = surface_mm2(affected, dated.lungs.grid)
            numbers.append((np.count_nonzero(affected) * ml, np.count_nonzero(inside) * ml, area))
        (spot1, lung1, area1), (spot2, lung2, area2) = numbers
        found[region] = region_change((spot1, spot2), (lung1, lung2), noise_ml(area1, area2))
    return found


def _zones(baseline: Timepoint, later: NDArray[np.bool_], repeat_mm: float) -> dict[str, RegionChange]:
    """The baseline's zones; the follow-up's infiltrate as it lies on them, at the baseline's breath."""
    grid, ml = baseline.lungs.grid, baseline.lungs.grid.voxel_volume_ml
    sides = sides_of(baseline.lungs.names)
    if 2 not in sides:
        return {}
    zone = zone_map(sides[baseline.lungs.labels], grid, (slice(0, None),) * 3)
    before = baseline.infiltrate.any
    found: dict[str, RegionChange] = {}
    for number, name in enumerate(ZONES, start=1):
        inside = zone == number
        first, second = inside & before, inside & later
        lung = float(np.count_nonzero(inside) * ml)
        volumes = float(np.count_nonzero(first) * ml), float(np.count_nonzero(second) * ml)
        floor = noise_ml(surface_mm2(first, grid), surface_mm2(second, grid), repeat_mm)
        found[name] = region_change(volumes, (lung, lung), floor)
    return found


def time_course(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """The time course: share and volume on every date, the baseline first, with the floor against the baseline."""
    first = changes[0]
    total = first.regions["total"]
    rows: list[dict[str, Any]] = [
        {"case": first.baseline, "days": 0, "lung_ml": first.lung_ml[0], "infiltrate_ml": total.baseline_ml,
         "share_percent": total.baseline_percent, "noise_points": None, "verdict": None}
    ]  # fmt: skip
    for change in changes:
        region = change.regions["total"]
        rows.append(
            {"case": change.followup, "days": change.days, "lung_ml": change.lung_ml[1],
             "infiltrate_ml": region.followup_ml, "share_percent": region.followup_percent,
             "noise_points": region.noise_points, "verdict": region.verdict}
        )  # fmt: skip
    return rows
