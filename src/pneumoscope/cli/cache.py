"""`pneumoscope cache`: what is kept of scans between runs, and how to remove it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.help import new_group
from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import say, say_fields, say_json

group = new_group("Prepared scans and slices kept between runs; off unless PNEUMOSCOPE_CACHE is set.")

Folder = Annotated[
    Path | None,
    typer.Option("--folder", metavar="DIR", help="Another folder than that of PNEUMOSCOPE_CACHE, or the user's own."),
]


def add_to(app: typer.Typer) -> None:
    """Register the command group."""
    app.add_typer(group, name="cache")


@group.command("show")
@common_options()
def show(common: Common, folder: Folder = None) -> None:
    """Show where the cache is and what it holds.

    And whether runs use it: only where PNEUMOSCOPE_CACHE is set.
    """
    from pneumoscope.datasets.cache import cache_folder, is_on, read_entries

    place = folder or cache_folder()
    entries = read_entries(place)
    used = datetime.fromtimestamp(max(e.used_ns for e in entries) / 1e9, UTC) if entries else None
    facts = {
        "used by runs": "yes" if is_on() else "no, PNEUMOSCOPE_CACHE is not set",
        "folder": place,
        "entries": len(entries),
        "mib": round(sum(e.size_bytes for e in entries) / 2**20, 1),
        "last use": None if used is None else used.isoformat(timespec="seconds"),
    }
    if common.json:
        say_json({**{name.replace(" ", "_"): value for name, value in facts.items()}, "used_by_runs": is_on()})
    else:
        say_fields(facts)


@group.command("clear")
@common_options()
def clear(common: Common, folder: Folder = None) -> None:
    """Remove every entry of the cache.

    Runs that use an entry at the moment are not disturbed.
    """
    from pneumoscope.datasets.cache import ArrayCache, cache_folder, read_entries

    place = folder or cache_folder()
    entries = read_entries(place)
    if entries:
        ArrayCache(place).clear()
    left = len(read_entries(place))
    if common.json:
        say_json({"folder": place, "removed": len(entries) - left, "left": left})
    else:
        say(f"{len(entries) - left} entries removed from {place}" + (f", {left} could not be" if left else ""))
