"""`pneumoscope model`: which models are here, what they are, whether they are whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pneumoscope.cli.options import Common, common_options, new_group
from pneumoscope.cli.output import say, say_fields, say_json, say_table
from pneumoscope.errors import RunError
from pneumoscope.models import cards

group = new_group("Shipped and own models: card, licence, checksum.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A shipped model's name, or a model folder.")]


def add_to(app: typer.Typer) -> None:
    """Hang the group into the command."""
    app.add_typer(group, name="model")


@group.command("list")
@common_options()
def list_models(common: Common) -> None:
    """List the shipped models."""
    rows = [_row(name) for name in cards.shipped_models()]
    if common.json:
        say_json(rows)
    else:
        columns = ("name", "architecture", "bytes", "licence", "title")
        say_table(columns, [[row[column] for column in columns] for row in rows])


def _row(name: str) -> dict[str, Any]:
    folder = cards.find_model(name)
    card = cards.read_card(folder)
    architecture = card["architecture"]
    return {
        "name": name,
        "architecture": architecture.get("name") if isinstance(architecture, dict) else architecture,
        "bytes": card["weights"].get("bytes"),
        "licence": card.get("licence"),
        "title": card.get("title") or card.get("task") or card.get("description"),
        "folder": folder,
    }


@group.command("info")
@common_options()
def info(model: Model, common: Common) -> None:
    """Show a model's card.

    Data it was trained on, licence, numbers, limits, checksum.
    """
    folder = cards.find_model(model)
    card = cards.read_card(folder)
    if common.json:
        say_json({"name": model, "folder": folder, **card})
    else:
        say_fields({"name": model, "folder": folder, **card})


@group.command("verify")
@common_options()
def verify(
    common: Common,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Shipped names or model folders; none means all shipped models."),
    ] = None,
) -> None:
    """Compare weights with the SHA-256 in their card.

    Exit code 1 when any model's weights are absent or differ.
    """
    names = models or cards.shipped_models()
    reports = {name: cards.verify(cards.find_model(name)) for name in names}
    if common.json:
        say_json([{"name": name, **report.as_dict()} for name, report in reports.items()])
    else:
        for name, report in reports.items():
            say(f"{name}: {'ok' if report.ok else 'FAILED'}: {report.sentence()}")
    bad = [name for name, report in reports.items() if not report.ok]
    if bad:
        raise RunError(f"{len(bad)} of {len(reports)} models failed: {', '.join(bad)}")
