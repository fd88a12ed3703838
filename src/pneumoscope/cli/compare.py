"""`pneumoscope compare`: two or more dates of one patient in, what changed out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cases.options import ModelOptions, SegmentOptions
from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import progress_for, say, say_json


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("compare")(compare)


@common_options("device", "precision", "overwrite", "resume", options=ModelOptions)
def compare(
    baseline: Annotated[Path, typer.Argument(metavar="BASELINE", help="The first date: a case folder, or a scan.")],
    followup: Annotated[Path, typer.Argument(metavar="FOLLOWUP", help="A later date of the same patient.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")],
    common: Common,
    options: ModelOptions,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="MORE", help="Further dates of that patient, in order.")
    ] = None,
) -> None:
    """Compare two or more scans of one patient.

    Says what is new, resolved and persistent, per lung and zone. Takes case folders that segment or quantify wrote, or
    scans, which are segmented first. Scans that cannot be registered (another patient, a mirrored scan, half
    of the lungs) are refused. A difference below the noise floor is called no measurable change.
    """
    from pneumoscope.cases.followup import compare_cases

    with progress_for(common) as progress:
        result = compare_cases(
            [baseline, followup, *(more or [])], out, options=SegmentOptions(**vars(options)),
            overwrite=common.overwrite, resume=common.resume, progress=progress,
        )  # fmt: skip
    if common.json:
        say_json({"out": out, **result.as_dict()})
        return
    from pneumoscope.reports.compare import sentence

    for change in result.as_dict()["changes"]:
        say(f"{change['followup']}: {change['verdict']}. {sentence(change)}")
    say(f"written to {out}")
