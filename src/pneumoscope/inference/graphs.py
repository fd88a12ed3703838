"""ONNX and TorchScript files with a TOML beside them that says how a scan is shown to them.

Neither runs Python. `lesion.onnx` has its `lesion.toml`, written by `pneumoscope model describe` or by hand::

    orientation = "SPL"           # where the three axes of the picture run to, first to last
    spacing_mm = [2.5, 0.8, 0.8]  # along these axes; left out: the scan's own
    patch = [48, 128, 128]        # voxels of a window along these axes; a first side of 1 for networks on slices
    overlap = 0.5                 # share of a window that the next one covers again, or one per axis
    blend = "gaussian"            # or "mean"
    window_hu = [[-1000, 400]]    # one input channel each, in this order
    range = [0.0, 1.0]            # what each window is spread over
    normalise = "unit"            # or "zscore": the window, less the scan's mean, over its deviation
    channels = "first"            # or "last": where the channels stand in the tensors
    slices = false                # true: tensors without a depth axis
    activation = "softmax"        # what makes probabilities of the output; or "sigmoid", "none"

    [labels]                      # one per output channel; with sigmoid the background has none
    0 = "background"
    1 = "infiltrate"
"""

from __future__ import annotations

import json
import math
import tomllib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import GeometryError, InputError, ModelError, RunError
from pneumoscope.geometry import require_axis_codes
from pneumoscope.inference.engines import Engine, onnx_session
from pneumoscope.inference.external import Access, Network
from pneumoscope.inference.volumes import VolumeInput, predict_volume
from pneumoscope.inference.windows3d import WindowPlan, softmax
from pneumoscope.io.files import write_text
from pneumoscope.models.export import is_installed
from pneumoscope.models.options import DescribeOptions
from pneumoscope.options import require_choices
from pneumoscope.preprocess.slices import HuWindow
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import Volume

if TYPE_CHECKING:
    import torch

HOUSE = "SPL"
"""Axes of (d, h, w) in `VolumeInput`: from the feet up, from front to back, from the patient's right to the left."""

MOST_VOXELS = 2**28  # Of a window; a float32 tensor of it is a gibibyte

