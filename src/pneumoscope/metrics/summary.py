"""Means over the cases of one label, with intervals, for ``summary.json`` of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pneumoscope.metrics.intervals import bootstrap_interval
from pneumoscope.metrics.overlap import Counts, SliceScores, dice, mean_over_infected


def summarise(
    label: str, rows: Sequence[Mapping[str, Any]], slices: Mapping[str, Sequence[SliceScores]]
) -> dict[str, Any]:
    """Means over cases and over slices of one label. Intervals take a case for a patient."""
    own = [row for row in rows if row["label"] == label]
    counts = sum((Counts(row["tp"], row["fp"], row["fn"], row["tn"]) for row in own), Counts())
    per_case = {
        name: asdict(bootstrap_interval({row["case"]: [row[name]] for row in own}))
        for name in ("dice", "iou", "precision", "recall")
    }
    infected = {case: [s.f1 for s in scores if s.infected] for case, scores in slices.items()}
    every = mean_over_infected([s for scores in slices.values() for s in scores])
    return {
        "cases": len(own),
        "n_both_empty": sum(row["empty"] == "both" for row in own),
        "n_missed": sum(row["empty"] == "prediction" for row in own),
        "n_false_alarms": sum(row["empty"] == "reference" for row in own),
        **{name: {key: value for key, value in mean.items() if key in _KEPT} for name, mean in per_case.items()},
        **_summarise_surfaces(own),
        "dice_median": float(np.median([row["dice"] for row in own])),
        "dice_pooled": dice(counts),
        "slice_mean": {**asdict(every), "f1_interval": _ends(asdict(bootstrap_interval(infected)))},
    }


def _summarise_surfaces(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of NSD and distances over cases with a surface, finite distances only; medians over all such cases."""
    scored = [row for row in rows if not math.isnan(row["nsd"])]
    tolerances = {row["surface_tolerance_mm"] for row in rows}
    summary: dict[str, Any] = {
        "surface_tolerance_mm": tolerances.pop() if len(tolerances) == 1 else None,
        "n_infinite": sum(math.isinf(row["hd95"]) for row in scored),
    }
    for name in ("nsd", "hd95", "msd"):
        values = {row["case"]: [row[name]] for row in scored if math.isfinite(row[name])}
        mean = asdict(bootstrap_interval(values))
        median = float(np.median([row[name] for row in scored])) if scored else math.nan
        summary[name] = {**{key: mean[key] for key in _KEPT}, "median": median}
    return summary


_KEPT = ("mean", "low", "high")


def _ends(interval: Mapping[str, Any]) -> list[float]:
    return [interval["low"], interval["high"]]
