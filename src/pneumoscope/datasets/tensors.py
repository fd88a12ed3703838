"""Slices of many cases as arrays a network can eat, with a table that says where each one came from.

Slices are in the house view (rows from anterior to posterior, columns from the patient's right to left).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.cache import ArrayCache, Entry
from pneumoscope.datasets.cached import entry_of
from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.errors import DatasetError
from pneumoscope.preprocess.slices import HuWindow, resize_nearest, to_slices, window_channels
from pneumoscope.volume import Mask, Volume

TABLE_COLUMNS = (
    "dataset", "case", "slice", "patient", "has_lung", "has_infiltrate", "row_mm", "column_mm", "slice_mm",
)  # fmt: skip


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
        n = len(self.table)
        if not len(self.images) == len(self.target) == len(self.lungs) == n:
            raise DatasetError(
                f"a slice set needs equally many images, targets, lungs and rows, got {len(self.images)}, "
                f"{len(self.target)}, {len(self.lungs)}, {n}"
            )

    def __len__(self) -> int:
        return len(self.table)

    def as_float32(self, indices: NDArray[np.integer] | slice = slice(None)) -> NDArray[np.float32]:
        """Images in [0, 1] as float32, (m, c, h, w), whatever they are stored as."""
        picked = self.images[indices]
        return picked.astype(np.float32) / np.float32(255) if picked.dtype == np.uint8 else picked.astype(np.float32)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.integer]) -> SliceSet:
        """The slices of a boolean mask or of indices, in that order."""
        indices = np.flatnonzero(keep) if np.asarray(keep).dtype == bool else np.asarray(keep, dtype=np.intp)
        return SliceSet(
            self.images[indices],
            self.target[indices],
            self.lungs[indices],
            self.table.iloc[indices].reset_index(drop=True),
        )

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
        cases: where the scans come from; each is loaded once and let go.
        lungs_for: supplies the lung mask of cases that store none; None refuses such cases.
        progress: called with (cases done, cases in all).
        cache: keeps the slices of each case, so that no scan is read a second time; the result is the same to the bit.
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
    table = _rows(case, lung_stack, target_stack)
    kept = np.flatnonzero(table["has_lung"]) if recipe.only_lung_slices else np.arange(len(table))
    size = recipe.size if recipe.size is not None else lung_stack.shape[1:]
    small_lungs = resize_nearest(lung_stack[kept], size)
    images = _images(to_slices(scan.volume.hu)[kept], small_lungs, size, recipe)
    target = np.ascontiguousarray(resize_nearest(target_stack[kept], size))
    step_i, step_j, step_k = scan.volume.spacing_mm
    height, width = target.shape[1:]
    steps = {"row_mm": step_j * lung_stack.shape[1] / height, "column_mm": step_i * lung_stack.shape[2] / width}
    table = table.assign(**steps, slice_mm=step_k)[list(TABLE_COLUMNS)]
    return SliceSet(images, target, np.ascontiguousarray(small_lungs), table.iloc[kept].reset_index(drop=True))


def _rows(case: Case, lung_stack: NDArray[np.uint8], target_stack: NDArray[np.uint8]) -> pd.DataFrame:
    columns = {
        "dataset": case.dataset,
        "case": case.case,
        "slice": np.arange(len(lung_stack)),
        "patient": case.patient,
        "has_lung": lung_stack.any(axis=(1, 2)),
        "has_infiltrate": target_stack.any(axis=(1, 2)),
    }
    return pd.DataFrame(columns)


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
