"""What retraining costs and brings, from the matrix: forgetting, backward and forward transfer.

R[k, j] is the mean F1 on test set j of the k-th stage of a lineage (the stages that lead to one model). The formulas
are those of the papers named in `FORMULAS`; where a lineage returns to a set, the latest training on it counts as the
one that learnt it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pandas as pd

from pneumoscope.recipes.schema import Experiment, Stage
from pneumoscope.recipes.systems import SLICES

FORMULAS: Mapping[str, str] = {
    "forgetting": "max over earlier stages l of R[l, j], minus R[k, j], for sets j learnt before stage k; positive "
    "means lost. Chaudhry et al. 2018, Riemannian Walk for Incremental Learning (ECCV), section 3",
    "average_forgetting": "mean of that over the sets learnt before stage k. Chaudhry et al. 2018, section 3",
    "backward_transfer": "mean over sets i learnt before stage T of R[T, i] - R[i, i]; negative means lost. Lopez-Paz "
    "and Ranzato 2017, Gradient Episodic Memory for Continual Learning (NeurIPS), equation 3",
    "forward_transfer": "mean over sets i from the second on of R[i-1, i] - b[i], b being the same network untrained. "
    "Lopez-Paz and Ranzato 2017, equation 4",
    "gain_on_new": "R[k, own set] - R[k-1, own set]: what the retraining brought on the set it was made for (ours)",
    "over_from_scratch": "R[k, own set] minus the F1 of the first training on that set alone (ours)",
}
"""What each number means and where its formula comes from; written into matrix.json."""


def lineages_of(experiment: Experiment) -> dict[str, tuple[list[str], list[int]]]:
    """Of every retrained stage those before it, and the sets they were trained on, for `table.forgetting`."""
    chain = experiment.stages.chain
    earlier = {stage.name: [s.name for s in experiment.lineage(stage.name)[:-1]] for stage in chain}
    return {stage.name: (earlier[stage.name], _learnt_before(experiment, stage)) for stage in chain}


def transfer(
    experiment: Experiment, matrix: pd.DataFrame, forgotten: pd.DataFrame, untrained: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Backward and forward transfer, average forgetting and gains of every retrained stage; see `FORMULAS`.

    Args:
        experiment: gives the lineages.
        matrix: rows with stage, test and f1.
        forgotten: rows of forgetting.csv.
        untrained: F1 of the network on slices before any training, per test set; sets that are not in it, and stages of
            other systems, have no forward transfer.
    """
    f1 = f1_of(matrix)
    rows = []
    for stage in experiment.stages.chain:
        lineage = experiment.lineage(stage.name)
        if len(lineage) < 2:
            continue
        back = [f1[stage.name, j] - f1[_learnt_by(lineage[:-1], j), j] for j in _learnt_before(experiment, stage)]
        forward = [
            f1[before.name, after.site] - untrained.get(after.site, math.nan) for before, after in pairwise(lineage)
        ]
        if stage.system != SLICES:
            forward = []  # the untrained network is that of single slices
        new = f1[stage.name, stage.site]
        firsts = [s for s in experiment.stages.chain if s.start is None and s.system == stage.system]
        alone = next((s.name for s in firsts if s.site == stage.site), None)
        rows.append(
            {
                "stage": stage.name,
                "sites": [s.site for s in lineage],
                "backward_transfer": _mean(back),
                "forward_transfer": _mean(forward),
                "average_forgetting": _mean(forgotten.loc[forgotten["stage"] == stage.name, "forgetting"].tolist()),
                "gain_on_new": new - f1[lineage[-2].name, stage.site],
                "over_from_scratch": new - f1[alone, stage.site] if alone else math.nan,
            }
        )
    return rows


def f1_of(matrix: pd.DataFrame) -> dict[tuple[str, int], float]:
    """F1 by stage and test set."""
    return {
        (str(stage), int(test)): float(value)
        for stage, test, value in zip(matrix["stage"], matrix["test"], matrix["f1"], strict=True)
    }


def _learnt_before(experiment: Experiment, stage: Stage) -> list[int]:
    """Sets that earlier stages of the lineage were trained on, without the stage's own, in the order of learning."""
    earlier = experiment.lineage(stage.name)[:-1]
    return [site for site in dict.fromkeys(s.site for s in earlier) if site != stage.site]


def _learnt_by(lineage: list[Stage], site: int) -> str:
    return next(s.name for s in reversed(lineage) if s.site == site)


def _mean(values: list[float]) -> float:
    """Mean; NaN of nothing, and of anything that is not known."""
    return float(sum(values) / len(values)) if values else math.nan
