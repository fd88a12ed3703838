"""Random boxes of prepared volumes as examples for the loop; any step can be drawn again from its generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.datasets.patches import PreparedVolume, Triple, cut, draw_centre
from pneumoscope.errors import InputError
from pneumoscope.jobs.stamp import stamp
from pneumoscope.training.augment3d import VolumeAugment, Warp
from pneumoscope.training.data import Batch

FIXED_SEED = 20210725
"""Of boxes drawn without a generator: validation sees the same ones in every epoch."""


KEPT_BYTES = 16 << 20
"""What the allocator takes whatever the boxes; it matters for small ones only."""


@dataclass(frozen=True)
class PatchSource:
    """Boxes of volumes. Example i of an epoch is of volume i modulo their number; where the box lies is drawn.

    Attributes:
        volumes: mapped or in memory; never copied as a whole.
        patch: (d, h, w) of a box. Where a volume is smaller, it is filled up with its lowest value, class 0.
        length: boxes in an epoch.
        foreground: share of boxes that are laid around an infected voxel; 0 is the papers' draw.
        augment: of boxes drawn with a generator; without one boxes are fixed and as they are.
    """

    volumes: Sequence[PreparedVolume]
    patch: Triple
    length: int
    foreground: float = 0.0
    augment: VolumeAugment | None = None

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
            volume = self.volumes[int(index) % len(self.volumes)]
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
