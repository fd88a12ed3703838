"""`pneumoscope model`: which models are here, what they are, whether they are whole, and for other programs."""

from __future__ import annotations

import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.help import new_group
from pneumoscope.cli.options import Common, common_options, model_names, pairs
from pneumoscope.cli.output import say, say_fields, say_json, say_table
from pneumoscope.errors import RunError
from pneumoscope.models import cards

if TYPE_CHECKING:
    from pneumoscope.volume import Volume

group = new_group("Shipped and own models: card, licence, checksum, export.")

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A shipped model's name, or a model folder.", autocompletion=model_names)
]


class Target(StrEnum):
    """Formats that other programs read."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    BUNDLE = "bundle"


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
    to: Annotated[Target, typer.Option("--to", metavar="onnx|torchscript|bundle", help="A graph, or a MONAI bundle.")],
    common: Common,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="The folder to write; default MODEL-FORMAT here.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW|DxHxW", help="Size of the pictures, where the card names none."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="SCAN", help="The scan to compare on; default a small synthetic one."),
    ] = None,
) -> None:
    """Write a model for other programs.

    None of them needs pneumoscope. A graph takes pictures (n, c, ...) and gives logits; it is compared with the network
    before it is kept, then on a scan. Of a network on volumes, model.toml says how a scan is shown to the graph
    (`model describe`).
    """
    from pneumoscope.inference.exports import TASKS, describe_export, verify_on_scan
    from pneumoscope.models.export import export_model

    sizes = _sizes(size)
    folder = out or Path(f"{cards.find_model(model).resolve().name}-{to.value}")
    done = export_model(model, folder, to.value, size=sizes, overwrite=common.overwrite)
    if to is not Target.BUNDLE:
        done = describe_export(done)
    shows_scans = check is not None or cards.read_card(cards.find_model(model)).get("task") in TASKS
    verified = verify_on_scan(model, done, _scan(check)) if shows_scans else None
    if common.json:
        on_scan = asdict(verified) if verified else None
        say_json({**asdict(done), "size": list(done.size), "files": list(done.files), "verified": on_scan})
        return
    taken = f"{' x '.join(map(str, done.size))}" + (f" or any multiple of {done.stride}" if done.stride else "")
    say(f"wrote {done.folder}: {', '.join(done.files)}, for pictures of {taken}")
    if done.difference is not None:
        say(f"{done.checked_with} computes the same from it; largest difference of logits {done.difference:.2g}")
    elif to is Target.ONNX:
        say("not compared with the network: neither onnxruntime nor openvino is installed")
    if verified:
        say(
            f"on the scan {verified.case} {verified.differing} of {verified.voxels} voxels are labelled otherwise than "
            f"by the network, which labels {verified.labelled}"
        )


def _scan(file: Path | None) -> Volume:
    """A scan to compare an export on."""
    from pneumoscope.datasets.phantom.folder import make_phantom
    from pneumoscope.io.read import read_volume

    return make_phantom("A", 0, size="tiny").volume if file is None else read_volume(file)


def _sizes(text: str | None) -> tuple[int, ...] | None:
    """``320x320`` as numbers."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no size; expected e.g. 320x320 or 80x160x160", param_hint="--size")
    return tuple(int(part) for part in parts)


@group.command("describe")
@common_options("overwrite")
def describe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX or TorchScript model.")],
    common: Common,
    patch: Annotated[
        str | None, typer.Option("--patch", metavar="DxHxW", help="Voxels of a window; 1xHxW for slices.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            "--window", metavar="LOW:HIGH", help="Hounsfield units of an input channel. Repeatable, in order."
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="N=NAME", help="What output channel N is. Repeatable.")
    ] = None,
    orientation: Annotated[
        str, typer.Option("--orientation", metavar="SPL", help="Where the axes of the picture run to, first to last.")
    ] = "SPL",
    spacing: Annotated[
        str | None, typer.Option("--spacing", metavar="AxBxC", help="Millimetres along these axes; default the scan's.")
    ] = None,
    overlap: Annotated[
        float, typer.Option("--overlap", metavar="SHARE", help="Share of a window that the next one covers.")
    ] = 0.5,
    to_range: Annotated[str, typer.Option("--range", metavar="LOW:HIGH", help="What a window is spread over.")] = "0:1",
    normalise: Annotated[
        str,
        typer.Option("--normalise", metavar="unit|zscore", help="zscore: less the scan's mean, over its deviation."),
    ] = "unit",
    channels: Annotated[
        str, typer.Option("--channels", metavar="first|last", help="Where the channels stand in the tensors.")
    ] = "first",
    activation: Annotated[
        str,
        typer.Option("--activation", metavar="softmax|sigmoid|none", help="What makes probabilities of the output."),
    ] = "softmax",
    check: Annotated[Path | None, typer.Option("--check", metavar="SCAN", help="Also run it on a scan.")] = None,
) -> None:
    """Describe how scans are shown to an ONNX or TorchScript file.

    Writes FILE.toml. What is needed and not given is asked for on a terminal. The model must answer to a window before
    anything is written.
    """
    from pneumoscope.inference.graphs import Description, write_description

    sides = _given(patch, "--patch", "Voxels of a window along the axes, e.g. 48x128x128", common).split("x")
    windows = window or _given(None, "--window", "Hounsfield units of each channel, e.g. -1000:400", common).split()
    names = label or _given(None, "--label", "Output channels, e.g. 0=background 1=infiltrate", common).split()
    try:
        description = Description(
            patch=tuple(int(n) for n in sides), labels={int(k): v for k, v in pairs(names, "--label").items()},
            window_hu=tuple(_two(text) for text in windows), orientation=orientation,
            spacing_mm=None if spacing is None else tuple(float(n) for n in spacing.split("x")),
            overlap=overlap, range=_two(to_range), normalise=normalise, channels=channels,  # type: ignore[arg-type]
            slices=sides[0] == "1", activation=activation,  # type: ignore[arg-type]
        )  # fmt: skip
    except ValueError as problem:
        raise typer.BadParameter(f"a number is needed ({problem}); see `pneumoscope model describe --help`") from None
    written = write_description(file, description, overwrite=common.overwrite)
    found = _checked(file, check) if check else {}
    if common.json:
        say_json({"file": written, "found_ml": found})
        return
    say(f"wrote {written}")
    for name, ml in found.items():
        say(f"{name}: {ml:.1f} ml in {check}")


def _given(value: str | None, flag: str, question: str, common: Common) -> str:
    """A value, asked for on a terminal where it was not given."""
    import sys

    if value is None and (common.json or common.quiet or not sys.stdin.isatty()):
        raise typer.BadParameter(f"is needed: {question}", param_hint=flag)
    return value if value is not None else str(typer.prompt(question))


def _two(text: str) -> tuple[float, float]:
    """``-1000:400`` as numbers."""
    low, _, high = text.partition(":")
    return float(low), float(high)


def _checked(file: Path, scan: Path) -> dict[str, float]:
    """Millilitres of each label of the model in a scan."""
    import numpy as np

    from pneumoscope.inference.external import Access
    from pneumoscope.inference.graphs import read as read_graph
    from pneumoscope.io.read import read_volume

    network = read_graph("onnx" if file.suffix.lower() == ".onnx" else "torchscript", str(file), Access())
    volume = read_volume(scan)
    labels, _ = network.predict(volume, ())
    return {
        name: float(np.isin(labels, values).sum()) * volume.grid.voxel_volume_ml
        for name, values in network.labels.items()
    }
