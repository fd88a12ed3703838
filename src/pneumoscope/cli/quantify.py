"""`pneumoscope quantify`: scans with masks made elsewhere in, the severity report out."""

from __future__ import annotations

import typer

from pneumoscope.cases.options import QuantifyOptions
from pneumoscope.cli.cases import MoreScans, Out, Scans, Series, SeriesKey, list_given, say_batch
from pneumoscope.cli.options import WHERE, Common, common_options
from pneumoscope.cli.output import progress_for


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("quantify")(quantify)


@common_options(*WHERE, "overwrite", "resume", options=QuantifyOptions)
def quantify(
    scans: Scans,
    out: Out,
    common: Common,
    options: QuantifyOptions,
    more_scans: MoreScans = None,
    series: Series = "best",
    series_key: SeriesKey = None,
) -> None:
    """Measure chest CT scans with masks made elsewhere.

    Each scan gets the same folder as from segment: masks, report.json, report.html, points. Masks must lie on their
    scan's grid; the columns lungs and infiltrate of a CSV manifest name them for many scans.
    """
    from pneumoscope.cases.quantify import quantify_cases

    found = list_given([*scans, *(more_scans or [])], series, common)
    with progress_for(common) as progress:
        batch = quantify_cases(
            found, out, options, jobs=common.jobs or 1, overwrite=common.overwrite, resume=common.resume,
            key=series_key, progress=progress,
        )  # fmt: skip
    say_batch(batch, out, common)
