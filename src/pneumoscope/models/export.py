"""Networks for other programs, none of which needs pneumoscope to run: ONNX, TorchScript, a MONAI bundle.

Nothing is sent or fetched. Graphs take any number of pictures at a time. They are traced at one size; a U-Net that does
not pad there takes every multiple of its stride as well, others only that size. The `onnx` package must be there; with
a runtime beside it the file is checked against the network before it is kept.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pneumoscope.errors import InputError, ModelError, RunError
from pneumoscope.io.files import prepare_folder, sha256, write_bytes, write_json, write_text
from pneumoscope.models.cards import CARD_FILE, find_model, write_card

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

ONNX_FILE, SCRIPT_FILE = "model.onnx", "model.ts"
IMAGE, LOGITS = "image", "logits"  # Names of the graph's input (n, c, *size) and output (n, o, *size), float32

OPSET = 18
TOLERANCE = 1e-3  # Largest difference of logits between the network and its export that is let pass; see `check_onnx`

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
"""What `monai.bundle verify_metadata` fetches; a copy of it can be given instead."""

Format = Literal["onnx", "torchscript", "bundle"]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path  # where
    files: tuple[str, ...]  # names in it, sorted
    size: tuple[int, ...]  # (h, w) or (d, h, w) that the network was traced at
    stride: int | None  # of what every axis may be any multiple; None where only `size` is taken
    checked_with: str | None  # the runtime that computed the same from the file, or None where none is installed
    difference: float | None  # largest difference of its logits from the network's, on a random picture


def to_onnx(model: nn.Module, size: Sequence[int], *, any_size: bool = False) -> bytes:
    """A network as an ONNX graph of float32 tensors.

    Args:
        model: with a `config` that has `in_channels`; it is left as it is.
        size: (h, w) or (d, h, w) of the pictures; their number is free.
        any_size: leave their size free too, for sizes that the network does not pad.

    Raises:
        InputError: the package `onnx` is not installed.
    """
    import torch

    if not is_installed("onnx"):
        raise InputError("ONNX graphs need the package onnx; run `pip install 'pneumoscope[fast]'`")
    channels = _channels(model)
    plain = deepcopy(model).to("cpu", torch.float32).eval()
    sample = torch.zeros(1, channels, *size)
    buffer = io.BytesIO()
    free = _free_axes(size, any_size=any_size)
    with warnings.catch_warnings(), torch.no_grad():
        # The newer exporter needs onnxscript; the older one is announced to go and warns of every constant it folds.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            plain,
            (sample,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=[IMAGE],
            output_names=[LOGITS],
            dynamic_axes={IMAGE: free, LOGITS: free},
        )
    return buffer.getvalue()


def to_torchscript(model: nn.Module, size: Sequence[int]) -> bytes:
    """A network as TorchScript of float32 tensors, traced at `size` and compared on random pictures.

    Raises:
        RunError: the traced network computes something else.
    """
    import torch

    plain = deepcopy(model).to("cpu", torch.float32).eval()
    pictures = [torch.from_numpy(images) for images in _pictures(model, size)]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer is announced to go, and warns of every shape it reads
        traced = torch.jit.trace(plain, torch.zeros(1, _channels(model), *size), check_trace=False)
        torch.jit.save(traced, buffer)
        difference = max(float((traced(images) - plain(images)).abs().max()) for images in pictures)
    if not difference <= TOLERANCE:
        raise RunError(f"the traced network differs by {difference:.3g} in its logits; nothing was written")
    return buffer.getvalue()


def check_onnx(model: nn.Module, graph: bytes, size: Sequence[int]) -> tuple[str | None, float | None]:
    """Which runtime computed the same from the graph, and the largest difference of random pictures' logits.

    Raises:
        RunError: they differ by more than `TOLERANCE`.
    """
    import numpy as np
    import torch

    runtime = next((name for name in _RUNTIMES if is_installed(name)), None)
    if runtime is None:
        return None, None
    run, plain = _RUNTIMES[runtime](graph), deepcopy(model).to("cpu", torch.float32).eval()
    difference = 0.0
    for images in _pictures(model, size):
        with torch.inference_mode():
            expected = plain(torch.from_numpy(images)).numpy()
        difference = max(difference, float(np.abs(run(images) - expected).max()))
    if not difference <= TOLERANCE:
        raise RunError(
            f"{runtime} computes logits from the ONNX file that differ by {difference:.3g} from the network's, "
            f"expected at most {TOLERANCE:g}; the file was not kept"
        )
    return runtime, difference


def export_model(
    name_or_dir: str | Path, out: str | Path, to: Format, *, size: Sequence[int] | None = None, overwrite: bool = False
) -> Exported:
    """Write a model folder for other programs.

    ``onnx``: `model.onnx` with the card beside it; ``torchscript``: `model.ts` likewise. ``bundle``: a MONAI bundle of
    `configs/metadata.json`, `configs/inference.json`, `models/model.ts` and `docs/README.md`; of a network on volumes
    it takes a scan to a mask, of others it holds network and inferer.

    Args:
        name_or_dir: a shipped model's name or a model folder.
        to: the format.
        size: (h, w) or (d, h, w); None takes the size in the card's preprocessing.
        overwrite: write over an export that lies there.

    Raises:
        ModelError: the model cannot be loaded, or its card names no size and none is given.
        InputError: an unknown format or an impossible size, `out` holds an export, or `onnx` is not installed.
        RunError: the export does not compute what the network does.
    """
    from pneumoscope.models.weights import load_model

    if to not in get_args(Format):
        raise InputError(f"unknown format {to!r}; known are {', '.join(get_args(Format))}")
    source = find_model(name_or_dir)
    model, card = load_model(source)
    picture = _size(model, card, size, source)
    stride = _stride(model, picture)
    any_size = stride is not None
    if to != "bundle":
        graph = to_onnx(model, picture, any_size=any_size) if to == "onnx" else to_torchscript(model, picture)
        checked, difference = check_onnx(model, graph, picture) if to == "onnx" else ("torch", None)
        file = ONNX_FILE if to == "onnx" else SCRIPT_FILE
        folder = prepare_folder(out, marker=file, overwrite=overwrite)
        write_bytes(folder / file, graph)
        facts = {"format": to, "input": IMAGE, "output": LOGITS, "size": list(picture), "multiple_of": stride,
                 "dynamic_axes": _free_axes(picture, any_size=any_size)}  # fmt: skip
        facts |= {"opset": OPSET} if to == "onnx" else {}
        sums = {"file": file, "bytes": len(graph), "sha256": sha256(folder / file)}
        write_card(folder, {**card, "weights": sums, "export": facts})
        return Exported(folder, (CARD_FILE, file), picture, stride, checked, difference)
    folder = prepare_folder(out, marker="configs/metadata.json", overwrite=overwrite)
    return Exported(folder, _write_bundle(folder, model, card, picture), picture, stride, "torch", None)


def is_installed(package: str) -> bool:
    """Whether a package is here; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _channels(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.in_channels)


