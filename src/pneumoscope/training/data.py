"""What the loop draws batches from. Randomness comes in as a generator, so that any step can be done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pneumoscope.datasets.tensors import PreparedVolume, Triple, draw_centre
from pneumoscope.errors import InputError
from pneumoscope.geometry import cut
from pneumoscope.jobs.stamp import content_of_arrays, stamp
from pneumoscope.training.augment import VolumeAugment, Warp


@dataclass(frozen=True)
class Batch:
    """One step's worth: x (n, c, h, w) float32, y (n, o, ...) float32, and what each row is called."""

    x: Tensor
    y: Tensor
    names: tuple[str, ...]


Augment = Callable[[Batch, np.random.Generator], Batch]


class BatchSource(Protocol):
    """A finite set of examples, numbered from 0."""

    def __len__(self) -> int:
        """How many examples there are."""

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """The examples named; augmented with `rng` where one is given, as stored where not."""

    @property
    def content(self) -> str:
        """Sum over all that a batch is made of: values, names, order, augmentation. Kept weights of another sum are
        not of these data."""


@dataclass(frozen=True)
class ArraySource:
    """Examples held in memory."""

    images: NDArray[np.generic]  # (n, c, h, w); uint8 is scaled by 1/255, floats are taken as they are
    targets: NDArray[np.generic]  # (n, o, h, w) with 0, 1 and -1 for "not stated" (int8, uint8, bool or float)
    names: Sequence[str]  # n names for messages
    augment: Augment | None = None  # applied in training only

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.targets) == len(self.names):
            raise InputError(
                f"images, targets and names differ in number: {len(self.images)}, {len(self.targets)}, "
                f"{len(self.names)}"
            )
        if len(self.images) == 0:
            raise InputError("there is nothing to train on: the set is empty; check data and split")

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `BatchSource.batch`."""
        images = self.images[indices]
        scale = 1 / 255 if images.dtype == np.uint8 else 1.0
        x = torch.from_numpy(images.astype(np.float32) * np.float32(scale))
        y = torch.from_numpy(self.targets[indices].astype(np.float32))
        drawn = Batch(x, y, tuple(self.names[i] for i in indices))
        return self.augment(drawn, rng) if self.augment is not None and rng is not None else drawn

    @cached_property
    def content(self) -> str:
        """See `BatchSource.content`; the arrays are summed once."""
        varied = self.augment if is_dataclass(self.augment) else self.augment is not None
        return stamp(
            "slices", revision=1, values=content_of_arrays(self.images, self.targets), names=list(self.names),
            augment=repr(varied),
        )  # fmt: skip


@dataclass(frozen=True)
class MixedSource:
    """Draws from several sources in fixed shares."""

    parts: Sequence[BatchSource]  # the sources; all give tensors of the same shapes
    shares: Sequence[float]  # of an epoch, one per part; rounded so that every part with a share is drawn from
    # draws in an epoch. Example i of an epoch belongs to the part into whose share i falls; which example of that part
    # it is, is drawn again with the step's generator, with replacement.
    length: int

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.shares) or not self.parts:
            raise InputError(f"{len(self.parts)} sources need as many shares, got {len(self.shares)}")
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6 or self.length < len(self.parts):
            raise InputError(
                f"shares must be >= 0 and add up to 1, and an epoch must hold at least one draw per source; got "
                f"{list(self.shares)} and {self.length} draws"
            )

    def __len__(self) -> int:
        return self.length

    def part_of(self, indices: NDArray[np.int64]) -> NDArray[np.intp]:
        """Which part each index of an epoch belongs to."""
        ends = np.rint(np.cumsum(self.shares) * self.length)
        return np.searchsorted(ends, indices, side="right").clip(max=len(self.parts) - 1)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `BatchSource.batch`; without a generator index i of a part gives its example i, going round."""
        where = self.part_of(indices)
        drawn = []
        for number in np.unique(where):
            part = self.parts[number]
            own = indices[where == number]
            rows = own % len(part) if rng is None else rng.integers(len(part), size=len(own))
            drawn.append(part.batch(rows.astype(np.int64), rng))
        names = tuple(name for batch in drawn for name in batch.names)
        return Batch(torch.cat([b.x for b in drawn]), torch.cat([b.y for b in drawn]), names)

    @property
    def content(self) -> str:
        """See `BatchSource.content`."""
        parts = [part.content for part in self.parts]
        return stamp("mixture", revision=1, length=self.length, shares=list(self.shares), parts=parts)


