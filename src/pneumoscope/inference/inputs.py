"""From Hounsfield slices to what a model was trained on, and its answer back to the scan's rows and columns.

A model's card says under ``preprocessing`` which of these it needs; `input_from_card` builds it. Shapes: n slices of
(h, w), radiological view; a network gets (n, c, rows, columns).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ModelError
from pneumoscope.preprocess.slices import LungCrop, resize_linear, resize_nearest
from pneumoscope.preprocess.windows import Appearance, HuWindow, model_input, window_channels


class ModelInput(Protocol):
    """The preprocessing of one model."""

    @property
    def needs_lungs(self) -> bool:
        """Whether `images` cannot do without a lung mask."""

    def fitted(self, lungs: NDArray[np.bool_] | None) -> ModelInput:
        """The same preprocessing set up for one scan, from the lungs of all its slices (n, h, w)."""

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """Network input (n, c, rows, columns) of some slices (n, h, w) of the scan."""

    def back(self, output: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """One output channel (n, rows, columns) on the scan's (n, *size)."""


@dataclass(frozen=True)
class HuWindowInput:
    """The Maganaris papers' input: windows of Hounsfield units, nearest-neighbour resize, lung mask as last channel."""

    size: int
    windows: tuple[HuWindow, ...]
    lung_channel: bool = True

    @property
    def needs_lungs(self) -> bool:
        """See `ModelInput`."""
        return self.lung_channel

    def fitted(self, lungs: NDArray[np.bool_] | None) -> HuWindowInput:
        """See `ModelInput`; nothing to fit."""
        return self

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """See `ModelInput`."""
        if self.lung_channel:
            mask = np.zeros(stack_hu.shape, bool) if lungs is None else lungs
            return model_input(stack_hu, mask, self.windows, self.size)
        return window_channels(resize_nearest(stack_hu, self.size), self.windows)

    def back(self, output: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """See `ModelInput`; linear, as probabilities are smooth."""
        return resize_linear(output, size)


@dataclass(frozen=True)
class AppearanceInput:
    """The whole slice with the appearance of the public 8-bit sets, shrunk to `size`; needs no lung mask."""

    size: int
    appearance: Appearance
    needs_lungs = False

    def fitted(self, lungs: NDArray[np.bool_] | None) -> AppearanceInput:
        """See `ModelInput`; nothing to fit."""
        return self

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """See `ModelInput`."""
        return self.of_equalised(self.appearance.of_hu(stack_hu))

    def of_equalised(self, equalised: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Network input (n, 1, size, size) of slices that have the appearance already, (n, h, w)."""
        import cv2

        size = (self.size, self.size)
        planes = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in equalised]
        return np.stack(planes)[:, None] if planes else np.empty((0, 1, *size), np.uint8)

    def back(self, output: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """See `ModelInput`."""
        return resize_linear(output, size)


@dataclass(frozen=True)
class LungFrameInput:
    """Appearance and lung mask, cut to the lungs of the scan and scaled into one frame."""

    frame: tuple[int, int]  # rows and columns the network sees
    appearance: Appearance  # made on the whole slice, before the cut
    crop: LungCrop | None = None  # set by `fitted`
    needs_lungs = True

    def fitted(self, lungs: NDArray[np.bool_] | None) -> LungFrameInput:
        """See `ModelInput`: the frame around the lungs, found on slices of the appearance's size."""
        if lungs is None:
            raise ModelError("this model needs a lung mask to find its frame, got none")
        small = resize_nearest(lungs, self.appearance.size)
        return LungFrameInput(self.frame, self.appearance, LungCrop.around(small, self.frame))

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """See `ModelInput`."""
        mask = np.zeros(stack_hu.shape, bool) if lungs is None else lungs
        return self.of_equalised(self.appearance.of_hu(stack_hu), resize_nearest(mask, self.appearance.size))

    def of_equalised(self, equalised: NDArray[np.uint8], lungs: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Network input (n, 2, *frame) of slices that have the appearance already, (n, h, w) as the crop's."""
        crop = _fitted(self.crop)
        mask = crop.cut(lungs.astype(np.uint8) * np.uint8(255), nearest=True)
        return np.stack((crop.cut(equalised), mask), axis=1).astype(np.uint8)

    def back(self, output: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """See `ModelInput`."""
        return resize_linear(_fitted(self.crop).paste(output), size)


@dataclass(frozen=True)
class HuFrameInput:
    """Windows of Hounsfield units, cut to the lungs of the scan and scaled into one frame; no lung mask is shown.

    With an `appearance` the equalised slice is a last channel: it shows what is faint beside its surroundings.
    """

    frame: tuple[int, int]  # rows and columns the network sees
    size: int  # rows and columns the slice is brought to before the cut
    windows: tuple[HuWindow, ...]  # one channel each
    appearance: Appearance | None = None  # of the last channel; of `size` too. None without it.
    crop: LungCrop | None = None  # set by `fitted`
    needs_lungs = True

    def fitted(self, lungs: NDArray[np.bool_] | None) -> HuFrameInput:
        """See `ModelInput`: the frame around the lungs."""
        if lungs is None:
            raise ModelError("this model needs a lung mask to find its frame, got none")
        return replace(self, crop=LungCrop.around(resize_nearest(lungs, self.size), self.frame))

    def images(self, stack_hu: NDArray[np.float32], lungs: NDArray[np.bool_] | None) -> NDArray[np.generic]:
        """See `ModelInput`."""
        channels = window_channels(self.framed(stack_hu), self.windows)
        if self.appearance is None:
            return channels
        grey = _fitted(self.crop).cut(self.appearance.of_hu(stack_hu)).astype(np.float32) / np.float32(255)
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
        return np.asarray(_fitted(self.crop).cut(out - np.float32(low)), np.float32) + np.float32(low)

    def back(self, output: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """See `ModelInput`."""
        return resize_linear(_fitted(self.crop).paste(output), size)


def _fitted(crop: LungCrop | None) -> LungCrop:
    if crop is None:
        raise ModelError("the frame must be fitted to the scan's lungs first")
    return crop


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
