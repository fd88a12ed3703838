"""How far a scan's slices lie from those that the infiltrate model learnt from.

The frames that the network sees are shrunk to SMALL pixels and compared with the principal components of training
frames, the distance of `familiar.PictureSpace`; a scan's distance is the median over its slices that show lung. It
sees a chest that lies on its side or face, a body part that is no chest, a frame around half a lung. It does not see
disease: that is small beside anatomy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding
from pneumoscope.inference.familiar import PictureSpace, incomplete, read_space, write_space
from pneumoscope.inference.inputs import HuFrameInput
from pneumoscope.preprocess.slices import to_slices
from pneumoscope.volume import Mask, Volume

SMALL = (24, 32)
COMPONENTS = 10
SLICES = 40
"""Looked at in a scan, at even distances."""

FINDING = "SEG-SCAN-001"


@dataclass(frozen=True, eq=False)
class ScanSpace:
    """Frames of training scans, and how far from them a scan may lie.

    Attributes:
        space: of frames as `shrunken_frames` gives them.
        limit: largest distance of a scan that is not reported.
    """

    space: PictureSpace
    limit: float

    def distance(self, frames_hu: NDArray[np.floating]) -> float:
        """Of the frames (n, h, w) of one scan in Hounsfield units; n of at least 1."""
        return float(np.median(self.space.distances(shrunken_frames(frames_hu))))

    def of_scan(self, seen: HuFrameInput, volume: Volume, lungs: Mask) -> float | None:
        """Distance of a scan whose slices a network sees through `seen`; None without lung."""
        inside = to_slices(lungs.labels) > 0
        rows = np.flatnonzero(inside.any(axis=(1, 2)))
        if len(rows) == 0:
            return None
        some = rows[np.linspace(0, len(rows) - 1, min(SLICES, len(rows))).astype(int)]
        return self.distance(seen.fitted(inside).framed(to_slices(volume.hu)[some]))

    def findings(self, distance: float | None) -> tuple[Finding, ...]:
        """What there is to report."""
        if distance is None or distance <= self.limit:
            return ()
        message = (
            f"the slices look unlike the chest CTs the infiltrate model was trained on (distance {distance:.2f}, limit "
            f"{self.limit:.2f}); look at orientation, body part and lung mask before believing its numbers"
        )
        return (Finding(FINDING, message),)


def shrunken_frames(frames_hu: NDArray[np.floating]) -> NDArray[np.float32]:
    """(n, *SMALL) of (HU + 1000) / 1000."""
    import cv2

    scaled = (np.asarray(frames_hu, np.float32) + 1000) / 1000
    size = (SMALL[1], SMALL[0])
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in scaled])


def fit_scans(
    scans: Mapping[str, NDArray[np.floating]], others: NDArray[np.floating] | None = None, margin: float = 1.3
) -> ScanSpace:
    """Learn from the frames of training scans by name; the limit is `margin` times the farthest of them left out.

    `others` are frames of single slices, learnt from throughout; at least two scans are needed.
    """
    always = [] if others is None else [shrunken_frames(others)]
    small = {name: shrunken_frames(frames) for name, frames in scans.items()}
    left_out = []
    for name, own in small.items():
        rest = [frames for other, frames in small.items() if other != name]
        space = PictureSpace.fit(np.concatenate([*rest, *always]), COMPONENTS)
        left_out.append(float(np.median(space.distances(own))))
    return ScanSpace(PictureSpace.fit(np.concatenate([*small.values(), *always]), COMPONENTS), margin * max(left_out))


def write_scan_space(folder: str | Path, scans: ScanSpace) -> dict[str, Any]:
    """Write the space into a model folder and give the card's entry ``familiar``."""
    return {**write_space(folder, scans.space), "limit": scans.limit}


def read_scan_space(folder: str | Path, entry: Mapping[str, Any]) -> ScanSpace:
    """Read what the card's entry ``familiar`` names.

    Raises:
        ModelError: absent, damaged or incomplete.
    """
    if not isinstance(entry, Mapping):
        raise incomplete(folder, TypeError("no mapping"))
    arrays = read_space(folder, entry)
    try:
        space, limit = PictureSpace(**arrays), float(entry["limit"])
        pixels, components = SMALL[0] * SMALL[1], len(space.spread)
        shapes = [space.mean.shape, space.axes.shape, space.spread.shape, space.noise.shape]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise incomplete(folder, error) from None
    if shapes != [(pixels,), (components, pixels), (components,), (1,)] or not limit > 0:
        raise incomplete(folder, ValueError("shapes"))
    return ScanSpace(space, limit)
