"""The page of a study, made from what lies in its folder alone; it can be made again at any time.

One page for every study: banners, sections by what the results have, scores, settings with their sources, models.
`MODALITIES` is the one place where an experiment meets its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope._version import __version__
from pneumoscope.errors import InputError
from pneumoscope.io.files import prepare_folder, read_json, write_bytes, write_json, write_text
from pneumoscope.jobs.lock import locks
from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.settings import Settings, describe
from pneumoscope.recipes.volumes import VolumeExperiment
from pneumoscope.recipes.xray import XrayExperiment
from pneumoscope.reports.figures import data_uri, marked
from pneumoscope.reports.page import write_page
from pneumoscope.study.analysis.comparison import different_folders, is_synthetic
from pneumoscope.study.base import Modality
from pneumoscope.study.folder import read_experiment, read_if_there, read_result, usable_results
from pneumoscope.study.scores.table import read_rows, write_table
from pneumoscope.study.transfer import Transfer
from pneumoscope.study.volumes import Volumes
from pneumoscope.study.xray import Xray

REPORT_FILE, LATEX_FILE, COMPARISON_FILE = "report.html", "matrix.tex", "comparison.json"

BIBTEX = """@software{{pneumoscope,
  title = {{pneumoscope}}, author = {{{{The pneumoscope developers}}}}, version = {{{version}}}
}}"""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` of a study folder.

    Raises:
        InputError: the folder holds no study, or one that has not been scored yet.
    """
    folder = Path(folder)
    experiment = read_experiment(folder)
    modality = modality_of(experiment)
    mark = str(read_if_there(folder / "study.json").get("mark") or "")
    with usable_results(folder), marked(mark):
        common = {
            "title": f"{modality.title} {experiment.recipe}" + (f" ({mark} data)" if mark else ""),
            "experiment": experiment,
            "numbers": describe(experiment),
            "summary": read_result(folder, "study.json"),
            "environment": read_result(folder, "environment.json"),
            "facts": _facts(folder),
            "verdict": None,
            "metric": modality.measures[0],
            **dict.fromkeys(("nav", "limits", "curves"), ()),
            "bibtex": BIBTEX.format(version=__version__),
            **{name: read_rows(folder, name) for name in ("intervals", "forgetting", "calibration")},
        }
        content = modality.page(experiment, folder)
        if "latex" in content:
            write_text(folder / LATEX_FILE, content["latex"])
        write_page(folder / REPORT_FILE, "study.html", {**common, **content})
    return folder / REPORT_FILE


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


@locks("out")
def compare_studies(folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Compare study folders of one modality; writes ``comparison.csv``, ``comparison.json`` and ``report.html``.

    Returns:
        What stands in ``comparison.json``.

    Raises:
        InputError: no study, one given twice or not scored, studies of several modalities, and when `out` holds a
            comparison and `overwrite` is not given.
    """
    given = different_folders(folders)
    modalities = list(dict.fromkeys(modality_of(read_experiment(folder)) for folder in given))
    if len(modalities) > 1:
        kinds = " and ".join(sorted(modality.title for modality in modalities))
        raise InputError(f"{kinds} cannot be compared; give studies of one kind")
    result, columns, template, extra = modalities[0].compare(given)
    folder = prepare_folder(out, marker=COMPARISON_FILE, overwrite=overwrite)
    flat = [{name: row[name] for name in columns} for row in result["rows"]]
    write_table(pd.DataFrame(flat, columns=list(columns)), folder / "comparison.csv")
    context = {"result": result, "synthetic": all(map(is_synthetic, given)), **extra}
    if "picture" in extra:
        write_bytes(folder / "figures" / "gain_against_loss.png", extra["picture"])
        context["picture"] = data_uri(extra["picture"])
    write_page(folder / REPORT_FILE, template, context)
    write_json(folder / COMPARISON_FILE, result)
    found: dict[str, Any] = read_json(folder / COMPARISON_FILE)
    return found


MODALITIES: Mapping[type[Settings], type[Modality]] = {
    Experiment: Transfer,
    VolumeExperiment: Volumes,
    XrayExperiment: Xray,
}


def modality_of(experiment: Settings) -> type[Modality]:
    """What reads, makes and scores an experiment."""
    return MODALITIES[type(experiment)]
