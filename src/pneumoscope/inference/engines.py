"""What computes a network: torch, ONNX Runtime or OpenVINO, the last two when they are installed, on the CPU only.

``auto`` follows one rule, measured in `docs/decisions/0015-engines.md`: of what gives the same masks, the fastest. On a
CPU that computes in bf16, torch in bf16; on other CPUs, and where fp32 is asked for, OpenVINO, else ONNX Runtime, else
torch, whose masks in fp32 are alike. On other devices torch. OpenVINO and ONNX Runtime compute in fp32 unless bf16 is
asked for by name: no engine lowers the precision by itself.

Nothing leaves the machine: graphs are made by torch and read by the runtimes; OpenVINO's converter, and the telemetry
that comes with it, are not used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError, RunError
from pneumoscope.models.export import is_installed
from pneumoscope.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor, nn


ENGINES = ("torch", "onnxruntime", "openvino")
Precision = Literal["auto", "fp32", "bf16"]

KEPT_SIZES = 4  # Compiled graphs kept, one per size of the pictures; the oldest goes first


def installed_engines() -> tuple[str, ...]:
    """Engines whose packages are here, nothing imported; all but torch also need `onnx`, which writes their graphs."""
    graphs = is_installed("onnx")
    return tuple(name for name in ENGINES if name == "torch" or (graphs and is_installed(name)))


def choose_engine(engine: str = "auto", *, device: str = "auto", precision: Precision = "auto") -> str:
    """The engine that a name of the CLI stands for on this machine.

    Raises:
        InputError: no such engine, one that is not installed, or one for the CPU with another device.
    """
    from pneumoscope.training.devices import pick_device, pick_precision

    if engine != "auto" and engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}; known are auto, {', '.join(ENGINES)}")
    target = pick_device(device)
    there = installed_engines()
    if engine == "auto":
        if target.type != "cpu" or pick_precision(precision, target) == "bf16":
            return "torch"
        return next(name for name in ("openvino", "onnxruntime", "torch") if name in there)
    if engine not in there:
        raise InputError(f"the engine {engine} is not installed; run `pip install 'pneumoscope[fast]'` or use auto")
    if engine != "torch" and target.type != "cpu":
        raise InputError(
            f"the engine {engine} computes on the CPU, not on {device}; use --device cpu or --engine torch"
        )
    if engine == "onnxruntime" and precision == "bf16":
        raise InputError("the engine onnxruntime has no bf16; use --precision fp32 or another engine")
    return engine


def engine_label(engine: str = "auto", *, device: str = "auto", precision: Precision = "auto") -> str:
    """Engine and precision that such a call computes with, as `Engine.label`, without a network.

    Raises:
        InputError: as `choose_engine`.
    """
    chosen = choose_engine(engine, device=device, precision=precision)
    return f"{chosen} {_precision_of(chosen, device, precision)}"


def _precision_of(chosen: str, device: str, precision: Precision) -> Literal["fp32", "bf16"]:
    """torch goes by the processor where the precision is left open; the others stay in fp32."""
    from pneumoscope.training.devices import pick_device, pick_precision

    if chosen != "torch" and precision == "auto":
        return "fp32"
    return pick_precision(precision, pick_device(device))


class Engine(ABC):
    """A network ready to compute."""

    name: str  # of the engine

    def __init__(self, model: nn.Module, precision: Literal["fp32", "bf16"]) -> None:
        self.model = model.eval()  # the network. Its weights are read when a size of pictures is first met, not later.
        self.precision = precision  # what it computes in, ``fp32`` or ``bf16``; results are float32 always

    @abstractmethod
    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (n, o, *size) of pictures (n, c, *size); n may be 0.

        Raises:
            RunError: the engine failed.
        """

    @property
    def out_channels(self) -> int:
        """Channels of the logits."""
        return int(self.model.config.out_channels)  # type: ignore[union-attr, arg-type]

    @property
    def label(self) -> str:
        """Name and precision in one word, for reports: ``openvino bf16``."""
        return f"{self.name} {self.precision}"


class TorchEngine(Engine):
    """The reference: the network itself, channels-last, in autocast for bf16."""

    name = "torch"

    def __init__(self, model: nn.Module, precision: Literal["fp32", "bf16"], device: str = "cpu") -> None:
        import torch

        from pneumoscope.training.devices import pick_device

        super().__init__(model, precision)
        self.device = pick_device(device)
        volumes = any(p.ndim == 5 for p in model.parameters())
        self._layout = torch.channels_last_3d if volumes else torch.channels_last
        self.model = model.to(self.device, memory_format=self._layout)  # type: ignore[call-overload]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        import torch

        if not len(images):
            return np.empty((0, self.out_channels, *images.shape[2:]), np.float32)
        bf16 = self.precision == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            x = torch.from_numpy(images).to(self.device, memory_format=self._layout)
            out: NDArray[np.float32] = self.model(x).float().cpu().contiguous().numpy()
        return out


