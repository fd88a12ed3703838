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

from pneumoscope.errors import InputError
from pneumoscope.jobs.stamp import content_of_arrays, stamp


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
    """Examples held in memory.

    Attributes:
        images: (n, c, h, w); uint8 is scaled by 1/255, floats are taken as they are.
        targets: (n, o, h, w) with 0, 1 and -1 for "not stated" (int8, uint8, bool or float).
        names: n names for messages.
        augment: applied in training only.
    """

    images: NDArray[np.generic]
    targets: NDArray[np.generic]
    names: Sequence[str]
    augment: Augment | None = None

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
