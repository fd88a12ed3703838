"""From Hounsfield slices to what a model was trained on and its answer back, and the networks of one task loaded so.

A model's card says under ``preprocessing`` which of these it needs; `input_from_card` builds it. Shapes: n slices of
(h, w), radiological view; a network gets (n, c, rows, columns).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ModelError
from pneumoscope.inference.engines import Engine, make_engine
from pneumoscope.inference.out_of_distribution import ScanSpace, read_scan_space
from pneumoscope.inference.volumes import VOLUME_KINDS, VolumeInput, class_meanings
from pneumoscope.models.cards import find_model
from pneumoscope.preprocess.slices import (
    Appearance,
    HuWindow,
    LungCrop,
    model_input,
    resize_linear,
    resize_nearest,
    window_channels,
)


class ModelInput(ABC):
    """The preprocessing of one model."""

    def fitted(self, lungs: NDArray[np.bool_] | None) -> Self:
        """The same preprocessing set up for one scan, from the lungs of all its slices (n, h, w)."""
        return self

    @abstractmethod
    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """Network input (n, c, rows, columns) of some slices (n, h, w) of the scan."""

    def back(self, output: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """One output channel (n, rows, columns) on the scan's (n, *size); linear, as probabilities are smooth."""
        return resize_linear(output, size)


@dataclass(frozen=True)
class HuWindowInput(ModelInput):
    """The Maganaris papers' input: windows of Hounsfield units, nearest-neighbour resize, lung mask as last channel."""

    size: int
    windows: tuple[HuWindow, ...]
    lung_channel: bool = True

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """See `ModelInput`."""
        if self.lung_channel:
            return model_input(stack_hu, _or_none(lungs, stack_hu), self.windows, self.size)
        return window_channels(resize_nearest(stack_hu, self.size), self.windows)


@dataclass(frozen=True)
class AppearanceInput(ModelInput):
    """The whole slice with the appearance of the public 8-bit sets, shrunk to `size`; needs no lung mask."""

    size: int
    appearance: Appearance

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """See `ModelInput`."""
        import cv2

        size = (self.size, self.size)
        equalised = self.appearance.of_hu(stack_hu)
        planes = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in equalised]
        return np.stack(planes)[:, None] if planes else np.empty((0, 1, *size), np.uint8)


