"""Cases through the cache: their slices, and their scans with masks.

What comes back equals what would have been made, to the bit; a case that the cache cannot name
(`pneumoscope.datasets.cache_keys.content_of`) is made each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.datasets.cache import ArrayCache, Entry
from pneumoscope.datasets.cache_keys import content_of, key_of, settings_of
from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.tensors import SliceRecipe, SliceSet
from pneumoscope.errors import Finding
from pneumoscope.geometry import Grid
from pneumoscope.volume import Mask, Volume


def cached_slices(
    cache: ArrayCache, case: Case, recipe: SliceRecipe, make: Callable[[], SliceSet], *, lungs_key: str | None = None
) -> SliceSet:
    """The slices of one case, as `pneumoscope.datasets.tensors.slices_of` makes them; arrays mapped from disk.

    Args:
        cache: where to look and to keep.
        case: whose files and reader name the entry.
        recipe: its fields do as well.
        make: makes the slices when they are not there.
        lungs_key: names the network that finds the lungs of cases that store none, e.g. the sum of its weights.
            Without it such cases are made each time.
    """
    content = _content(cache, case)
    if content is None or (case.files is not None and case.files.lungs is None and lungs_key is None):
        return make()
    supplied = lungs_key if case.files is not None and case.files.lungs is None else None
    key = key_of("slices", {"content": content, "recipe": settings_of(recipe), "lungs": supplied})
    return _unpack_slices(cache.get(key, lambda: _steady(cache, case, content, _pack_slices(make()))))


def _pack_slices(slices: SliceSet) -> Entry:
    table = {name: slices.table[name].tolist() for name in slices.table}
    dtypes = {name: str(dtype) for name, dtype in slices.table.dtypes.items()}
    arrays = {"images": slices.images, "target": slices.target, "lungs": slices.lungs}
    return Entry(arrays, {"table": table, "dtypes": dtypes})


def _unpack_slices(entry: Entry) -> SliceSet:
    table = pd.DataFrame(entry.facts["table"]).astype(entry.facts["dtypes"])
    return SliceSet(entry.arrays["images"], entry.arrays["target"], entry.arrays["lungs"], table)


def cached_scan(cache: ArrayCache | None, case: Case) -> LabelledScan:
    """A case's scan and masks, mapped from disk and read-only where the cache holds them: nothing is inflated again.

    Synthetic scans that know their exact infiltrate are loaded each time.
    """
    content = None if cache is None else _content(cache, case)
    if cache is None or content is None:
        return case.load()
    kept: list[LabelledScan] = []

    def make() -> Entry:
        scan = case.load()
        kept.append(scan)
        return _steady(cache, case, content, _pack_scan(scan))

    entry = cache.get(key_of("scan", {"content": content}), make)
    if entry.facts["has_truth"]:
        return kept[0] if kept else case.load()
    return _unpack_scan(entry)


def _pack_scan(scan: LabelledScan) -> Entry:
    if scan.truth is not None:
        return Entry({}, {"has_truth": True})
    volume = scan.volume
    masks = {name: mask for name in ("lungs", "infiltrate") if (mask := getattr(scan, name)) is not None}
    facts: dict[str, Any] = {
        "has_truth": False,
        "case": volume.case,
        "grid": _pack_grid(volume.grid),
        "native": _pack_grid(volume.native),
        "findings": [asdict(finding) for finding in volume.findings],
        "source": dict(volume.source),
        "masks": {
            name: {"grid": _pack_grid(mask.grid), "names": {str(n): text for n, text in mask.names.items()}}
            for name, mask in masks.items()
        },
    }
    return Entry({"hu": volume.hu, **{name: mask.labels for name, mask in masks.items()}}, facts)


def _unpack_scan(entry: Entry) -> LabelledScan:
    facts = entry.facts
    masks = {
        name: Mask(entry.arrays[name], _unpack_grid(of["grid"]), {int(n): text for n, text in of["names"].items()})
        for name, of in facts["masks"].items()
    }
    volume = Volume(
        entry.arrays["hu"],
        _unpack_grid(facts["grid"]),
        _unpack_grid(facts["native"]),
        facts["case"],
        tuple(Finding(**finding) for finding in facts["findings"]),
        facts["source"],
    )
    return LabelledScan(volume, masks.get("lungs"), masks.get("infiltrate"))


def _pack_grid(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}  # floats come back from JSON as they were


def _unpack_grid(stored: dict[str, Any]) -> Grid:
    return Grid(stored["shape"], np.asarray(stored["affine"]))


def _steady(cache: ArrayCache, case: Case, content: dict[str, Any], entry: Entry) -> Entry:
    """The entry, not to be kept when the files changed between being summed and being read."""
    return entry if _content(cache, case) == content else replace(entry, keep=False)


def _content(cache: ArrayCache, case: Case) -> dict[str, Any] | None:
    try:
        return content_of(case, cache.folder / "stamps", trust_stamps=cache.trust_stamps)
    except OSError:
        return None  # the reader says what is wrong with the file