_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True, kw_only=True)
class Description(DescribeOptions):
    """How a scan is shown to a network and what its channels mean; the fields are those of the TOML.

    Raises:
        InputError: a value that cannot be, named with what was expected.
    """

    def __post_init__(self) -> None:
        set_as = {
            "patch": tuple(map(int, self.patch)),
            "labels": {int(n): str(name) for n, name in dict(self.labels).items()},
            "window_hu": tuple((float(low), float(high)) for low, high in self.window_hu),
            "spacing_mm": None if self.spacing_mm is None else tuple(map(float, self.spacing_mm)),
            "range": tuple(map(float, self.range)),
            "overlap": tuple(np.broadcast_to(self.overlap, 3).tolist()),
        }
        for name, value in set_as.items():
            object.__setattr__(self, name, value)
        try:
            require_axis_codes(self.orientation)
        except GeometryError as problem:
            raise InputError(
                f"orientation is {self.orientation!r}, expected three letters such as SPL or RAS"
            ) from problem
        require_choices(self)
        if not isinstance(self.slices, bool):
            raise InputError(f"slices is {self.slices!r}, expected true or false")
        sides, spacing = len(self.patch), self.spacing_mm
        if sides != 3 or (self.slices and self.patch[0] != 1) or not 0 < math.prod(self.patch) <= MOST_VOXELS:
            raise InputError(
                f"patch is {list(self.patch)}, expected three sides along {self.orientation}, the first 1 for slices, "
                f"and at most {MOST_VOXELS} voxels"
            )
        if spacing is not None and (len(spacing) != 3 or not all(0 < s < math.inf for s in spacing)):
            raise InputError(f"spacing_mm is {list(spacing)}, expected three positive numbers along {self.orientation}")
        first = 1 if self.activation == "sigmoid" else 0
        if sorted(self.labels) != list(range(first, first + len(self.labels))) or len(self.labels) < 2 - first:
            raise InputError(
                f"labels are numbered {sorted(self.labels)}, expected one per output channel, counted from {first}"
            )
        if not self.window_hu or (self.normalise == "zscore" and len(self.window_hu) > 1):
            raise InputError(
                f"window_hu has {len(self.window_hu)} windows, expected one per channel, with zscore only one"
            )
        if len(self.range) != 2 or not self.range[0] < self.range[1]:
            raise InputError(f"range is {list(self.range)}, expected two numbers, the lower one first")
        assert self.plan  # checks windows, overlap and spacing

    @cached_property
    def plan(self) -> VolumeInput:
        """Windows and preparation in our own order of axes."""
        spacing = self.spacing_mm
        hull = HuWindow(min(low for low, _ in self.window_hu), max(high for _, high in self.window_hu))
        patch = self._in_house(self.patch)
        shares = self._in_house(self.overlap)  # type: ignore[arg-type]
        overlap = [0.0 if side == 1 else share for side, share in zip(patch, shares, strict=True)]
        mm = None if spacing is None else self._in_house(spacing)[::-1]
        windows = WindowPlan(tuple(patch), tuple(overlap), self.blend)  # type: ignore[arg-type]
        return VolumeInput(hull, windows, mm, normalise=self.normalise)  # type: ignore[arg-type]

    @property
    def _order(self) -> list[int]:
        """For each axis of (d, h, w) the axis of the network's picture that runs along it."""
        return [next(n for n, c in enumerate(self.orientation) if c in (code, _OPPOSITE[code])) for code in HOUSE]

    def _in_house(self, values: Sequence[Any]) -> list[Any]:
        return [values[axis] for axis in self._order]

    def shown(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Windows (n, 1, d, h, w) in [0, 1] as the network takes them."""
        if self.normalise == "unit":
            low, width = self.plan.window.low_hu, self.plan.window.width_hu
            if len(self.window_hu) > 1:
                hu = patches * np.float32(width) + np.float32(low)
                patches = np.concatenate([HuWindow(*pair).scale(hu) for pair in self.window_hu], axis=1)
            patches = patches * np.float32(self.range[1] - self.range[0]) + np.float32(self.range[0])
        turned = self._flipped(patches).transpose(0, 1, *(2 + i for i in np.argsort(self._order)))
        turned = turned[:, :, 0] if self.slices else turned
        return np.ascontiguousarray(np.moveaxis(turned, 1, -1) if self.channels == "last" else turned)

    def back(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's output as (n, c, d, h, w)."""
        output = np.moveaxis(output, -1, 1) if self.channels == "last" else output
        output = output[:, :, None] if self.slices else output
        return self._flipped(output.transpose(0, 1, *(2 + i for i in self._order)))

    def _flipped(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        flips = tuple(2 + n for n, axis in enumerate(self._order) if self.orientation[axis] != HOUSE[n])
        return np.flip(array, flips)

    def probabilities(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities (n, classes, ...), the background first; see `activation`.

        Raises:
            RunError: values that are no numbers, or no probabilities where they should be.
        """
        if not np.isfinite(output).all():
            raise RunError("the network gave values that are no numbers (NaN or infinite); export it again")
        if self.activation == "softmax":
            return softmax(output)
        if self.activation == "sigmoid":
            found = 1 / (1 + np.exp(-output))
            output = np.concatenate((1 - found.max(axis=1, keepdims=True), found), axis=1)
        if output.min() < -1e-3 or output.max() > 1 + 1e-3:
            raise RunError(
                f"the network gave values up to {output.max():.3g}, expected probabilities; change activation"
            )
        return output / np.maximum(output.sum(axis=1, keepdims=True), np.float32(1e-6))

    def as_toml(self) -> str:
        """The text that `read_description` reads."""
        lines = [f"{name} = {_toml(value)}" for name, value in asdict(self).items()
                 if name != "labels" and value is not None]  # fmt: skip
        names = [f"{number} = {json.dumps(name)}" for number, name in sorted(self.labels.items())]
        return "\n".join(
            ["# How pneumoscope shows a scan to the model beside this file.", *lines, "", "[labels]", *names, ""]
        )


def _toml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def toml_beside(model: str | Path) -> Path:
    """Where the description of a file lies."""
    return Path(model).with_suffix(".toml")


def read_description(model: str | Path) -> Description:
    """The description beside a model.

    Raises:
        ModelError: there is none, or it cannot be read; the message names what was expected.
    """
    path = toml_beside(model)
    if not path.is_file():
        raise ModelError(
            f"there is no {path.name} beside it that says how a scan is shown to it; write it with "
            f"`pneumoscope model describe {Path(model).name}`",
            path=model,
        )
    try:
        given = tomllib.loads(path.read_text("utf-8"))
        known = {item.name for item in fields(Description)}
        wrong = sorted(set(given) - known)
        if wrong:
            raise InputError(f"has the entries {', '.join(wrong)}; known are {', '.join(sorted(known))}")
        require_choices(Description, given)
        return msgspec.convert(given, Description, str_keys=True)
    except (InputError, ValueError, OSError) as problem:
        raise ModelError(f"cannot be read as a description: {problem}", path=path) from problem


def write_description(model: str | Path, description: Description, *, overwrite: bool = False) -> Path:
    """Write the TOML beside a model, after the model has answered to a window of the right shape.

    Raises:
        ModelError: the model cannot be read, or its channels are others.
        InputError: a description is there already.
    """
    path = toml_beside(model)
    if path.exists() and not overwrite:
        raise InputError("is there already; use --overwrite to write it again", path=path)
    kind = "onnx" if Path(model).suffix.lower() == ".onnx" else "torchscript"
    GraphEngine(kind, Path(model), description, Access())
    write_text(path, description.as_toml())
    return path


def files_of(kind: str, path: str) -> list[Path]:
    """See `external.content_of`."""
    return [Path(path), toml_beside(path)]


def read(kind: str, path: str, access: Access) -> Graph:
    """Open an ONNX or TorchScript file; see `external.open_external`."""
    if not Path(path).is_file():
        raise ModelError("no such file; expected an ONNX or TorchScript model", path=path)
    description = read_description(path)
    return Graph(Path(path), GraphEngine(kind, Path(path), description, access), description, access)


def runner(kind: str, path: Path, device: str = "cpu") -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What computes an ONNX or TorchScript file: arrays in, arrays out.

    Raises:
        ModelError: it is no such file, or takes several inputs.
        InputError: onnxruntime is not installed.
    """
    return _onnx(path) if kind == "onnx" else _torchscript(path, device)


class GraphEngine(Engine):
    """A file as an engine on windows (n, 1, d, h, w): windows and the way back are those of our own networks."""

    def __init__(self, kind: str, path: Path, description: Description, access: Access) -> None:
        self.path, self.description, self.precision = path, description, "fp32"
        self.name = "onnxruntime" if kind == "onnx" else "torchscript"
        self._run = runner(kind, path, access.device)
        self._try()

    @property
    def out_channels(self) -> int:
        """Classes with the background."""
        return len(self.description.labels) + (self.description.activation == "sigmoid")

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logarithms of the probabilities; see `Engine.logits`."""
        found = self.description.probabilities(self.description.back(self._answer(self.description.shown(images))))
        return np.log(np.maximum(found, np.float32(1e-12)), dtype=np.float32)

    def _answer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return np.asarray(self._run(images), np.float32)
        except Exception as problem:  # each runtime has errors of its own
            reason = " ".join(str(problem).split())[:200] or type(problem).__name__
            raise ModelError(
                f"cannot be run on a tensor of {list(images.shape)} ({self.name}: {reason}); correct "
                f"{toml_beside(self.path).name} (patch, window_hu, channels, slices)",
                path=self.path,
            ) from problem

    def _try(self) -> None:
        """Refuse channels and sizes other than the description's before anything is written."""
        said = self.description
        shown = said.shown(np.zeros((1, 1, *said.plan.plan.patch), np.float32))
        output = self._answer(shown)
        axes = list(shown.shape)
        axes[-1 if said.channels == "last" else 1] = len(said.labels)
        if list(output.shape) != axes:
            raise ModelError(
                f"makes {list(output.shape)} of {list(shown.shape)}, expected {axes}: a channel for each of the "
                f"labels {', '.join(said.labels.values())}; correct {toml_beside(self.path).name}",
                path=self.path,
            )
        said.probabilities(said.back(output))


def _onnx(path: Path) -> Any:
    if not is_installed("onnxruntime"):
        raise InputError("ONNX models need the package onnxruntime; run `pip install 'pneumoscope[fast]'`")
    try:
        session = onnx_session(str(path))
    except Exception as problem:  # onnxruntime's own classes
        raise ModelError(f"is no ONNX model: {' '.join(str(problem).split())[:160]}", path=path) from problem
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ModelError(f"takes {len(inputs)} inputs ({', '.join(i.name for i in inputs)}), expected one", path=path)
    return lambda images: session.run(None, {inputs[0].name: images})[0]


def load_script(path: Path, device: torch.device) -> Any:
    """A TorchScript module, in evaluation mode; such files hold no Python.

    Raises:
        ModelError: it is none.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError) as problem:
            raise ModelError("is no TorchScript file; save it with torch.jit.save", path=path) from problem


def _torchscript(path: Path, device: str) -> Any:
    import torch

    from pneumoscope.training.devices import pick_device

    target = pick_device(device)
    network = load_script(path, target)

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            output = network(torch.from_numpy(images).to(target))
        return np.asarray((output[0] if isinstance(output, (tuple, list)) else output).float().cpu())

    return run


class Graph(Network):
    """A file with its description."""

    def __init__(self, path: Path, engine: GraphEngine, description: Description, access: Access) -> None:
        self.path, self._engine, self._said = path, engine, description
        self.engine = engine.label
        self.mirrored = bool(access.mirror)
        self.labels = {name: (number,) for number, name in description.labels.items() if number}

    def predict(
        self, volume: Volume, probable: Sequence[str], progress: Progress = silent
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """See `Network.predict`."""
        shown = self._said.plan
        if self.mirrored:
            shown = replace(shown, plan=replace(shown.plan, mirror=(2,)))
        numbers = [value for name in probable for value in self.labels[name]]
        found = predict_volume(volume, [self._engine], shown, probability_of=numbers or None, progress=progress)
        return found.classes, found.probability
