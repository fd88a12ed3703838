"""What `pneumoscope study run` does with a study of radiographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pneumoscope.cli.options import Common
from pneumoscope.cli.output import number, progress_for, say, say_json, say_table
from pneumoscope.experiments.access import with_overrides
from pneumoscope.experiments.xray_schema import XrayExperiment

if TYPE_CHECKING:
    from pneumoscope.study.xray_run import XrayResult


def run_xray(
    experiment: XrayExperiment,
    out: Path,
    roots: Mapping[str, Path],
    common: Common,
    *,
    synthetic: bool,
    seeds: int | None,
    resume: bool,
    ct_only: Mapping[str, bool],
) -> None:
    """Run it and print the table of what is left; `ct_only`: options of studies of CT, and whether they were given."""
    for option, given in ct_only.items():
        if given:
            raise typer.BadParameter("is for studies of CT only", param_hint=option)
    if seeds is not None:
        experiment = with_overrides(experiment, [f"training.repeats={seeds}"])
    from pneumoscope.study.xray_run import run_xray_study

    with progress_for(common) as progress:
        result = run_xray_study(
            experiment,
            out,
            data=roots,
            synthetic=synthetic,
            resume=resume,
            overwrite=common.overwrite,
            device=common.device,
            progress=progress,
        )
    print_xray(result, common)


def print_xray(result: XrayResult, common: Common) -> None:
    """The one table, what was left out, and the page to open."""
    rows = result.remedies.to_dict(orient="records")
    if common.json:
        say_json(
            {
                "folder": result.folder,
                "report": result.report,
                "remedies": rows,
                "matrix": result.matrix.to_dict(orient="records"),
                "left_out": list(result.left_out),
                "seconds": result.seconds,
            }
        )
        return
    columns = ("accuracy", "healthy_called_covid", "recall_unseen", "adults_only_unseen")
    say_table(
        ("classifier", "remedy", "accuracy", "healthy adults called covid19", "unseen covid19 found", "adults, unseen"),
        [(row["model"], row["arm"], *(number(row[c]) for c in columns)) for row in rows],
    )
    for line in result.left_out:
        say(f"left out: {line}")
    say(f"report: {result.report}")
