"""What a study found, in plain words for readers who do not read tables: every sentence from numbers on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.systems import split_external

Row = Mapping[str, Any]


def main_stages(experiment: Experiment) -> list[str]:
    """The stages that pictures show: the first of the longest lineages (the plain one, where strategies differ)."""
    return [stage.name for stage in max((experiment.lineage(s.name) for s in experiment.stages.chain), key=len)]


def findings(experiment: Experiment, tables: Row, shift: Row) -> list[dict[str, str]]:
    """Sentences with a word on how sure each is: ``title, text``. Topics without numbers are left out.

    Args:
        experiment: the study.
        tables: `matrix.json`.
        shift: `shift/shift.json`; may be empty.
    """
    stages = main_stages(experiment)
    found = [
        *_changes(experiment, stages, tables.get("differences", [])),
        *_trust(experiment, stages, shift.get("calibration", [])),
        *_strangers(stages, shift.get("abstention", [])),
        *_lesions(experiment, stages, shift.get("lesions", [])),
        *_looks(shift.get("appearance", {})),
    ]
    return [{"title": title, "text": text} for title, text in found]


def in_a_minute(experiment: Experiment, tables: Row) -> list[str]:
    """The study in three sentences for a reader without statistics; sentences without numbers are left out."""
    rows = [row for row in tables["rows"] if row["f1"] is not None]
    known = {stage.name: experiment.trained_on(stage.name) for stage in experiment.stages.chain}
    names = ", ".join(f"{site.number} ({site.label})" for site in experiment.data.sites)
    score = "The score (F1) is the overlap with the reader's mask: 0 is none, 1 is complete."
    given = sum(bool(split_external(stage.system)[0]) for stage in experiment.stages.chain)
    trained = len(known) - given
    said = []
    if trained:
        what = (
            f"{trained} networks were trained, each on one or more of the datasets {names}, and each was tested on all"
        )
        said.append(f"{what} of them. {score}")
    if given:
        count = f"{given} models or sets of masks" if given > 1 else "A model or set of masks"
        verb = "were" if given > 1 else "was"
        said.append(f"{count} made elsewhere {verb} tested on the datasets {names}.{'' if trained else ' ' + score}")
    own = [row["f1"] for row in rows if row["test"] in known[row["stage"]][-1:]]
    unseen = [row["f1"] for row in rows if known[row["stage"]] and row["test"] not in known[row["stage"]]]
    if own and unseen:
        said.append(
            f"On the dataset a network was trained on last it scored {min(own):.2f} to {max(own):.2f}; on datasets it "
            f"had never seen {min(unseen):.2f} to {max(unseen):.2f}."
        )
    last, first = main_stages(experiment)[-1], main_stages(experiment)[0]
    cells = {(row["stage"], row["test"]): row["f1"] for row in rows}
    site = next(iter(known[first]), None)
    before, after = cells.get((first, site)), cells.get((last, site))
    if first != last and before is not None and after is not None:
        word = "fell" if after < before else "rose"
        change = f"the score on dataset {site} {word} from {before:.2f} to {after:.2f}"
        said.append(f"After retraining on the later datasets, {change}.")
    return said


def _changes(experiment: Experiment, stages: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What each retraining of the main chain brought on its set, and what is lost since on the sets before."""
    result = []
    for stage in stages:
        own = [r for r in rows if r["stage"] == stage and r["measure"] == "f1" and r["mean"] is not None]
        site = experiment.stage(stage).site
        gained = [
            f"{signed(r['mean'])} on set {site} itself ({_range(r)}; {certainty(r)})"
            for r in own
            if r["kind"] == "step" and r["test"] == site
        ]
        lost = [
            f"{signed(r['mean'])} on set {r['test']} against the best model before ({_range(r)}; {certainty(r)})"
            for r in own
            if r["kind"] == "loss"
        ]
        if gained or lost:
            title = f"Retraining on set {site} ({stage})"
            result.append((title, f"F1 changed by {', '.join([*gained, *lost])}."))
    return result


def certainty(row: Row) -> str:
    """What an interval says: a loss, a gain, or nothing that could not be chance."""
    low, high = row.get("low"), row.get("high")
    if low is None or high is None or math.isnan(low):
        return "too few patients to say how sure"
    return "a loss" if high < 0 else "a gain" if low > 0 else "may be chance"


