"""`pneumoscope data`: the data sets it knows, and synthetic ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.data_audit import audit
from pneumoscope.cli.data_check import check
from pneumoscope.cli.data_convert import convert
from pneumoscope.cli.data_split import split
from pneumoscope.cli.options import Common, common_options, new_group
from pneumoscope.cli.output import progress_for, say, say_fields, say_json, say_table

group = new_group("Data sets: what can be read, where to get it, synthetic scans.")


def add_to(app: typer.Typer) -> None:
    """Register the command group."""
    group.command("check")(check)
    group.command("audit")(audit)
    group.command("split")(split)
    group.command("convert")(convert)
    app.add_typer(group, name="data")


@group.command("list")
@common_options()
def list_datasets(common: Common) -> None:
    """List the data sets by name."""
    from pneumoscope.datasets.registry import DATASETS

    rows = [{"name": name, **asdict(info)} for name, info in DATASETS.items()]
    if common.json:
        say_json(rows)
    else:
        say_table(
            ("name", "kind", "readable", "licence", "title"),
            [(r["name"], r["kind"], "yes" if r["readable"] else "not yet", r["licence"], r["title"]) for r in rows],
        )


@group.command("info")
@common_options()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `pneumoscope data list`.")],
    common: Common,
) -> None:
    """Show one data set: licence, citation, where to get it."""
    from pneumoscope.datasets.registry import dataset_info

    found: dict[str, Any] = {"name": name, **asdict(dataset_info(name))}
    if common.json:
        say_json(found)
    else:
        say_fields(found)


@group.command("phantom")
@common_options("seed", "overwrite")
def phantom(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The data set's folder.")],
    site: Annotated[str, typer.Option("--site", metavar="A|B|C", help="Which synthetic hospital.")],
    patients: Annotated[int, typer.Option("--patients", min=1, metavar="N", help="How many patients.")],
    common: Common,
    file_format: Annotated[
        str, typer.Option("--format", metavar="nifti|dicom", help="How the scans are stored.")
    ] = "nifti",
    size: Annotated[
        str,
        typer.Option(
            "--size", metavar="full|small|tiny", help="full is as large as patients' scans; tiny is for tests."
        ),
    ] = "full",
) -> None:
    """Make synthetic chest CTs with exact masks.

    The three sites differ as hospitals do: field of view, noise and kernel, slice thickness, Hounsfield offset, how
    readers draw. The same seed gives the same scans.
    """
    from pneumoscope.datasets.phantom import write_phantom

    with progress_for(common) as progress:
        cases = write_phantom(
            out,
            site,
            patients,
            seed=common.seed or 0,
            format=file_format,
            size=size,
            overwrite=common.overwrite,
            progress=progress,
        )
    if common.json:
        say_json({"folder": out, "site": site, "seed": common.seed or 0, "cases": cases})
    else:
        say(f"{len(cases)} cases of site {site} in {out}")