FIXED_SEED = 20210725  # Of boxes drawn without a generator: validation sees the same ones in every epoch


KEPT_BYTES = 16 << 20  # What the allocator takes whatever the boxes; it matters for small ones only


@dataclass(frozen=True)
class PatchSource:
    """Boxes of volumes. Example i of an epoch is of volume i modulo their number; where the box lies is drawn.

    In an epoch of fewer boxes than volumes the volume of a training box is drawn too, so that all have their turn.
    """

    volumes: Sequence[PreparedVolume]  # mapped or in memory; never copied as a whole
    patch: Triple  # (d, h, w) of a box. Where a volume is smaller, it is filled up with its lowest value, class 0.
    length: int  # boxes in an epoch
    foreground: float = 0.0  # share of boxes that are laid around an infected voxel; 0 is the papers' draw
    augment: VolumeAugment | None = None  # of boxes drawn with a generator; without one boxes are fixed and as they are

    def __post_init__(self) -> None:
        if not self.volumes or self.length < 1:
            raise InputError("there is nothing to train on: no volume, or an epoch of no boxes; check data and split")
        if min(self.patch) < 1 or not 0 <= self.foreground <= 1:
            raise InputError(f"a box needs positive sides and a share in [0, 1], got {self.patch}, {self.foreground}")
        unlabelled = [volume.case for volume in self.volumes if volume.labels is None]
        if unlabelled:
            raise InputError(f"{len(unlabelled)} volumes have no labels, first {unlabelled[0]}")

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """See `BatchSource.batch`: x (n, 1, d, h, w), y (n, 1, d, h, w) with class numbers."""
        images, labels, names = [], [], []
        for index in indices:
            own = np.random.default_rng([FIXED_SEED, int(index)]) if rng is None else rng
            any_one = rng is not None and self.length < len(self.volumes)
            volume = self.volumes[int(own.integers(len(self.volumes)) if any_one else index % len(self.volumes))]
            image, label = self._box(volume, own, varied=rng is not None)
            images.append(image)
            labels.append(label)
            names.append(volume.case)
        x = torch.stack(images)[:, None].contiguous()
        return Batch(x, torch.stack(labels)[:, None].float().contiguous(), tuple(names))

    def _box(
        self, volume: PreparedVolume, rng: np.random.Generator, *, varied: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert volume.labels is not None
        augment = self.augment if varied else None
        warp = augment.warp(self.patch, rng) if augment else Warp(np.eye(3))
        middle = draw_centre(volume, self.patch, self.foreground, rng)
        reach = warp.reach(self.patch)
        start = [int(v) for v in np.rint(middle - (np.asarray(reach) - 1) / 2)]
        image = torch.from_numpy(cut(volume.image, start, reach, volume.lowest))
        label = torch.from_numpy(cut(volume.labels, start, reach, 0))
        image = warp.apply(image, self.patch, nearest=False)
        label = warp.apply(label, self.patch, nearest=True)
        return (augment.appearance(image, rng) if augment else image), label

    def resident_bytes(self, batch_size: int) -> int:
        """Bytes that drawing a batch holds at its worst, beside the mapped files.

        Boxes of the batch (image and label, one by one and stacked, 16 bytes a voxel), one box being made (what is
        read for it, once more as float; positions in double precision, twice, because the system's allocator keeps
        what was given back in blocks below 32 MB), and `KEPT_BYTES`. For two boxes of 160 x 160 x 80: 101 MB, with
        variation 796 MB (measured 346 MB); of 96 x 96 x 48: 185 MB (151 MB); see benchmarks/volumes_memory.py.
        """
        voxels = int(np.prod(self.patch))
        widest = 1 if self.augment is None else (1.3 * 1.5 / min(1.0, self.augment.scale[0])) ** 3
        making = 9 * widest + (0 if self.augment is None else 240)
        return int(batch_size * voxels * 16 + voxels * making) + KEPT_BYTES

    @property
    def content(self) -> str:
        """See `BatchSource.content`; every volume is read once."""
        volumes = [[volume.case, volume.content] for volume in self.volumes]
        drawn = {"patch": self.patch, "length": self.length, "foreground": self.foreground}
        return stamp("boxes", revision=1, volumes=volumes, augment=repr(self.augment), **drawn)
