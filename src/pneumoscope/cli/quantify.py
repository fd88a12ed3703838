"""`pneumoscope quantify`: scans with masks made elsewhere in, the severity report out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.cases import Fast, Save, Series, SeriesKey, list_given, listed, say_batch
from pneumoscope.cli.options import Common, Threshold, common_options
from pneumoscope.cli.output import progress_for
from pneumoscope.cli.segment import Intensity


def add_to(app: typer.Typer) -> None:
    """Hang the verb into the command."""
    app.command("quantify")(quantify)


@common_options("jobs", "overwrite", "resume")
def quantify(
    scans: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            metavar="SCAN",
            help="A scan as for segment; or a CSV manifest whose columns lungs and infiltrate name the masks.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write; one folder per case.")],
    common: Common,
    more_scans: Annotated[list[str] | None, typer.Argument(metavar="[SCAN]...", help="More scans.")] = None,
    lungs: Annotated[
        Path | None,
        typer.Option("--lungs", metavar="MASK", help="The lung mask (1 right, 2 left) of a single scan."),
    ] = None,
    infiltrate: Annotated[
        Path | None, typer.Option("--infiltrate", metavar="MASK", help="The infiltrate mask of a single scan.")
    ] = None,
    lobes: Annotated[
        Path | None,
        typer.Option("--lobes", metavar="MASK", help="A mask of the five lobes, for a single scan; adds their score."),
    ] = None,
    threshold: Threshold = None,
    series: Series = "best",
    series_key: SeriesKey = None,
    intensity: Annotated[
        Intensity,
        typer.Option(
            "--intensity",
            metavar="auto|hu",
            help="auto refuses what does not look like Hounsfield units; hu takes it as it is.",
        ),
    ] = Intensity.AUTO,
    save: Save = [],  # noqa: B006 - typer never changes it
    fast: Fast = False,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Leave out of seg*.dcm and report.dcm who the patient is.")
    ] = False,
) -> None:
    """Measure chest CT scans with masks made elsewhere.

    Each scan gets the same folder as from segment: masks, report.json, report.html, points. Masks must lie on their
    scan's grid.
    """
    from pneumoscope.cases.quantify import QuantifyOptions, quantify_cases

    found = list_given([*scans, *(more_scans or [])], series)
    with progress_for(common) as progress:
        options = QuantifyOptions(
            lungs=lungs,
            infiltrate=infiltrate,
            lobes=lobes,
            threshold=threshold,
            intensity=intensity.value,
            save=listed(save),
            fast=fast,
            deidentify=deidentify,
        )
        batch = quantify_cases(
            found, out, options, jobs=common.jobs, overwrite=common.overwrite, resume=common.resume,
            key=series_key, progress=progress,
        )  # fmt: skip
    say_batch(batch, out, common)
