"""What networks are fed: slices of many cases as arrays with a table of their origin, and volumes with random boxes.

Arrays are in the house view: slices from the feet up, rows from front to back, columns from the patient's right to
left; see `pneumoscope.preprocess.slices.to_slices`. A prepared volume keeps its grid, so that what a network predicts
goes back onto the scan. Through the cache arrays are mapped; a case that the cache cannot name, or a study without a
cache, keeps its volumes in memory: 5 bytes a voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.cache import ArrayCache, Entry, entry_of
from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.errors import DatasetError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.jobs.stamp import content_of_arrays
from pneumoscope.preprocess.slices import HuWindow, resize_nearest, to_slices, window_channels
from pneumoscope.preprocess.spatial import Resample
from pneumoscope.volume import Mask, Volume

TABLE_COLUMNS = ("dataset", "case", "slice", "patient", "has_lung", "has_infiltrate", "row_mm", "column_mm", "slice_mm")


@dataclass(frozen=True)
class SliceRecipe:
    """How slices become channels."""

    windows: tuple[HuWindow, ...]  # HU windows, one channel each, scaled to [0, 1]
    # rows and columns, by nearest neighbour; an integer for a square, None to keep the scan's matrix
    size: int | tuple[int, int] | None = 320
    lung_channel: bool = True  # add the lung mask (0 or 1) as the last channel
    only_lung_slices: bool = True  # leave out slices whose mask shows no lung (the paper does, section 3.2)
    # element type kept in memory. ``float16`` holds values in [0, 1] to within 0.00025 (0.2 HU in a window of 820 HU);
    # ``uint8`` holds ``round(255 x)``, to within 0.002 (1.6 HU), in half the memory.
    store: Literal["float16", "uint8"] = "float16"

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return len(self.windows) + int(self.lung_channel)


@dataclass(frozen=True, eq=False)
class SliceSet:
    """Slices, their targets and their origin; row r of the table belongs to index r of the arrays."""

    # (n, c, h, w) float16 in [0, 1], or uint8 = round(255 x); see `as_float32`
    images: NDArray[np.float16] | NDArray[np.uint8]
    target: NDArray[np.uint8]  # (n, h, w) uint8 infiltrate labels; 0 where there is none
    lungs: NDArray[np.uint8]  # (n, h, w) uint8 lung labels, 1 = right, 2 = left
    # ``dataset, case, slice, patient, has_lung, has_infiltrate, row_mm, column_mm, slice_mm``. ``slice`` is the index k
    # along the RAS+ volume (0 = the slice nearest the feet). The two flags are taken at the scan's own resolution: a
    # speck of infiltrate can vanish from `target` when the slice is made smaller, and is still flagged. ``row_mm`` and
    # ``column_mm`` are the distances between the rows and columns of the arrays here, after resizing; ``slice_mm`` that
    # between slices of the scan. Sets of pictures may lack the three.
    table: pd.DataFrame

    def __post_init__(self) -> None:
        counts = len(self.images), len(self.target), len(self.lungs), len(self.table)
        if len(set(counts)) > 1:
            words = "a slice set needs equally many images, targets, lungs and rows, got"
            raise DatasetError(f"{words} {', '.join(map(str, counts))}")

    def __len__(self) -> int:
        return len(self.table)

    def as_float32(self, indices: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.float32]:
        """Images in [0, 1] as float32, (m, c, h, w), whatever they are stored as."""
        picked = self.images[indices]
        return picked.astype(np.float32) / np.float32(255) if picked.dtype == np.uint8 else picked.astype(np.float32)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> SliceSet:
        """The slices of a boolean mask or of indices, in that order."""
        kept = np.flatnonzero(keep) if np.asarray(keep).dtype == bool else np.asarray(keep, dtype=np.intp)
        table = self.table.iloc[kept].reset_index(drop=True)
        return SliceSet(self.images[kept], self.target[kept], self.lungs[kept], table)

    def indices_of(self, split: pd.DataFrame, part: str) -> NDArray[np.intp]:
        """Rows of this set that a split table puts into `part`, in the order of this set.

        Raises:
            DatasetError: when the split names a slice of that part which this set does not hold.
        """
        wanted = pd.MultiIndex.from_frame(split.loc[split["part"] == part, ["case", "slice"]])
        own = pd.MultiIndex.from_frame(self.table[["case", "slice"]])
        if not wanted.isin(own).all():
            absent = wanted[~wanted.isin(own)][0]
            raise DatasetError(f"the split names slice {absent[1]} of case {absent[0]!r}, which is not in this set")
        return np.flatnonzero(own.isin(wanted))


LungFinder = Callable[[Volume], Mask]
Progress = Callable[[int, int], None]


def build_slice_set(
    cases: Iterable[Case],
    recipe: SliceRecipe,
    *,
    lungs_for: LungFinder | None = None,
    progress: Progress | None = None,
    cache: ArrayCache | None = None,
    lungs_key: str | None = None,
) -> SliceSet:
    """Load the cases one after the other and keep their slices only.

    Args:
        lungs_for: supplies the lung mask of cases that store none; None refuses such cases.
        progress: called with (cases done, cases in all).
        cache: keeps the slices of each case; the result is the same to the bit.
        lungs_key: names the network behind `lungs_for`, e.g. the sum of its weights; without it nothing of such cases
            is kept.

    Raises:
        DatasetError: no cases, a case without reference infiltrate, a case without lung mask and no `lungs_for`,
            scans whose slices differ in size when `recipe.size` is None, or no slice left.
    """
    everything = list(cases)
    parts: list[SliceSet] = []
    for done, case in enumerate(everything, start=1):
        supplied = lungs_key if case.files is not None and case.files.lungs is None else None
        named = case.files is None or case.files.lungs is not None or lungs_key is not None
        settings = {"recipe": asdict(recipe), "lungs": supplied}
        make = partial(_entry, case, recipe, lungs_for)
        parts.append(_unpack_slices(entry_of(cache if named else None, case, "slices", settings, make)))
        if progress is not None:
            progress(done, len(everything))
    if not parts or not sum(map(len, parts)):
        raise DatasetError(f"no slice left of {len(everything)} cases; do their lung masks show any lung?")
    return concatenate(parts)


def _entry(case: Case, recipe: SliceRecipe, lungs_for: LungFinder | None) -> Entry:
    slices = slices_of(case, case.load(), recipe, lungs_for=lungs_for)
    table = {name: slices.table[name].tolist() for name in slices.table}
    dtypes = {name: str(dtype) for name, dtype in slices.table.dtypes.items()}
    arrays = {"images": slices.images, "target": slices.target, "lungs": slices.lungs}
    return Entry(arrays, {"table": table, "dtypes": dtypes})


def _unpack_slices(entry: Entry) -> SliceSet:
    table = pd.DataFrame(entry.facts["table"]).astype(entry.facts["dtypes"])
    return SliceSet(entry.arrays["images"], entry.arrays["target"], entry.arrays["lungs"], table)


def slices_of(case: Case, scan: LabelledScan, recipe: SliceRecipe, *, lungs_for: LungFinder | None = None) -> SliceSet:
    """The slices of one loaded case; may be empty when only lung slices are kept and none shows lung."""
    lungs = scan.lungs
    if lungs is None:
        if lungs_for is None:
            raise DatasetError(f"case {case.case!r} stores no lung mask; give one, or a model that finds the lungs")
        lungs = lungs_for(scan.volume)
        scan.volume.grid.require_same_space(lungs.grid, f"the lung mask found for {case.case}")
    if scan.infiltrate is None:
        raise DatasetError(f"case {case.case!r} has no reference infiltrate; it cannot train or test anything")
    lung_stack = to_slices(lungs.labels)  # (k, h, w)
    target_stack = to_slices(scan.infiltrate.labels)
    has_lung, has_infiltrate = (stack.any(axis=(1, 2)) for stack in (lung_stack, target_stack))
    kept = np.flatnonzero(has_lung) if recipe.only_lung_slices else np.arange(len(lung_stack))
    size = recipe.size if recipe.size is not None else lung_stack.shape[1:]
    small_lungs = resize_nearest(lung_stack[kept], size)
    images = _images(to_slices(scan.volume.hu)[kept], small_lungs, size, recipe)
    target = np.ascontiguousarray(resize_nearest(target_stack[kept], size))
    step_i, step_j, step_k = scan.volume.spacing_mm
    height, width = target.shape[1:]
    steps = step_j * lung_stack.shape[1] / height, step_i * lung_stack.shape[2] / width, step_k
    columns = (case.dataset, case.case, np.arange(len(lung_stack)), case.patient, has_lung, has_infiltrate, *steps)
    table = pd.DataFrame(dict(zip(TABLE_COLUMNS, columns, strict=True)))
    return SliceSet(images, target, np.ascontiguousarray(small_lungs), table.iloc[kept].reset_index(drop=True))


def _images(
    stack_hu: NDArray[np.float32], lungs: NDArray[np.uint8], size: int | tuple[int, ...], recipe: SliceRecipe
) -> NDArray[np.float16] | NDArray[np.uint8]:
    """Channels of the stack in chunks of 32 slices, so that no float32 copy of a whole scan is made."""
    images = np.empty((len(lungs), recipe.channels, *lungs.shape[1:]), dtype=recipe.store)
    for start in range(0, len(images), 32):
        part = slice(start, start + 32)
        scaled = window_channels(resize_nearest(stack_hu[part], size), recipe.windows)
        whole = 255.0 if recipe.store == "uint8" else 1.0
        images[part, : len(recipe.windows)] = np.rint(scaled * whole) if whole > 1 else scaled
        if recipe.lung_channel:
            images[part, -1] = (lungs[part] > 0) * whole
    return images


def concatenate(parts: list[SliceSet]) -> SliceSet:
    """Slice sets one after the other; `parts` is emptied on the way, so that memory holds little twice.

    Raises:
        DatasetError: for an empty list, or when slices differ in size or channels.
    """
    if not parts:
        raise DatasetError("nothing to concatenate: no slice set given")
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DatasetError(f"slices differ in shape (c, h, w): {sorted(shapes)}; give the recipe a size")
    first = parts[0]
    n = sum(map(len, parts))
    images = np.empty((n, *first.images.shape[1:]), first.images.dtype)
    target = np.empty((n, *first.target.shape[1:]), np.uint8)
    lungs = np.empty_like(target)
    tables, start = [], 0
    while parts:
        part = parts.pop(0)
        rows = slice(start, start + len(part))
        images[rows], target[rows], lungs[rows] = part.images, part.target, part.lungs
        tables.append(part.table)
        start = rows.stop
    return SliceSet(images, target, lungs, pd.concat(tables, ignore_index=True))


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
