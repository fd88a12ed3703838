"""Options of whatever runs a model, of `model export` and `describe`; a file of their own, so that help stays light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from pneumoscope.options import REQUIRED, named, option, require_choices, sides


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What segments scans; `device` is auto, cpu, cuda, cuda:N or mps, `precision` auto takes bf16 where it is fast."""

    model: str | Path | Sequence[str | Path] = option(
        "infiltrate",
        "A shipped model's name, a model folder, or a model of another program: nnunet:DIR[@fold][@checkpoint], "
        "bundle:PATH, onnx:FILE or torchscript:FILE. Given several times, the predictions are averaged.",
        metavar="NAME|DIR|KIND:PATH", file=True,
    )  # fmt: skip
    lungs_model: str | Path = option(
        "lungs", "The model that finds the lungs, likewise, or lungmask:NAME[@FILE] or totalsegmentator:total[@DIR].",
        metavar="NAME|DIR|KIND:PATH",
        file=True,
    )  # fmt: skip
    label: Sequence[str] = option(
        (), "What a label of a model of another program is: a name or number, and right lung, left lung, lung, "
        "ground-glass, consolidation, infiltrate, ignore or a lobe. Repeatable.", metavar="NAME=MEANING",
    )  # fmt: skip
    trust: bool = option(
        False, "Read models of other programs whose format can run code: pickled checkpoints, bundles with expressions."
    )
    engine: Literal["auto", "torch", "onnxruntime", "openvino"] = option(
        "auto", "What computes the networks on the CPU; the report names it. auto: the fastest with the same masks."
    )
    mirror: bool | None = option(
        None, "Also show the scan mirrored left to right and average: twice the time. Left out: as the card says."
    )
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"


class ModelKeywords(TypedDict, total=False):
    """Fields of `ModelOptions` as keywords of a call, for editors and type checkers."""

    lungs_model: str | Path
    label: Sequence[str]
    trust: bool
    engine: Literal["auto", "torch", "onnxruntime", "openvino"]
    mirror: bool | None
    device: str
    precision: Literal["auto", "fp32", "bf16"]


def _pair(text: str) -> tuple[float, float]:
    """``-1000:400`` as numbers."""
    low, _, high = text.partition(":")
    return float(low), float(high)


def _labels(values: Sequence[str]) -> dict[int, str]:
    return {int(number): name for number, name in named(values).items()}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written for other programs, and what it is compared on.

    Raises:
        InputError: a format that does not exist.
    """

    to: Literal["onnx", "torchscript", "bundle"] = option(REQUIRED, "A graph, or a MONAI bundle.")
    size: tuple[int, ...] | None = option(
        None, "Size of the pictures, where the card names none.", metavar="HxW|DxHxW", parse=sides
    )
    check: Path | None = option(
        None, "The scan to compare on; default a small synthetic one.", metavar="SCAN", file=True
    )

    def __post_init__(self) -> None:
        require_choices(self)


@dataclass(frozen=True, kw_only=True)
class DescribeOptions:
    """How a scan is shown to a network and what its channels mean; see `pneumoscope.inference.graphs`."""

    patch: tuple[int, ...] = option(
        REQUIRED, "Voxels of a window; 1xHxW for slices.", metavar="DxHxW", parse=sides,
        ask="Voxels of a window along the axes, e.g. 48x128x128",
    )  # fmt: skip
    window_hu: Sequence[tuple[float, ...]] = option(
        REQUIRED, "Hounsfield units of an input channel. Repeatable, in order.", metavar="LOW:HIGH",
        flags=("--window",), parse=lambda texts: tuple(map(_pair, texts)), many=True,
        ask="Hounsfield units of each channel, e.g. -1000:400",
    )  # fmt: skip
    labels: Mapping[int, str] = option(
        REQUIRED, "What output channel N is. Repeatable.", metavar="N=NAME", flags=("--label",), parse=_labels,
        many=True, ask="Output channels, e.g. 0=background 1=infiltrate",
    )  # fmt: skip
    orientation: str = option("SPL", "Where the axes of the picture run to, first to last.", metavar="SPL")
    spacing_mm: tuple[float, ...] | None = option(
        None, "Millimetres along these axes; default the scan's.", metavar="AxBxC", flags=("--spacing",),
        parse=lambda text: tuple(map(float, text.split("x"))),
    )  # fmt: skip
    overlap: float | tuple[float, ...] = option(
        0.5, "Share of a window that the next one covers; default 0.5.", metavar="SHARE", parse=float
    )
    blend: Literal["gaussian", "mean"] = option("gaussian", "How windows that overlap are averaged.")
    range: tuple[float, ...] = option(
        (0.0, 1.0), "What a window is spread over; default 0:1.", metavar="LOW:HIGH", parse=_pair
    )
    normalise: Literal["unit", "zscore"] = option("unit", "zscore: less the scan's mean, over its deviation.")
    channels: Literal["first", "last"] = option("first", "Where the channels stand in the tensors.")
    slices: bool = False
    activation: Literal["softmax", "sigmoid", "none"] = option("softmax", "What makes probabilities of the output.")
