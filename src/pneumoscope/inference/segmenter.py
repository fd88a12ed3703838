"""Lungs and infiltrate of one scan: load the models once, run them on as many scans as wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope import components
from pneumoscope.errors import Finding, InputError, ModelError
from pneumoscope.inference.chest import ChestInput
from pneumoscope.inference.engines import Engine, choose_engine, make_engine
from pneumoscope.inference.inputs import HuFrameInput, ModelInput
from pneumoscope.inference.lungs import STATE_OF_FINDING as LUNG_STATES
from pneumoscope.inference.lungs import find_lungs, lungs_input
from pneumoscope.inference.maps import Maps, is_mirrored, slice_maps, volume_maps
from pneumoscope.inference.members import joint_card, load_for, load_members
from pneumoscope.inference.unlike import FINDING
from pneumoscope.objects import Shown
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import INFILTRATE_LABEL, Mask, Volume

if TYPE_CHECKING:
    from pneumoscope.severity.measure import Severity

DEFAULT_MODEL = "infiltrate"
DEFAULT_LUNGS_MODEL = "lungs"
STATE_OF_FINDING = {**LUNG_STATES, FINDING: "unlike_training_scans"}
"""Findings that a reader must know before believing the numbers, as `severity.states.STATES`."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(Shown):
    """What was found in a scan.

    Attributes:
        lungs: 1 = right, 2 = left.
        infiltrate: 1 = infiltrate, inside the lungs only.
        probability: (i, j, k) uint8, the network's probability of infiltrate times 255; 0 outside the lungs.
        findings: what there is to report.
        cards: cards of the models used, by task (``lungs`` is absent when a mask was given).
        seconds: wall time by step.
        engines: what computed, by task, e.g. ``openvino bf16``.
        entropy: (i, j, k) uint8, see `maps.Maps`; None when not asked for.
        variance: likewise.
        mirrored: whether the infiltrate networks were also shown the scan mirrored left to right.
        scan: the scan.
        distance: of the scan from those the model learnt from, see `unlike.ScanSpace`; None where its card has none.
    """

    lungs: Mask
    infiltrate: Mask
    probability: NDArray[np.uint8]
    findings: tuple[Finding, ...]
    cards: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    engines: dict[str, str] = field(default_factory=dict)
    entropy: NDArray[np.uint8] | None = None
    variance: NDArray[np.uint8] | None = None
    mirrored: bool = False
    distance: float | None = None
    scan: Volume | None = None

    panels = 3

    def __repr__(self) -> str:
        return f"Segmentation({self.lungs}, {self.infiltrate})"

    @cached_property
    def severity(self) -> Severity:
        """How much of the lungs is affected.

        Raises:
            InputError: the segmentation has no scan.
        """
        if self.scan is None:
            raise InputError("this segmentation has no scan to measure; give both to quantify")
        measured: Severity = import_module("pneumoscope.cases.segment").assess_segmentation(self.scan, self)
        return measured

    def _numbers(self) -> Mapping[str, str]:
        masks = {**self.lungs._numbers(), **self.infiltrate._numbers()}
        return masks if self.scan is None else self.severity._numbers()

    def _draw(self, axes: Sequence[Any]) -> None:
        import_module("pneumoscope.reports.figures").draw_object(axes, self)

    def save(self, folder: str | Path) -> Path:
        """Write a case folder as the verb ``segment`` does: masks, report.json, report.html; gives the folder.

        Raises:
            InputError: the segmentation has no scan.
        """
        return Path(import_module("pneumoscope.cases.segment").save_segmentation(self, Path(folder)))

    def to_nibabel(self) -> dict[str, Any]:
        """``lungs`` and ``infiltrate`` as nibabel images on the grid of the scan's file."""
        return {"lungs": self.lungs.to_nibabel(), "infiltrate": self.infiltrate.to_nibabel()}

    def to_sitk(self) -> dict[str, Any]:
        """``lungs`` and ``infiltrate`` as SimpleITK images, likewise."""
        return {"lungs": self.lungs.to_sitk(), "infiltrate": self.infiltrate.to_sitk()}


