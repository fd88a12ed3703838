"""`pneumoscope segment`: scans in, lungs and infiltrates out."""

from __future__ import annotations

import typer

from pneumoscope.cases.options import SegmentOptions
from pneumoscope.cli.cases import MoreScans, Out, Scans, Series, SeriesKey, list_given, say_batch
from pneumoscope.cli.options import WHERE, Common, common_options
from pneumoscope.cli.output import progress_for


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("segment")(segment)


@common_options("device", "precision", "seed", *WHERE, "overwrite", "resume", options=SegmentOptions)
def segment(
    scans: Scans,
    out: Out,
    common: Common,
    options: SegmentOptions,
    more_scans: MoreScans = None,
    series: Series = "best",
    series_key: SeriesKey = None,
) -> None:
    """Segment lungs and infiltrates of chest CT scans.

    Each scan gets a folder with masks on exactly its grid, report.json and report.html. A scan that fails is listed in
    cases.csv and the others are still written; the exit code is then 1.
    """
    found = list_given([*scans, *(more_scans or [])], series, common)
    with progress_for(common) as progress:
        progress("cases", 0, max(1, len(found)), "loading")  # the networks' libraries take seconds
        from pneumoscope.cases.segment import segment_cases

        batch = segment_cases(
            found, out, options, jobs=common.jobs or 1, overwrite=common.overwrite, resume=common.resume,
            key=series_key, progress=progress,
        )  # fmt: skip
    say_batch(batch, out, common)
