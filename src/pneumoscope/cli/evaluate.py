"""`pneumoscope evaluate`: two folders of masks, scored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import progress_for, say, say_json


def add_to(app: typer.Typer) -> None:
    """Hang the verb into the command."""
    app.command("evaluate")(evaluate)


@common_options("overwrite")
def evaluate(
    prediction: Annotated[Path, typer.Option("--input", "-i", metavar="PRED", help="The masks to score.")],
    reference: Annotated[Path, typer.Option("--reference", "-r", metavar="REF", help="The masks held to be true.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")],
    common: Common,
) -> None:
    """Score predicted masks against reference masks.

    Writes per_case.csv and summary.json. Masks are matched by case name.
    """
    from pneumoscope.metrics.folders import evaluate_folders

    with progress_for(common) as progress:
        result = evaluate_folders(prediction, reference, out, overwrite=common.overwrite, progress=progress)
    if common.json:
        say_json(result)
    else:
        say(f"written to {out}")
