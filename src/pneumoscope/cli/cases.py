"""What verbs that write many case folders print, and how they end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.options import Common
from pneumoscope.cli.output import say, say_json
from pneumoscope.errors import InputError, RunError

if TYPE_CHECKING:
    from pneumoscope.cases.batch import BatchResult
    from pneumoscope.io.scan_ref import ScanRef

_log = logging.getLogger(__name__)

Scans = Annotated[
    list[str],
    typer.Option(
        "--input",
        "-i",
        metavar="SCAN",
        help="A NIfTI, NRRD, MetaImage or DICOM file, a DICOM folder or zip; a folder of those; a CSV manifest.",
    ),
]
MoreScans = Annotated[list[str] | None, typer.Argument(metavar="SCAN", help="More scans.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write; one folder per case.")]
Series = Annotated[
    str,
    typer.Option(
        "--series",
        metavar="best|all|N|UID",
        help="Of a DICOM study with several CT series: the best by written rules, a case of each, or one.",
    ),
]
SeriesKey = Annotated[
    str | None,
    typer.Option(
        "--series-key",
        metavar="FILE|none",
        help="The private table from cases to paths, series UIDs and patients. Default: OUT/private/key.csv.",
    ),
]


def list_given(paths: Sequence[str], series: str) -> tuple[ScanRef, ...]:
    """The scans that are meant; what was ignored is reported."""
    from pneumoscope.io import list_scans

    listing = list_scans(paths, series=series)
    if listing.ignored:
        _log.warning(listing.sentence())
    return listing.scans


def say_batch(batch: BatchResult, out: Path, common: Common) -> None:
    """A line per case, or one JSON document.

    Raises:
        InputError: the only scan is unusable.
        RunError: the only scan failed while running, or any of several failed.
    """
    failed = [case for case in batch.cases if case.status == "failed"]
    if common.json:
        say_json({"out": out, **batch.as_dict()})
    elif len(batch.cases) > len(failed):
        for case in batch.cases:
            say(f"{case.case}: {'failed: ' if case.error else ''}{case.sentence()}{' (kept)' if case.kept else ''}")
        say(f"written to {out}")
    if failed and len(batch.cases) == 1:
        raise (InputError if failed[0].exit_code == InputError.exit_code else RunError)(failed[0].sentence())
    if failed:
        raise RunError(f"{len(failed)} of {len(batch.cases)} scans failed; see {out / 'cases.csv'}")
