"""What the page of a transfer study shows, from numbers on disk: matrix, forgetting, findings, limits, pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pneumoscope.io.files import jsonable
from pneumoscope.recipes.schema import Experiment
from pneumoscope.reports.figures import data_uri
from pneumoscope.study.analysis.calibration import LEAKAGE_FILE
from pneumoscope.study.figures import BAD_PERCENTILE, GOOD_PERCENTILE, picture_uri
from pneumoscope.study.findings import findings, in_a_minute, main_stages, pattern
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
        "main": main_stages(experiment),
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
