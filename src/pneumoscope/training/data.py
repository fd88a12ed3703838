"""What the loop draws batches from. Randomness comes in as a generator, so that any step can be done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pneumoscope.errors import InputError


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

    def fingerprint(self) -> str:
        """Changes when the examples change; resuming on other data is refused by it."""


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

    def fingerprint(self) -> str:
        """Shape, names and a sum over the values: cheap, and different for different data."""
        total = int(np.asarray(self.targets, dtype=np.int64).sum()), float(self.images.sum(dtype=np.float64))
        return f"{self.images.shape}|{hash_names(self.names)}|{total}"


def hash_names(names: Sequence[str]) -> str:
    """A short stable digest of the names in their order."""
    import hashlib

    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
