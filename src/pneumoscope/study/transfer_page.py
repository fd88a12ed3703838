"""What the page of a transfer study shows, from numbers on disk: matrix, forgetting, findings, limits, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pneumoscope.io.files import jsonable
from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.stages import split_external
from pneumoscope.reports.figures import data_uri
from pneumoscope.study.analysis.calibration import LEAKAGE_FILE
from pneumoscope.study.figures import BAD_PERCENTILE, GOOD_PERCENTILE, picture_uri
from pneumoscope.study.folder import GUARD_FILE, read_if_there, read_result, stage_cards
from pneumoscope.study.scores.systems import PICTURE, read_systems

SLICE_SPLIT_LIMIT = (
    "Slices are split as the paper does, without keeping patients apart: {leaking} of {patients} patients have slices "
    "in more than one of training, validation and test. Neighbouring slices are nearly alike, so every score of a "
    "model on a set it has been trained on is higher than it would be for new patients, and forgetting, which starts "
    "from such a score, looks larger. Scores on sets a model has not been trained on are not touched by this. With "
    "--set split.by=patient the study keeps patients apart."
)
PATIENT_SPLIT = "Patients are kept whole: none has slices in more than one part."
GIVEN_MODELS = (
    "What the models were trained on is known here only as far as the call says: one that was trained on a patient of "
    "a test set scores higher on it than on new patients."
)
GENERAL_LIMITS = (
    "A mean over slices counts patients with many infected slices more; the Dice per patient counts each alike.",
    "Intervals draw patients. With few patients they are rough, and they leave out the chance in training: another "
    "seed would give other weights.",
    "Slices without infiltrate do not enter accuracy, precision, recall and F1, so false alarms on healthy slices show "
    "in the Dice per patient only.",
)


RESEARCH_ONLY = "A comparison of models on small datasets. It does not show how a model performs on your patients."


def transfer_page(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """What the page shows, see `report`."""
    tables, shift = read_result(folder, "matrix.json"), read_if_there(folder / "shift" / "shift.json")
    differences, guard = tables.get("differences", []), read_if_there(folder / GUARD_FILE)
    strategic, systems = strategies(experiment, folder), read_systems(folder)
    return {
        "section": "study_transfer.html",
        "research_only": RESEARCH_ONLY,
        "nav": _nav(experiment, strategic, systems, shift),
        **dict.fromkeys(("intervals", "forgetting", "calibration"), ()),  # the section has them in more detail
        "matrix": tables["rows"],
        "forgotten": tables["forgetting"],
        "transfer": tables["transfer"],
        "formulas": list(tables["formulas"].items()),
        "published": [site for site in experiment.data.sites if site.published],
        "headline": headline(experiment, tables["rows"]),
        "sentences": in_a_minute(experiment, tables),
        "latex": latex_matrix(experiment, tables["rows"]),
        "findings": findings(experiment, tables, shift),
        "pattern": pattern(tables["rows"], differences),
        "losses": [row for row in differences if row["kind"] == "loss"],
        "best": tables["best_stage"],
        **strategic,
        "systems": systems,
        "verdict": _verdict(guard),
        "leakage": read_if_there(folder / LEAKAGE_FILE),
        "shift": shift,
        "main": experiment.main_stages(),
        "limits": limits(experiment, read_result(folder, "study.json")),
        "good": GOOD_PERCENTILE,
        "bad": BAD_PERCENTILE,
        **_pictures(experiment, folder),
        "cards": stage_cards(folder, [*(stage.name for stage in experiment.stages.chain), "lungs"]),
        "cases": [page.relative_to(folder).as_posix() for page in sorted(folder.glob("cases/*/report.html"))],
    }


def _nav(
    experiment: Experiment, strategic: dict[str, Any], systems: list[Any], shift: dict[str, Any]
) -> list[tuple[str, str]]:
    """Places of the page by their names."""
    places = [("summary", "Summary"), ("found", "Findings")]
    places += [("systems", "Systems")] if systems else []
    places += [("strategies", "Strategies")] if strategic["strategies"] else []
    places += [("matrix", "Matrix")]
    places += [("forgetting", "Forgetting")] if experiment.split.by != "none" else []
    places += [("why", "Why it drops"), ("trust", "Calibration")] if shift else []
    return [*places, ("sets", "Sets and splits"), ("examples", "Examples"), ("limits", "Limits")]


def _verdict(guard: dict[str, Any]) -> dict[str, str] | None:
    """What became of the limit on forgetting; None where none was given."""
    if not guard:
        return None
    level, title = ("info", "Accepted") if guard["accepted"] else ("error", "Refused")
    sentences = (f"{stage['stage']}: {stage['sentence']}" for stage in guard.get("stages", []))
    return {"level": level, "title": title, "text": " ".join(sentences)}


def latex_matrix(experiment: Experiment, rows: list[dict[str, Any]]) -> str:
    """F1 of every stage (rows) on every set (columns) with its interval, as a LaTeX table for ``booktabs``."""
    sites = [site.number for site in experiment.data.sites]
    cells = {(row["stage"], row["test"]): row for row in rows}

    def cell(stage: str, site: int) -> str:
        row = cells.get((stage, site))
        if row is None or row["f1"] is None:
            return "--"
        low, high = row["f1_low"], row["f1_high"]
        return f"{row['f1']:.2f}" + ("" if low is None else f" ({low:.2f}--{high:.2f})")

    lines = [
        " & ".join([stage.name.replace("_", r"\_"), *(cell(stage.name, site) for site in sites)]) + r" \\"
        for stage in experiment.stages.chain
    ]
    first = "Model" if experiment.split.by == "none" else "Stage"
    head = " & ".join([first, *(f"Set {site}" for site in sites)]) + r" \\"
    level = f"{100 * experiment.scoring.interval_level:.0f}"
    note = f"% F1 per slice with infiltrate, {level} % bootstrap interval over patients; {experiment.recipe}"
    start = r"\begin{tabular}{l" + "r" * len(sites) + "}"
    return "\n".join([note, start, r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])


def strategies(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The ways of retraining of this study side by side, drawn and in a sentence; empty where it has only one."""
    if len({experiment.strategy_of(s.name) for s in experiment.stages.chain if s.start}) < 2:
        return {"strategies": [], "strategies_sentence": "", "strategies_picture": ""}
    from pneumoscope.study.analysis.comparison import compare, read_runs, sentence
    from pneumoscope.study.figures import comparison_png

    rows = compare(read_runs([folder]))
    return {
        "strategies": jsonable(rows),
        "strategies_sentence": sentence(rows),
        "strategies_picture": data_uri(comparison_png(rows)),
    }


