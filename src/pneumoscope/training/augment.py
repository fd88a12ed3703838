"""Augmentation of slices on the fly: where the lungs sit and how the scanner shows them.

All randomness comes from the generator given, so that a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pneumoscope.training.data import Batch


@dataclass(frozen=True)
class SliceAugment:
    """Random placement and appearance of 2D slices.

    Attributes:
        rotate_deg: largest turn either way.
        scale: smallest and largest zoom; 1.2 makes things larger.
        shift: largest shift, as a share of the image's side.
        flip: probability of mirroring left and right (lungs are near enough symmetric; never up and down).
        gamma: smallest and largest exponent on intensity.
        contrast: smallest and largest factor about the mean.
        brightness: largest offset either way, image range being 0..1.
        noise: largest standard deviation of added Gaussian noise.
        blur: probability of a 3 x 3 mean, standing for a softer kernel.
        image_channels: channels from the front that carry intensity; masks behind them only move.
        drop_channel: (channel, probability) of showing that channel as zeros, e.g. the lung mask.
    """

    rotate_deg: float = 15.0
    scale: tuple[float, float] = (0.8, 1.25)
    shift: float = 0.08
    flip: float = 0.5
    gamma: tuple[float, float] = (0.7, 1.4)
    contrast: tuple[float, float] = (0.75, 1.3)
    brightness: float = 0.1
    noise: float = 0.04
    blur: float = 0.2
    image_channels: int = 1
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


@dataclass(frozen=True)
class HounsfieldAugment:
    """Random placement and acquisition of slices (n, c, h, w), the first channel in Hounsfield units.

    Density keeps its meaning: it moves by what separates scanners, kernels and slices that were brought towards
    Hounsfield units, and by no more. Other channels, grey values of 0 to 255, move with the slice.

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
            hu = torch.cat((hu, 255 * self.place._appearance(x[:, 1:] / 255, rng)), dim=1)
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
