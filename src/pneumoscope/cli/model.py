"""`pneumoscope model`: which models are here, what they are, whether they are whole, and for other programs."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.options import Common, common_options, model_names, new_group
from pneumoscope.cli.output import say, say_json, say_result, say_table
from pneumoscope.errors import RunError
from pneumoscope.models import cards
from pneumoscope.models.options import DescribeOptions, ExportOptions

if TYPE_CHECKING:
    from pneumoscope.volume import Volume

group = new_group("Shipped and own models: card, licence, checksum, export.")

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A shipped model's name, or a model folder.", autocompletion=model_names)
]


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
    facts = {"name": model, "folder": folder, **cards.read_card(folder)}
    say_result(common, facts, facts)


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
@common_options("overwrite", options=ExportOptions)
def export(
    model: Model,
    common: Common,
    options: ExportOptions,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="The folder to write; default MODEL-FORMAT here.")
    ] = None,
) -> None:
    """Write a model for other programs.

    None of them needs pneumoscope. A graph takes pictures (n, c, ...) and gives logits; it is compared with the network
    before it is kept, then on a scan. Of a network on volumes, model.toml says how a scan is shown to the graph
    (`model describe`).
    """
    from pneumoscope.inference.exports import TASKS, describe_export, verify_on_scan
    from pneumoscope.models.export import OPSET, export_model

    folder = out or Path(f"{cards.find_model(model).resolve().name}-{options.to}")
    done = export_model(model, folder, options.to, size=options.size, overwrite=common.overwrite)
    if options.to != "bundle":
        done = describe_export(done)
    shows_scans = options.check is not None or cards.read_card(cards.find_model(model)).get("task") in TASKS
    verified = verify_on_scan(model, done, _scan(options.check)) if shows_scans else None
    if common.json:
        say_json({**asdict(done), "verified": asdict(verified) if verified else None})
        return
    taken = f"{' x '.join(map(str, done.size))}" + (f" or any multiple of {done.stride}" if done.stride else "")
    opset = f"; opset {OPSET}" if options.to == "onnx" else ""
    say(f"wrote {done.folder}: {', '.join(done.files)}, for pictures of {taken}, any number at a time{opset}")
    if done.difference is not None:
        say(f"{done.checked_with} computes the same from it; largest difference of logits {done.difference:.2g}")
    elif options.to == "onnx":
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


@group.command("describe")
@common_options("overwrite", options=DescribeOptions)
def describe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX or TorchScript model.")],
    common: Common,
    options: DescribeOptions,
    check: Annotated[Path | None, typer.Option("--check", metavar="SCAN", help="Also run it on a scan.")] = None,
) -> None:
    """Describe how scans are shown to an ONNX or TorchScript file.

    Writes FILE.toml. What is needed and not given is asked for on a terminal. The model must answer to a window before
    anything is written.
    """
    from pneumoscope.inference.graphs import Description, write_description

    description = Description(**{**vars(options), "slices": options.patch[0] == 1})
    written = write_description(file, description, overwrite=common.overwrite)
    found = _checked(file, check) if check else {}
    if common.json:
        say_json({"file": written, "found_ml": found})
        return
    say(f"wrote {written}")
    for name, ml in found.items():
        say(f"{name}: {ml:.1f} ml in {check}")


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