def _size(model: nn.Module, card: dict[str, Any], size: Sequence[int] | None, folder: Path) -> tuple[int, ...]:
    """The picture's size as given, or from the card: a frame, a square, or a patch."""
    axes = 3 if any(p.ndim == 5 for p in model.parameters()) else 2
    found = size
    if found is None:
        fields = card.get("preprocessing") or {}  # a patch is (d, h, w)
        found = fields.get("frame") or fields.get("patch") or ([fields["size"]] * axes if "size" in fields else None)
    if found is None:
        raise ModelError("the card names no size of the pictures; give one, e.g. --size 320 320", path=folder)
    sizes = tuple(int(n) for n in found)
    if len(sizes) != axes or min(sizes) < 1:
        raise InputError(f"the network takes pictures of {axes} axes, got the size {list(sizes)}")
    return sizes


def _free_axes(size: Sequence[int], *, any_size: bool) -> dict[int, str]:
    """Axes of the input that may have any length, and their names: the number of pictures, and their sides."""
    return {0: "n", **(dict(enumerate("dhw"[-len(size) :], start=2)) if any_size else {})}


def _stride(model: nn.Module, size: Sequence[int]) -> int | None:
    """What the sizes of pictures may be multiples of; None for a network that pads this one or needs it as it is."""
    stride = getattr(model.config, "stride", None)
    return stride if isinstance(stride, int) and not any(n % stride for n in size) else None