class _GraphEngine(Engine):
    """A runtime that compiles an ONNX graph per size of the pictures."""

    def __init__(self, model: nn.Module, precision: Literal["fp32", "bf16"]) -> None:
        super().__init__(model, precision)
        self._compiled: dict[tuple[int, ...], Any] = {}

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        from pneumoscope.models.export import to_onnx

        if not len(images):
            return np.empty((0, self.out_channels, *images.shape[2:]), np.float32)
        size = tuple(images.shape[2:])
        try:
            if size not in self._compiled:
                while len(self._compiled) >= KEPT_SIZES:
                    self._compiled.pop(next(iter(self._compiled)))
                self._compiled[size] = self._compile(to_onnx(self.model, size))
            return self._run(self._compiled[size], np.ascontiguousarray(images, np.float32))
        except RuntimeError as problem:
            first = str(problem).strip().splitlines()[0][:200] if str(problem).strip() else type(problem).__name__
            raise RunError(f"the engine {self.name} failed ({first}); use --engine torch") from problem

    @abstractmethod
    def _compile(self, graph: bytes) -> Any: ...

    @abstractmethod
    def _run(self, compiled: Any, images: NDArray[np.float32]) -> NDArray[np.float32]: ...


class OnnxRuntimeEngine(_GraphEngine):
    """ONNX Runtime on the CPU, in fp32, on as many threads as torch may use."""

    name = "onnxruntime"

    def _compile(self, graph: bytes) -> Any:
        return onnx_session(graph)

    def _run(self, compiled: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
        from pneumoscope.models.export import IMAGE

        return np.asarray(compiled.run(None, {IMAGE: images})[0], np.float32)


def onnx_session(graph: bytes | str) -> Any:
    """ONNX Runtime's session of a graph or its file, on the CPU, on as many threads as torch may use."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    onnxruntime.disable_telemetry_events()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class OpenVinoEngine(_GraphEngine):
    """OpenVINO on the CPU; the precision is always said, for its own default lowers it silently."""

    name = "openvino"

    def _compile(self, graph: bytes) -> Any:
        import torch

        from pneumoscope.models.export import openvino_core

        core = openvino_core()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        return core.compile_model(core.read_model(graph), "CPU", settings)

    def _run(self, compiled: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.array(compiled(images)[0], np.float32)  # a copy: the runtime owns what it returns


def make_engine(
    model: nn.Module, engine: str = "auto", *, device: str = "auto", precision: Precision = "auto"
) -> Engine:
    """A network in the engine wanted; `auto` by the rule at the top of this module.

    Raises:
        InputError: as `choose_engine`.
    """
    chosen = choose_engine(engine, device=device, precision=precision)
    kind = _precision_of(chosen, device, precision)
    if chosen == "torch":
        return TorchEngine(fold_norms(deepcopy(model)), kind, device)
    return OnnxRuntimeEngine(model, kind) if chosen == "onnxruntime" else OpenVinoEngine(model, kind)


def fold_norms(network: nn.Module) -> nn.Module:
    """Fold, in place, each batch normalisation into the convolution before it, as the graph runtimes do.

    The same function in eval mode, up to rounding. They are neighbours in a `Sequential`, or named ``conv1`` and
    ``bn1``.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in network.eval().modules():
        children = dict(module.named_children())
        pairs: Iterable[tuple[str, str]] = pairwise(children)
        if not isinstance(module, nn.Sequential):
            pairs = [(name, name.replace("conv", "bn")) for name in children if name.startswith("conv")]
        for first, second in pairs:
            convolution, norm = children[first], children.get(second)
            if isinstance(convolution, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return network


def predict_probability(
    model: nn.Module | Engine,
    images: NDArray[np.generic],
    *,
    batch_size: int = 8,
    device: str = "auto",
    precision: Precision = "auto",
    mirror: bool = False,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """Sigmoid outputs (n, o, h, w) float32 of images (n, c, h, w); n = 0 gives an empty array.

    Args:
        model: a network giving logits, put into eval mode; or one in its engine, whose device and precision hold.
        images: uint8 (scaled by 1/255) or float.
        batch_size: slices at a time; results do not depend on it.
        device: see `training.devices.pick_device`.
        precision: see `training.devices.pick_precision`.
        mirror: also run the slices mirrored left to right and average, twice the time.

    Raises:
        RunError: the network gave NaN or infinity.
    """
    import torch

    from pneumoscope.training.devices import pick_device, pick_precision

    if not isinstance(model, Engine):
        model = TorchEngine(model, pick_precision(precision, pick_device(device)), device)
    engine, scale = model, np.float32(1 / 255) if images.dtype == np.uint8 else np.float32(1)

    def probability(x: Tensor) -> Tensor:
        return torch.sigmoid(torch.from_numpy(engine.logits(x.numpy())))

    parts = []
    for start in range(0, len(images), batch_size):
        x = torch.from_numpy(images[start : start + batch_size].astype(np.float32) * scale)
        p = probability(x)
        if mirror:
            p = (p + probability(x.flip(-1)).flip(-1)) / 2
        parts.append(p.numpy())
        progress("slices", min(start + batch_size, len(images)), len(images))
    if not parts:
        return np.empty((0, engine.out_channels, *images.shape[2:]), np.float32)
    out = np.concatenate(parts)
    if not np.isfinite(out).all():
        raise RunError("the network gave NaN or infinite probabilities; try --precision fp32, or verify the model")
    return out
