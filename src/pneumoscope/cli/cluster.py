"""`pneumoscope merge` and `pneumoscope cluster check`: work that several machines do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.help import new_group
from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import progress_for, say, say_fields, say_json

group = new_group("Workers on other machines: check that they can run.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("merge")(merge)
    app.add_typer(group, name="cluster")


@group.callback()
def _cluster() -> None:
    """Keeps `check` a verb of its own."""


@common_options("overwrite")
def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="Folders that --part K/N wrote.")],
    common: Common,
) -> None:
    """Make one run of the parts that --part wrote.

    Writes one cases.csv in the order of the input, and links or copies every case folder. Of evaluate, data audit and
    crossval the work is put together; the same call with --resume on OUT writes their tables.
    """
    from pneumoscope.cases.merge import merge_parts

    merged = merge_parts(out, parts, overwrite=common.overwrite)
    if common.json:
        say_json({"out": out, "parts": len(parts), "rows": merged.rows, "failed": merged.failed})
    elif merged.table is None:
        say(f"{len(parts)} parts are in {out}; the verb that made them writes its tables there with --resume")
    else:
        say(f"{merged.rows} rows of {len(parts)} parts, {merged.failed} failed: {merged.table}")


@group.command("check")
@common_options("jobs", "on", "cluster")
def check(
    common: Common,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="A folder that all machines share, as results will be.")
    ] = Path("pneumoscope-check"),
    wait: Annotated[
        float, typer.Option("--wait", min=1, metavar="SECONDS", help="How long a worker may take to start.")
    ] = 300.0,
) -> None:
    """Try a worker and say what it sees, or what is wrong.

    The worker must start, see DIR and be able to write there, and have the same pneumoscope; without --on this is
    tried on SLURM.
    """
    from dataclasses import replace

    from pneumoscope.jobs.check import check_machines

    common = replace(common, on="slurm") if common.on == "local" else common
    with progress_for(common) as progress:
        seen = check_machines(folder, wait_seconds=wait, progress=progress)
    if common.json:
        say_json(seen)
    else:
        say_fields(seen)
