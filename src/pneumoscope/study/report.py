"""The page of a study, made from what lies in its folder alone; it can be made again at any time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pneumoscope._version import __version__
from pneumoscope.io.files import jsonable, write_text
from pneumoscope.recipes.access import describe
from pneumoscope.recipes.schema import Experiment
from pneumoscope.reports.figures import data_uri, marked
from pneumoscope.reports.page import write_page
from pneumoscope.study.analysis.calibration import LEAKAGE_FILE
from pneumoscope.study.figures import BAD_PERCENTILE, GOOD_PERCENTILE, picture_uri
from pneumoscope.study.findings import findings, in_a_minute, main_stages, pattern
from pneumoscope.study.folder import (
    GUARD_FILE,
    read_experiment,
    read_if_there,
    read_result,
    stage_cards,
    usable_results,
)
from pneumoscope.study.scores.systems import PICTURE, read_systems
from pneumoscope.study.scores.table import read_rows
from pneumoscope.study.volumes_report import volumes_context
from pneumoscope.study.xray_report import xray_context

REPORT_FILE, LATEX_FILE = "report.html", "matrix.tex"

SLICE_SPLIT_LIMIT = (
    "Slices are split as the paper does, without keeping patients apart: {leaking} of {patients} patients have slices "
    "in more than one of training, validation and test. Neighbouring slices are nearly alike, so every score of a "
    "model on a set it has been trained on is higher than it would be for new patients, and forgetting, which starts "
    "from such a score, looks larger. Scores on sets a model has not been trained on are not touched by this. With "
    "--set split.by=patient the study keeps patients apart."
)
PATIENT_SPLIT = "Patients are kept whole: none has slices in more than one part."
GENERAL_LIMITS = (
    "A mean over slices counts patients with many infected slices more; the Dice per patient counts each alike.",
    "Intervals draw patients. With few patients they are rough, and they leave out the chance in training: another "
    "seed would give other weights.",
    "Slices without infiltrate do not enter accuracy, precision, recall and F1, so false alarms on healthy slices show "
    "in the Dice per patient only.",
)


def write_report(folder: str | Path) -> Path:
    """Write `report.html` of a study folder, whatever its kind.

    Raises:
        InputError: the folder holds no study, or one that has not been scored yet.
    """
    folder = Path(folder)
    experiment = read_experiment(folder)
    mark = str(read_if_there(folder / "study.json").get("mark") or "")
    title, template, context = PAGES[experiment.kind]
    with usable_results(folder), marked(mark):
        common = {
            "title": f"{title} {experiment.recipe}" + (f" ({mark} data)" if mark else ""),
            "experiment": experiment,
            "numbers": describe(experiment),
            "summary": read_result(folder, "study.json"),
            "environment": read_result(folder, "environment.json"),
            **{name: read_rows(folder, name) for name in ("intervals", "forgetting", "calibration")},
        }
        content = context(experiment, folder)
        if "latex" in content:
            write_text(folder / LATEX_FILE, content["latex"])
        write_page(folder / REPORT_FILE, template, {**common, **content})
    return folder / REPORT_FILE


def _context(experiment: Experiment, folder: Path) -> dict[str, Any]:
    tables, shift = read_result(folder, "matrix.json"), read_if_there(folder / "shift" / "shift.json")
    differences, guard = tables.get("differences", []), read_if_there(folder / GUARD_FILE)
    return {
        "matrix": tables["rows"],
        "forgetting": tables["forgetting"],
        "transfer": tables["transfer"],
        "formulas": list(tables["formulas"].items()),
        "published": [site for site in experiment.data.sites if site.published],
        "headline": headline(experiment, tables["rows"]),
        "sentences": in_a_minute(experiment, tables),
        "latex": latex_matrix(experiment, tables["rows"]),
        "bibtex": BIBTEX.format(version=__version__),
        "findings": findings(experiment, tables, shift),
        "pattern": pattern(tables["rows"], differences),
        "losses": [row for row in differences if row["kind"] == "loss"],
        "best": tables["best_stage"],
        **strategies(experiment, folder),
        "systems": read_systems(folder),
        "guard": guard,
        "guard_text": " ".join(f"{stage['stage']}: {stage['sentence']}" for stage in guard.get("stages", [])),
        "leakage": read_if_there(folder / LEAKAGE_FILE),
        "shift": shift,
        "main": main_stages(experiment),
        "limits": limits(experiment, read_result(folder, "study.json")),
        "good": GOOD_PERCENTILE,
        "bad": BAD_PERCENTILE,
        **_pictures(experiment, folder),
        "cards": stage_cards(folder, [*(stage.name for stage in experiment.stages.chain), "lungs"]),
        "facts": _facts(folder),
        "cases": [page.relative_to(folder).as_posix() for page in sorted(folder.glob("cases/*/report.html"))],
    }


BIBTEX = """@software{{pneumoscope,
  title = {{pneumoscope}}, author = {{{{The pneumoscope developers}}}}, version = {{{version}}}
}}"""


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
    head = " & ".join(["Stage", *(f"Set {site}" for site in sites)]) + r" \\"
    level = f"{100 * experiment.scoring.interval_level:.0f}"
    note = f"% F1 per slice with infiltrate, {level} % bootstrap interval over patients; {experiment.recipe}"
    start = r"\begin{tabular}{l" + "r" * len(sites) + "}"
    return "\n".join([note, start, r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])


def strategies(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The ways of retraining of this study side by side, drawn and in a sentence; empty where it has only one."""
    if len({experiment.strategy_of(s.name) for s in experiment.stages.chain if s.start}) < 2:
        return {"strategies": [], "strategies_sentence": "", "strategies_picture": ""}
    from pneumoscope.study.analysis.comparison import compare, read_runs, sentence
    from pneumoscope.study.shift_figures import comparison_png

    rows = compare(read_runs([folder]))
    return {
        "strategies": jsonable(rows),
        "strategies_sentence": sentence(rows),
        "strategies_picture": data_uri(comparison_png(rows)),
    }


def headline(experiment: Experiment, rows: list[dict[str, Any]]) -> str:
    """The longest chain in a sentence per set: how F1 on it went from stage to stage, and the paper's numbers."""
    longest = max((experiment.lineage(stage.name) for stage in experiment.stages.chain), key=len)
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
    else:
        said.append(PATIENT_SPLIT)
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
        **{name: uri(f"{name}.png") for name in ("changes", "calibration", "appearance", "lesions", "distance")},
        "leakage_picture": uri("leakage.png"),
        "systems_picture": uri(PICTURE),
        "examples": [(name, picture) for name, picture in examples if picture],
        "curves": [(name, picture) for name, picture in curves if picture],
    }


def _facts(folder: Path) -> list[tuple[str, str]]:
    environment, summary = read_result(folder, "environment.json"), read_result(folder, "study.json")
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    spent = ", ".join(f"{part} {value:.0f} s" for part, value in summary["seconds"].items())
    return [
        ("Processor", f"{environment['processor']}, {environment['threads']} threads"),
        ("Device and precision", f"{environment['device']}, {environment['precision']}"),
        ("System", f"{environment['system']} {environment['machine']}, Python {environment['python']}"),
        ("Packages", packages),
        ("Time", spent),
    ]


PAGES: Mapping[str, tuple[str, str, Callable[[Any, Path], dict[str, Any]]]] = {
    "slices": ("Transfer study", "study.html", _context),
    "volumes": ("Volume study", "volumes.html", volumes_context),
    "xray": ("X-ray study", "xray_study.html", xray_context),
}
"""Title, template and content of the page of each kind of study."""
