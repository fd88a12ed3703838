"""Volumes made ready for 3D networks, mapped from disk, and random boxes cut out of them.

Arrays are in the house view (d, h, w): slices from the feet up, rows from front to back, columns from the patient's
right to left; see `pneumoscope.preprocess.slices.to_slices`. A prepared volume keeps its grid, so that what a network
says goes back onto the scan.

Memory: through the cache arrays are mapped, and a process holds the boxes it is working on only (`resident_bytes` of
the batch source); pages of the mapped files are the system's to give and take back. A case that the cache cannot name,
or a study without a cache, keeps its prepared arrays in memory: 5 bytes a voxel.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.cache import ArrayCache, Entry
from pneumoscope.datasets.cached import entry_of
from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.jobs.stamp import content_of_arrays
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.preprocess.spatial import Resample
from pneumoscope.volume import Volume

Scale = Literal["none", "grey_zscore", "unit"]
Classes = Literal["lungs_infiltrate", "infiltrate", "lungs"]
Triple = tuple[int, int, int]

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "lungs_infiltrate": ("background", "left lung", "right lung", "infection"),
    "infiltrate": ("background", "infection"),
    "lungs": ("background", "lungs"),
}
"""What the labels 0, 1, 2 ... of a prepared volume mean; the first is Mueller 2021's order (section 2.5)."""

REMEMBERED = 4096  # At most so many infected voxels of a volume are remembered as places to cut a box around


