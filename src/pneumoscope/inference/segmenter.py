"""Lungs and infiltrate of one scan: load the models once, run them on as many scans as wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, InputError, ModelError
from pneumoscope.inference.engines import choose_engine, make_engine
from pneumoscope.inference.external import Access, External, ExternalPrediction, is_external, open_external
from pneumoscope.inference.inputs import HuFrameInput, ModelInput, joint_card, load_for, load_members
from pneumoscope.inference.lungs import STATE_OF_FINDING as LUNG_STATES
from pneumoscope.inference.lungs import find_lungs, lungs_input
from pneumoscope.inference.maps import Maps, infiltrate_mask, is_mirrored, slice_maps, volume_maps
from pneumoscope.inference.out_of_distribution import FINDING
from pneumoscope.models.options import ModelOptions
from pneumoscope.objects import Shown
from pneumoscope.progress import Progress, silent
from pneumoscope.volume import INFILTRATE_LABEL, Mask, Volume

if TYPE_CHECKING:
    from pneumoscope.severity.measure import Severity

STATE_OF_FINDING = {**LUNG_STATES, FINDING: "unlike_training_scans"}
"""Findings that a reader must know before believing the numbers, as `severity.states.STATES`."""


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(Shown):
    """What was found in a scan.

    Attributes:
        lungs: 1 = right, 2 = left.
        infiltrate: 1 = infiltrate, inside the lungs only; of one model of another program exactly what it said, 1 =
            ground-glass and 2 = consolidation where it tells them apart.
        probability: (i, j, k) uint8, the network's probability of infiltrate times 255; 0 outside the lungs. None for a
            model of another program that gives labels only.
        findings: what there is to report.
        cards: cards of the models used, by task (``lungs`` is absent when a mask was given).
        seconds: wall time by step.
        engines: what computed, by task, e.g. ``openvino bf16``.
        entropy: (i, j, k) uint8, see `maps.Maps`; None when not asked for.
        variance: likewise.
        mirrored: whether the infiltrate networks were also shown the scan mirrored left to right.
        scan: the scan.
        distance: of the scan from those the model was trained on, see `unlike.ScanSpace`; None where its card has none.
        lobes: of a model of another program that finds them.
    """

    lungs: Mask
    infiltrate: Mask
    probability: NDArray[np.uint8] | None
    findings: tuple[Finding, ...]
    cards: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    engines: dict[str, str] = field(default_factory=dict)
    entropy: NDArray[np.uint8] | None = None
    variance: NDArray[np.uint8] | None = None
    mirrored: bool = False
    distance: float | None = None
    scan: Volume | None = None
    lobes: Mask | None = None

    panels = 3

    def __repr__(self) -> str:
        case = "" if self.scan is None else f"{self.scan.case!r}, "
        return f"Segmentation({case}infiltrate {self.infiltrate.volume_ml():.0f} of {self.lungs.volume_ml():.0f} ml)"

    @cached_property
    def severity(self) -> Severity:
        """How much of the lungs is affected.

        Raises:
            InputError: the segmentation has no scan.
        """
        if self.scan is None:
            raise InputError("this segmentation has no scan to measure; give both to quantify")
        return import_module("pneumoscope.cases.segment").assess_segmentation(self.scan, self)

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
        """The masks by name, ``lungs`` and ``infiltrate`` (and ``lobes``), as `Mask.to_nibabel` gives each."""
        return self._each("to_nibabel")

    def to_sitk(self) -> dict[str, Any]:
        """Likewise as SimpleITK images."""
        return self._each("to_sitk")

    def to_torch(self) -> dict[str, Any]:
        """Likewise as tensors."""
        return self._each("to_torch")

    def to_monai(self) -> dict[str, Any]:
        """Likewise as MetaTensors."""
        return self._each("to_monai")

    def to_torchio(self) -> dict[str, Any]:
        """Likewise as label maps."""
        return self._each("to_torchio")

    def _each(self, conversion: str) -> dict[str, Any]:
        masks = {"lungs": self.lungs, "infiltrate": self.infiltrate, "lobes": self.lobes}
        return {name: getattr(mask, conversion)() for name, mask in masks.items() if mask is not None}


class Segmenter:
    """A lung model and an infiltrate model, loaded once.

    Args:
        options: the models, by a shipped name, a folder or KIND:PATH (`pneumoscope.inference.external`), and how they
            are run. The lung model is loaded only when a scan comes without a lung mask and `model` finds no lungs.
        uncertainty: also make the maps of entropy and variance.

    Raises:
        ModelError: a model is unknown, damaged, made for another task, or does not go with the others.
        InputError: the device, the engine or a model's program is not on this machine.
    """

    def __init__(self, options: ModelOptions | None = None, *, uncertainty: bool = False) -> None:
        options = options or ModelOptions()
        models = [options.model] if isinstance(options.model, (str, Path)) else list(options.model)
        chosen = choose_engine(options.engine, device=options.device, precision=options.precision)
        self.compute: dict[str, Any] = {"batch_size": 8}
        self._ready: dict[str, Any] = {"engine": chosen, "device": options.device, "precision": options.precision}
        own = [one for one in models if not is_external(one)]
        if uncertainty and len(own) < len(models):
            raise InputError("uncertainty needs networks of pneumoscope; leave it out with models of other programs")
        self._access = Access(options.trust, options.device, options.precision, options.mirror, tuple(options.label))
        self.external = tuple(open_external(one, self._access, task="infiltrate") for one in models if is_external(one))
        self.members = load_members(own, **self._ready) if own or not models else ()
        self.card = joint_card(self.members, [one.card for one in self.external])
        self.mirror, self.uncertainty = options.mirror, uncertainty
        self._lungs_name = options.lungs_model
        self._lungs: LungFinder | External | None = None

    @property
    def input(self) -> ModelInput:
        """The slices' preprocessing of the first network; one on volumes has `Member.volumes` instead."""
        if not self.members or self.members[0].slices is None:
            raise ModelError("this model takes volumes and has no preprocessing of slices")
        return self.members[0].slices

    def run(self, volume: Volume, lungs: Mask | None = None, *, progress: Progress = silent) -> Segmentation:
        """Segment one scan.

        Args:
            lungs: lung mask on the scan's grid, used instead of the lung model.

        Raises:
            GeometryError: the lung mask lies on another grid.
        """
        seconds: dict[str, float] = {}
        cards, engines = {"infiltrate": self.card}, {"infiltrate": ", ".join(self._engines())}
        findings: tuple[Finding, ...] = tuple(finding for one in self.external for finding in one.findings)
        started = time.perf_counter()
        said = [one.predict(volume, _named(progress, "infiltrate")) for one in self.external]
        spent = time.perf_counter() - started
        started = time.perf_counter()
        lobes = next((one.lobes for one in said if one.lobes is not None), None)
        if lungs is not None:
            volume.grid.require_same_space(lungs.grid, "the lung mask")
        elif (lungs := _sided_lungs(said)) is None:
            lungs, more, own_lobes, card, engines["lungs"] = self._find_lungs(volume, _named(progress, "lungs"))
            cards["lungs"], findings, lobes = card, (*findings, *more), lobes or own_lobes
        seconds["lungs"] = time.perf_counter() - started
        started = time.perf_counter()
        distance, more = self._distance(volume, lungs)
        maps = self._maps(volume, lungs, _named(progress, "infiltrate")) if self.members else None
        probability = self._joint(said, maps)
        found = said[0].infiltrate if len(said) == 1 and maps is None else None
        if found is None:
            assert probability is not None  # `_joint` gives one for several
            marks = infiltrate_mask(probability, lungs.any, volume.spacing_mm, self.card)
            found = Mask(marks.astype(np.uint8), volume.grid, dict(INFILTRATE_LABEL))
        seconds["infiltrate"] = time.perf_counter() - started + spent
        mirrored = any(is_mirrored(member, self.mirror) for member in self.members)
        return Segmentation(
            lungs, found, probability, (*findings, *more), cards, seconds, engines, maps.entropy if maps else None,
            maps.variance if maps else None, mirrored or any(one.network.mirrored for one in self.external), distance,
            volume, lobes,
        )  # fmt: skip

    def _engines(self) -> list[str]:
        own = [self.members[0].engine.label] if self.members else []
        return [*own, *(one.network.engine for one in self.external)]

    def _joint(self, said: Sequence[ExternalPrediction], maps: Maps | None) -> NDArray[np.uint8] | None:
        """The mean of all models' probabilities, where a model that gives labels only is sure of them."""
        if len(said) == 1 and maps is None:
            return said[0].probability
        if not said:
            return None if maps is None else maps.probability
        total = np.zeros(said[0].infiltrate.labels.shape, np.float32)  # type: ignore[union-attr]
        for one in said:
            assert one.infiltrate is not None  # `open_external` saw to it
            total += one.probability if one.probability is not None else np.float32(255) * one.infiltrate.any
        if maps is not None:
            total += np.float32(len(self.members)) * maps.probability
        return np.rint(total / np.float32(len(said) + (len(self.members) if maps else 0))).astype(np.uint8)

    def _distance(self, volume: Volume, lungs: Mask) -> tuple[float | None, tuple[Finding, ...]]:
        """How far the scan lies from those the first network was trained on, and what there is to report of it."""
        first = self.members[0] if self.members else None
        if first is None or first.scans is None or not isinstance(first.slices, HuFrameInput):
            return None, ()
        distance = first.scans.of_scan(first.slices, volume, lungs)
        return distance, first.scans.findings(distance)

    def _maps(self, volume: Volume, lungs: Mask, progress: Progress) -> Maps:
        wanted: dict[str, Any] = {"mirror": self.mirror, "uncertainty": self.uncertainty, "progress": progress}
        if self.members[0].volumes is not None:
            return volume_maps(volume, lungs, self.members, **wanted)
        return slice_maps(volume, lungs, self.members, **self.compute, **wanted)

    def _find_lungs(
        self, volume: Volume, progress: Progress
    ) -> tuple[Mask, tuple[Finding, ...], Mask | None, dict[str, Any], str]:
        """Lungs by the lung model: mask, findings, lobes where it finds them, its card, and what computed it."""
        if self._lungs is None:
            if is_external(self._lungs_name):
                self._lungs = open_external(self._lungs_name, self._access, task="lungs")
            else:
                self._lungs = LungFinder(self._lungs_name, **self._ready, **self.compute)
        if isinstance(self._lungs, External):
            said = self._lungs.predict(volume, progress)
            assert said.lungs is not None  # `open_external` saw to it
            return said.lungs, self._lungs.findings, said.lobes, self._lungs.card, self._lungs.network.engine
        lungs, findings = self._lungs.find(volume, progress)
        return lungs, findings, None, self._lungs.card, self._lungs.engine.label


