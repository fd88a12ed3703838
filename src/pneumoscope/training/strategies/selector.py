"""Which site a scan looks like: grey values and grain of its slices, compared with those of the sites' training slices.

Ours; in the manner of an expert gate (Aljundi et al. 2017, Expert Gate, CVPR, arXiv 1611.06194), with a linear
discriminant instead of autoencoders: it needs a mean per site and one covariance, and keeps no picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import InputError

QUANTILES = tuple(np.linspace(0.05, 0.95, 10))  # Of the grey values of a slice

SHRINKAGE = 0.1
"""Share of the covariance that is replaced by its diagonal; 25 slices cannot tell twelve variances and their ties."""


def features(images: NDArray[np.generic]) -> NDArray[np.float64]:
    """(n, 12) of pictures (n, c, h, w): quantiles of the first channel, and the mean step along rows and columns."""
    if not len(images):
        return np.zeros((0, len(QUANTILES) + 2))
    grey = images[:, 0].astype(np.float64)
    if images.dtype == np.uint8:
        grey /= 255
    flat = grey.reshape(len(grey), -1)
    levels = np.quantile(flat, QUANTILES, axis=1).T
    steps = [np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    return np.column_stack([levels, *steps])


@dataclass(frozen=True, eq=False)
class Selector:
    """Knows what each site's slices look like."""

    sites: tuple[int, ...]  # their numbers
    means: NDArray[np.float64]  # (sites, features)
    precision: NDArray[np.float64]  # (features, features), the inverse of the covariance within sites

    @staticmethod
    def fit(images: Mapping[int, NDArray[np.generic]]) -> Selector:
        """Learn from training slices (n, c, h, w) per site; every site weighs the same.

        Raises:
            InputError: a site without slices.
        """
        values = {site: features(stack) for site, stack in sorted(images.items())}
        empty = [site for site, found in values.items() if not len(found)]
        if empty or not values:
            raise InputError(f"the selector needs slices of every site; none of {empty or 'any'}")
        means = np.stack([found.mean(axis=0) for found in values.values()])
        within = [np.cov(found.T, bias=True) for found in values.values()]
        covariance = np.mean(within, axis=0)
        spread = np.diag(np.diag(covariance) + 1e-6)
        covariance = (1 - SHRINKAGE) * (covariance + 1e-6 * np.eye(len(covariance))) + SHRINKAGE * spread
        return Selector(tuple(values), means, np.linalg.inv(covariance))

    def distances(self, images: NDArray[np.generic]) -> NDArray[np.float64]:
        """(sites) squared Mahalanobis distance of a scan's slices from each site, averaged over the slices."""
        off = features(images)[:, None] - self.means
        return np.asarray(np.einsum("nsf,fg,nsg->ns", off, self.precision, off).mean(axis=0))

    def choose(self, images: NDArray[np.generic]) -> int:
        """The site that the slices (n, c, h, w) of one scan look most like; n >= 1."""
        return self.sites[int(np.argmin(self.distances(images)))]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"sites": list(self.sites), "means": self.means.tolist(), "precision": self.precision.tolist()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Selector:
        """Read what `as_dict` gave."""
        return Selector(tuple(values["sites"]), np.array(values["means"]), np.array(values["precision"]))