def _pictures(model: nn.Module, size: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Random pictures to compare on: two of the size, and one of another where the size is free."""
    import numpy as np

    rng, stride = np.random.default_rng(0), _stride(model, size)
    yield rng.random((2, _channels(model), *size), np.float32)
    if stride is not None:
        yield rng.random((1, _channels(model), *(n + stride for n in size)), np.float32)


def _onnxruntime(graph: bytes) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {IMAGE: images})[0]


def _openvino(graph: bytes) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    core = openvino_core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images)[0]


_RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino}


@functools.cache
def openvino_core() -> Any:
    """The one `openvino.Core` of this process, never freed; the package's telemetry is neither loaded nor able to send.

    `openvino` looks for ``openvino_telemetry`` at import and has a silent stand-in for where it is absent; it is shown
    an absent one. The CPU plugin gives a thread a signal stack and takes it down with itself: after two were freed in
    the order they came, or one in another thread, the next Ctrl-C would be a segmentation fault.
    """
    import sys

    absent: Any = None
    sys.modules["openvino_telemetry"] = absent
    try:
        import openvino
    finally:
        del sys.modules["openvino_telemetry"]
    return openvino.Core()


def _write_bundle(folder: Path, model: nn.Module, card: dict[str, Any], size: tuple[int, ...]) -> tuple[str, ...]:
    """The files of a MONAI bundle; what is written last is what marks it as whole."""
    fields = card.get("preprocessing") or {}
    gaussian = fields.get("blend", "mean") == "gaussian"
    inference = {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location=@device).eval()",
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(size),
            "overlap": list(fields.get("overlap", [0.5] * 3)) if len(size) == 3 else 0,
            "mode": "gaussian" if gaussian else "constant",
        },
        **(_scan_to_mask(fields) if fields.get("kind") == "hu_volume" and not fields.get("grey_levels") else {}),
    }
    write_bytes(folder / "models" / SCRIPT_FILE, to_torchscript(model, size))
    write_json(folder / "configs" / "inference.json", inference)
    write_text(folder / "docs" / "README.md", _readme(card))
    write_json(folder / "configs" / "metadata.json", _metadata(card, model.config, size))
    return "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.ts"


def _scan_to_mask(fields: dict[str, Any]) -> dict[str, Any]:
    """What takes a scan in Hounsfield units to a mask on its grid, for a network on volumes (S, P, L)."""
    low, high = fields["window_hu"]
    spacing = fields.get("spacing_mm")
    before: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SPL"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": low, "a_max": high, "b_min": 0, "b_max": 1,
         "clip": True},
        *([{"_target_": "Spacingd", "keys": "image", "pixdim": spacing[::-1], "mode": "bilinear"}] if spacing else []),
        *([{"_target_": "NormalizeIntensityd", "keys": "image"}] if fields.get("normalise") == "zscore" else []),
    ]  # fmt: skip
    after = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
         "nearest_interp": False, "to_tensor": True},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "separate_folder": False},
    ]  # fmt: skip
    step = "{'image': x['image'], 'pred': @inferer(x['image'][None].to(@device), @network)[0].detach().cpu()}"
    return {
        "image": "scan.nii.gz",
        "output_dir": "out",
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "postprocessing": {"_target_": "Compose", "transforms": after},
        "run": [f"$[@postprocessing({step}) for x in [@preprocessing({{'image': @image}})]]"],
    }


def _metadata(card: dict[str, Any], config: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """What MONAI's bundles say about themselves; versions are those installed."""
    from importlib import metadata

    def version(name: str) -> str:
        return metadata.version(name) if is_installed(name) else "not installed"

    given = card.get("labels") or {}
    named = given.items() if isinstance(given, dict) else enumerate(given)
    labels = {int(number): str(name) for number, name in named}
    classes = getattr(config, "out_channels", None) or config.classes
    both = {"spatial_shape": list(size), "dtype": "float32", "is_patch_data": len(size) == 3}
    image = {"type": "image", "format": "magnitude", "modality": "XR" if card.get("task") == "radiograph" else "CT",
             "num_channels": config.in_channels, "value_range": [],
             "channel_def": {n: f"input {n}" for n in range(config.in_channels)}}  # fmt: skip
    logits = {"type": "image", "format": "labels", "modality": "n/a", "num_channels": classes, "value_range": [],
              "channel_def": labels}  # fmt: skip
    return {
        "schema": SCHEMA,
        "version": str(card.get("version", "1")),
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "changelog": {str(card.get("version", "1")): "exported by pneumoscope"},
        "required_packages_version": {"nibabel": version("nibabel")},
        "name": str(card.get("title") or card.get("task") or "pneumoscope"),
        "authors": "see the card",
        "task": str(card.get("task", "")),
        "description": str(card.get("title") or card.get("task") or ""),
        "intended_use": "Research only; not a medical device.",
        "copyright": _licence(card),
        "network_data_format": {"inputs": {IMAGE: {**image, **both}}, "outputs": {"pred": {**logits, **both}}},
        "card": card,
    }


def _licence(card: dict[str, Any]) -> str:
    """The card's licence, or all of the data's where it names several."""
    given = card.get("licence") or ""
    return given if isinstance(given, str) else ", ".join(map(str, given))


def _readme(card: dict[str, Any]) -> str:
    lines = [
        f"# {card.get('title') or card.get('task') or 'A pneumoscope model'}",
        "",
        "Exported by pneumoscope, which is not needed to run it. The input of `models/model.ts` is what the card in",
        "`configs/metadata.json` says under `preprocessing`; the output are logits. Where `configs/inference.json` has",
        "`run`: python -m monai.bundle run --config_file configs/inference.json --bundle_root . --image scan.nii.gz",
        "",
        f"Licence: {_licence(card) or 'not stated'}",
        "",
        *(f"- {limit}" for limit in card.get("limits", [])),
    ]
    return "\n".join(lines).rstrip() + "\n"
