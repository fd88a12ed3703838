"""`pneumoscope study compare`: several runs, or strategies, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    """Compare study runs of one kind.

    Transfer studies by gain on the new set and loss on the old: runs of one strategy with other seeds are one line, and
    intervals draw patients and seeds. Studies on volumes and radiographs cell by cell, with the difference to the first
    run on the cases that both have. Writes comparison.csv, comparison.json and report.html.
    """
    from pneumoscope.study.analysis.comparison import compare_studies

    result = compare_studies(runs, out, overwrite=common.overwrite)
    if common.json:
        say_json({**result, "report": out / "report.html"})
        return
    columns, line = (RETRAINING, _retraining) if "sets" in result else (CELLS, _cell)
    say_table(columns, [line(row) for row in result["rows"]])
    say(result["sentence"])
    say(f"report: {out / 'report.html'}")


RETRAINING = ("strategy", "sets", "runs", "gain", "loss", "mean f1", "95 % interval")
CELLS = ("run", "stage", "test", "structure", "measure", "mean", "95 % interval", "less the first", "95 % interval")


def _retraining(row: dict[str, Any]) -> tuple[Any, ...]:
    ends = interval(row["mean_f1_low"], row["mean_f1_high"])
    return row["strategy"], row["sets"], row["runs"], *(number(row[n]) for n in ("gain", "loss", "mean_f1")), ends


def _cell(row: dict[str, Any]) -> tuple[Any, ...]:
    means = number(row["mean"]), interval(row["mean_low"], row["mean_high"])
    gap = number(row["difference"]), interval(row["difference_low"], row["difference_high"])
    return *(row[name] for name in ("run", "stage", "test", "structure", "metric")), *means, *gap
