"""The tables of an X-ray study, made from what was said about every picture.

`matrix.csv`: a row per classifier, remedy, source left out, test and seed, and one with ``all`` seeds together.
`remedies.csv`: the one table in which a classifier and a remedy stand with everything that may be held against them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from pneumoscope.metrics.classification import Reliability, bootstrap_scores, reliability, score_decisions
from pneumoscope.metrics.intervals import seeds_and_patients
from pneumoscope.recipes.xray import XrayExperiment
from pneumoscope.study.scores.table import rounds_of, tidy, with_ends
from pneumoscope.study.xray_repeat import AS_PAPER, HEALTHY, OWN_TEST, SICK, UNSEEN

KEYS = ["model", "arm", "without", "test"]
SCORES = ("accuracy", "precision", "recall", "f1")
SHOWN = {
    AS_PAPER: "whole picture",
    "border": "border cut off",
    "equalised": "equalised",
    "lung_box": "lung box only",
    "balanced": "whole picture",
    "adults": "whole picture",
    "all": "lung box, equalised",
}
"""Which view of the source probe a remedy shows."""

BASELINE_VIEW = {"corners": "four corners", "no lungs": "lungs cut out"}


def matrix(per_case: pd.DataFrame, experiment: XrayExperiment) -> pd.DataFrame:
    """Every cell per seed, then over all seeds, in the order of `per_case`."""
    rows = []
    for key in dict.fromkeys(zip(*(per_case[name] for name in KEYS), strict=True)):
        cell = per_case[(per_case[KEYS] == list(key)).all(axis=1)]
        seeds = [_cell(key, str(seed), part, experiment) for seed, part in cell.groupby("seed", sort=True)]
        rows += [*seeds, _over_seeds(key, seeds, cell, experiment)]
    return pd.DataFrame(rows)


def _classes(model: str, experiment: XrayExperiment) -> tuple[str, ...]:
    return experiment.data.classes_0 if model == "Model_0" else experiment.data.classes_1


def _cell(key: tuple[str, ...], seed: str, cell: pd.DataFrame, experiment: XrayExperiment) -> dict[str, Any]:
    model, arm, without, test = key
    classes = _classes(model, experiment)
    row: dict[str, Any] = {
        "name": f"{_stage(model, arm, without)} on {test}",
        "stage": model,
        "arm": arm,
        "without": without,
        "test": test,
        "seed": seed,
        "n_patients": cell["group"].nunique(),
        "n_images": len(cell),
    }
    for score in SCORES:
        row |= with_ends(score, None)
    known = cell["label"].isin(classes)
    if known.all():
        number = {name: i for i, name in enumerate(classes)}
        truth, said = (cell[c].map(number).to_numpy(np.int64) for c in ("label", "said"))
        found = bootstrap_scores(truth, said, cell["group"].tolist(), classes, **rounds_of(experiment.scoring))
        for score in SCORES if len(set(truth.tolist())) > 1 else ("accuracy",):
            row |= with_ends(score, found[score])
    row["called_positive"] = float((cell["said"] == classes[-1]).mean())
    paper = experiment.paper_row(model) if (arm, without, test) == (AS_PAPER, "", OWN_TEST) else None
    return row | {f"paper_{score}": getattr(paper, score) if paper else math.nan for score in SCORES}


def _stage(model: str, arm: str, without: str) -> str:
    return ", ".join([model, *([] if arm == AS_PAPER else [arm]), *([f"without {without}"] if without else [])])


LINEAGES = {"Model_2": (("Model_0",), ("Dataset_0",))}
"""Networks that start from another one: that one, and the test of what it has learned."""


def picture_scores(per_case: pd.DataFrame, experiment: XrayExperiment) -> pd.DataFrame:
    """Tidy rows, see `scores.table`: per picture whether it was named right, and whether it was called positive."""
    table = _with_stages(per_case)
    table["right"] = (table["label"] == table["said"]).astype(float)
    known = [label in _classes(model, experiment) for model, label in zip(table["model"], table["label"], strict=True)]
    table.loc[~np.array(known, bool), "right"] = np.nan
    last = {model: _classes(model, experiment)[-1] for model in table["model"].unique()}
    table["called_positive"] = (table["said"] == table["model"].map(last)).astype(float)
    table["case"] = "draw " + table["seed"].astype(str) + " " + table["case"]
    return tidy(table.rename(columns={"group": "patient"}), ("right", "called_positive"))


def reliabilities(per_case: pd.DataFrame, experiment: XrayExperiment) -> dict[tuple[str, str], Reliability]:
    """How often the class with the highest probability is the right one, by stage and test, over all draws."""
    cells = {}
    for (stage, model, test), part in _with_stages(per_case).groupby(["stage", "model", "test"], sort=False):
        if part["label"].isin(_classes(str(model), experiment)).all():
            right = (part["label"] == part["said"]).to_numpy()
            cells[str(stage), str(test)] = reliability(part["confidence"].to_numpy(float), right)
    return cells


def _with_stages(per_case: pd.DataFrame) -> pd.DataFrame:
    names = [_stage(*row) for row in per_case[["model", "arm", "without"]].itertuples(index=False)]
    return per_case.drop(columns="patient").assign(stage=names)


def _over_seeds(
    key: tuple[str, ...], seeds: list[dict[str, Any]], cell: pd.DataFrame, experiment: XrayExperiment
) -> dict[str, Any]:
    """The mean over seeds; accuracy with an interval that draws trainings and patients."""
    together = {**seeds[0], "seed": "all"}
    for score in (*SCORES, "called_positive"):
        together[score] = float(np.mean([row[score] for row in seeds]))
        if score != "called_positive":
            together |= {f"{score}_low": math.nan, f"{score}_high": math.nan}
    together["n_patients"], together["n_images"] = cell["group"].nunique(), cell["case"].nunique()
    if not math.isnan(together["accuracy"]):
        right = cell.assign(right=(cell["label"] == cell["said"]).astype(float))
        values = [
            {str(g): rows["right"].tolist() for g, rows in part.groupby("group")} for _, part in right.groupby("seed")
        ]
        found = seeds_and_patients(values, **rounds_of(experiment.scoring))
        together |= {"accuracy_low": found.low, "accuracy_high": found.high}
    return together


def remedies(per_case: pd.DataFrame, probe: pd.DataFrame, experiment: XrayExperiment) -> pd.DataFrame:
    """One row per classifier and remedy, means over seeds; NaN where something was not run.

    Columns: ``draws``: how many were averaged; those of the sources left out may be fewer, see `unseen_draws`;
    ``accuracy`` and ``f1`` on the same sources; ``recall_covid`` there; ``healthy_called_covid`` and
    ``sick_called_covid`` among adults without COVID-19; ``recall_unseen`` and ``recall_unseen_<source>``: COVID-19 of
    a source left out of training; ``adults_only``: mean of `recall_covid` and of the share of healthy adults not called
    COVID-19 (guessing gives 0.5); ``adults_only_unseen``: the same of the classifiers that have not seen the source;
    ``source_told``: how often the probe names the source of what this classifier is shown (see `source_chance`).
    """
    positive, rows = experiment.data.classes_1[-1], []
    own = per_case[per_case["model"] != "Model_0"]
    for model, arm in dict.fromkeys(zip(own["model"], own["arm"], strict=True)):
        part = own[(own["model"] == model) & (own["arm"] == arm)]
        row: dict[str, Any] = {"model": model, "arm": arm, "draws": part["seed"].nunique()}
        whole, unseen = part[part["without"] == ""], part[part["without"] != ""]
        row |= _same_sources(whole, experiment)
        healthy = _said(whole, HEALTHY, positive)
        row |= {"healthy_called_covid": healthy, "sick_called_covid": _said(whole, SICK, positive)}
        row["unseen_draws"] = unseen["seed"].nunique()
        left_out = sorted(unseen["without"].unique())
        recalls = {s: _said(unseen[unseen["without"] == s], f"{UNSEEN} {s}", positive) for s in left_out}
        row["recall_unseen"] = _mean(list(recalls.values()))
        row |= {f"recall_unseen_{source}": value for source, value in recalls.items()}
        row["adults_only"] = (row["recall_covid"] + 1 - healthy) / 2
        row["adults_only_unseen"] = (row["recall_unseen"] + 1 - _said(unseen, HEALTHY, positive)) / 2
        rows.append(row | _source_told(probe, BASELINE_VIEW.get(model, SHOWN[arm])))
    return pd.DataFrame(rows)


def _same_sources(whole: pd.DataFrame, experiment: XrayExperiment) -> dict[str, float]:
    classes = experiment.data.classes_1
    own = whole[whole["test"] == OWN_TEST]
    number = {name: i for i, name in enumerate(classes)}
    found = []
    for _, part in own.groupby("seed"):
        truth, said = (part[c].map(number).to_numpy(np.int64) for c in ("label", "said"))
        found.append(score_decisions(truth, said, classes))
    return {
        "accuracy": _mean([f.accuracy for f in found]),
        "f1": _mean([f.f1 for f in found]),
        "recall_covid": _mean([f.per_class[classes[-1]].recall for f in found]),
    }


def _said(part: pd.DataFrame, test: str, positive: str) -> float:
    """Share of a test called positive: the mean over seeds (and sources left out); NaN without a picture."""
    here = part[part["test"] == test]
    if here.empty:
        return math.nan
    return _mean([float((cell["said"] == positive).mean()) for _, cell in here.groupby(["seed", "without"])])


def _source_told(probe: pd.DataFrame, view: str) -> dict[str, float]:
    here = probe[(probe["question"] == "all sources") & (probe["view"] == view)] if len(probe) else probe
    if here.empty:
        return {"source_told": math.nan, "source_chance": math.nan}
    return {"source_told": float(here["told_right"].mean()), "source_chance": float(here["chance"].mean())}


def probe_means(probe: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds per question and view; low and high are the lowest and the highest seed's ends."""
    if probe.empty:
        return probe
    return (
        probe.groupby(["question", "view"], sort=False)
        .agg(
            sources=("sources", "first"),
            told_right=("told_right", "mean"),
            low=("low", "min"),
            high=("high", "max"),
            chance=("chance", "mean"),
        )
        .reset_index()
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
