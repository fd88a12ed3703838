"""`pneumoscope demo`: the main job, no data needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import progress_for
from pneumoscope.cli.study import print_study


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("demo")(demo)


@common_options("device", "precision", "seed", "overwrite")
def demo(
    common: Common,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")] = Path("demo"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume a demo that was stopped.")] = False,
) -> None:
    """Run the transfer study on synthetic data: nothing needed.

    Makes three synthetic sites, trains and retrains across them as the lead paper does, segments one case, and ends by
    naming the report to open.
    """
    from pneumoscope.study.demo import run_demo

    with progress_for(common) as progress:
        result = run_demo(
            out,
            device=common.device,
            precision=common.precision,
            seed=common.seed,
            overwrite=common.overwrite,
            resume=resume,
            progress=progress,
        )
    print_study(result, common)
