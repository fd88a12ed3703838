"""`pneumoscope segment`, `quantify`, `compare`, `evaluate`, `view` and `xray predict`: images in; what they print."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cases.options import QuantifyOptions, SegmentOptions, XrayOptions
from pneumoscope.cli.options import WHERE, Common, common_options, new_group
from pneumoscope.cli.output import interval, number, progress_for, remark, say, say_json, say_table, wrapped
from pneumoscope.errors import InputError, RunError, printable
from pneumoscope.metrics.options import EvaluateOptions
from pneumoscope.models.options import ModelOptions

if TYPE_CHECKING:
    from pneumoscope.cases.batch import BatchResult
    from pneumoscope.cases.xray import XrayBatch
    from pneumoscope.io.scans import ScanRef

SHOWN_NAMES = 3  # Of the cases that failed for one reason; all are in the table

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

xray_group = new_group("Chest X-rays: class probabilities, heat maps, abstention.")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for verb in (segment, quantify, compare, evaluate, view):
        app.command(verb.__name__)(verb)
    xray_group.callback()(_xray)
    xray_group.command("predict")(predict)
    app.add_typer(xray_group, name="xray")


def _xray() -> None:
    """Keeps `predict` a verb of its own."""


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


def list_given(paths: Sequence[str], series: str, common: Common) -> tuple[ScanRef, ...]:
    """The scans that are meant; how many there are, and what was ignored, is reported before the work."""
    from pneumoscope.io.scans import list_scans

    with progress_for(common) as progress:
        listing = list_scans(paths, series=series, progress=progress)
    if not common.quiet and (listing.ignored or (len(listing.scans) > 1 and sys.stderr.isatty())):
        remark(listing.sentence())
    return listing.scans


def say_batch(batch: BatchResult, out: Path, common: Common) -> None:
    """A line per case that is done and per reason of failures, or one JSON document.

    Raises:
        InputError: the only scan is unusable.
        RunError: the only scan failed while running, or any of several failed.
    """
    failed = [case for case in batch.cases if case.status == "failed"]
    if common.json:
        say_json({"out": out, **batch.as_dict()})
    else:
        done = [case for case in batch.cases if case not in failed]
        for case in done:
            say(wrapped(f"{case.case}: {case.sentence()}{' (kept)' if case.kept else ''}"))
        say_states(name for case in done for name in str(case.summary.get("states") or "").split())
        if done:
            say(f"written to {out}")
    if failed and len(batch.cases) == 1:
        raise (InputError if failed[0].exit_code == InputError.exit_code else RunError)(failed[0].sentence())
    end_with([(case.case, case.error or "") for case in failed], f"{len(batch.cases)} scans", out / "cases.csv", common)


def say_states(names: Iterable[str]) -> None:
    """What each state that occurs means, once."""
    from pneumoscope.severity.states import STATES

    for name in dict.fromkeys(names):
        if name in STATES:
            say(wrapped(f"  {name.replace('_', ' ')}: {STATES[name]}"))


def end_with(failed: Sequence[tuple[str, str]], total: str, table: Path, common: Common) -> None:
    """End a batch: the failed ones by their reason, each reason once.

    Args:
        failed: name and message of each.
        total: of the batch, in words.
        table: holds every message.
        common: with ``json`` only the ending is said.

    Raises:
        RunError: any failed; a reason that all share is in it.
    """
    if not failed:
        return
    reasons: dict[str, list[str]] = {}
    for name, message in failed:
        reasons.setdefault(_without_place(message, name), []).append(name)
    ending = f"{len(failed)} of {total} failed"
    if len(reasons) == 1 and len(failed) > 1:
        raise RunError(f"{ending}: {next(iter(reasons))}; see {table}")
    for reason, names in reasons.items() if not common.json else ():
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        say(wrapped(f"{', '.join(names[:SHOWN_NAMES])}{more}: failed: {printable(reason)}"))
    raise RunError(f"{ending}; see {table}")


def _without_place(message: str, name: str) -> str:
    """A message without the file or case that it begins with, so that one reason of many reads the same."""
    code, bracket, rest = message.partition("] ") if message.startswith("[") else ("", "", message)
    place, colon, reason = rest.partition(": ")
    named = colon and (name in place or "/" in place)
    return f"{code}{bracket}{reason if named else rest}"


@common_options("device", "precision", "overwrite", "resume", options=ModelOptions)
def compare(
    baseline: Annotated[Path, typer.Argument(metavar="BASELINE", help="The first date: a case folder, or a scan.")],
    followup: Annotated[Path, typer.Argument(metavar="FOLLOWUP", help="A later date of the same patient.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")],
    common: Common,
    options: ModelOptions,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="MORE", help="Further dates of that patient, in order.")
    ] = None,
) -> None:
    """Compare two or more scans of one patient.

    Says what is new, resolved and persistent, per lung and zone. Takes case folders that segment or quantify wrote, or
    scans, which are segmented first. Scans that cannot be registered (another patient, a mirrored scan, half
    of the lungs) are refused. A difference below the noise floor is called no measurable change.
    """
    from pneumoscope.cases.compare import compare_cases

    with progress_for(common) as progress:
        result = compare_cases(
            [baseline, followup, *(more or [])], out, options=SegmentOptions(**vars(options)),
            overwrite=common.overwrite, resume=common.resume, progress=progress,
        )  # fmt: skip
    if common.json:
        say_json({"out": out, **result.as_dict()})
        return
    from pneumoscope.reports.compare import sentence

    for change in result.as_dict()["changes"]:
        say(f"{change['followup']}: {change['verdict']}. {sentence(change)}")
    say(f"written to {out}")


@common_options(*WHERE, "overwrite", "resume", options=EvaluateOptions)
def evaluate(
    prediction: Annotated[
        Path, typer.Option("--input", "-i", metavar="PRED", help="The mask or folder of masks to score.")
    ],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", metavar="REF", help="The reference mask, or a folder of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")],
    common: Common,
    options: EvaluateOptions,
) -> None:
    """Score predicted masks against reference masks.

    Masks are matched by case name. Writes per_case.csv, one row per case and label, and summary.json with means and
    95 % intervals. A case that cannot be scored is listed and the others are scored; the exit code is then 1.
    """
    from pneumoscope.metrics.folders import CasesFailedError, evaluate_folders

    failed: CasesFailedError | None = None
    try:
        with progress_for(common) as progress:
            summary: Mapping[str, Any] = evaluate_folders(
                prediction, reference, out, options, overwrite=common.overwrite, resume=common.resume,
                progress=progress,
            )  # fmt: skip
    except CasesFailedError as problem:
        failed, summary = problem, problem.summary
    _show_scores(summary, out, common)
    if failed:
        raise failed


def _show_scores(summary: Mapping[str, Any], out: Path, common: Common) -> None:
    if common.json:
        say_json(summary)
        return
    say_table(
        ("label", "cases", "dice", "95 % interval", "iou", "precision", "recall", "nsd", "hd95 mm", "infinite"),
        [
            (
                label,
                found["cases"],
                number(found["dice"]["mean"]),
                interval(found["dice"]["low"], found["dice"]["high"]),
                *(number(found[name]["mean"]) for name in ("iou", "precision", "recall", "nsd", "hd95")),
                found["n_infinite"],
            )
            for label, found in summary["labels"].items()
        ],
    )
    together = summary["scored_as_one"]
    for case, why in list(together.items())[:1]:
        say(f"{len(together)} of {summary['cases']} cases: {why} (any); first: {case}")
    say(f"written to {out}")


@common_options()
def view(
    folder: Annotated[
        Path, typer.Argument(metavar="CASE_OR_RUN", help="A case folder, a folder of cases, or a study folder.")
    ],
    common: Common,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="The port; 0 takes a free one.")
    ] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open the address in the browser.")] = False,
) -> None:
    """Look at results in the browser.

    Serves the folder on loopback: a table of its cases that sorts by severity, each case's viewer and report, a
    study's matrix. The printed address works once. Nothing can be uploaded or changed. Stop it with Ctrl-C.
    """
    from pneumoscope.viewer.app import serve

    def ready(address: str) -> None:
        if common.json:
            say_json({"address": address})
        else:
            say(f"{address}\nThe address works once, on this machine. Stop with Ctrl-C.")
        if browser:
            import webbrowser

            webbrowser.open(address)

    serve(folder, port=port, ready=ready)


@common_options("device", *WHERE, "overwrite", "resume", options=XrayOptions)
def predict(
    images: Annotated[
        list[str],
        typer.Option("--input", "-i", metavar="IMAGE", help="A PNG, JPEG, TIFF or DICOM radiograph, or a folder."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")],
    common: Common,
    options: XrayOptions,
    more_images: Annotated[list[str] | None, typer.Argument(metavar="IMAGE", help="More radiographs.")] = None,
) -> None:
    """Classify frontal chest X-rays.

    Writes predictions.csv, heat maps on the pictures' own size, and report.html. Pictures that are no upright frontal
    chest X-ray, or unlike those the model was trained on, get no class. A picture that cannot be read is listed, the
    others are still done; the exit code is then 1.
    """
    from pneumoscope.cases.xray import classify_radiographs

    options = replace(options, threads=max(2, common.jobs or 1))
    with progress_for(common) as progress:
        batch = classify_radiographs(
            [*images, *(more_images or [])], out, options, overwrite=common.overwrite, resume=common.resume,
            progress=progress,
        )  # fmt: skip
    _say_answers(batch, out, common)


def _say_answers(batch: XrayBatch, out: Path, common: Common) -> None:
    failed = [row for row in batch.rows if row.status == "failed"]
    if common.json:
        say_json({"out": out, **batch.as_dict()})
    elif len(batch.rows) > len(failed):
        for row in batch.rows:
            if row not in failed:
                say(f"{row.image}: {row.sentence()}{row.kept * ' (kept)'}")
        if not batch.checked:
            say("not checked: this model's card has no limits for what a chest X-ray is; it names a class for anything")
        say(f"written to {out}")
    if failed and len(batch.rows) == 1:
        raise (InputError if failed[0].exit_code == InputError.exit_code else RunError)(failed[0].error)
    end_with([(row.image, row.error) for row in failed], f"{len(batch.rows)} pictures", out / "predictions.csv", common)
