"""`pneumoscope evaluate`: two folders of masks, scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.options import WHERE, Common, common_options
from pneumoscope.cli.output import interval, number, progress_for, say, say_json, say_table
from pneumoscope.metrics.options import EvaluateOptions


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("evaluate")(evaluate)


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
    _show(summary, out, common)
    if failed:
        raise failed


def _show(summary: Mapping[str, Any], out: Path, common: Common) -> None:
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
