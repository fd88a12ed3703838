"""Lungs and infiltrate of one scan: load the models once, run them on as many scans as wanted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, ModelError
from pneumoscope.inference.density import dense_enough, density_limit_hu
from pneumoscope.inference.engines import Engine, choose_engine, make_engine
from pneumoscope.inference.inputs import ModelInput, input_from_card
from pneumoscope.inference.lungs import find_lungs
from pneumoscope.inference.slices import predict_probability
from pneumoscope.inference.volumes import VOLUME_KINDS, VolumeInput, class_meanings, predict_volume
from pneumoscope.models.cards import find_model
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import INFILTRATE_LABEL, Mask, Volume

DEFAULT_MODEL = "infiltrate"
DEFAULT_LUNGS_MODEL = "lungs"

SLAB = 32
"""Slices worked on at a time: bounds memory at the float images of one slab, whatever the scan's length."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in a scan.

    Attributes:
        lungs: 1 = right, 2 = left.
        infiltrate: 1 = infiltrate, inside the lungs only.
        probability: (i, j, k) uint8, the network's probability of infiltrate times 255; 0 outside the lungs.
        findings: what there is to report.
        cards: cards of the models used, by task (``lungs`` is absent when a mask was given).
        seconds: wall time by step.
        engines: what computed, by task, e.g. ``openvino bf16``.
    """

    lungs: Mask
    infiltrate: Mask
    probability: NDArray[np.uint8]
    findings: tuple[Finding, ...]
    cards: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    engines: dict[str, str] = field(default_factory=dict)


class Segmenter:
    """A lung model and an infiltrate model, loaded once.

    Args:
        model: infiltrate model, a shipped name or a model folder.
        lungs_model: lung model, likewise; loaded only when a scan comes without a lung mask.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``.
        batch_size: slices at a time.
        engine: ``auto``, ``torch``, ``onnxruntime`` or ``openvino``; see `pneumoscope.inference.engines`.

    Raises:
        ModelError: a model is unknown, damaged, or made for another task.
        InputError: the device or the engine is not on this machine.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        lungs_model: str | Path = DEFAULT_LUNGS_MODEL,
        *,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        batch_size: int = 8,
        engine: str = "auto",
    ) -> None:
        chosen = choose_engine(engine, device=device, precision=precision)
        self.compute: dict[str, Any] = {"batch_size": batch_size}
        self._ready: dict[str, Any] = {"engine": chosen, "device": device, "precision": precision}
        network, self.card = _load(model, "infiltrate")
        self.engine = make_engine(network, **self._ready)
        self.volumes = _volume_input(self.card)
        self._input = None if self.volumes else input_from_card(self.card)
        self._lungs_name = lungs_model
        self._lungs: tuple[Engine, dict[str, Any], ModelInput] | None = None

    @property
    def input(self) -> ModelInput:
        """The slices' preprocessing; a network on volumes has `volumes` instead."""
        if self._input is None:
            raise ModelError("this model looks at volumes and has no preprocessing of slices")
        return self._input

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
        cards, engines = {"infiltrate": self.card}, {"infiltrate": self.engine.label}
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
        find = self._probability if self.volumes is None else self._probability_3d
        probability = find(volume, lungs, _named(progress, "infiltrate"))
        threshold = float(self.card.get("threshold", 0.5))
        smallest = float(self.card.get("smallest_ml", 0.0)) / volume.grid.voxel_volume_ml
        found = Mask(_labels(probability, threshold, smallest), volume.grid, dict(INFILTRATE_LABEL))
        seconds["infiltrate"] = time.perf_counter() - begun
        return Segmentation(lungs, found, probability, findings, cards, seconds, engines)

    def _probability(self, volume: Volume, lungs: Mask, progress: Progress) -> NDArray[np.uint8]:
        """Probability times 255 (i, j, k), inside the lungs; computed on slices that show lung, a slab at a time."""
        stack, inside = to_slices(volume.hu), to_slices(lungs.labels) > 0  # (n, h, w)
        out = np.zeros(stack.shape, np.uint8)
        wanted = np.flatnonzero(inside.any(axis=(1, 2)))
        if len(wanted) == 0:
            return from_slices(out)
        fitted = self.input.fitted(inside)
        mirror = bool(self.card.get("mirror", False))
        above_hu = self.card.get("denser_than_lung_hu")
        limit_hu = None if above_hu is None else density_limit_hu(stack, inside, float(above_hu))
        for start in range(0, len(wanted), SLAB):
            rows = wanted[start : start + SLAB]
            images = fitted.images(stack[rows], inside[rows])
            p = predict_probability(self.engine, images, mirror=mirror, **self.compute)[:, 0]
            p = fitted.back(p, (stack.shape[1], stack.shape[2]))
            if limit_hu is not None:
                p = np.where(
                    dense_enough(stack[rows], inside[rows], limit_hu, volume.grid.spacing_mm[:2]), p, np.float32(0)
                )
            out[rows] = np.where(inside[rows], np.rint(np.clip(p, 0, 1) * 255), 0).astype(np.uint8)
            progress("slices", min(start + SLAB, len(wanted)), len(wanted))
        return from_slices(out)

    def _probability_3d(self, volume: Volume, lungs: Mask, progress: Progress) -> NDArray[np.uint8]:
        """As `_probability`, from a network on volumes; a scan without lung is not shown to it."""
        assert self.volumes is not None
        inside = lungs.any
        if not inside.any():
            return np.zeros(volume.grid.shape, np.uint8)
        meaning = class_meanings(self.card.get("labels") or {0: "background", 1: "infiltrate"})
        ill = next(number for number, name in meaning.items() if name == "infiltrate")
        found = predict_volume(volume, [self.engine], self.volumes, probability_of=ill, progress=progress)
        assert found.probability is not None
        return np.where(inside, found.probability, 0).astype(np.uint8)

    def _lung_model(self) -> tuple[Engine, dict[str, Any], ModelInput]:
        if self._lungs is None:
            model, card = _load(self._lungs_name, "lungs")
            self._lungs = make_engine(model, **self._ready), card, input_from_card(card)
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
        self.compute: dict[str, Any] = {"device": device, "precision": precision, "batch_size": batch_size}
        self.model, self.card = _load(model, "lungs")
        self.input = input_from_card(self.card)

    def __call__(self, volume: Volume) -> Mask:
        """Lungs on the scan's grid: 1 = right, 2 = left."""
        return find_lungs(volume, self.model, self.input, **self.compute)[0]


