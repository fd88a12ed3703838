"""`pneumoscope data check`: is this folder that data set, whole and readable?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import progress_for, say, say_json, say_table

if TYPE_CHECKING:
    from pneumoscope.datasets.check import DatasetCheck


@common_options()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `pneumoscope data list`.")],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The data set's folder, or the table of a manifest.")],
    common: Common,
    quick: Annotated[
        bool, typer.Option("--quick", help="Look at the listing only: names, pairs, empty files; open nothing.")
    ] = False,
) -> None:
    """Check whether a data set is whole and readable.

    Every file is read to its end and what is there is counted and held against the published counts. The exit code is
    0 for a whole set, 1 for one that is not, and 2 for a folder that is not that data set.
    """
    from pneumoscope.datasets.check import check_dataset

    with progress_for(common) as progress:
        found = check_dataset(name, root, quick=quick, progress=progress)
    if common.json:
        say_json(found.as_dict())
    else:
        _show(found)
    if not found.whole:
        raise typer.Exit(1)


def _show(found: DatasetCheck) -> None:
    from pneumoscope.datasets.check import listed

    if found.counts:
        say_table(
            ("count", "found", "published", ""),
            [
                (
                    count.name.replace("_", " ").replace("@", " of "),
                    "-" if count.found is None else count.found,
                    "-" if count.published is None else count.published,
                    "DIFFERS" if count.differs else count.note,
                )
                for count in found.counts
            ],
        )
    for problem in found.problems:
        say(f"problem: {problem.case + ': ' if problem.case else ''}{problem.what}")
    for note in found.notes:
        say(f"note: {note}")
    for name in listed(found.beyond):
        say(f"beyond: {name}")
    how = "the listing is" if found.quick else "it is"
    say(f"{how} whole" if found.whole else f"{found.dataset} is not whole: {_why(found)}")


def _why(found: DatasetCheck) -> str:
    differ = sum(count.differs for count in found.counts)
    parts = [f"{len(found.problems)} problems"] if found.problems else []
    return ", ".join([*parts, f"{differ} counts differ"] if differ else parts)
