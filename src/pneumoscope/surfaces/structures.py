"""What is drawn in 3D, under which name and in which colour; the same in every file and on every page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.volume import Mask


@dataclass(frozen=True)
class Look:
    """How a structure is shown.

    Attributes:
        title: for people.
        colour: ``#rrggbb``; the colours of the report's pictures, which colour-blind readers can tell apart.
        opacity: in 3D, 0 to 1.
    """

    title: str
    colour: str
    opacity: float

    @property
    def rgb(self) -> tuple[float, float, float]:
        """The colour as sRGB parts, 0 to 1."""
        red, green, blue = (int(self.colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
        return red, green, blue


LOOKS: Mapping[str, Look] = {
    "right_lung": Look("right lung", "#56b4e9", 0.22),
    "left_lung": Look("left lung", "#2ee6a8", 0.22),
    "lungs": Look("lungs", "#56b4e9", 0.22),
    "infiltrate": Look("infiltrate", "#ff7f2a", 1.0),
    "truth": Look("infiltrate of the reference", "#fff26b", 0.6),
}
"""Every structure by the stem of its files."""


def structures(lungs: Mask, infiltrate: Mask, truth: Mask | None = None) -> dict[str, Callable[[], NDArray[np.bool_]]]:
    """What makes each mask to draw, by the names of `LOOKS`; (i, j, k) bool, empty ones too.

    A lung mask that does not tell sides gives ``lungs`` instead of ``right_lung`` and ``left_lung``. Masks are made
    when called: on a large scan each takes 80 MB.
    """
    parts: dict[str, Callable[[], NDArray[np.bool_]]] = {}
    if {"right lung", "left lung"} <= set(lungs.names.values()):
        parts["right_lung"] = lambda: lungs.of("right lung")
        parts["left_lung"] = lambda: lungs.of("left lung")
    else:
        parts["lungs"] = lambda: lungs.any
    parts["infiltrate"] = lambda: infiltrate.any
    if truth is not None:
        parts["truth"] = lambda: truth.any
    return parts