def headline(experiment: Experiment, rows: list[dict[str, Any]]) -> str:
    """The longest chain in a sentence per set: how F1 on it went from stage to stage, and the paper's numbers.

    Where nothing was trained: the best F1 on each set.
    """
    if not any(experiment.trained_on(stage.name) for stage in experiment.stages.chain):
        measured = [row for row in rows if row["f1"] is not None]
        best = [
            max((r for r in measured if r["test"] == s), key=lambda r: r["f1"])
            for s in {r["test"]: 0 for r in measured}
        ]
        return (
            "Highest F1: " + ", ".join(f"{row['f1']:.2f} on set {row['test']} ({row['stage']})" for row in best) + "."
        )
    names = [stage.name for stage in experiment.stages.chain]
    longest = experiment.lineage(max(names, key=lambda name: len(experiment.trained_on(name))))
    cells = {(row["stage"], row["test"]): row for row in rows}
    sentences = []
    for site in sorted({stage.site for stage in longest}):
        ours = [cells[stage.name, site]["f1"] for stage in longest]
        paper = [cells[stage.name, site]["paper_f1"] for stage in longest]
        text = f"F1 on set {site}: {_arrows(ours)}"
        if all(value is not None for value in paper):
            text += f" (the paper: {_arrows(paper)})"
        sentences.append(text)
    order = ", then ".join(f"set {stage.site}" for stage in longest)
    return f"Trained on {order}. " + ". ".join(sentences) + "."


def _arrows(values: list[float | None]) -> str:
    return " \N{RIGHTWARDS ARROW} ".join("not measurable" if v is None else f"{v:.2f}" for v in values)


def limits(experiment: Experiment, summary: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers."""
    said = []
    if experiment.split.by == "slice":
        leaking = sum(row["patients_in_several_parts"] for row in summary["sets"])
        said.append(SLICE_SPLIT_LIMIT.format(leaking=leaking, patients=sum(row["patients"] for row in summary["sets"])))
    elif experiment.split.by == "patient":
        said.append(PATIENT_SPLIT)
    else:
        said.append(GIVEN_MODELS)
    for row in summary["sets"]:
        if row["lung_masks_supplied"]:
            said.append(
                f"The lungs of {row['lung_masks_supplied']} scans of set {row['number']} were found by the study's own "
                "network: its errors are part of the input there, in training as in test."
            )
        if row["patients"] == 1:
            said.append(f"Set {row['number']} has one patient: its intervals cannot be computed.")
        if row["infiltrate_slices"] == 0:
            said.append(f"Set {row['number']} holds no infiltrate: nothing can be scored on it.")
    return [*said, *GENERAL_LIMITS]


def _pictures(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Figures as data addresses; those that were never drawn are left out."""

    uri = partial(picture_uri, folder)
    stages = [stage.name for stage in experiment.stages.chain]
    examples = [(name, uri(f"examples_{name}.png")) for name in stages]
    curves = [(name, uri(f"curves_{name}.png")) for name in (*stages, "lungs")]
    return {
        "heat_map": uri("heatmap_f1.png"),
        **{name: uri(f"{name}.png") for name in ("changes", "appearance", "lesions", "distance")},
        "calibration_picture": uri("calibration.png"),
        "leakage_picture": uri("leakage.png"),
        "systems_picture": uri(PICTURE),
        "examples": [(name, picture) for name, picture in examples if picture],
        "curves": [(name, picture) for name, picture in curves if picture],
    }


Row = Mapping[str, Any]


def findings(experiment: Experiment, tables: Row, shift: Row) -> list[dict[str, str]]:
    """Sentences from `matrix.json` and `shift.json` with a word on how sure each is: ``title, text``."""
    stages = experiment.main_stages()
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
    last, first = experiment.main_stages()[-1], experiment.main_stages()[0]
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
