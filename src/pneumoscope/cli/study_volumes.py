"""What `pneumoscope study run` does with a study on volumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pneumoscope.cli.options import Common
from pneumoscope.cli.output import number, progress_for, say, say_json, say_table
from pneumoscope.experiments.volumes import VolumeExperiment

if TYPE_CHECKING:
    from pneumoscope.study.volumes_run import VolumeStudyResult


def run_volumes(
    experiment: VolumeExperiment,
    out: Path,
    roots: Mapping[str, Path],
    common: Common,
    *,
    synthetic: bool,
    resume: bool,
    unusable: Mapping[str, bool],
) -> None:
    """Run it and print the infection's scores; `unusable`: options of other studies, and whether they were given."""
    for option, given in unusable.items():
        if given:
            raise typer.BadParameter("is not for studies on volumes", param_hint=option)
    from pneumoscope.study.volumes_run import run_volume_study

    with progress_for(common) as progress:
        result = run_volume_study(
            experiment,
            out,
            data=roots,
            synthetic=synthetic,
            resume=resume,
            overwrite=common.overwrite,
            device=common.device,
            progress=progress,
        )
    print_volumes(result, common)


def print_volumes(result: VolumeStudyResult, common: Common) -> None:
    """Dice of the infection (or lungs) per k, method and test set, and the page to open."""
    from pneumoscope.study.volumes_tables import subject_of

    if common.json:
        say_json(
            {
                "folder": result.folder,
                "report": result.report,
                "matrix": result.matrix.to_dict(orient="records"),
                "paper": result.paper.to_dict(orient="records"),
            }
        )
        return
    matrix = result.matrix
    rows = matrix[(matrix["structure"] == subject_of(matrix)) & (matrix["metric"] == "dice")].to_dict(orient="records")
    say_table(
        ("scans", "folds", "method", "scored", "median dice", "mean", "sd", "lowest", "highest"),
        [
            (
                "validation" if row["test"] == "val" else row["test"],
                row["k"],
                row["setting"],
                row["n_cases"],
                *(number(row[name]) for name in ("median", "mean", "sd", "lowest", "highest")),
            )
            for row in rows
        ],
    )
    say(f"report: {result.report}")