def segment_volume(
    volume: Volume,
    *,
    model: str | Path = DEFAULT_MODEL,
    lungs: Mask | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Segmentation:
    """Segment one scan; `options` are those of `Segmenter`. For many scans make one `Segmenter`."""
    return Segmenter(model, **options).run(volume, lungs, progress=progress)


def _labels(probability: NDArray[np.uint8], threshold: float, smallest_voxels: float) -> NDArray[np.uint8]:
    """Voxels (i, j, k) at or above the threshold, without pieces (26 neighbours) smaller than so many voxels."""
    import cc3d

    found = probability >= np.ceil(threshold * 255)
    if smallest_voxels > 1 and found.any():
        found = cc3d.dust(found, threshold=smallest_voxels, connectivity=26)
    return found.astype(np.uint8)


def _load(name: str | Path, task: str) -> tuple[Any, dict[str, Any]]:
    """Model and card, refused when the card says another task."""
    from pneumoscope.models.weights import load_model

    folder = find_model(name)
    model, card = load_model(folder)
    if card.get("task") != task:
        raise ModelError(f"is a model for {card.get('task')!r}, expected one for {task!r}", path=folder)
    return model, card


def _volume_input(card: dict[str, Any]) -> VolumeInput | None:
    """The preprocessing of a network on volumes; None for one on slices."""
    fields = card.get("preprocessing")
    volumes = isinstance(fields, dict) and fields.get("kind") in VOLUME_KINDS
    return VolumeInput.from_card(card) if volumes else None


def _named(progress: Progress, name: str) -> Progress:
    def call(what: str, done: int, total: int, note: str = "") -> None:
        progress(name, done, total, note)

    return call
