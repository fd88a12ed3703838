"""`pneumoscope data split`: cross-validation of a data set, written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from pneumoscope.cli.options import Common, common_options, pairs
from pneumoscope.cli.output import progress_for, say, say_json, say_table


@common_options("seed", "overwrite")
def split(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `pneumoscope data list`.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Where the data set lies.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")],
    common: Common,
    folds: Annotated[int, typer.Option("--folds", min=2, metavar="K", help="How many folds.")] = 5,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="patient|slice|ma",
            help="Keep patients whole; deal slices, which leaks; or take the published folds of covid19ctseg.",
        ),
    ] = "patient",
    ma_task: Annotated[
        str,
        typer.Option(
            "--ma-task", metavar="20/80|80/20", help="With --by ma: the share trained on and the share tested on."
        ),
    ] = "20/80",
    validation: Annotated[
        bool, typer.Option("--validation/--no-validation", help="Set a validation part apart in each fold.")
    ] = True,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=ROOT", help="Another data set split together with it; may be repeated."),
    ] = None,
    links: Annotated[
        Path | None,
        typer.Option("--links", metavar="CSV", help="Cases that are of one person: a,b[,reason] of DATASET:CASE."),
    ] = None,
    link_suspected: Annotated[
        bool, typer.Option("--link-suspected", help="Keep data sets whole that very probably share patients.")
    ] = False,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="JSON", help="Take the folds from nnU-Net's splits_final.json."),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="csv|nnunet", help="Slice tables, or splits_final.json.")] = "csv",
) -> None:
    """Split a data set for cross-validation.

    Every case is tested in exactly one fold, and no patient stands on two sides. Writes split.json (how, and what
    leaks), folds.csv (one row per fold and case), and a table of slices per fold, or nnU-Net's splits_final.json.
    """
    from pneumoscope.datasets.fold_files import By, SplitPlan, To, write_folds
    from pneumoscope.datasets.groups import read_links
    from pneumoscope.datasets.ma_folds import MaTask
    from pneumoscope.datasets.registry import read_dataset

    plan = SplitPlan(
        cast(By, by), folds, common.seed or 0, validation, cast(MaTask, ma_task),
        tuple(read_links(links)) if links else (), from_file, cast(To, to),
    )  # fmt: skip
    if link_suspected:
        plan = plan.with_suspected
    cases = []
    more = pairs(others or [], "--with")
    if name in more:
        raise typer.BadParameter(f"{name} is given twice", param_hint="--with")
    for dataset, where in {name: str(root), **more}.items():
        cases += [replace(case, dataset=dataset) for case in read_dataset(dataset, where)]
    with progress_for(common) as progress:
        summary = write_folds(cases, plan, out, overwrite=common.overwrite, progress=progress)
    if common.json:
        say_json(summary)
    else:
        _show(summary, out)


def _show(summary: dict[str, Any], out: Path) -> None:
    say_table(
        ("fold", "train", "val", "test", "leaking"),
        [
            (n, fold["train"], fold["val"], fold["test"], len(fold["leaking_groups"]))
            for n, fold in enumerate(summary["folds"])
        ],
    )
    say(f"{summary['unit']}; {summary['cases']} cases of {summary['groups']} groups that stay together")
    for link in summary["suspected_overlaps_not_tied"]:
        say(f"may leak: {link['a']} and {link['b']}: {link['reason']}; use --links or --link-suspected")
    say(f"written to {out}")
