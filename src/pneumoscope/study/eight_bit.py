"""Sets of 8-bit slices for a study: one intensity channel, which is no Hounsfield unit, and the lung mask.

Pictures are padded with black to a square (so that nothing is stretched) and shrunk by area averages; masks follow by
nearest neighbour. Synthetic scans can stand in: they are given the appearance of the public 8-bit slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.slices import SOURCES, SliceStack, read_slice_folder
from pneumoscope.datasets.tensors import SliceSet, concatenate
from pneumoscope.errors import InputError
from pneumoscope.preprocess.slices import Appearance, resize_nearest, to_slices
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.schema import Preprocessing, Site

GreyLungs = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Lungs (n, h, w) of pictures (n, 1, h, w), both of the size the network sees."""


def read_stacks(root: Path, site: Site) -> list[SliceStack]:
    """The scans of a set of 8-bit slices that fit the site's pattern; `site.label` names the source.

    Raises:
        InputError: the label is no source of `datasets.slices`.
    """
    if site.dataset != "slices" or site.label not in SOURCES:
        raise InputError(
            f"set {site.number} ({site.dataset}, {site.label}) is no set of 8-bit slices, which this recipe takes; "
            f"expected the dataset slices with one of the labels {', '.join(SOURCES)}",
            path=root,
        )
    return [stack for stack in read_slice_folder(root, site.label) if fnmatch(stack.case, site.cases)]


def stack_of_case(case: Case) -> SliceStack:
    """A synthetic scan as 8-bit slices: equalised where the site stores lung masks, plain where not, as the real sets.

    Raises:
        InputError: a real scan: it holds Hounsfield units and belongs to a recipe that reads them.
    """
    if case.dataset != "phantom":
        raise InputError(
            f"case {case.case} of {case.dataset} holds Hounsfield units, this recipe takes 8-bit slices "
            "(preprocessing.intensity=grey8); run it with a recipe for scans, such as maganaris-2022b"
        )
    scan = case.load()
    equalise = Appearance().clip_limit if scan.lungs is not None else 0.0
    size = max(16, min(scan.volume.grid.shape[:2]))
    lungs, drawn = (
        None if mask is None else resize_nearest(to_slices(mask.labels), size) for mask in (scan.lungs, scan.infiltrate)
    )
    images = Appearance(size=size, clip_limit=equalise).of_hu(to_slices(scan.volume.hu))
    names = tuple(f"{k:03d}" for k in range(len(images)))
    return SliceStack(case.case, case.patient, images, lungs, drawn, case.source, names)


def grey_slice_set(
    stacks: Sequence[SliceStack],
    preprocessing: Preprocessing,
    *,
    lungs_for: GreyLungs,
    progress: Progress = silent,
    what: str = "reading slices",
) -> SliceSet:
    """The slices of all scans as a network takes them; scans without lung masks get those that `lungs_for` finds.

    Slices without an annotated lung are left out, as for scans; a network that finds none leaves a slice in with an
    empty lung channel, so that it never decides what is tested on. ``slice`` in the table is the place in the stack.

    Raises:
        InputError: a scan that nobody annotated, or no slice with lung.
    """
    parts = []
    for done, stack in enumerate(stacks, start=1):
        parts.append(_one(stack, preprocessing, lungs_for))
        progress(what, done, len(stacks))
    if not sum(len(part) for part in parts):
        raise InputError(f"no slice of {len(stacks)} scans shows lung; look at their lung masks")
    return concatenate(parts)


def _one(stack: SliceStack, preprocessing: Preprocessing, lungs_for: GreyLungs) -> SliceSet:
    if stack.infiltrate is None:
        raise InputError(f"scan {stack.case} has no drawn infiltrate; it cannot train or test anything")
    size = preprocessing.size
    grey = shrink(square(stack.images), size)
    target = resize_nearest(square(stack.infiltrate), size)
    lungs = lungs_for(grey[:, None]) if stack.lungs is None else resize_nearest(square(stack.lungs), size)
    images = np.stack([grey, (lungs > 0) * np.uint8(255)][: preprocessing.channels], axis=1).astype(np.uint8)
    n = len(images)
    columns = {
        "dataset": "phantom" if stack.source.startswith("phantom") else "slices",
        "case": stack.case,
        "slice": np.arange(n),
        "patient": stack.patient,
        "has_lung": lungs.any(axis=(1, 2)) | (stack.lungs is None),
        "has_infiltrate": stack.infiltrate.any(axis=(1, 2)),
    }
    if preprocessing.store == "float16":
        images = (images / np.float16(255)).astype(np.float16)  # type: ignore[assignment]
    whole = SliceSet(images, target.astype(np.uint8), lungs.astype(np.uint8), pd.DataFrame(columns))
    return whole.select(whole.table["has_lung"].to_numpy(bool))


def square(stack: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w) with black margins of equal width, so that h equals w."""
    h, w = stack.shape[1:]
    side = max(h, w)
    top, left = (side - h) // 2, (side - w) // 2
    return np.pad(stack, ((0, 0), (top, side - h - top), (left, side - w - left)))


def shrink(stack: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(n, size, size) by area averages; larger than the original by linear interpolation."""
    import cv2

    how = cv2.INTER_AREA if min(stack.shape[1:]) >= size else cv2.INTER_LINEAR
    planes = [cv2.resize(plane, (size, size), interpolation=how) for plane in stack]
    return np.stack(planes).astype(np.uint8) if planes else np.zeros((0, size, size), np.uint8)