def _sided_lungs(said: Sequence[ExternalPrediction]) -> Mask | None:
    """Lungs that an infiltrate model found itself, where it tells right from left."""
    return next((one.lungs for one in said if one.lungs is not None and 2 in one.lungs.names), None)


class LungFinder:
    """A lung model without an infiltrate model, loaded once: the lungs of one scan after the other.

    Args:
        model: a shipped name or a model folder.
        engine, device, precision, batch_size: as for `make_engine` and `predict_probability`.

    Raises:
        ModelError: the model is unknown, damaged, or made for another task.
    """

    def __init__(self, model: str | Path = "lungs", *, batch_size: int = 8, **ready: Any) -> None:
        self.compute: dict[str, Any] = {"batch_size": batch_size}
        network, self.card = load_for(model, "lungs")
        self.engine = make_engine(network, **{"engine": "torch", **ready})
        self.input = lungs_input(self.card)

    def find(self, volume: Volume, progress: Progress = silent) -> tuple[Mask, tuple[Finding, ...]]:
        """See `find_lungs`."""
        return find_lungs(volume, self.engine, self.input, progress=progress, **self.compute)

    def __call__(self, volume: Volume) -> Mask:
        """Lungs on the scan's grid: 1 = right, 2 = left."""
        return self.find(volume)[0]


def segment_volume(
    volume: Volume,
    options: ModelOptions | None = None,
    lungs: Mask | None = None,
    *,
    uncertainty: bool = False,
    progress: Progress = silent,
) -> Segmentation:
    """Segment one scan; for many make one `Segmenter`."""
    found = Segmenter(options, uncertainty=uncertainty).run(volume, lungs, progress=progress)
    masks = {name: replace(getattr(found, name), native=volume.native) for name in ("lungs", "infiltrate")}
    return replace(found, scan=volume, **masks)


def _named(progress: Progress, name: str) -> Progress:
    def call(what: str, done: float, total: int, note: str = "") -> None:
        progress(name, done, total, note)

    return call
