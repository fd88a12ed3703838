"""Examples of several sets in one stream: an epoch is a fixed number of draws, whatever the sizes of the sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pneumoscope.errors import InputError
from pneumoscope.jobs.stamp import stamp
from pneumoscope.training.data import Batch, BatchSource


@dataclass(frozen=True)
class MixedSource:
    """Draws from several sources in fixed shares.

    Attributes:
        parts: the sources; all give tensors of the same shapes.
        shares: of an epoch, one per part; rounded so that every part with a share is drawn from.
        length: draws in an epoch. Example i of an epoch belongs to the part into whose share i falls; which example of
            that part it is, is drawn anew with the step's generator, with replacement.
    """

    parts: Sequence[BatchSource]
    shares: Sequence[float]
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
