"""`pneumoscope model`: which models are here, what they are, whether they are whole, and for other programs."""

from __future__ import annotations

import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.help import new_group
from pneumoscope.cli.options import Common, common_options, model_names
from pneumoscope.cli.output import say, say_fields, say_json, say_table
from pneumoscope.errors import RunError
from pneumoscope.models import cards

group = new_group("Shipped and own models: card, licence, checksum, export.")

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A shipped model's name, or a model folder.", autocompletion=model_names)
]


class Target(StrEnum):
    """Formats that other programs read."""

    ONNX = "onnx"
    MONAI = "monai"


def add_to(app: typer.Typer) -> None:
    """Register the command group."""
    app.add_typer(group, name="model")


@group.command("list")
@common_options()
def list_models(common: Common) -> None:
    """List the shipped models."""
    rows = [_row(name) for name in cards.shipped_models()]
    if common.json:
        say_json(rows)
    else:
        short = [(r["name"], f"{(r['bytes'] or 0) / 1e6:.1f}", _short(r["licence"]), r["title"]) for r in rows]
        say_table(("name", "MB", "licence", "title"), short)
        say("whole licences and what a model was trained on: pneumoscope model info NAME")


def _short(licence: str | None) -> str:
    """The name of a licence without what is said about it."""
    return re.split(r" \(|[,;:]", licence or "")[0]


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
        typer.Argument(metavar="MODEL", help="Shipped names or model folders; none means all shipped models."),
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


@group.command("export")
@common_options("overwrite")
def export(
    model: Model,
    to: Annotated[Target, typer.Option("--to", metavar="onnx|monai", help="An ONNX graph, or a MONAI bundle.")],
    common: Common,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="The folder to write; default MODEL-FORMAT here.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW|DxHxW", help="Size of the pictures, where the card names none."),
    ] = None,
) -> None:
    """Write a model for other programs.

    The ONNX graph takes `image` (n, c, ...) and gives `logits`; it is compared with the network before it is kept.
    """
    from pneumoscope.models.export import export_model

    sizes = _sizes(size)
    folder = out or Path(f"{cards.find_model(model).resolve().name}-{to.value}")
    done = export_model(model, folder, to.value, size=sizes, overwrite=common.overwrite)
    if common.json:
        say_json({**asdict(done), "size": list(done.size), "files": list(done.files)})
        return
    say(f"wrote {done.folder}: {', '.join(done.files)}, for pictures of {' x '.join(map(str, done.size))}")
    if done.checked_with:
        say(f"{done.checked_with} computes the same from it; largest difference of logits {done.difference:.2g}")
    elif to is Target.ONNX:
        say("not compared with the network: neither onnxruntime nor openvino is installed")


def _sizes(text: str | None) -> tuple[int, ...] | None:
    """``320x320`` as numbers."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no size; expected e.g. 320x320 or 80x160x160", param_hint="--size")
    return tuple(int(part) for part in parts)
