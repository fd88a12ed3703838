"""Which view a picture shows: a frontal film, a lateral or oblique one, or something else.

A second, smaller network in the folder of a model of radiographs, named by the card's entry ``views``. It sees the same
square as the classifier, shrunk, and is asked before a class is named. `inference.familiar` asks how far a picture lies
from frontal films; a lateral film lies too near for that (decision 0017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

FILE = "views.safetensors"

REASONS = {
    "frontal": "",
    "lateral": "looks like a lateral or oblique view",
    "other": "does not look like a whole, upright frontal chest X-ray",
}
"""What each class of the network means for an answer, in the order of its outputs."""

BATCH = 256


def shrunk(squares: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Squares (n, s, s) as the network sees them: (n, side, side)."""
    import cv2

    small = [cv2.resize(np.asarray(s), (side, side), interpolation=cv2.INTER_AREA) for s in squares]
    return np.stack(small).astype(np.uint8) if small else np.zeros((0, side, side), np.uint8)


@dataclass(frozen=True, eq=False)
class Views:
    """The network and its limit."""

    network: nn.Module  # logits of `REASONS`
    side: int  # of the squares it sees, in pixels
    # for ``lateral`` and ``other``, the least probability of frontal as a share of frontal and that class
    limits: Mapping[str, float]

    def probability(self, squares: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, 3) of squares (n, s, s), in the order of `REASONS`; each row adds up to 1."""
        import torch

        small, found = shrunk(squares, self.side), [np.zeros((0, len(REASONS)))]
        device = next(self.network.parameters()).device
        with torch.inference_mode():
            for start in range(0, len(small), BATCH):
                grey = torch.from_numpy(small[start : start + BATCH, None]).to(device).float() / 255
                found.append(self.network(grey).double().softmax(dim=1).cpu().numpy())
        return np.concatenate(found)

    def frontal(self, probability: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Against each other class, the share of frontal in both: (n,) of probabilities (n, 3)."""
        return {
            name: probability[:, 0] / np.maximum(probability[:, 0] + probability[:, place], 1e-300)
            for place, name in enumerate(REASONS)
            if place
        }

    def reason(self, probability: NDArray[np.float64]) -> str:
        """Why a picture with probabilities (3,) is not frontal; empty when it is."""
        below = [n for n, share in self.frontal(probability[None]).items() if share[0] < self.limits[n]]
        return REASONS[max(below, key=lambda name: probability[list(REASONS).index(name)])] if below else ""


def read_views(folder: Path, entry: Mapping[str, Any]) -> Views:
    """What a card's entry ``views`` names; its file's sum was compared when the folder was loaded.

    Raises:
        ModelError: another file or other classes than this version knows, tensors that do not fit, no usable limit.
    """
    from pneumoscope.models.weights import load_network

    try:
        side, limits = int(entry["side"]), {name: float(entry["limits"][name]) for name in ("lateral", "other")}
        usable = entry["file"] == FILE and list(entry["classes"]) == list(REASONS) and side >= 16
        usable = usable and all(0 < limit < 1 for limit in limits.values())
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        raise ModelError(
            "the card's entry views is not one that this version reads; copy the model folder again", path=folder
        )
    return Views(load_network(folder, FILE, entry.get("architecture", {})), side, limits)