def _trust(experiment: Experiment, stages: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, str]]:
    known: list[Row] = []
    new: list[Row] = []
    for row in rows:
        if row["stage"] in stages and row["ece"] is not None:
            seen = experiment.trained_on(row["stage"])
            if seen:
                (known if row["test"] in seen else new).append(row)
    if not known or not new:
        return []
    parts = [f"{100 * _mean(known, 'ece'):.1f} % on sets it was trained on, {100 * _mean(new, 'ece'):.1f} % on others"]
    repaired = [r for r in new if r["ece_after"] is not None]
    if repaired:
        parts.append(
            f"a temperature fitted on validation slices of those others brings {100 * _mean(repaired, 'ece'):.1f} % to "
            f"{100 * _mean(repaired, 'ece_after'):.1f} %"
        )
    what = "Mean difference between predicted probability and observed frequency, over all voxels of the lungs"
    return [("Calibration", f"{what}: {'; '.join(parts)}.")]


def _strangers(stages: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, str]]:
    measured = [r for r in rows if r["stage"] in stages and r["auc"] is not None]
    if not measured:
        return []
    parts = []
    for r in measured:
        sets = f"set{'s' * (len(r['sites']) > 1)} {' and '.join(map(str, r['sites']))}"
        text = f"for the model of {sets} the area under the ROC curve is {r['auc']:.2f}"
        if r["low"] is not None:
            text += f" ({r['low']:.2f} to {r['high']:.2f})"
        parts.append(f"{text}, with {r['strangers']} new and {r['known']} known patients")
    start = "The look of the lungs alone tells scans of sets never seen from those of known ones: "
    return [("Are unfamiliar scans recognised?", start + "; ".join(parts) + ".")]


def _lesions(experiment: Experiment, stages: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Smallest against largest lesions, of the last stage on its own set and of the first on sets never seen."""
    last = stages[-1]
    site = experiment.stage(last).site or experiment.data.sites[0].number
    sizes = [r for r in rows if r["stage"] == last and r["test"] == site and r["by"] == "size" and r["lesions"]]
    if len(sizes) < 2:
        return []
    parts = [
        f"{100 * r['found']:.0f} % of the area of lesions {r['group']} ({r['lesions']} lesions, "
        f"{100 * r['missed']:.0f} % of them missed)"
        for r in (sizes[0], sizes[-1])
    ]
    own = ", its own," if site in experiment.trained_on(last) else ""
    return [("Which lesions are missed?", f"On set {site}{own} {last} finds {' and '.join(parts)}.")]


def _looks(looks: Row) -> list[tuple[str, str]]:
    if not looks or not looks["apart"]:
        return []
    unit = looks["unit"]
    gaps = [
        f"sets {r['a']} and {r['b']} by {r['lung']:.0f} {unit} in healthy lung and {r['infiltrate']:.0f} {unit} in "
        "infiltrate"
        for r in looks["apart"]
    ]
    noise = ", ".join(
        f"{s['lung_noise']:.0f} {unit} in set {s['test']}" for s in looks["sets"] if s["lung_noise"] is not None
    )
    text = f"The sets differ in brightness, {'; '.join(gaps)}"
    return [("How different are the datasets?", f"{text}. Noise inside the lungs: {noise}." if noise else f"{text}.")]


def pattern(rows: Sequence[Row], differences: Sequence[Row]) -> list[dict[str, Any]]:
    """The paper's changes of F1 by retraining beside ours, where it prints both ends.

    Args:
        rows: of the matrix, with ``paper_f1``.
        differences: of the matrix, see `Matrix.differences`.

    Returns:
        ``stage, against, test, paper, mean, low, high, agrees``; ``agrees`` says whether both have the same sign.
    """
    printed = {(r["stage"], r["test"]): r["paper_f1"] for r in rows}
    result = []
    for row in differences:
        if row["kind"] != "step" or row["measure"] != "f1" or row["mean"] is None:
            continue
        now, before = printed.get((row["stage"], row["test"])), printed.get((row["against"], row["test"]))
        if now is not None and before is not None:
            change = now - before
            same = (change > 0) == (row["mean"] > 0)
            names = ("stage", "against", "test", "mean", "low", "high")
            result.append({**{name: row[name] for name in names}, "paper": change, "agrees": same})
    return result


def _range(row: Row) -> str:
    return "no interval" if row["low"] is None else f"{signed(row['low'])} to {signed(row['high'])}"


def signed(value: float) -> str:
    """A change with its sign and three digits."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(r[key] for r in rows) / len(rows)
