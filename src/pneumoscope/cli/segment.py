"""`pneumoscope segment`: scans in, lungs and infiltrates out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.cases import Fast, Save, Series, SeriesKey, list_given, listed, say_batch
from pneumoscope.cli.options import Common, Threshold, common_options
from pneumoscope.cli.output import progress_for


class Intensity(StrEnum):
    """What may be taken for Hounsfield units."""

    AUTO = "auto"
    HU = "hu"


class EngineName(StrEnum):
    """What computes the networks."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


def add_to(app: typer.Typer) -> None:
    """Hang the verb into the command."""
    app.command("segment")(segment)


@common_options("device", "precision", "seed", "jobs", "overwrite", "resume")
def segment(
    scans: Annotated[
        list[str],
        typer.Option(
            "--input",
            "-i",
            metavar="SCAN",
            help="A NIfTI, NRRD, MetaImage or DICOM file, a DICOM folder or zip; a folder of those; a CSV manifest.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write; one folder per case.")],
    common: Common,
    more_scans: Annotated[list[str] | None, typer.Argument(metavar="[SCAN]...", help="More scans.")] = None,
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            metavar="NAME|DIR",
            help="A shipped model's name, or a model folder. Given several times, the answers are averaged.",
        ),
    ] = ["infiltrate"],  # noqa: B006 - typer never changes it
    lungs_model: Annotated[
        str, typer.Option("--lungs-model", metavar="NAME|DIR", help="The model that finds the lungs.")
    ] = "lungs",
    lungs: Annotated[
        Path | None,
        typer.Option(
            "--lungs", metavar="MASK", help="A lung mask made elsewhere (1 right, 2 left), for a single scan."
        ),
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
    engine: Annotated[
        EngineName,
        typer.Option(
            "--engine",
            metavar="auto|torch|onnxruntime|openvino",
            help="What computes the networks on the CPU; the report names it. auto: the fastest with the same masks.",
        ),
    ] = EngineName.AUTO,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror",
            help="Also show the scan mirrored left to right and average: twice the time. Left out: as the card says.",
        ),
    ] = None,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write uncertainty-entropy.nii.gz and uncertainty-variance.nii.gz, how unsure the networks are.",
        ),
    ] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Also write probability.nii.gz, the infiltrate's probability.")
    ] = False,
    save: Save = [],  # noqa: B006 - typer never changes it
    fast: Fast = False,
    deidentify: Annotated[
        bool, typer.Option("--deidentify", help="Leave out of seg*.dcm and report.dcm who the patient is.")
    ] = False,
) -> None:
    """Segment lungs and infiltrates of chest CT scans.

    Each scan gets a folder with masks on exactly its grid, report.json and report.html. A scan that fails is listed in
    cases.csv and the others are still written; the exit code is then 1.
    """
    from pneumoscope.cases.segment import SegmentOptions, segment_cases

    found = list_given([*scans, *(more_scans or [])], series)
    with progress_for(common) as progress:
        options = SegmentOptions(
            model=model[0] if len(model) == 1 else tuple(model),
            lungs_model=lungs_model,
            lungs=lungs,
            lobes=lobes,
            threshold=threshold,
            intensity=intensity.value,
            device=common.device,
            precision=common.precision,
            engine=engine.value,
            mirror=mirror,
            uncertainty=uncertainty,
            probability=probability,
            save=listed(save),
            fast=fast,
            deidentify=deidentify,
        )
        batch = segment_cases(
            found, out, options, jobs=common.jobs, overwrite=common.overwrite, resume=common.resume,
            key=series_key, progress=progress,
        )  # fmt: skip
    say_batch(batch, out, common)
