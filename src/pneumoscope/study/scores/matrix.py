"""The transfer matrix, a group-by of the tidy table of scores, and what retraining costs and brings by it.

One cell averages as the paper does (per slice, over slices whose reference holds infiltrate) and beside it gives the
mean over patients of the Dice and the NSD of all their test slices together; each with an interval that draws patients.
Differences between stages are taken over the test slices that both have, patient by patient.

Forgetting, backward and forward transfer: R[k, j] is the mean F1 on test set j of the k-th stage of a lineage (the
stages that lead to one model), by the formulas of `FORMULAS`; where a lineage returns to a set, the latest training on
it counts as the one that learned it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.errors import InputError
from pneumoscope.metrics.intervals import Interval, paired_difference
from pneumoscope.metrics.overlap import Counts, dice
from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.stages import SLICES
from pneumoscope.study.scores.table import COLUMNS as TIDY_COLUMNS
from pneumoscope.study.scores.table import intervals, read_table, rounds_of, tidy

COLUMNS = (
    "name", "stage", "test", "n_patients", "n_slices", "accuracy", "precision", "recall", "f1", "f1_low", "f1_high",
    "dice", "dice_low", "dice_high", "nsd", "paper_accuracy", "paper_precision", "paper_recall", "paper_f1",
)  # fmt: skip
"""Columns of matrix.csv. `n_slices` counts the slices averaged over (those with infiltrate), `n_patients` the patients
they come from; `nsd` is empty where a set has no pixel size."""

PER_SLICE = ("accuracy", "precision", "recall", "f1")
MEASURES = ("f1", "dice", "nsd")  # What cells are compared by: F1 per slice as in the papers, Dice and NSD per patient

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

PerPatient = dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class Matrix:
    """All cells of a study, each with the scores of every slice.

    Raises:
        InputError: a cell has no rows at all. A cell without infiltrate is kept, with empty scores.
    """

    experiment: Experiment  # stages, sets and how they are scored
    per_case: pd.DataFrame  # rows of per_case.csv; one cell for each stage and set

    def __post_init__(self) -> None:
        for stage in self.stages:
            for test in self.tests:
                if (stage, test) not in self._cells:
                    raise InputError(f"per_case.csv holds no rows of stage {stage} on set {test}; score it first")

    @cached_property
    def _cells(self) -> dict[Any, pd.DataFrame]:
        return dict(iter(self.per_case.groupby(["stage", "test"], sort=False)))

    @cached_property
    def tidy(self) -> pd.DataFrame:
        """Rows of `scores.table`, of all cells."""
        return tidy_slices(self.per_case)

    @cached_property
    def means(self) -> pd.DataFrame:
        """Mean and interval by cell and metric, see `scores.table.intervals`."""
        return intervals(self.tidy, **rounds_of(self.experiment.scoring))

    @cached_property
    def common(self) -> pd.DataFrame:
        """`tidy` of the test slices, which every stage has."""
        test = self.per_case["part"] == "test"
        return self.tidy if test.all() else tidy_slices(self.per_case[test])

    @cached_property
    def _common(self) -> pd.DataFrame:
        """`means` over the test slices."""
        return self.means if self.common is self.tidy else intervals(self.common, **rounds_of(self.experiment.scoring))

    @property
    def stages(self) -> list[str]:
        """Names of the stages in the order of the chain."""
        return [stage.name for stage in self.experiment.stages.chain]

    @property
    def tests(self) -> list[int]:
        """Numbers of the sets."""
        return [site.number for site in self.experiment.data.sites]

    def slices(self, stage: str, test: int, *, common: bool = False) -> pd.DataFrame:
        """The rows of one cell; with `common` only the test slices, which every stage has."""
        rows = self._cells[stage, test]
        return rows[rows["part"] == "test"] if common else rows

    def scores(self, stage: str, test: int, measure: str = "f1", *, common: bool = False) -> PerPatient:
        """The values of one cell by patient: F1 of each slice with infiltrate, or one Dice or NSD."""
        return values_by_patient(self.slices(stage, test, common=common), measure)

    def table(self, *, common: bool = False) -> pd.DataFrame:
        """The table of matrix.csv; with `common` every cell over test slices only."""
        found = self._common if common else self.means
        cells = {cell: part.set_index("metric") for cell, part in found.groupby(["stage", "test"], sort=False)}
        rows = [self._row(stage, test, cells.get((stage, test))) for stage in self.stages for test in self.tests]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _row(self, stage: str, test: int, cell: pd.DataFrame | None) -> dict[str, Any]:
        """A row of matrix.csv; a cell without infiltrate has no scores, and its counts are 0."""
        row: dict[str, Any] = {"name": self.experiment.row_name(stage, test), "stage": stage, "test": test}
        known: dict[Any, dict[str, Any]] = {} if cell is None else cell.to_dict(orient="index")  # type: ignore[assignment]
        f1 = known.get("f1", {})
        row |= {"n_patients": f1.get("n_patients", 0), "n_slices": f1.get("n_values", 0)}
        row |= {name: known.get(name, {}).get("mean", math.nan) for name in (*PER_SLICE, *MEASURES[1:])}
        row |= {f"{name}_{end}": known.get(name, {}).get(end, math.nan)
                for name in ("f1", "dice") for end in ("low", "high")}  # fmt: skip
        paper = self.experiment.paper_row(stage, test)
        return row | {f"paper_{name}": getattr(paper, name) if paper else None for name in PER_SLICE}

    def difference(self, after: str, before: str, test: int, measure: str = "f1") -> Interval:
        """Mean of stage `after` minus mean of stage `before` on the test slices of a set, paired over patients."""
        return paired_difference(
            self.scores(after, test, measure, common=True),
            self.scores(before, test, measure, common=True),
            **rounds_of(self.experiment.scoring),
        )

    def differences(self) -> list[dict[str, Any]]:
        """Every retrained stage against the stage it began from, and on sets learnt before against the best of them.

        Returns:
            Rows ``stage, against, test, measure, kind, mean, low, high, n_patients``; ``kind`` is ``step`` (against the
            stage before) or ``loss`` (against the best earlier stage on a set learnt before; below 0 means lost).
        """
        f1 = {(r["stage"], r["test"]): r["f1"] for r in self.table(common=True).to_dict(orient="records")}
        rows = []
        for stage in self.experiment.stages.chain:
            *earlier, _ = self.experiment.lineage(stage.name)
            if not earlier:
                continue
            pairs = [(earlier[-1].name, test, "step") for test in self.tests]
            for test in self.experiment.learnt_before(stage.name):
                best = max((s.name for s in earlier), key=lambda name: _known(f1[name, test]))
                pairs.append((best, test, "loss"))
            for against, test, kind in pairs:
                for measure in MEASURES:
                    gap = self.difference(stage.name, against, test, measure)
                    row = {"stage": stage.name, "against": against, "test": test, "measure": measure, "kind": kind}
                    rows.append(
                        {**row, "mean": gap.mean, "low": gap.low, "high": gap.high, "n_patients": gap.n_patients}
                    )
        return rows

    def best_stage(self) -> dict[int, str]:
        """For each test set the stage with the highest F1; sets without a score are left out."""
        return best_stage(self.table(common=True))


def read_matrix(folder: str | Path, experiment: Experiment) -> Matrix:
    """The matrix of a study folder.

    Raises:
        InputError: the study has not been scored.
    """
    path = Path(folder) / "per_case.csv"
    if not path.is_file():
        raise InputError("holds a study without per_case.csv: continue it with study run --resume", path=folder)
    return Matrix(experiment, read_table(path))


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def values_by_patient(slices: pd.DataFrame, measure: str) -> PerPatient:
    """The values of a measure by patient; patients without infiltrate (or without contours, for NSD) have none."""
    if measure == "f1":
        infected = slices[(slices["tp"] + slices["fn"]) > 0]
        return {str(name): group["f1"].tolist() for name, group in infected.groupby("patient")}
    if measure == "dice":
        summed = slices.groupby("patient")[["tp", "fp", "fn", "tn"]].sum()
        return {
            str(name): [dice(Counts(*(int(v) for v in counts)))]
            for name, counts in zip(summed.index, summed.to_numpy(), strict=True)
            if counts[0] + counts[2] > 0
        }
    if "contour_mm" not in slices:
        return {}
    patients = slices.assign(truth=slices["tp"] + slices["fn"]).groupby("patient")
    lengths = patients[["contour_mm", "met_mm", "truth"]].sum(min_count=1)
    known = lengths[(lengths["contour_mm"] > 0) & (lengths["truth"] > 0)]
    shares = known["met_mm"] / known["contour_mm"]
    return {str(name): [float(share)] for name, share in shares.items()}


def tidy_slices(per_case: pd.DataFrame) -> pd.DataFrame:
    """Tidy rows, see `scores.table`, of rows of per_case.csv.

    Accuracy, precision, recall and F1 of each slice with infiltrate, as in the papers; Dice and NSD of all slices of a
    patient together. Patients without infiltrate have neither, as slices without infiltrate have none.
    """
    infected = per_case[(per_case["tp"] + per_case["fn"]) > 0]
    named = infected["case"].astype(str) + " slice " + infected["slice"].astype(str)
    parts = [tidy(infected.assign(case=named), PER_SLICE)]
    for (stage, test), cell in per_case.groupby(["stage", "test"], sort=False):
        for measure in MEASURES[1:]:
            found = [(stage, test, name, name, "", measure, value)
                     for name, (value,) in values_by_patient(cell, measure).items()]  # fmt: skip
            parts.append(pd.DataFrame(found, columns=list(TIDY_COLUMNS)))
    return pd.concat([part for part in parts if len(part)], ignore_index=True) if infected.size else parts[0]


def untrained_f1(per_case: pd.DataFrame) -> dict[int, float]:
    """Mean F1 over slices with infiltrate for each test set, of rows like per_case.csv (one stage)."""
    infected = per_case[(per_case["tp"] + per_case["fn"]) > 0]
    return {int(test): float(infected.loc[infected["test"] == test, "f1"].mean()) for test in per_case["test"].unique()}


def best_stage(matrix: pd.DataFrame) -> dict[int, str]:
    """For each test set the stage with the highest F1; sets without a score are left out."""
    scored = matrix.dropna(subset=["f1"])
    best = scored.sort_values("f1", ascending=False, kind="stable").drop_duplicates("test")
    return {int(test): str(stage) for test, stage in zip(best["test"], best["stage"], strict=True)}


def lineages_of(experiment: Experiment) -> dict[str, tuple[list[str], list[int]]]:
    """Of every retrained stage those before it, and the sets they were trained on, for `table.forgetting`."""
    chain = experiment.stages.chain
    earlier = {stage.name: [s.name for s in experiment.lineage(stage.name)[:-1]] for stage in chain}
    return {stage.name: (earlier[stage.name], experiment.learnt_before(stage.name)) for stage in chain}


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
    f1 = {(row["stage"], row["test"]): float(row["f1"]) for row in matrix.to_dict(orient="records")}
    rows = []
    for stage in experiment.stages.chain:
        lineage = experiment.lineage(stage.name)
        if len(lineage) < 2:
            continue
        learnt = experiment.learnt_before(stage.name)
        back = [f1[stage.name, j] - f1[next(s.name for s in reversed(lineage[:-1]) if s.site == j), j] for j in learnt]
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


def _mean(values: list[float]) -> float:
    """Mean; NaN of nothing, and of anything that is not known."""
    return float(sum(values) / len(values)) if values else math.nan
