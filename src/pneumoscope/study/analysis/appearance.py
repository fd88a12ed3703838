"""Why a model drops on another set: how the sets look side by side, and which lesions are missed.

Values are those of the first input channel, scaled back to its window: Hounsfield units clipped to the window, or grey
values of 8-bit slices. Lesions are pieces of infiltrate in one slice, because slice-wise splits leave gaps between
the test slices of a patient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.metrics.intervals import bootstrap_interval
from pneumoscope.recipes.schema import Experiment, Scoring
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.scores.table import rounds_of, with_ends

LESION_COLUMNS = (
    "stage", "test", "case", "slice", "patient", "kind", "pixels", "area_mm2", "lung_share", "value", "found", "depth",
    "height", "dorsal",
)  # fmt: skip
"""Columns of lesions.csv. ``kind`` is ``lesion`` (drawn by the reader) or ``false alarm`` (found where nothing is
drawn); ``lung_share`` its area over that of the lungs in the slice; ``value`` its mean; ``found`` the share of it that
was found (empty for false alarms); ``depth`` 0 at the edge of the lungs, 1 at their deepest point in the slice;
``height`` 0 in the scan's lowest slice with lung, 1 in the highest, empty for a single slice; ``dorsal`` 0 at the front
of the lungs, 1 at the back."""

GROUPS: Mapping[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {
    "size": ("lung_share", (0.01, 0.05), ("below 1 % of the lungs", "1 to 5 %", "above 5 %")),
    "depth": ("depth", (1 / 3,), ("near the edge", "deeper")),
    "height": ("height", (0.5,), ("lower half", "upper half")),
    "front to back": ("dorsal", (0.5,), ("front half", "back half")),
}
"""Column, cuts and names of the groups that lesions are sorted into; density is cut by `density_group`."""

DENSITY_HU = (-600.0, -300.0)
"""Cuts of density where values are Hounsfield units: faint ground-glass, denser ground-glass, consolidation."""

HISTOGRAM_BINS = 41
FEATURES = ("mean", "sd", "p05", "p50", "p95", "noise", "gradient", "smoothness")
"""What `slice_features` measures inside the lungs of a slice."""


def unit_of(experiment: Experiment) -> str:
    """Unit of values: ``HU``, or ``grey`` for 8-bit slices."""
    return "HU" if getattr(experiment.preprocessing, "intensity", "hu") == "hu" else "grey"


def values_of(experiment: Experiment, channel: NDArray[np.generic]) -> NDArray[np.float32]:
    """The first input channel as stored, scaled back to its window."""
    low, high = experiment.preprocessing.windows_hu[0]
    whole = 255.0 if channel.dtype == np.uint8 else 1.0
    return (low + channel.astype(np.float32) * ((high - low) / whole)).astype(np.float32)


def lesion_rows(
    experiment: Experiment, study_set: StudyDataset, rows: NDArray[np.intp], found: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Lesions and false alarms of slices, without stage and set; see `LESION_COLUMNS`.

    Args:
        found: (n, h, w) what the stage found in them.
    """
    slices, table = study_set.slices, study_set.slices.table
    height = _heights(table)
    result: list[dict[str, Any]] = []
    for n, row in enumerate(rows):
        truth = slices.target[row] > 0
        if not truth.any() and not found[n].any():
            continue
        lungs = slices.lungs[row] > 0
        values = values_of(experiment, slices.images[row, 0])
        depth, dorsal = _depth(lungs | truth), _dorsal(lungs | truth)
        record = table.iloc[row]
        pixel_mm2 = float(record.get("row_mm", math.nan)) * float(record.get("column_mm", math.nan))
        for kind, piece in _pieces(truth, found[n]):
            result.append(
                {
                    "case": record["case"],
                    "slice": int(record["slice"]),
                    "patient": record["patient"],
                    "kind": kind,
                    "pixels": int(piece.sum()),
                    "area_mm2": piece.sum() * pixel_mm2,
                    "lung_share": piece.sum() / max(1, lungs.sum()),
                    "value": float(values[piece].mean()),
                    "found": float(found[n][piece].mean()) if kind == "lesion" else math.nan,
                    "depth": float(depth[piece].mean()),
                    "height": float(height[row]),
                    "dorsal": float(dorsal[piece].mean()),
                }
            )
    return result


