"""`pneumoscope study compare`: several runs, or strategies, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import interval, number, say, say_json, say_table
from pneumoscope.cli.study import group


def add_to(app: typer.Typer) -> None:
    """Register the command in the group `study`."""
    group.command("compare")(compare)


@common_options("overwrite")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Study folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")],
    common: Common,
) -> None:
    """Compare study runs: gain on the new set, loss on the old.

    Runs of one strategy with other seeds are one line; intervals draw patients and seeds. Writes comparison.csv,
    comparison.json, figures/gain_against_loss.png and report.html.
    """
    from pneumoscope.study.analysis.comparison import compare_studies

    result = compare_studies(runs, out, overwrite=common.overwrite)
    if common.json:
        say_json({**result, "report": out / "report.html"})
        return
    say_table(
        ("strategy", "sets", "runs", "gain", "loss", "mean f1", "95 % interval"),
        [
            (
                row["strategy"],
                row["sets"],
                row["runs"],
                number(row["gain"]),
                number(row["loss"]),
                number(row["mean_f1"]),
                interval(row["mean_f1_low"], row["mean_f1_high"]),
            )
            for row in result["rows"]
        ],
    )
    say(result["sentence"])
    say(f"report: {out / 'report.html'}")
