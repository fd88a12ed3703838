"""Augmentation of slices and volumes on the fly: where the lungs sit and how the scanner shows them.

All randomness comes from the generator given, so that a resumed run draws what the undisturbed one would have drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pneumoscope.errors import InputError

if TYPE_CHECKING:
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
        return replace(batch, x=x, y=y)

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


Triple = tuple[int, int, int]
ELASTIC_STEP = 4  # Voxels between the points at which a deformation is drawn; in between it is interpolated


@dataclass(frozen=True, eq=False)
class Warp:
    """Where each voxel of a box is read from."""

    matrix: NDArray[np.float64]  # (3, 3) of the map from the box to the volume, about the middle, in voxels (d, h, w)
    shift: Tensor | None = None  # (3, d, h, w) further displacement in voxels, or None

    @property
    def is_identity(self) -> bool:
        """Whether voxels are read from where they are."""
        return self.shift is None and bool((self.matrix == np.eye(3)).all())

    def reach(self, patch: Triple) -> Triple:
        """(d, h, w) of the box that holds every place read for a box of `patch`."""
        if self.is_identity:
            return patch
        half = np.abs(self.matrix) @ ((np.asarray(patch) - 1) / 2)
        if self.shift is not None:
            half = half + self.shift.abs().amax(dim=(1, 2, 3)).numpy()
        spare = [2 * ceil(h - (n - 1) / 2 - 1e-9) for h, n in zip(half, patch, strict=True)]
        d, h, w = (n + max(0, s) for n, s in zip(patch, spare, strict=True))
        return d, h, w

    def apply(self, array: Tensor, patch: Triple, *, nearest: bool) -> Tensor:
        """A box (d, h, w) of `patch`, read from `array` of `reach(patch)`; both have the same middle."""
        if self.is_identity:
            return array
        axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in patch]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (3, d, h, w) about the middle
        if self.shift is not None:
            places = places + self.shift
        moved = torch.einsum("ab,bdhw->adhw", torch.from_numpy(self.matrix), places)
        size = torch.tensor(array.shape, dtype=torch.float64).view(3, 1, 1, 1)
        grid = (2 * moved / size).flip(0).permute(1, 2, 3, 0)  # grid_sample wants (w, h, d), borders at -1 and 1
        mode = "nearest" if nearest else "bilinear"
        return F.grid_sample(
            array[None, None].float(), grid[None].float(), mode=mode, padding_mode="border", align_corners=False
        )[0, 0].to(array.dtype)


@dataclass(frozen=True, kw_only=True)
class VolumeAugment:
    """Random geometry and appearance of boxes; each kind is drawn by itself with its own probability.

    The defaults are those of Mueller et al. 2021: every probability 0.15 (section 2.3), the ranges from the authors'
    program (facts about covid19.MIScnn). Intensities are those of standardised volumes (mean 0, deviation 1).
    """

    # scale, scale_p: range of the zoom; 1.2 makes things larger. One zoom for all axes.
    scale: tuple[float, float] = (0.85, 1.25)
    scale_p: float = 0.15
    # rotate_deg, rotate_p: largest turn either way about each of the three axes
    rotate_deg: float = 15.0
    rotate_p: float = 0.15
    # elastic_alpha, elastic_sigma, elastic_p: strength range and smoothness range in voxels, as batchgenerators: noise
    # in [-1, 1], Gaussian-filtered with sigma, times alpha
    elastic_alpha: tuple[float, float] = (0.0, 900.0)
    elastic_sigma: tuple[float, float] = (9.0, 13.0)
    elastic_p: float = 0.15
    # mirror_p, mirror_axes: probability for each axis, and which: 0 slices, 1 front and back, 2 right and left. Labels
    # keep their numbers: a left lung that was mirrored is still called the left one, as in the paper.
    mirror_p: float = 0.15
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    # brightness, brightness_p: range of a factor
    brightness: tuple[float, float] = (0.5, 2.0)
    brightness_p: float = 0.15
    # contrast, contrast_p: range of a factor about the mean; values stay within the box's own range
    contrast: tuple[float, float] = (0.3, 3.0)
    contrast_p: float = 0.15
    # gamma, gamma_p: range of the exponent on the box spread over [0, 1]; mean and deviation are kept
    gamma: tuple[float, float] = (0.7, 1.5)
    gamma_p: float = 0.15
    # noise, noise_p: range of the standard deviation of added Gaussian noise
    noise: tuple[float, float] = (0.0, 0.05)
    noise_p: float = 0.15

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_p") and not 0 <= value <= 1:
                raise InputError(f"{item.name} is a probability, got {value}")
            if item.name == "mirror_axes":
                if not set(value) <= {0, 1, 2}:
                    raise InputError(f"mirror_axes are among 0, 1 and 2, got {value}")
            elif isinstance(value, tuple) and not value[0] <= value[1]:
                raise InputError(f"{item.name} needs a range [low, high], got {value}")

    def warp(self, patch: Triple, rng: np.random.Generator) -> Warp:
        """Draw where a box of `patch` is read from."""
        matrix = np.eye(3)
        if rng.random() < self.rotate_p:
            matrix = _rotation(np.deg2rad(rng.uniform(-self.rotate_deg, self.rotate_deg, 3)))
        if rng.random() < self.scale_p:
            matrix = matrix / rng.uniform(*self.scale)
        mirrored = (rng.random(3) < self.mirror_p) & np.isin(np.arange(3), self.mirror_axes)
        matrix = matrix @ np.diag(np.where(mirrored, -1.0, 1.0))
        if rng.random() >= self.elastic_p:
            return Warp(matrix)
        return Warp(matrix, elastic(patch, rng.uniform(*self.elastic_alpha), rng.uniform(*self.elastic_sigma), rng))

    def appearance(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """The box (d, h, w) in another light; contrast, brightness, gamma, noise in this order (the authors')."""
        if rng.random() < self.contrast_p:
            mean, low, high = image.mean(), image.min(), image.max()
            image = ((image - mean) * _factor(self.contrast, rng) + mean).clamp(low, high)
        if rng.random() < self.brightness_p:
            image = image * rng.uniform(*self.brightness)
        if rng.random() < self.gamma_p:
            image = _gamma(image, _factor(self.gamma, rng))
        if rng.random() < self.noise_p:
            grain = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
            image = image + grain * rng.uniform(*self.noise)
        return image


def _factor(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor below or above 1 with equal probability, as batchgenerators draws contrast and gamma."""
    low, high = bounds
    if low < 1 and (high <= 1 or rng.random() < 0.5):
        return float(rng.uniform(low, min(high, 1.0)))
    return float(rng.uniform(max(low, 1.0), high))


def _gamma(image: Tensor, exponent: float) -> Tensor:
    mean, deviation = image.mean(), image.std(unbiased=False)
    low, span = image.min(), (image.max() - image.min()).clamp(min=1e-7)
    bent = ((image - low) / span) ** exponent * span + low
    return (bent - bent.mean()) / bent.std(unbiased=False).clamp(min=1e-7) * deviation + mean


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns about the three axes, one after the other, (3, 3)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def elastic(patch: Triple, alpha: float, sigma: float, rng: np.random.Generator) -> Tensor:
    """Smooth random displacement (3, d, h, w) in voxels, float64.

    Noise uniform in [-1, 1], Gaussian-filtered with `sigma` and multiplied by `alpha` (batchgenerators). It is drawn on
    every fourth voxel: filtered noise of a coarser lattice has the same spectrum up to the scale
    ``step ** -1.5``, at a hundredth of the work.
    """
    from scipy.ndimage import gaussian_filter

    coarse = [ceil(n / ELASTIC_STEP) + 1 for n in patch]
    noise = rng.uniform(-1, 1, (3, *coarse))
    smooth = [gaussian_filter(part, sigma / ELASTIC_STEP, mode="wrap") for part in noise]
    field = torch.from_numpy(np.stack(smooth))[None] * (alpha * ELASTIC_STEP**-1.5)
    size = [(n - 1) * ELASTIC_STEP + 1 for n in coarse]
    fine = F.interpolate(field, size=size, mode="trilinear", align_corners=True)[0]
    d, h, w = patch
    return fine[:, :d, :h, :w]
