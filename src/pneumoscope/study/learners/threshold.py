"""A plain threshold on Hounsfield units: what a network must beat, on the same splits.

Lungs are the closed air spaces themselves, below the one of a few values that fits the training scans best.

Infection is what lies between two values inside the chest's air spaces, closed so that dense patches belong to them.
The two values are those of a few candidates with the best mean Dice on the training scans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope import components
from pneumoscope.datasets.case import Case
from pneumoscope.datasets.tensors import CLASS_NAMES
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.study.learners.base import FittedLearner
from pneumoscope.volume import Volume

AIR_HU = -400.0
LOW_HU = (-800.0, -750.0, -700.0, -650.0, -600.0, -500.0)
HIGH_HU = (-200.0, 0.0, 100.0)
LUNG_AIR_HU = (-600.0, -500.0, -400.0)
CLOSING_MM = 8.0
SMOOTHING_MM = 1.0
FIT_SCANS = 8  # Training scans the thresholds are chosen on at most, evenly spaced: more change them little


def air_spaces(volume: Volume, air_hu: float = AIR_HU) -> NDArray[np.bool_]:
    """The lungs as air inside the body, closed by `CLOSING_MM`, (i, j, k); empty where no air is enclosed.

    Air is below `air_hu`. What touches the left, right, front or back border is outside; the two largest pieces of at
    least a tenth of the largest remain.
    """
    air = volume.hu < air_hu
    pieces, sizes = components.label(air, 6)
    outside = np.unique(np.concatenate([pieces[side].ravel() for side in (0, -1)]
                                       + [pieces[:, side].ravel() for side in (0, -1)]))  # fmt: skip
    sizes[outside] = 0
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
        assert scan.lungs is not None  # `has_mask` was asked
        real = scan.lungs.any
        total += [dice(count(air_spaces(scan.volume, air), real)) for air in LUNG_AIR_HU]
    return LUNG_AIR_HU[int(total.argmax())]


def fit_threshold(cases: Sequence[Case]) -> tuple[float, float]:
    """The candidate pair with the best mean Dice over (at most `FIT_SCANS` of) the training scans."""
    pairs = list(product(LOW_HU, HIGH_HU))
    total = np.zeros(len(pairs))
    for number in _some(cases):
        scan = cases[number].load()
        assert scan.infiltrate is not None  # `has_mask` was asked
        smoothed, inside = smooth(scan.volume), air_spaces(scan.volume)
        real = scan.infiltrate.labels > 0
        total += [dice(count(between(smoothed, inside, bounds), real)) for bounds in pairs]
    return pairs[int(total.argmax())]


def threshold_labels(volume: Volume, bounds: tuple[float, float], label: int) -> NDArray[np.uint8]:
    """`label` where the threshold finds infection, 0 elsewhere."""
    return np.where(between(smooth(volume), air_spaces(volume), bounds), label, 0).astype(np.uint8)


class ThresholdLearner(FittedLearner):
    """Infection between two Hounsfield values; retraining fits them on the scans of the new stage."""

    file = "threshold.json"

    def identity(self) -> list[Any]:
        """All constants of this module."""
        return [LOW_HU, HIGH_HU, AIR_HU, CLOSING_MM, SMOOTHING_MM, FIT_SCANS]

    def fit(self, scans: Sequence[Case], start: Mapping[str, Any] | None) -> dict[str, Any]:
        """The two values, ``low_hu`` and ``high_hu``."""
        return fitted("infiltrate", scans)[1]

    def predict(self, fitted: Mapping[str, Any], volume: Volume) -> NDArray[Any]:
        """1 where the threshold finds infection, 0 elsewhere."""
        return threshold_labels(volume, (fitted["low_hu"], fitted["high_hu"]), 1)
