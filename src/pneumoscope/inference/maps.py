"""What networks say of a scan, voxel by voxel: probability of infiltrate, and how unsure they are of it.

Maps are (i, j, k) bytes on the scan's grid, 255 times a number in [0, 1], 0 outside the lungs. A vote is what one
network says, shown one way; networks on volumes have one per overlapping window as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope import components
from pneumoscope.inference.engines import predict_probability
from pneumoscope.inference.inputs import Member, ModelInput
from pneumoscope.inference.volumes import VolumeInput, entropy, predict_volume, to_bytes
from pneumoscope.inference.windows3d import WindowPlan
from pneumoscope.preprocess.slices import from_slices, to_slices
from pneumoscope.progress import Progress
from pneumoscope.volume import Mask, Volume

SLAB = 32  # Slices worked on at a time: bounds memory at the float images of one slab, whatever the scan's length

SPACED = 0.625
"""Slices are shown so far apart at most, in standard deviations of the smoothing across them: 2.5 mm for 4 mm."""

LEFT_RIGHT = 2
"""Axis of (d, h, w) along which a body is nearly its own mirror image: the one that is mirrored when asked for."""


@dataclass(frozen=True, eq=False)
class Maps:
    """Byte maps of a scan."""

    probability: NDArray[np.uint8]  # of infiltrate
    # of the averaged answer, over its largest value: 0 sure, 255 all classes alike; None when not asked for
    entropy: NDArray[np.uint8] | None = None
    # how far the votes lie apart, see `windows3d.Slab`; None when not asked for
    variance: NDArray[np.uint8] | None = None


def is_mirrored(member: Member, wanted: bool | None) -> bool:
    """Whether a network is also shown the mirror image; None does as its card says."""
    if wanted is not None:
        return wanted
    return bool(member.volumes.plan.mirror) if member.volumes else bool(member.card.get("mirror", False))


def volume_maps(
    volume: Volume, lungs: Mask, members: Sequence[Member], *, mirror: bool | None, uncertainty: bool,
    progress: Progress,
) -> Maps:  # fmt: skip
    """Of networks on volumes; a scan without lung is not shown to them."""
    inside = lungs.any
    if not inside.any():
        return _nothing(volume, uncertainty)
    seen = members[0].volumes
    assert seen is not None  # `load_members` saw to it
    found = predict_volume(
        volume, [m.engine for m in members], replace(seen, plan=_mirrored(seen, mirror)), uncertainty=uncertainty,
        probability_of=members[0].infiltrate_class, progress=progress,
    )  # fmt: skip
    maps = (found.probability, found.entropy, found.variance)
    kept = [None if values is None else np.where(inside, values, 0).astype(np.uint8) for values in maps]
    assert kept[0] is not None
    return Maps(kept[0], kept[1], kept[2])


def _mirrored(seen: VolumeInput, wanted: bool | None) -> WindowPlan:
    if wanted is None:
        return seen.plan
    return replace(seen.plan, mirror=tuple({*seen.plan.mirror, LEFT_RIGHT}) if wanted else ())


def slice_maps(
    volume: Volume, lungs: Mask, members: Sequence[Member], *, mirror: bool | None, uncertainty: bool,
    batch_size: int, progress: Progress,
) -> Maps:  # fmt: skip
    """Of networks on slices; computed on slices that show lung, a slab at a time.

    The probability is then smoothed across slices as the cards ask for; entropy and variance are of each slice. Slices
    that lie much closer than that smoothing are not all shown (`SPACED`); it fills in the others.
    """
    stack, inside = to_slices(volume.hu), to_slices(lungs.labels) > 0  # (n, h, w)
    wanted = np.flatnonzero(inside.any(axis=(1, 2)))
    if len(wanted) == 0:
        return _nothing(volume, uncertainty)
    names = ("probability", "entropy", "variance") if uncertainty else ("probability",)
    out = {name: np.zeros(stack.shape, np.uint8) for name in names}
    passes = [_MemberPass.of(member, stack, inside, volume, mirror, batch_size) for member in members]
    sigma = max(float(member.card.get("smooth_z_mm", 0.0)) for member in members) / volume.grid.spacing_mm[2]
    sampled = wanted[:: max(1, int(SPACED * sigma))]
    shown = wanted if uncertainty else sampled
    for start in range(0, len(shown), SLAB):
        rows = shown[start : start + SLAB]
        answers = [one.answer(stack[rows], inside[rows], squares=uncertainty) for one in passes]
        p = _mean([answer[0] for answer in answers])
        out["probability"][rows] = _bytes_inside(p, inside[rows])
        if uncertainty:
            p = np.clip(p, 0, 1)
            spread = 2 * (_mean([answer[1] for answer in answers]) - p * p)  # of infiltrate and of its opposite
            out["entropy"][rows] = _bytes_inside(entropy(np.stack((1 - p, p))), inside[rows])
            out["variance"][rows] = _bytes_inside(spread, inside[rows])
        progress("slices", min(start + SLAB, len(shown)), len(shown))
    smooth_across(out["probability"], inside, sigma, sampled)
    return Maps(**{name: from_slices(values) for name, values in out.items()})


def smooth_across(
    values: NDArray[np.uint8], inside: NDArray[np.bool_], sigma: float, sampled: NDArray[np.integer] | None = None
) -> None:
    """Smooth bytes (n, h, w) in place along the slices, over what is inside only.

    A network on single slices sees a fissure or a vessel that crosses a slice as it sees a lesion; a lesion is there in
    the next slice as well. Ends and edges of the lungs lose nothing: each value is divided by the weight inside.

    Args:
        values: 0 outside.
        inside: (n, h, w).
        sigma: of the Gaussian, in slices; below 0.2 nothing is done.
        sampled: numbers of the slices that count, the others take their values from these; None for all.
    """
    from scipy.ndimage import gaussian_filter1d

    if sigma < 0.2:
        return
    rows, columns = (np.flatnonzero(inside.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    across = slice(columns[0], columns[-1] + 1)
    for start in range(int(rows[0]), int(rows[-1]) + 1, SLAB):
        part = (slice(None), slice(start, min(start + SLAB, int(rows[-1]) + 1)), across)
        counted = inside[part].astype(np.float32)
        if sampled is not None:
            counted[np.setdiff1d(np.arange(len(values)), sampled)] = 0
        weight = gaussian_filter1d(counted, sigma, axis=0, mode="constant")
        total = gaussian_filter1d(values[part] * counted, sigma, axis=0, mode="constant")
        mean = np.divide(total, weight, out=np.zeros_like(total), where=inside[part] & (weight > 0))
        values[part] = np.rint(np.clip(mean, 0, 255))


@dataclass(frozen=True, eq=False)
class _MemberPass:
    """A network on slices set up for one scan."""

    member: Member
    fitted: ModelInput
    mirror: bool
    limit_hu: float | None
    spacing_mm: tuple[float, float]
    batch_size: int

    @classmethod
    def of(
        cls, member: Member, stack: NDArray[np.float32], inside: NDArray[np.bool_], volume: Volume,
        mirror: bool | None, batch_size: int,
    ) -> _MemberPass:  # fmt: skip
        assert member.slices is not None  # `load_members` saw to it
        above_hu = member.card.get("denser_than_lung_hu")
        limit_hu = None if above_hu is None else density_limit_hu(stack, inside, float(above_hu))
        fitted = member.slices.fitted(inside)
        return cls(member, fitted, is_mirrored(member, mirror), limit_hu, volume.grid.spacing_mm[:2], batch_size)

    def answer(
        self, stack: NDArray[np.float32], inside: NDArray[np.bool_], *, squares: bool
    ) -> list[NDArray[np.float32]]:
        """Probability (n, h, w) of some slices, and with `squares` the mean square of the votes."""
        images = self.fitted.images(stack, inside)
        if not squares:
            maps = [self._ask(images, self.mirror)]
        elif self.mirror:
            votes = [self._ask(images, False), self._ask(np.ascontiguousarray(images[..., ::-1]), False)[..., ::-1]]
            maps = [_mean(votes), _mean([vote * vote for vote in votes])]
        else:
            p = self._ask(images, False)
            maps = [p, p * p]
        maps = [self.fitted.back(values, (stack.shape[1], stack.shape[2])) for values in maps]
        if self.limit_hu is not None:
            dense = dense_enough(stack, inside, self.limit_hu, self.spacing_mm)
            maps = [np.where(dense, values, np.float32(0)) for values in maps]
        return maps

    def _ask(self, images: NDArray[np.generic], mirror: bool) -> NDArray[np.float32]:
        p = predict_probability(self.member.engine, images, mirror=mirror, batch_size=self.batch_size)
        return p[:, 0]


def _mean(votes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    total = votes[0]
    for vote in votes[1:]:
        total = total + vote
    return total / np.float32(len(votes)) if len(votes) > 1 else total


def _bytes_inside(values: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(inside, to_bytes(values), 0).astype(np.uint8)


def _nothing(volume: Volume, uncertainty: bool) -> Maps:
    def empty() -> NDArray[np.uint8]:
        return np.zeros(volume.grid.shape, np.uint8)

    return Maps(empty(), empty(), empty()) if uncertainty else Maps(empty())


SMOOTH_MM = 5.0  # Width of the in-plane mean over which density is judged; takes out noise and thin vessels

LOWEST_HU, HIGHEST_HU = -800.0, -650.0
"""The limit never leaves this range: ground-glass begins somewhere from -800 to -650 HU in published thresholds, and a
lung so affected that its commonest density is infiltrate must not hide it."""

_BIN_HU = 10.0


def typical_lung_hu(hu: NDArray[np.float32], lungs: NDArray[np.bool_]) -> float | None:
    """The commonest density of lung voxels from -1000 to -300 HU (peak of a smoothed histogram); None without any."""
    edges = np.arange(-1000.0, -300.0 + _BIN_HU, _BIN_HU)
    counts, _ = np.histogram(hu[lungs], edges)
    if not counts.any():
        return None
    smooth = np.convolve(counts, np.ones(7) / 7, mode="same")
    return float(edges[int(np.argmax(smooth))] + _BIN_HU / 2)


def density_limit_hu(hu: NDArray[np.float32], lungs: NDArray[np.bool_], above_hu: float) -> float:
    """Density from which a voxel may be infiltrate: so much above the typical lung, within LOWEST_HU and HIGHEST_HU.

    Without aerated lung the limit is LOWEST_HU.
    """
    typical = typical_lung_hu(hu, lungs)
    return LOWEST_HU if typical is None else float(np.clip(typical + above_hu, LOWEST_HU, HIGHEST_HU))


def dense_enough(
    stack_hu: NDArray[np.float32], inside: NDArray[np.bool_], limit_hu: float, spacing_mm: tuple[float, float]
) -> NDArray[np.bool_]:
    """Lung voxels of slices (n, h, w) whose in-plane mean over SMOOTH_MM reaches the limit.

    The mean is over lung voxels only, so that the chest wall does not make a rim of the lung dense. `spacing_mm` is
    (i, j).
    """
    import cv2

    columns, rows = (2 * max(0, round((SMOOTH_MM / step - 1) / 2)) + 1 for step in spacing_mm)
    out = np.zeros(stack_hu.shape, bool)
    for k, (hu, lung) in enumerate(zip(stack_hu, inside, strict=True)):
        weight = lung.astype(np.float32)
        total = cv2.blur(np.where(lung, hu, np.float32(0)), (columns, rows))
        share = cv2.blur(weight, (columns, rows))
        out[k] = lung & (total >= limit_hu * share)
    return out


DOME_SHARE = 0.9
"""Of a component, in the layer above the diaphragm; a lesion upon it reaches higher with more than a tenth of it."""


def infiltrate_mask(
    probability: NDArray[np.uint8], lung: NDArray[np.bool_], spacing_mm: tuple[float, ...], card: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Infiltrate (i, j, k) as the numbers of a card say: threshold, least volume, no domes of the diaphragm.

    A dome moves with the breath and fills its slices in part: a component (26 neighbours) of which `DOME_SHARE` lies at
    most ``dome_layer_mm`` above the end of the lung below it is left out. Without that entry, or in slices thicker than
    it, none is; what lies below the lowest slice is not known and counts as lung.

    Args:
        probability: 0 to 255.
        lung: on the same grid.
        spacing_mm: of the grid.
        card: of the model.
    """
    marks = probability >= np.ceil(255 * float(card.get("threshold", 0.5)))
    marks = components.without_small(marks, 1000 * float(card.get("smallest_ml", 0.0)) / float(np.prod(spacing_mm)))
    layer = int(float(card.get("dome_layer_mm", 0.0)) / spacing_mm[2])
    for piece in components.each(marks) if layer else ():
        (left, back, low), (right, front, top) = piece.min(axis=0), piece.max(axis=0) + 1
        if top - low > 3 * layer:
            continue
        base = max(0, low - layer)
        ended = np.cumsum(~lung[left:right, back:front, base:top], axis=2, dtype=np.int32)
        ended[..., layer + 1 :] -= ended[..., : -layer - 1].copy()  # voxels outside lung in the layer below each voxel
        if np.mean(ended[tuple((piece - (left, back, base)).T)] > 0) >= DOME_SHARE:
            marks[tuple(piece.T)] = False
    return marks
