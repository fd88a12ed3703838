"""`pneumoscope compare`: two or more dates of one patient in, what changed out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import progress_for, say, say_json


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("compare")(compare)


@common_options("device", "precision", "overwrite", "resume")
def compare(
    baseline: Annotated[Path, typer.Argument(metavar="BASELINE", help="The first date: a case folder, or a scan.")],
    followup: Annotated[Path, typer.Argument(metavar="FOLLOWUP", help="A later date of the same patient.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")],
    common: Common,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="MORE", help="Further dates of that patient, in order.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME|DIR", help="The infiltrate model, where a scan is segmented first.")
    ] = "infiltrate",
    lungs_model: Annotated[
        str, typer.Option("--lungs-model", metavar="NAME|DIR", help="The model that finds the lungs, likewise.")
    ] = "lungs",
) -> None:
    """Compare two or more scans of one patient.

    Says what is new, resolved and persistent, per lung and zone. Takes case folders that segment or quantify wrote, or
    scans, which are segmented first. Scans that cannot be laid over each other (another patient, a mirrored scan, half
    of the lungs) are refused. A difference below the noise floor is called no measurable change.
    """
    from pneumoscope.cases.compare import is_case_folder
    from pneumoscope.cases.followup import compare_cases

    paths = [baseline, followup, *(more or [])]
    options = None
    if not all(is_case_folder(path) for path in paths):
        from pneumoscope.cases.options import SegmentOptions

        options = SegmentOptions(model=model, lungs_model=lungs_model, device=common.device, precision=common.precision)
    with progress_for(common) as progress:
        result = compare_cases(
            paths, out, options=options, overwrite=common.overwrite, resume=common.resume, progress=progress
        )
    if common.json:
        say_json({"out": out, **result.as_dict()})
        return
    from pneumoscope.reports.compare import sentence

    for change in result.as_dict()["changes"]:
        say(f"{change['followup']}: {change['verdict']}. {sentence(change)}")
    say(f"written to {out}")
