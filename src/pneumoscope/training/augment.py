"""Augmentation of slices on the fly: where the lungs sit and how the scanner shows them.

All randomness comes from the generator given, so that a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pneumoscope.training.data import Batch


@dataclass(frozen=True)
class SliceAugment:
    """Random placement and appearance of 2D slices."""

    rotate_deg: float = 15.0  # largest turn either way
    scale: tuple[float, float] = (0.8, 1.25)  # smallest and largest zoom; 1.2 makes things larger
    shift: float = 0.08  # largest shift, as a share of the image's side
    flip: float = 0.5  # probability of mirroring left and right (lungs are near enough symmetric; never up and down)
    gamma: tuple[float, float] = (0.7, 1.4)  # smallest and largest exponent on intensity
    contrast: tuple[float, float] = (0.75, 1.3)  # smallest and largest factor about the mean
    brightness: float = 0.1  # largest offset either way, image range being 0..1
    noise: float = 0.04  # largest standard deviation of added Gaussian noise
    blur: float = 0.2  # probability of a 3 x 3 mean, standing for a softer kernel
    image_channels: int = 1  # channels from the front that carry intensity; masks behind them only move
    # (channel, probability) of showing that channel as zeros, e.g. the lung mask.
    drop_channel: tuple[int, float] | None = None

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """A batch of the same shapes; targets move with the images and stay 0, 1 or -1."""
        n = len(batch.x)
        grid = self._grid(n, batch.x.shape[-2:], rng)
        x = F.grid_sample(batch.x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        y = F.grid_sample(batch.y, grid, mode="nearest", padding_mode="border", align_corners=False)
        image, masks = x[:, : self.image_channels], x[:, self.image_channels :]
        image = self._appearance(image, rng)
        x = torch.cat((image, (masks > 0.5).to(x.dtype)), dim=1)
        if self.drop_channel is not None:
            channel, probability = self.drop_channel
            x[torch.from_numpy(rng.random(n) < probability), channel] = 0
        return Batch(x, y, batch.names)

    def _grid(self, n: int, size: torch.Size, rng: np.random.Generator) -> Tensor:
        """Sampling positions (n, h, w, 2) of a rotation, zoom, shift and mirror for each slice."""
        angle = np.deg2rad(rng.uniform(-self.rotate_deg, self.rotate_deg, n))
        zoom = np.exp(rng.uniform(np.log(self.scale[0]), np.log(self.scale[1]), n))
        mirror = np.where(rng.random(n) < self.flip, -1.0, 1.0)
        move = rng.uniform(-2 * self.shift, 2 * self.shift, (n, 2))
        h, w = size
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        theta = np.zeros((n, 2, 3), np.float32)
        theta[:, 0, 0], theta[:, 0, 1], theta[:, 0, 2] = cos * mirror, -sin * h / w, move[:, 0]
        theta[:, 1, 0], theta[:, 1, 1], theta[:, 1, 2] = sin * w / h * mirror, cos, move[:, 1]
        return F.affine_grid(torch.from_numpy(theta), [n, 1, h, w], align_corners=False)

    def _appearance(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        n = len(image)

        def draw(low: float, high: float) -> Tensor:
            return torch.from_numpy(rng.uniform(low, high, n).astype(np.float32)).view(n, 1, 1, 1)

        soft = torch.from_numpy(rng.random(n) < self.blur).view(n, 1, 1, 1)
        image = torch.where(soft, F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False), image)
        image = image.clamp(0, 1) ** draw(*self.gamma)
        mean = image.mean(dim=(1, 2, 3), keepdim=True)
        image = (image - mean) * draw(*self.contrast) + mean + draw(-self.brightness, self.brightness)
        grain = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
        return (image + grain * draw(0, self.noise)).clamp(0, 1)