class _FramedInput(ModelInput):
    """Cut to the lungs of the scan and scaled into one frame."""

    frame: tuple[int, int]  # rows and columns the network sees
    crop: LungCrop | None  # set by `fitted`

    @property
    @abstractmethod
    def side(self) -> int:
        """Rows and columns of the slices before the cut."""

    @property
    def cut(self) -> LungCrop:
        """The crop, which `fitted` has set."""
        if self.crop is None:
            raise ModelError("the frame must be fitted to the scan's lungs first")
        return self.crop

    def fitted(self, lungs: NDArray[np.bool_] | None) -> Self:
        """See `ModelInput`: the frame around the lungs, found on slices of the size that they are cut at."""
        if lungs is None:
            raise ModelError("this model needs a lung mask to find its frame, got none")
        crop = LungCrop.around(resize_nearest(lungs, self.side), self.frame)
        return replace(self, crop=crop)  # type: ignore[type-var]

    def back(self, output: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """See `ModelInput`."""
        return resize_linear(self.cut.paste(output), size)


@dataclass(frozen=True)
class LungFrameInput(_FramedInput):
    """Appearance and lung mask in one frame."""

    frame: tuple[int, int]
    appearance: Appearance  # made on the whole slice, before the cut
    crop: LungCrop | None = None

    @property
    def side(self) -> int:
        """See `_FramedInput`."""
        return self.appearance.size

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """See `ModelInput`."""
        return self.of_equalised(self.appearance.of_hu(stack_hu), resize_nearest(_or_none(lungs, stack_hu), self.side))

    def of_equalised(self, equalised: NDArray[np.uint8], lungs: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Network input (n, 2, *frame) of slices that have the appearance already, (n, h, w) as the crop's."""
        mask = self.cut.cut(lungs.astype(np.uint8) * np.uint8(255), nearest=True)
        return np.stack((self.cut.cut(equalised), mask), axis=1).astype(np.uint8)


@dataclass(frozen=True)
class HuFrameInput(_FramedInput):
    """Windows of Hounsfield units in one frame; no lung mask is shown.

    With an `appearance` the equalised slice is a last channel: it shows what is faint beside its surroundings.
    """

    frame: tuple[int, int]
    size: int  # rows and columns the slice is brought to before the cut
    windows: tuple[HuWindow, ...]  # one channel each
    appearance: Appearance | None = None  # of the last channel; of `size` too. None without it.
    crop: LungCrop | None = None

    @property
    def side(self) -> int:
        """See `_FramedInput`."""
        return self.size

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """See `ModelInput`."""
        channels = window_channels(self.framed(stack_hu), self.windows)
        if self.appearance is None:
            return channels
        grey = self.cut.cut(self.appearance.of_hu(stack_hu)).astype(np.float32) / np.float32(255)
        return np.concatenate((channels, grey[:, None]), axis=1)

    def framed(self, stack_hu: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hounsfield units in the frame (n, *frame), clipped to the widest of the windows; air outside the slice."""
        import cv2

        low = min(window.low_hu for window in self.windows)
        high = max(window.high_hu for window in self.windows)
        shrink = min(stack_hu.shape[1:]) > self.size
        way = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        out = np.empty((len(stack_hu), self.size, self.size), np.float32)
        for k, plane in enumerate(stack_hu):
            clipped = np.clip(plane, low, high).astype(np.float32)
            out[k] = cv2.resize(clipped, (self.size, self.size), interpolation=way)
        return np.asarray(self.cut.cut(out - np.float32(low)), np.float32) + np.float32(low)


def _or_none(lungs: NDArray[np.bool_] | None, stack_hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The mask, or one without lung."""
    return np.zeros(stack_hu.shape, bool) if lungs is None else lungs


KINDS = ("hu_windows", "hu_frame", "appearance", "lung_frame")
"""Kinds of preprocessing in a card that `input_from_card` reads."""


def _require_known(kind: str) -> None:
    """Refuse what cannot be made of a scan in Hounsfield units.

    Raises:
        ModelError: for another kind, in words for those of studies.
    """
    if kind.startswith("grey8"):
        raise ModelError(
            "this model is of a study on 8-bit pictures, whose grey values are no Hounsfield units; `segment` takes "
            "models trained on scans, such as the shipped infiltrate or those of `pneumoscope train`"
        )
    if kind.endswith("_2.5d"):
        raise ModelError(
            "this model is of a study and takes a slice with its neighbours; `segment` takes models on single "
            "slices or on volumes"
        )
    if kind not in KINDS:
        raise ModelError(f"the card names preprocessing {kind!r}; known are {', '.join(KINDS)} and, for volumes, "
                         "hu_volume and whole_volume")  # fmt: skip


def input_from_card(card: dict[str, Any]) -> ModelInput:
    """The preprocessing a model card names.

    Known kinds: ``{"kind": "hu_windows", "size": 320, "windows_hu": [[-970, -150], ...], "lung_channel": true}``,
    ``{"kind": "hu_frame", "frame": [144, 192], "size": 256, "windows_hu": [[-1024, 400], ...]}``,
    ``{"kind": "appearance", "size": 128, "appearance": {...}}`` and
    ``{"kind": "lung_frame", "frame": [144, 192], "appearance": {...}}``.

    Raises:
        ModelError: for a card without, or with another kind, e.g. that of a study on 8-bit pictures.
    """
    fields: Any = card.get("preprocessing")
    try:
        kind = str(fields["kind"])
        _require_known(kind)
        if kind in ("hu_windows", "hu_frame"):
            windows = tuple(HuWindow(float(low), float(high)) for low, high in fields["windows_hu"])
            if kind == "hu_frame":
                return _hu_frame(fields, windows)
            return HuWindowInput(int(fields["size"]), windows, bool(fields.get("lung_channel", True)))
        appearance = Appearance(**fields["appearance"])
        if kind == "appearance":
            return AppearanceInput(int(fields["size"]), appearance)
        rows, columns = fields["frame"]
        return LungFrameInput((int(rows), int(columns)), appearance)
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise ModelError(f"the card's preprocessing {fields!r} cannot be read: {problem!r}") from problem


def _hu_frame(fields: dict[str, Any], windows: tuple[HuWindow, ...]) -> HuFrameInput:
    rows, columns = fields["frame"]
    size, appearance = int(fields["size"]), None
    if fields.get("appearance") is not None:
        appearance = Appearance(**fields["appearance"])
        if appearance.size != size:
            raise ValueError(f"size {size} and an appearance of size {appearance.size}")
    return HuFrameInput((int(rows), int(columns)), size, windows, appearance)


ONE_OF_SLICES: Mapping[int, str] = {0: "background", 1: "infiltrate"}
"""Classes of a network on volumes whose card names none."""

_NUMBERS = {
    "threshold": (0.0, 1.0), "smallest_ml": (0.0, 1e4), "denser_than_lung_hu": (-1024.0, 3071.0),
    "smooth_z_mm": (0.0, 20.0), "dome_layer_mm": (0.0, 30.0),
}  # fmt: skip
"""Entries of a card that may be left out, and their bounds."""


@dataclass(frozen=True, eq=False)
class Member:
    """One network."""

    name: str  # of its folder, or the shipped name
    engine: Engine  # the network, ready to compute
    card: dict[str, Any]  # its card
    slices: ModelInput | None  # preprocessing of a network on slices, else None
    volumes: VolumeInput | None  # preprocessing of a network on volumes, else None
    scans: ScanSpace | None = None  # what training scans look like, where the card names it

    @property
    def infiltrate_class(self) -> int:
        """Which class of a network on volumes is infiltrate."""
        meaning = class_meanings(self.card.get("labels") or ONE_OF_SLICES)
        return next(number for number, name in meaning.items() if name == "infiltrate")


def load_members(models: Sequence[str | Path], **ready: Any) -> tuple[Member, ...]:
    """The infiltrate networks named, fit to be averaged.

    Args:
        models: shipped names or model folders, at least one.
        ready: engine, device and precision, see `engines.make_engine`.

    Raises:
        ModelError: a model is unknown, damaged, made for another task, or does not go with the others.
    """
    if not models:
        raise ModelError("there is no model to run; give at least one")
    members = tuple(_load_member(model, ready) for model in models)
    first = members[0]
    for other in members[1:]:
        if (other.volumes is None) != (first.volumes is None):
            raise ModelError(
                f"{first.name} and {other.name} cannot be averaged: one takes slices, the other volumes; give "
                "models of one kind"
            )
        if other.volumes is not None and (
            other.volumes != first.volumes or other.infiltrate_class != first.infiltrate_class
        ):
            raise ModelError(
                f"{first.name} and {other.name} cannot be averaged: networks on volumes need the same preprocessing "
                "(window, spacing, patch) and classes, such as the folds of one crossval"
            )
    return members


def _load_member(model: str | Path, ready: Mapping[str, Any]) -> Member:
    network, card = load_for(model, "infiltrate")
    fields = card.get("preprocessing")
    on_volumes = isinstance(fields, dict) and fields.get("kind") in VOLUME_KINDS
    folder = find_model(model)
    for name, (low, high) in _NUMBERS.items():
        value = card.get(name, low)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ModelError(f"the card's {name} is {value!r:.40}, expected {low:g} to {high:g}", path=folder)
    try:
        volumes = VolumeInput.from_card(card) if on_volumes else None
        slices = None if on_volumes else input_from_card(card)
    except ModelError as problem:
        raise ModelError(problem.message, path=folder) from problem
    scans = read_scan_space(folder, card["familiar"]) if "familiar" in card else None
    return Member(folder.name, make_engine(network, **ready), card, slices, volumes, scans)


def load_for(model: str | Path, task: str) -> tuple[Any, dict[str, Any]]:
    """Network and card, refused when the card says another task."""
    from pneumoscope.models.weights import load_model

    folder = find_model(model)
    network, card = load_model(folder)
    if card.get("task") != task:
        raise ModelError(f"is a model for {card.get('task')!r}, expected one for {task!r}", path=folder)
    return network, card


def joint_card(members: Sequence[Member], external: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The card of one network as it is; of several one that names them all.

    Their threshold is the mean of theirs, the other numbers are the largest of theirs. `external` are cards of models
    of other programs.
    """
    cards = [*(member.card for member in members), *external]
    if len(cards) == 1:
        return cards[0]
    licences = [text for card in cards for text in _texts(card.get("licence"))]
    limits = [text for card in cards for text in _texts(card.get("limits"))]
    return {
        "title": f"average of {len(cards)} models",
        "task": "infiltrate",
        "threshold": sum(float(card.get("threshold", 0.5)) for card in cards) / len(cards),
        **{
            name: max(float(card.get(name, 0.0)) for card in cards)
            for name in ("smallest_ml", "smooth_z_mm", "dome_layer_mm")
        },
        "licence": list(dict.fromkeys(licences)),
        "limits": list(dict.fromkeys(limits)),
        "members": [
            *({"name": m.name, "title": m.card.get("title"), "sha256": m.card["weights"]["sha256"]} for m in members),
            *external,
        ],
    }


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(part) for part in value] if isinstance(value, (list, tuple)) else [str(value)]
