"""A plain threshold on Hounsfield units: what a network must beat, on the same splits.

Lungs are the closed air spaces themselves, below the one of a few values that fits the training scans best.

Infection is what lies between two values inside the chest's air spaces, closed so that dense patches belong to them.
The two values are those of a few candidates with the best mean Dice on the training scans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.patches import CLASS_NAMES
from pneumoscope.errors import InputError
from pneumoscope.io.files import read_json, write_json
from pneumoscope.jobs.stamp import is_done, mark_done, stamp
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.schema import Experiment, Stage
from pneumoscope.study.data import StudySet
from pneumoscope.study.learners import threshold as baseline
from pneumoscope.study.learners.base import ScanSlices, scan_of
from pneumoscope.study.learners.slices import start_stage
from pneumoscope.study.learners.volumes import scans_of
from pneumoscope.volume import Volume

AIR_HU = -400.0
LOW_HU = (-800.0, -750.0, -700.0, -650.0, -600.0, -500.0)
HIGH_HU = (-200.0, 0.0, 100.0)
LUNG_AIR_HU = (-600.0, -500.0, -400.0)
CLOSING_MM = 8.0
SMOOTHING_MM = 1.0
FIT_SCANS = 8
"""Training scans the thresholds are chosen on at most, evenly spaced: more change them little."""


def air_spaces(volume: Volume, air_hu: float = AIR_HU) -> NDArray[np.bool_]:
    """The lungs as air inside the body, closed by `CLOSING_MM`, (i, j, k); empty where no air is enclosed.

    Air is below `air_hu`. What touches the left, right, front or back border is outside; the two largest pieces of at
    least a tenth of the largest remain.
    """
    air = volume.hu < air_hu
    pieces, n = ndimage.label(air)
    outside = np.unique(np.concatenate([pieces[side].ravel() for side in (0, -1)]
                                       + [pieces[:, side].ravel() for side in (0, -1)]))  # fmt: skip
    sizes = np.bincount(pieces.ravel(), minlength=n + 1)
    sizes[outside] = sizes[0] = 0
    if not sizes.any():
        return np.zeros(air.shape, bool)
    largest = np.argsort(sizes)[-2:]
    kept = np.isin(pieces, [label for label in largest if sizes[label] >= sizes.max() / 10])
    box = ndimage.find_objects(kept.astype(np.uint8))[0]  # closing adds nothing outside of it
    margin = [(ceil(CLOSING_MM / step) + 1,) * 2 for step in volume.spacing_mm]
    padded = np.pad(kept[box], margin)
    near = ndimage.distance_transform_edt(~padded, sampling=volume.spacing_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(near, sampling=volume.spacing_mm) > CLOSING_MM
    kept[box] |= closed[tuple(slice(low, -low) for low, _ in margin)]
    return np.asarray(kept)


def smooth(volume: Volume) -> NDArray[np.float32]:
    """Hounsfield units after a Gaussian of `SMOOTHING_MM`: single noisy voxels are no infection."""
    sigma = [SMOOTHING_MM / step for step in volume.spacing_mm]
    return np.asarray(ndimage.gaussian_filter(volume.hu, sigma, mode="nearest"), dtype=np.float32)


def between(smoothed: NDArray[np.float32], inside: NDArray[np.bool_], bounds: tuple[float, float]) -> NDArray[np.bool_]:
    """Voxels between two values inside the air spaces."""
    low, high = bounds
    return (smoothed >= low) & (smoothed <= high) & inside


def fitted(classes: str, cases: Sequence[Case]) -> tuple[Callable[[Volume], NDArray[np.uint8]], dict[str, float]]:
    """What the threshold says of a scan, as classes of a recipe, and its values; chosen on the training scans."""
    if classes == "lungs":
        air = fit_air(cases)
        return lambda volume: air_spaces(volume, air).astype(np.uint8), {"below_hu": air}
    bounds, label = fit_threshold(cases), len(CLASS_NAMES[classes]) - 1
    return lambda volume: threshold_labels(volume, bounds, label), {"low_hu": bounds[0], "high_hu": bounds[1]}


def _some(cases: Sequence[Case]) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, len(cases) - 1, min(FIT_SCANS, len(cases))).astype(int))


def fit_air(cases: Sequence[Case]) -> float:
    """Of `LUNG_AIR_HU` the one whose air spaces have the best mean Dice with the drawn lungs."""
    total = np.zeros(len(LUNG_AIR_HU))
    for number in _some(cases):
        scan = cases[number].load()
        assert scan.lungs is not None  # `is_drawn` was asked
        real = scan.lungs.any
        total += [dice(count(air_spaces(scan.volume, air), real)) for air in LUNG_AIR_HU]
    return LUNG_AIR_HU[int(total.argmax())]


def fit_threshold(cases: Sequence[Case]) -> tuple[float, float]:
    """The candidate pair with the best mean Dice over (at most `FIT_SCANS` of) the training scans."""
    pairs = list(product(LOW_HU, HIGH_HU))
    total = np.zeros(len(pairs))
    for number in _some(cases):
        scan = cases[number].load()
        assert scan.infiltrate is not None  # `is_drawn` was asked
        smoothed, inside = smooth(scan.volume), air_spaces(scan.volume)
        real = scan.infiltrate.labels > 0
        total += [dice(count(between(smoothed, inside, bounds), real)) for bounds in pairs]
    return pairs[int(total.argmax())]


def threshold_labels(volume: Volume, bounds: tuple[float, float], label: int) -> NDArray[np.uint8]:
    """`label` where the threshold finds infection, 0 elsewhere."""
    return np.where(between(smooth(volume), air_spaces(volume), bounds), label, 0).astype(np.uint8)


THRESHOLD_FILE = "threshold.json"


@dataclass(frozen=True, eq=False)
class ThresholdStage:
    """A fitted threshold; see `answers.StageModel`.

    Attributes:
        name, folder, sha256, trained_now: as there.
        bounds: infection lies between these two values.
    """

    name: str
    folder: Path
    sha256: str
    trained_now: bool
    bounds: tuple[float, float]

    @property
    def loads_scans(self) -> bool:
        """Always."""
        return True

    @property
    def sees_lungs(self) -> bool:
        """It finds the air spaces itself."""
        return False

    def inputs(self, study_set: StudySet, rows: NDArray[np.intp]) -> ScanSlices:
        """The scan that these slices are of."""
        return scan_of(study_set, rows)

    def predict_scan(
        self, images: ScanSlices, *, site: int, device: str, precision: str
    ) -> tuple[NDArray[np.float32], int]:
        """1 where the threshold finds infection, 0 elsewhere."""
        return images.cut(baseline.threshold_labels(images.volume, self.bounds, 1)), 0


def make_threshold_stage(
    experiment: Experiment,
    stage: Stage,
    sets: Mapping[int, StudySet],
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
) -> ThresholdStage:
    """Fit the threshold of a stage, or take it from its folder."""
    own = folder / "stages" / stage.name
    scans = scans_of(experiment, sets, stage, "train")
    way = [baseline.AIR_HU, baseline.CLOSING_MM, baseline.SMOOTHING_MM, baseline.FIT_SCANS]
    parts = {
        "training_data": [[number, case, sets[number].scan_content(case)] for number, case in scans],
        "settings": {"low": baseline.LOW_HU, "high": baseline.HIGH_HU, "way": way},
    }
    wanted = stamp("threshold stage", revision=1, **parts)
    bounds = _kept(own) if resume and is_done(own, wanted) else None
    if bounds is not None:
        progress(stage.name, 1, 1, "taken from the folder")
        return ThresholdStage(stage.name, own, _sum(bounds, way), False, bounds)
    start_stage(own, wanted, parts, resume=resume, progress=progress)
    begun = time.perf_counter()
    bounds = baseline.fit_threshold([sets[number].scans[case] for number, case in scans])
    seconds = round(time.perf_counter() - begun, 1)
    write_json(own / THRESHOLD_FILE, {"low_hu": bounds[0], "high_hu": bounds[1], "scans": [case for _, case in scans]})
    mark_done(own, wanted, seconds=seconds)
    progress(stage.name, 1, 1, f"{bounds[0]:g} to {bounds[1]:g} HU")
    return ThresholdStage(stage.name, own, _sum(bounds, way), True, bounds)


def _kept(own: Path) -> tuple[float, float] | None:
    """The values in the folder; None where they cannot be read."""
    try:
        kept = read_json(own / THRESHOLD_FILE)
        return float(kept["low_hu"]), float(kept["high_hu"])
    except (InputError, ValueError, KeyError, TypeError):
        return None


def _sum(bounds: tuple[float, float], way: list[float]) -> str:
    return stamp("threshold", revision=1, bounds=bounds, way=way)