def _pieces(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Connected components (by edges or corners) of the truth, and of what was found that touch no truth."""
    from scipy.ndimage import label

    around = np.ones((3, 3))
    marked, count = label(truth, around)
    for k in range(1, count + 1):
        yield "lesion", marked == k
    marked, count = label(found, around)
    touching = set(np.unique(marked[truth]))
    for k in range(1, count + 1):
        if k not in touching:
            yield "false alarm", marked == k


def _heights(table: pd.DataFrame) -> NDArray[np.float64]:
    """0 in the lowest and 1 in the highest slice with lung of each scan; NaN where there is only one slice."""
    k = table["slice"].astype(float).where(table["has_lung"].astype(bool))
    low, high = k.groupby(table["case"]).transform("min"), k.groupby(table["case"]).transform("max")
    share = (table["slice"] - low) / (high - low).where(high > low)
    return share.clip(0, 1).to_numpy(np.float64)


def _depth(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance to the edge over the largest in the slice."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    depth = np.zeros(inside.shape)
    if rows.size:
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        near = distance_transform_edt(np.pad(inside[box], 1))[1:-1, 1:-1]
        depth[box] = (near - 1).clip(0) / max(1.0, near.max() - 1)
    return depth


def _dorsal(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """0 in the foremost and 1 in the hindmost row of the lungs."""
    rows = np.flatnonzero(inside.any(axis=1))
    line = np.arange(len(inside), dtype=float)
    share = (line - rows[0]) / max(1, rows[-1] - rows[0]) if rows.size else line * 0
    return np.broadcast_to(share[:, None], inside.shape)


def density_group(values: pd.Series, unit: str) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Cuts and names for density: fixed in HU, thirds of the given lesions in grey values."""
    if unit == "HU":
        return DENSITY_HU, ("below -600 HU", "-600 to -300 HU", "above -300 HU")
    cuts = tuple(float(v) for v in np.quantile(values, [1 / 3, 2 / 3])) if len(values) else (0.0, 0.0)
    return cuts, (f"below {cuts[0]:.0f}", f"{cuts[0]:.0f} to {cuts[1]:.0f}", f"above {cuts[1]:.0f}")


def missed_by_kind(lesions: pd.DataFrame, unit: str, scoring: Scoring) -> pd.DataFrame:
    """How much of each kind of lesion is found, per stage and set.

    Returns:
        ``stage, test, by, group, lesions, patients, found, found_low, found_high, missed, false_alarms``: ``found`` is
        the mean share of a lesion's area that was found, with an interval over patients, ``missed`` the share of
        lesions of which nothing was found, ``false_alarms`` the pieces found in places of that kind where nothing is
        drawn.
    """
    result = []
    drawn = lesions[lesions["kind"] == "lesion"]
    groups = {**GROUPS, "density": ("value", *density_group(drawn["value"], unit))}
    for (stage, test), own in lesions.groupby(["stage", "test"], sort=False):
        for by, (column, cuts, names) in groups.items():
            known = own[column].to_numpy(float)
            place = np.where(np.isnan(known), -1, np.digitize(known, cuts))
            for k, name in enumerate(names):
                some = own[place == k]
                real = some[some["kind"] == "lesion"]
                per_patient = {str(p): g["found"].tolist() for p, g in real.groupby("patient")}
                interval = bootstrap_interval(per_patient, **rounds_of(scoring))
                missed = float((real["found"] == 0).mean()) if len(real) else math.nan
                row = {"stage": stage, "test": test, "by": by, "group": name, "lesions": len(real)}
                row |= {"patients": interval.n_patients, **with_ends("found", interval), "missed": missed}
                result.append({**row, "false_alarms": len(some) - len(real)})
    return pd.DataFrame(result)


def slice_features(values: NDArray[np.floating], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """`FEATURES` of one slice (h, w) inside the lungs; NaN where too few pixels are inside.

    ``noise`` is the robust form of Immerkaer 1996 (Computer Vision and Image Understanding 64, 300): the median of
    the absolute response to his Laplacian mask, over 6 x 0.6745; ``gradient`` the mean length of the central
    difference; ``smoothness`` the correlation of neighbouring pixels in a row.
    """
    from scipy.ndimage import binary_erosion, convolve

    deep = binary_erosion(inside, iterations=2)
    if deep.sum() < 30:
        return np.full(len(FEATURES), np.nan)
    some = values[inside].astype(np.float64)
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], float)
    noise = np.median(np.abs(convolve(values.astype(np.float64), mask)[deep])) / (6 * 0.6745)
    down, along = np.gradient(values.astype(np.float64))
    left, right = values[:, :-1][deep[:, 1:]].astype(float), values[:, 1:][deep[:, 1:]].astype(float)
    both = left.std() * right.std()
    smooth = float(((left - left.mean()) * (right - right.mean())).mean() / both) if both > 0 else 1.0
    percentiles = np.percentile(some, [5, 50, 95])
    return np.array([some.mean(), some.std(), *percentiles, noise, np.hypot(down, along)[deep].mean(), smooth])