@dataclass(frozen=True)
class VolumeRecipe:
    """How a scan becomes the array a 3D network sees."""

    clip_hu: tuple[float, float] | None = (-1250.0, 250.0)  # values are clipped to this range; None leaves them
    # ``grey_zscore`` spreads each volume over 0 to 255 whole numbers and then gives it mean 0 and deviation 1 (Mueller
    # 2021, 2.2); ``unit`` spreads the clipping range over [0, 1]; ``none`` leaves Hounsfield units
    scale: Scale = "grey_zscore"
    # (i, j, k) voxel size to resample to; None keeps the scan's
    spacing_mm: tuple[float, float, float] | None = (1.58, 1.58, 2.70)
    # (i, j, k) voxels the whole field of view is squeezed into; None keeps what `spacing_mm` gives
    shape: Triple | None = None
    classes: Classes = "lungs_infiltrate"  # ``lungs_infiltrate``, ``infiltrate`` or ``lungs``, see `CLASS_NAMES`

    def __post_init__(self) -> None:
        if self.scale not in ("none", "grey_zscore", "unit") or self.classes not in CLASS_NAMES:
            raise InputError(f"unknown scale {self.scale!r} or classes {self.classes!r}")
        if self.clip_hu is not None and not self.clip_hu[0] < self.clip_hu[1]:
            raise InputError(f"clip_hu needs [low, high] with low < high, got {self.clip_hu}")
        if self.scale == "unit" and self.clip_hu is None:
            raise InputError("scale 'unit' spreads the clipping range over [0, 1] and needs clip_hu")
        if self.spacing_mm is not None and self.shape is not None:
            raise InputError("give spacing_mm or shape, not both")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, background first."""
        return CLASS_NAMES[self.classes]

    def grid(self, own: Grid) -> Grid:
        """The grid a scan on `own` is resampled to."""
        if self.shape is not None:
            return own.resize(self.shape)
        return own if self.spacing_mm is None else own.respace(self.spacing_mm)


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """One scan as a 3D network sees it."""

    case: str
    patient: str  # whose it is
    image: NDArray[np.float32]  # (d, h, w) float32
    labels: NDArray[np.uint8] | None  # (d, h, w) uint8 classes of the recipe; None for a scan without reference
    # (m, 3) int32 voxels of the last class, a random draw of at most `REMEMBERED`; empty where there is none
    places: NDArray[np.int32]
    grid: Grid  # (i, j, k) grid of image and labels, RAS+
    lowest: float = 0.0  # value of `image` that stands for what lies outside of it

    @property
    def shape(self) -> Triple:
        """(d, h, w)."""
        d, h, w = self.image.shape
        return d, h, w

    @cached_property
    def content(self) -> str:
        """Sum over image, labels, the places to draw from and the grid; reads them whole, once."""
        lowest = np.float64(self.lowest)
        return content_of_arrays(self.image, self.labels, self.places, self.grid.affine, lowest)


def prepare_image(volume: Volume, recipe: VolumeRecipe) -> tuple[NDArray[np.float32], Grid]:
    """The (d, h, w) array of a scan and its grid: clipped, spread over grey values, resampled, standardised.

    The order is the authors' (Mueller 2021, run_miscnn.py). Resampling is linear; theirs is a third-order spline.
    A volume of one value becomes all zeros.
    """
    hu = volume.hu.astype(np.float32, copy=True)
    if recipe.clip_hu is not None:
        np.clip(hu, *recipe.clip_hu, out=hu)
    if recipe.scale == "grey_zscore":
        low, high = float(hu.min()), float(hu.max())
        hu = np.rint((hu - low) / max(high - low, 1e-6) * 255).astype(np.float32)
    elif recipe.scale == "unit" and recipe.clip_hu is not None:
        low, high = recipe.clip_hu
        hu = (hu - np.float32(low)) / np.float32(high - low)
    target = recipe.grid(volume.grid)
    if target != volume.grid:
        hu, _ = Resample(target, fill_hu=float(hu.min())).move(hu, volume.grid)
    if recipe.scale == "grey_zscore":
        hu = (hu - hu.mean(dtype=np.float64)) / max(float(hu.std(dtype=np.float64)), 1e-6)
    return np.ascontiguousarray(to_slices(hu), dtype=np.float32), target


def class_labels(scan: LabelledScan, recipe: VolumeRecipe) -> NDArray[np.uint8]:
    """Classes (i, j, k) on the scan's own grid.

    Raises:
        DatasetError: a mask that the classes need is missing.
    """
    if recipe.classes == "lungs":
        if scan.lungs is None:
            raise DatasetError(f"case {scan.volume.case!r} has no lung mask; it cannot train or test lungs")
        return scan.lungs.any.astype(np.uint8)
    if scan.infiltrate is None:
        raise DatasetError(f"case {scan.volume.case!r} has no reference infiltrate; it cannot train or test anything")
    infected = scan.infiltrate.labels > 0
    if recipe.classes == "infiltrate":
        return infected.astype(np.uint8)
    if scan.lungs is None:
        raise DatasetError(
            f"case {scan.volume.case!r} stores no lung mask, and this recipe learns lungs and infiltrate together"
        )
    labels = np.zeros(infected.shape, np.uint8)
    labels[scan.lungs.labels == 2] = 1  # 1 right, 2 left here; the paper's first lung is the left one
    labels[scan.lungs.labels == 1] = 2
    labels[infected] = 3
    return labels


def prepare(case: Case, recipe: VolumeRecipe, cache: ArrayCache | None = None) -> PreparedVolume:
    """A case ready for training or prediction, from the cache where it has been made before."""

    def make() -> Entry:
        scan = case.load()
        image, grid = prepare_image(scan.volume, recipe)
        labels = class_labels(scan, recipe)
        if grid != scan.volume.grid:
            labels, _ = Resample(grid, method="nearest", fill_hu=0).move(labels, scan.volume.grid)
        labels = np.ascontiguousarray(to_slices(labels))
        places = _places(labels, len(recipe.names) - 1)
        facts = {"shape": list(grid.shape), "affine": grid.affine.tolist(), "lowest": float(image.min())}
        return Entry({"image": image, "labels": labels, "places": places}, facts)

    entry = entry_of(cache, case, "volume", {"recipe": asdict(recipe)}, make)
    grid = Grid(entry.facts["shape"], np.asarray(entry.facts["affine"]))
    image, labels, places = (entry.arrays[name] for name in ("image", "labels", "places"))
    return PreparedVolume(case.case, case.patient, image, labels, places, grid, entry.facts["lowest"])


def _places(labels: NDArray[np.uint8], label: int) -> NDArray[np.int32]:
    """Voxels of a label, the same random draw for the same labels."""
    found = np.flatnonzero(labels == label)
    if len(found) > REMEMBERED:
        found = np.sort(np.random.default_rng(len(found)).choice(found, REMEMBERED, replace=False))
    return np.stack(np.unravel_index(found, labels.shape), axis=1).astype(np.int32).reshape(-1, 3)


def draw_centre(
    volume: PreparedVolume, patch: Triple, foreground: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The middle (3,) of a random box, in voxels; the box lies inside the volume wherever it fits into it.

    Args:
        patch: (d, h, w) of the box.
        foreground: probability that a voxel of the last class lies in the box; without such voxels the box is anywhere.
        rng: three or four numbers are drawn from it, whatever comes of them.
    """
    shape, size = np.asarray(volume.shape, float), np.asarray(patch, float)
    spare = np.maximum(shape - size, 0)
    anywhere = rng.random(3) * spare + np.minimum(size, shape) / 2 - 0.5
    wanted = rng.random() < foreground
    if not wanted or not len(volume.places):
        centre = anywhere
    else:
        centre = volume.places[rng.integers(len(volume.places))] + (rng.random(3) - 0.5) * size / 2
    low = np.minimum(size, shape) / 2 - 0.5
    inside = np.clip(centre, low, low + spare)
    return np.asarray(np.rint(inside - (size - 1) / 2) + (size - 1) / 2)
