"""`pneumoscope xray predict`: radiographs in, class probabilities and heat maps out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cases.options import XrayOptions
from pneumoscope.cli.cases import end_with
from pneumoscope.cli.help import new_group
from pneumoscope.cli.options import WHERE, Common, common_options
from pneumoscope.cli.output import progress_for, say, say_json
from pneumoscope.errors import InputError, RunError

if TYPE_CHECKING:
    from pneumoscope.cases.xray import XrayBatch

group = new_group("Chest X-rays: class probabilities, heat maps, abstention.")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.add_typer(group, name="xray")


@group.callback()
def _xray() -> None:
    """Keeps `predict` a verb of its own."""


@group.command("predict")
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
    _say(batch, out, common)


def _say(batch: XrayBatch, out: Path, common: Common) -> None:
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