def features_of(experiment: Experiment, study_set: StudyDataset, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """(n, features) of slices of a set; a slice without lung mask is measured whole."""
    slices = study_set.slices
    found = np.empty((len(rows), len(FEATURES)))
    for n, row in enumerate(rows):
        lungs = slices.lungs[row] > 0
        inside = lungs if lungs.any() else np.ones_like(lungs)
        found[n] = slice_features(values_of(experiment, slices.images[row, 0]), inside)
    return found


def appearance(
    experiment: Experiment, sets: Mapping[int, StudyDataset], features: Mapping[int, NDArray[np.float64]]
) -> dict[str, Any]:
    """The sets side by side, over all slices with lung: numbers per set, and histograms of lung and infiltrate.

    Args:
        features: `features_of` all slices with lung of each set.
    """
    edges = np.linspace(*experiment.preprocessing.windows_hu[0], HISTOGRAM_BINS)
    rows, histograms = [], {}
    for number, study_set in sorted(sets.items()):
        own = study_set.rows()
        healthy, ill, counts = _histograms(experiment, study_set, own, edges)
        histograms[number] = {"lung": _shares(healthy), "infiltrate": _shares(ill)}
        rows.append(_describe(number, study_set, own, features[number], counts))
    return {
        "unit": unit_of(experiment),
        "edges": edges.tolist(),
        "sets": rows,
        "histograms": histograms,
        "apart": apart(histograms, edges),
    }


def _histograms(
    experiment: Experiment, study_set: StudyDataset, rows: NDArray[np.intp], edges: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], pd.DataFrame]:
    """Counts of healthy lung and of infiltrate by value, and pixels of lung and infiltrate by slice."""
    healthy, ill = np.zeros(len(edges) - 1, np.int64), np.zeros(len(edges) - 1, np.int64)
    slices, counts = study_set.slices, []
    for row in rows:
        truth, lungs = slices.target[row] > 0, slices.lungs[row] > 0
        inside = lungs if lungs.any() else np.ones_like(lungs)
        values = values_of(experiment, slices.images[row, 0])
        healthy += np.histogram(values[inside & ~truth], edges)[0]
        ill += np.histogram(values[truth], edges)[0]
        record = slices.table.iloc[row]
        counts.append((record["patient"], int((inside | truth).sum()), int(truth.sum())))
    return healthy, ill, pd.DataFrame(counts, columns=["patient", "lung", "infiltrate"])


def _describe(
    number: int, study_set: StudyDataset, rows: NDArray[np.intp], features: NDArray[np.float64], counts: pd.DataFrame
) -> dict[str, Any]:
    table = study_set.slices.table.iloc[rows]
    load = counts.groupby("patient")[["lung", "infiltrate"]].sum()
    share = load["infiltrate"] / load["lung"].clip(lower=1)
    known = features[~np.isnan(features).any(axis=1)]
    middle = np.median(known, axis=0) if len(known) else np.full(len(FEATURES), math.nan)
    sizes = _sizes(study_set, rows)
    return {
        "test": number,
        "name": study_set.name,
        "patients": int(table["patient"].nunique()),
        "slices": len(table),
        "infected_slices": float((counts["infiltrate"] > 0).mean()),
        "pixel_mm": _median(table, "row_mm"),
        "slice_mm": _median(table, "slice_mm"),
        **{f"lung_{name}": float(v) for name, v in zip(FEATURES, middle, strict=True)},
        "load_mean": float(share.mean()),
        "load_max": float(share.max()),
        "lesions_per_infected_slice": len(sizes) / max(1, int((counts["infiltrate"] > 0).sum())),
        "lesion_share_median": float(np.median(sizes)) if sizes else math.nan,
    }


def _sizes(study_set: StudyDataset, rows: NDArray[np.intp]) -> list[float]:
    """Area of each lesion over that of the lungs in its slice."""
    sizes = []
    for row in rows:
        truth, lungs = study_set.slices.target[row] > 0, study_set.slices.lungs[row] > 0
        if truth.any():
            pieces = _pieces(truth, np.zeros_like(truth))
            sizes += [piece.sum() / max(1, (lungs | truth).sum()) for _, piece in pieces]
    return sizes


def _median(table: pd.DataFrame, column: str) -> float:
    return float(table[column].median()) if column in table else math.nan


def _shares(counts: NDArray[np.int64]) -> list[float]:
    return (counts / max(1, counts.sum())).tolist()


def apart(histograms: Mapping[int, Mapping[str, Sequence[float]]], edges: NDArray[np.float64]) -> list[dict[str, Any]]:
    """How far the sets lie apart: the mean shift (earth mover's distance) between their histograms, in the unit."""
    width = float(edges[1] - edges[0])
    numbers = sorted(histograms)
    result = []
    for a, b in ((a, b) for a in numbers for b in numbers if a < b):
        gaps = {
            kind: float(np.abs(np.cumsum(np.subtract(histograms[a][kind], histograms[b][kind]))).sum() * width)
            for kind in ("lung", "infiltrate")
        }
        result.append({"a": a, "b": b, **gaps})
    return result
