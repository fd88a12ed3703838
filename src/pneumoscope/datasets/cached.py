"""Scans with masks through the cache, and what an entry of a case is made of.

What comes back equals what would have been made, to the bit; a case that the cache cannot name
(`pneumoscope.datasets.cache_keys.content_of`) is made each time.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pneumoscope.datasets.cache import ArrayCache, Entry
from pneumoscope.datasets.cache_keys import content_of, key_of
from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.errors import Finding
from pneumoscope.geometry import Grid
from pneumoscope.volume import Mask, Volume


def cached_scan(cache: ArrayCache | None, case: Case) -> LabelledScan:
    """A case's scan and masks, mapped from disk and read-only where the cache holds them: nothing is inflated again.

    Synthetic scans that know their exact infiltrate are loaded each time.
    """
    content = None if cache is None else content_in(cache, case)
    if cache is None or content is None:
        return case.load()
    kept: list[LabelledScan] = []

    def make() -> Entry:
        scan = case.load()
        kept.append(scan)
        return steady_entry(cache, case, content, _pack_scan(scan))

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


def steady_entry(cache: ArrayCache, case: Case, content: dict[str, Any], entry: Entry) -> Entry:
    """The entry, not to be kept when the files changed between being summed and being read."""
    return entry if content_in(cache, case) == content else replace(entry, keep=False)


def content_in(cache: ArrayCache, case: Case) -> dict[str, Any] | None:
    """What a case depends on, see `content_of`; None where that cannot be known or read."""
    try:
        return content_of(case, cache.folder / "stamps", trust_stamps=cache.trust_stamps)
    except OSError:
        return None  # the reader says what is wrong with the file
