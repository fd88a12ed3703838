"""`pneumoscope data convert`: a data set into the layout of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.options import Common, common_options, pairs
from pneumoscope.cli.output import progress_for, say, say_json
from pneumoscope.errors import RunError

NAMED_LABELS = ("nnunet", "decathlon", "miscnn")
"""Layouts whose labels are the user's own."""


@common_options("overwrite")
def convert(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `pneumoscope data list`.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The data set's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")],
    to: Annotated[str, typer.Option("--to", metavar="nnunet|slices|manifest", help="The layout to write.")],
    common: Common,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="NAME=MEANING",
            help="What a label of nnunet, decathlon or miscnn is: right lung, left lung, lung, ground-glass, "
            "consolidation, infiltrate or ignore. May be given several times.",
        ),
    ] = None,
) -> None:
    """Write a data set in the layout of another tool.

    nnunet is nnU-Net's raw data, slices are 16-bit PNG pictures, manifest is NIfTI files with a table. Scans come back
    bit for bit: whole Hounsfield units are stored as integers, others as float32 (slices are always whole). sources.csv
    says whose each scan is and under which licence.
    """
    from pneumoscope.datasets.convert import convert_dataset

    if label and name not in NAMED_LABELS:
        raise typer.BadParameter(
            f"{name} has labels of its own; for {', '.join(NAMED_LABELS)} only", param_hint="--label"
        )
    options: dict[str, Any] = {"labels": pairs(label, "--label")} if label else {}
    with progress_for(common) as progress:
        done = convert_dataset(name, root, out, to, overwrite=common.overwrite, progress=progress, **options)
    if common.json:
        say_json(
            {
                "folder": done.folder,
                "to": done.to,
                "cases": list(done.cases),
                "without_infiltrate": list(done.without_infiltrate),
                "labels": dict(done.labels),
                "failed": dict(done.failed),
            }
        )
    else:
        undrawn = (
            f", {len(done.without_infiltrate)} of them without infiltrate masks" if done.without_infiltrate else ""
        )
        say(f"{len(done.cases)} cases in {done.folder} for {to}{undrawn}")
    if done.failed:
        first = next(iter(done.failed.values()))
        more = f" (and {len(done.failed) - 1} more)" if len(done.failed) > 1 else ""
        raise RunError(f"{len(done.failed)} cases could not be read and were left out: {first}{more}")
