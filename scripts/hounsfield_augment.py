"""Random placement and acquisition of slices in Hounsfield units, for the training of the infiltrate model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pneumoscope.training.augment import SliceAugment
from pneumoscope.training.data import Batch


@dataclass(frozen=True)
class HounsfieldAugment:
    """Random placement and acquisition of slices (n, c, h, w), the first channel in Hounsfield units.

    Density keeps its meaning: it moves by what separates scanners, kernels and slices that were brought towards
    Hounsfield units, and by no more. The second channel, if any, holds grey values of 0 to 255; masks behind it only
    move.

    Attributes:
        place: where the slice lies; its fields on intensity are for the grey channels.
        gain: smallest and largest factor on HU + 1000.
        offset_hu: standard deviation of a shift of all densities.
        bend_hu: largest height of a bump over a part of the scale, either way.
        noise_hu: largest standard deviation of added noise, white or as of a soft kernel.
        soft: probability of a 3 x 3 mean.
        sharp: probability of an overshoot at edges, as of a sharp kernel.
    """

    place: SliceAugment = SliceAugment(rotate_deg=20.0, scale=(0.7, 1.4), shift=0.1)
    gain: tuple[float, float] = (0.92, 1.1)
    offset_hu: float = 20.0
    bend_hu: float = 50.0
    noise_hu: float = 60.0
    soft: float = 0.25
    sharp: float = 0.25

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """A batch of the same shapes; targets move with the slices and stay 0, 1 or -1."""
        grid = self.place._grid(len(batch.x), batch.x.shape[-2:], rng)
        x = F.grid_sample(batch.x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        y = F.grid_sample(batch.y, grid, mode="nearest", padding_mode="border", align_corners=False)
        hu = self._acquired(x[:, :1], rng)
        if x.shape[1] > 1:
            grey = 255 * self.place._appearance(x[:, 1:2] / 255, rng)
            hu = torch.cat((hu, grey, (x[:, 2:] > 0.5).to(x.dtype)), dim=1)
        return Batch(hu, y, batch.names)

    def _acquired(self, hu: Tensor, rng: np.random.Generator) -> Tensor:
        n = len(hu)

        def column(values: NDArray[np.floating]) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).view(n, 1, 1, 1)

        kernel = rng.random(n)
        mean = F.avg_pool2d(hu, 3, stride=1, padding=1, count_include_pad=False)
        detail = np.where(kernel < self.soft, -1.0, np.where(kernel > 1 - self.sharp, rng.uniform(0.2, 1.0, n), 0.0))
        hu = hu + column(detail) * (hu - mean)
        hu = (hu + 1000) * column(rng.uniform(*self.gain, n)) - 1000 + column(rng.normal(0, self.offset_hu, n))
        centre, height = column(rng.uniform(-900, -100, n)), column(rng.uniform(-self.bend_hu, self.bend_hu, n))
        hu = hu + height * torch.exp(-(((hu - centre) / 250) ** 2))
        grain = torch.from_numpy(rng.standard_normal(tuple(hu.shape), dtype=np.float32))
        smooth = 2.5 * F.avg_pool2d(grain, 3, stride=1, padding=1)
        grain = torch.where(column(rng.random(n)) < 0.5, grain, smooth)
        return hu + grain * column(rng.uniform(0, 1, n) ** 2 * self.noise_hu)
