"""Sliding windows over a volume: patches in, one blended probability out, a slab of slices at a time.

Shapes: c channels, d slices, h rows, w columns. Windows of one depth are added into a slab as deep as a patch; what no
later window reaches is handed on and forgotten. So memory holds one slab of probabilities and not the volume's:
see `WindowPlan.slab_bytes`. The places of the windows and the Gaussian are those of MONAI's SlidingWindowInferer, with
which the results are compared in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError, RunError
from pneumoscope.progress import Progress, silent

Triple = tuple[int, int, int]

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Patches (n, c, *patch) to class probabilities (n, classes, *patch)."""

GAUSSIAN_SIGMA = 0.125  # Width of the Gaussian as a share of the patch's side (nnU-Net's and MONAI's)
HANDED_ON = 16  # Slices at a time that leave the slab; bounds what is worked on outside it

_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class WindowPlan:
    """How a volume is cut into windows."""

    patch: Triple  # (d, h, w) of a window
    # share of a window's side that the next one covers again, per axis. A half is what Mueller et al. 2021 say (section
    # 2.4).
    overlap: tuple[float, float, float] = (0.5, 0.5, 0.5)
    # ``mean`` averages where windows overlap, as Mueller et al. do; ``gaussian`` trusts a window's middle more.
    blend: Literal["mean", "gaussian"] = "mean"
    # axes (0 = d, 1 = h, 2 = w) along which each window is also shown mirrored, in all combinations; the probabilities
    # are averaged. Three axes take eight times as long.
    mirror: tuple[int, ...] = ()
    batch_size: int = 1  # windows at a time

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(int(n) for n in self.patch))
        object.__setattr__(self, "overlap", tuple(float(n) for n in self.overlap))
        object.__setattr__(self, "mirror", tuple(sorted({int(axis) for axis in self.mirror})))
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise InputError(f"a patch has three sides of at least 1, got {self.patch}")
        if len(self.overlap) != 3 or not all(0 <= share < 1 for share in self.overlap):
            raise InputError(f"overlap must be three shares in [0, 1), got {self.overlap}")
        if self.blend not in ("mean", "gaussian"):
            raise InputError(f"blend must be mean or gaussian, got {self.blend!r}")
        if not set(self.mirror) <= {0, 1, 2} or self.batch_size < 1:
            raise InputError(
                f"mirror names axes 0 to 2 and batch_size is at least 1, got {self.mirror}, {self.batch_size}"
            )

    @property
    def mirrors(self) -> list[tuple[int, ...]]:
        """The combinations of axes that a window is flipped along, the unflipped one first."""
        chosen = product(*((False, True) for _ in self.mirror))
        return [tuple(axis for axis, flip in zip(self.mirror, flips, strict=True) if flip) for flips in chosen]

    def padded(self, shape: Sequence[int]) -> Triple:
        """The volume's (d, h, w), made at least as large as a patch."""
        d, h, w = (max(n, side) for n, side in zip(shape, self.patch, strict=True))
        return d, h, w

    def starts(self, shape: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Where windows begin along each axis of the padded volume; the last one ends where the volume does."""
        d, h, w = (
            _starts(n, side, share) for n, side, share in zip(self.padded(shape), self.patch, self.overlap, strict=True)
        )
        return d, h, w

    def weights(self) -> NDArray[np.float32]:
        """What each voxel of a window counts, (d, h, w), largest 1."""
        if self.blend == "mean":
            return np.ones(self.patch, np.float32)
        weight = np.ones((1, 1, 1))
        for axis, side in enumerate(self.patch):
            place = np.arange(side) - (side - 1) / 2
            curve = np.exp(-(place**2) / (2 * (GAUSSIAN_SIGMA * side) ** 2))
            weight = weight * curve.reshape([-1 if a == axis else 1 for a in range(3)])
        return np.maximum(weight, max(float(weight.min()), _LEAST_WEIGHT)).astype(np.float32)

    def slab_bytes(self, shape: Sequence[int], classes: int) -> int:
        """Bytes of the slab that `slide` keeps: classes, their squares' sum and the weights, as deep as a patch."""
        _, h, w = self.padded(shape)
        return 4 * (classes + 2) * self.patch[0] * h * w


@dataclass(frozen=True, eq=False)
class Slab:
    """Finished slices."""

    start: int  # of the first one in the volume
    probability: NDArray[np.float32]  # (classes, d, h, w) float32, sums to 1 where the votes do
    # (d, h, w) float32 in [0, 1], how far the votes lie apart: the weighted mean over all votes of a voxel (members,
    # mirrors, overlapping windows) of the squared distance to their mean, summed over classes
    variance: NDArray[np.float32]


def slide(
    image: NDArray[np.float32], members: Sequence[Predict], plan: WindowPlan, *, progress: Progress = silent
) -> Iterator[Slab]:
    """Blended probabilities of a volume from the first slice to the last, each slice once, some at a time.

    Args:
        image: (c, d, h, w). What is smaller than a patch is padded behind with the volume's lowest value, and cut
            again.
        members: networks whose probabilities are averaged; each sees every window.
        plan: see `WindowPlan`.

    Raises:
        InputError: no member, or an image of other axes.
        RunError: a network gave NaN or infinity, or another shape than the patch.
    """
    if not members:
        raise InputError("there is no network to run; give at least one")
    if image.ndim != 4 or min(image.shape) < 1:
        raise InputError(f"a volume for windows has shape (c, d, h, w), got {image.shape}")
    shape = image.shape[1:]
    starts, weight, padded = plan.starts(shape), (None if plan.blend == "mean" else plan.weights()), plan.padded(shape)
    fill = np.float32(image.min()) if padded != shape else np.float32(0)
    depth, places = plan.patch[0], list(product(starts[1], starts[2]))
    total, done = len(starts[0]) * len(places), 0
    sums: NDArray[np.float32] | None = None  # (classes + 2, depth, h, w): probabilities, their squares' sum, weights
    for n, top in enumerate(starts[0]):
        for begin in range(0, len(places), plan.batch_size):
            batch = places[begin : begin + plan.batch_size]
            patches = np.stack([_cut(image, (top, row, column), plan.patch, fill) for row, column in batch])
            for votes in _votes(patches, members, plan):
                if sums is None:
                    sums = np.zeros((votes.shape[1] + 2, depth, *padded[1:]), np.float32)
                _add(sums, votes, weight, batch, plan.patch)
            done += len(batch)
            progress("windows", done, total)
        assert sums is not None
        after = starts[0][n + 1] if n + 1 < len(starts[0]) else top + depth
        for start in range(top, min(after, shape[0]), HANDED_ON):
            stop = min(start + HANDED_ON, after, shape[0])
            yield _finish(sums[:, start - top : stop - top, : shape[1], : shape[2]], start)
        kept = depth - (after - top)
        if kept > 0:
            for part in sums:  # one at a time: the overlap is copied first
                part[:kept] = part[depth - kept :]
        sums[:, kept:] = 0


def _starts(size: int, side: int, overlap: float) -> list[int]:
    """First voxels of windows of `side` over `size` >= `side`, in steps of what does not overlap (at least 1)."""
    step = max(1, int(side * (1 - overlap))) if size > side else side
    count = -(-(size - side) // step) + 1
    return sorted({min(n * step, size - side) for n in range(count)})


def _cut(image: NDArray[np.float32], start: Triple, patch: Triple, fill: np.float32) -> NDArray[np.float32]:
    """(c, *patch) from `start` on, filled behind the volume's end."""
    piece = image[(slice(None), *(slice(a, a + n) for a, n in zip(start, patch, strict=True)))]
    if piece.shape[1:] == patch:
        return piece
    out = np.full((image.shape[0], *patch), fill, np.float32)
    out[(slice(None), *(slice(0, n) for n in piece.shape[1:]))] = piece
    return out


def _votes(patches: NDArray[np.float32], members: Sequence[Predict], plan: WindowPlan) -> Iterator[NDArray[np.float32]]:
    """Probabilities of patches (n, c, *patch) from each member and each mirroring, turned back."""
    for axes in plan.mirrors:
        turned = tuple(axis + 2 for axis in axes)
        shown = np.ascontiguousarray(np.flip(patches, turned)) if axes else patches
        for member in members:
            votes = member(shown)
            if votes.shape[2:] != patches.shape[2:]:
                raise RunError(f"the network made {votes.shape[2:]} voxels of a patch of {patches.shape[2:]}")
            if not np.isfinite(votes).all():
                raise RunError(
                    "the network gave NaN or infinite probabilities; try --precision fp32, or verify the model"
                )
            yield np.flip(votes, turned) if axes else votes


def _add(
    sums: NDArray[np.float32],
    votes: NDArray[np.float32],
    weight: NDArray[np.float32] | None,
    places: Sequence[tuple[int, int]],
    patch: Triple,
) -> None:
    """Add votes (n, classes, *patch) to the slab, at the rows and columns of their windows; no weight is 1."""
    for vote, (row, column) in zip(votes, places, strict=True):
        box = sums[:, :, row : row + patch[1], column : column + patch[2]]
        squares = np.einsum("cdhw,cdhw->dhw", vote, vote)
        box[:-2] += vote if weight is None else vote * weight
        box[-2] += squares if weight is None else squares * weight
        box[-1] += 1 if weight is None else weight


def _finish(sums: NDArray[np.float32], start: int) -> Slab:
    """Divide by the weights; a copy, as the slab moves on."""
    probability = sums[:-2] / sums[-1]
    squares = sums[-2] / sums[-1]
    squares -= np.einsum("cdhw,cdhw->dhw", probability, probability)
    return Slab(start, probability, np.clip(squares, 0, 1, out=squares))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Class probabilities (n, classes, ...) of logits; they sum to 1."""
    p = logits - logits.max(axis=1, keepdims=True)
    np.exp(p, out=p)
    p /= p.sum(axis=1, keepdims=True)
    return p