class Segmenter:
    """A lung model and an infiltrate model, loaded once.

    Args:
        model: infiltrate model, a shipped name or a model folder; of several the answers are averaged.
        lungs_model: lung model, likewise; loaded only when a scan comes without a lung mask.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        batch_size: slices at a time.
        engine: ``auto``, ``torch``, ``onnxruntime`` or ``openvino``; see `pneumoscope.inference.engines`.
        mirror: also show the scan mirrored left to right and average, twice the time; None does as the card says.
        uncertainty: also make the maps of entropy and variance.

    Raises:
        ModelError: a model is unknown, damaged, made for another task, or does not go with the others.
        InputError: the device or the engine is not on this machine.
    """

    def __init__(
        self,
        model: str | Path | Sequence[str | Path] = DEFAULT_MODEL,
        lungs_model: str | Path = DEFAULT_LUNGS_MODEL,
        *,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        batch_size: int = 8,
        engine: str = "auto",
        mirror: bool | None = None,
        uncertainty: bool = False,
    ) -> None:
        chosen = choose_engine(engine, device=device, precision=precision)
        self.compute: dict[str, Any] = {"batch_size": batch_size}
        self._ready: dict[str, Any] = {"engine": chosen, "device": device, "precision": precision}
        models = [model] if isinstance(model, (str, Path)) else list(model)
        self.members = load_members(models, **self._ready)
        self.card = joint_card(self.members)
        self.mirror, self.uncertainty = mirror, uncertainty
        self._lungs_name = lungs_model
        self._lungs: tuple[Engine, dict[str, Any], ModelInput | ChestInput] | None = None

    @property
    def input(self) -> ModelInput:
        """The slices' preprocessing of the first network; one on volumes has `Member.volumes` instead."""
        if self.members[0].slices is None:
            raise ModelError("this model looks at volumes and has no preprocessing of slices")
        return self.members[0].slices

    def run(self, volume: Volume, lungs: Mask | None = None, *, progress: Progress = silent) -> Segmentation:
        """Segment one scan.

        Args:
            volume: the scan.
            lungs: lung mask on the scan's grid, used instead of the lung model.
            progress: called per batch of slices.

        Raises:
            GeometryError: the lung mask lies on another grid.
        """
        seconds: dict[str, float] = {}
        cards, engines = {"infiltrate": self.card}, {"infiltrate": self.members[0].engine.label}
        findings: tuple[Finding, ...] = ()
        begun = time.perf_counter()
        if lungs is None:
            model, cards["lungs"], lung_input = self._lung_model()
            engines["lungs"] = model.label
            lungs, findings = find_lungs(volume, model, lung_input, progress=_named(progress, "lungs"), **self.compute)
        else:
            volume.grid.require_same_space(lungs.grid, "the lung mask")
        seconds["lungs"] = time.perf_counter() - begun
        begun = time.perf_counter()
        distance, more = self._distance(volume, lungs)
        findings = (*findings, *more)
        maps = self._maps(volume, lungs, _named(progress, "infiltrate"))
        threshold = float(self.card.get("threshold", 0.5))
        smallest = float(self.card.get("smallest_ml", 0.0)) / volume.grid.voxel_volume_ml
        found = Mask(_labels(maps.probability, threshold, smallest), volume.grid, dict(INFILTRATE_LABEL))
        seconds["infiltrate"] = time.perf_counter() - begun
        mirrored = any(is_mirrored(member, self.mirror) for member in self.members)
        return Segmentation(
            lungs, found, maps.probability, findings, cards, seconds, engines, maps.entropy, maps.variance, mirrored,
            distance,
        )  # fmt: skip

    def _distance(self, volume: Volume, lungs: Mask) -> tuple[float | None, tuple[Finding, ...]]:
        """How far the scan lies from those the first network learnt from, and what there is to report of it."""
        first = self.members[0]
        if first.scans is None or not isinstance(first.slices, HuFrameInput):
            return None, ()
        distance = first.scans.of_scan(first.slices, volume, lungs)
        return distance, first.scans.findings(distance)

    def _maps(self, volume: Volume, lungs: Mask, progress: Progress) -> Maps:
        wanted: dict[str, Any] = {"mirror": self.mirror, "uncertainty": self.uncertainty, "progress": progress}
        if self.members[0].volumes is not None:
            return volume_maps(volume, lungs, self.members, **wanted)
        return slice_maps(volume, lungs, self.members, **self.compute, **wanted)

    def _lung_model(self) -> tuple[Engine, dict[str, Any], ModelInput | ChestInput]:
        if self._lungs is None:
            model, card = load_for(self._lungs_name, "lungs")
            self._lungs = make_engine(model, **self._ready), card, lungs_input(card)
        return self._lungs


class LungFinder:
    """A lung model without an infiltrate model, loaded once: the lungs of one scan after the other.

    Args:
        model: a shipped name or a model folder.
        device, precision, batch_size: as for `Segmenter`.

    Raises:
        ModelError: the model is unknown, damaged, or made for another task.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_LUNGS_MODEL,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 8,
    ) -> None:
        self.compute: dict[str, Any] = {"batch_size": batch_size}
        network, self.card = load_for(model, "lungs")
        self.model = make_engine(network, "torch", device=device, precision=precision)  # type: ignore[arg-type]
        self.input = lungs_input(self.card)

    def __call__(self, volume: Volume) -> Mask:
        """Lungs on the scan's grid: 1 = right, 2 = left."""
        return find_lungs(volume, self.model, self.input, **self.compute)[0]


def segment_volume(
    volume: Volume,
    *,
    model: str | Path | Sequence[str | Path] = DEFAULT_MODEL,
    lungs: Mask | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Segmentation:
    """Segment one scan; `options` are those of `Segmenter`. For many scans make one `Segmenter`."""
    found = Segmenter(model, **options).run(volume, lungs, progress=progress)
    masks = {name: replace(getattr(found, name), native=volume.native) for name in ("lungs", "infiltrate")}
    return replace(found, scan=volume, **masks)


def _labels(probability: NDArray[np.uint8], threshold: float, smallest_voxels: float) -> NDArray[np.uint8]:
    """Voxels (i, j, k) at or above the threshold, without pieces (26 neighbours) smaller than so many voxels."""
    return components.without_small(probability >= np.ceil(threshold * 255), smallest_voxels).astype(np.uint8)


def _named(progress: Progress, name: str) -> Progress:
    def call(what: str, done: float, total: int, note: str = "") -> None:
        progress(name, done, total, note)

    return call
