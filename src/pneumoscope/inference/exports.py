"""What belongs to an export of a model beside its graph: how a scan is shown to it, and a comparison on a scan.

`pneumoscope.models.export` writes the files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError, RunError
from pneumoscope.inference.engines import Engine, TorchEngine
from pneumoscope.inference.graphs import Description, runner, toml_beside
from pneumoscope.inference.inputs import load_members
from pneumoscope.inference.lungs import find_lungs, lungs_input
from pneumoscope.inference.maps import slice_maps, volume_maps
from pneumoscope.inference.segmenter import LungFinder
from pneumoscope.io.files import write_text
from pneumoscope.models.cards import find_model, read_card
from pneumoscope.models.export import ONNX_FILE, SCRIPT_FILE, Exported
from pneumoscope.models.weights import load_model
from pneumoscope.progress import silent
from pneumoscope.volume import Mask, Volume

MOST_DIFFERENT = 1e-4
"""Share of a scan's voxels that may differ: where two sums in float32 fall on two sides of a threshold."""

TASKS = ("infiltrate", "lungs")  # Models that are shown scans


@dataclass(frozen=True)
class Verified:
    """An export and its network on one scan."""

    case: str  # the scan's
    voxels: int  # of the scan
    labelled: int  # voxels that the network labels
    differing: int  # voxels that the export labels otherwise


class _FileEngine(Engine):
    """An exported file in the place of its network; pictures are padded to the stride as the network pads inside."""

    name = "export"

    def __init__(self, engine: Engine, kind: str, path: Path, done: Exported) -> None:
        super().__init__(engine.model, "fp32")
        self._run, self._done = runner(kind, path), done

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        sizes = images.shape[2:]
        if self._done.stride is None and sizes != self._done.size:
            raise InputError(
                f"the export takes pictures of {list(self._done.size)}, but this scan is shown as {list(sizes)}; give "
                "a --size of multiples of the network's stride",
                path=self._done.folder,
            )
        short = [(0, -n % (self._done.stride or 1)) for n in sizes]
        padded = np.pad(images, [(0, 0), (0, 0), *short], mode="edge")
        kept: Any = (..., *(slice(n) for n in sizes))
        return np.asarray(np.asarray(self._run(padded), np.float32)[kept])


def verify_on_scan(model: str | Path, done: Exported, volume: Volume) -> Verified:
    """Show a scan to a network and to its export, each prepared as the card says.

    Args:
        model: what was exported, a shipped name or a model folder.
        done: its export.
        volume: the scan; of an infiltrate model the shipped lung model finds the lungs.

    Raises:
        InputError: the model is shown something else than scans.
        RunError: more than `MOST_DIFFERENT` of the voxels differ.
    """
    task = read_card(find_model(model)).get("task")
    if task not in TASKS:
        raise InputError(f"{model} is a model for {task!r}, which is not shown scans; leave --check out")
    inside = LungFinder(device="cpu", precision="fp32")(volume) if task == "infiltrate" else None
    name = next(name for name in done.files if name.endswith((ONNX_FILE, SCRIPT_FILE)))
    file = "onnx" if name == ONNX_FILE else "torchscript", done.folder / name, done
    own, exported = (_labels(model, graph, volume, inside) for graph in (None, file))
    differing = int(np.count_nonzero(own != exported))
    found = Verified(volume.case, own.size, int(np.count_nonzero(own)), differing)
    if differing > MOST_DIFFERENT * own.size:
        raise RunError(
            f"labels {differing} of {own.size} voxels of {volume.case} otherwise than the network; do not use it",
            path=file[1],
        )
    return found


def _labels(
    model: str | Path, file: tuple[str, Path, Exported] | None, volume: Volume, inside: Mask | None
) -> NDArray[Any]:
    """Labels of a scan, by the network or by the file in its place."""
    if inside is None:
        network, card = load_model(find_model(model))
        engine: Engine = TorchEngine(network, "fp32", "cpu")
        if file is not None:
            engine = _FileEngine(engine, *file)
        return find_lungs(volume, engine, lungs_input(card))[0].labels
    member = load_members([model], engine="torch", device="cpu", precision="fp32")[0]
    if file is not None:
        member = replace(member, engine=_FileEngine(member.engine, *file))
    wanted: dict[str, Any] = {"mirror": None, "uncertainty": False, "progress": silent}
    if member.volumes is not None:
        maps = volume_maps(volume, inside, [member], **wanted)
    else:
        maps = slice_maps(volume, inside, [member], batch_size=8, **wanted)
    return maps.probability >= np.ceil(255 * float(member.card.get("threshold", 0.5)))


def describe_export(done: Exported) -> Exported:
    """Write the description of an exported graph of a network on volumes; of others, whose preparation it cannot say,
    there is none."""
    card = read_card(done.folder)
    fields, labels = card.get("preprocessing") or {}, card.get("labels") or {}
    named = {int(n): str(name) for n, name in (labels.items() if isinstance(labels, dict) else enumerate(labels))}
    if fields.get("kind") != "hu_volume" or fields.get("grey_levels") or len(named) < 2:
        return done
    spacing = fields.get("spacing_mm")
    said = Description(
        patch=done.size, labels=named, window_hu=(tuple(fields["window_hu"]),),
        normalise=fields.get("normalise", "unit"),
        spacing_mm=None if spacing is None else tuple(spacing[::-1]), blend=fields.get("blend", "mean"),
        overlap=fields.get("overlap", 0.5),
    )  # fmt: skip
    path = toml_beside(done.folder / str(card["weights"]["file"]))
    write_text(path, said.as_toml())
    return replace(done, files=tuple(sorted((*done.files, path.name))))
