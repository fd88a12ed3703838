"""How a site's reader draws the infiltrate, and the slips that happen on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom.scanner import Protocol
from pneumoscope.datasets.phantom.sites import Reader
from pneumoscope.datasets.phantom.tissue import Painted

SPECK_VOXELS = 3


@dataclass(frozen=True)
class Fault:
    """A planted annotation fault.

    Attributes:
        kind: ``speck`` (a few voxels outside the lungs) or ``no-lung`` (infiltrate on a slice without lung).
        slice: index k of the RAS+ volume.
        voxels: how many.
        x_mm, y_mm, z_mm: middle, RAS+.
    """

    kind: str
    slice: int
    voxels: int
    x_mm: float
    y_mm: float
    z_mm: float


def true_labels(painted: Painted) -> NDArray[np.uint8]:
    """Exact infiltrate, (z, y, x): 1 = ground-glass, 2 = consolidation; inside the lungs."""
    labels = (painted.depth > 0).astype(np.uint8)
    labels += (painted.dense > 0) & (labels > 0)
    labels[painted.lung >= 0] = 0
    return labels


def drawn_labels(painted: Painted, reader: Reader) -> NDArray[np.uint8]:
    """What the reader draws, (z, y, x), before overlooking small lesions.

    A rounded outline follows the smooth border, any other the true one; a margin moves it out or in.
    """
    rounding = np.float32(np.clip(reader.rounding_mm / 2.2, 0, 1))
    depth = painted.depth + rounding * (painted.smooth_depth - painted.depth) if rounding > 0 else painted.depth
    drawn = (depth > -reader.margin_mm) & (painted.lung < 0)
    if not reader.vessels:
        drawn &= painted.vessels < 0.6
    if reader.faintest_hu is not None:
        drawn &= painted.hu > reader.faintest_hu
    labels = drawn.astype(np.uint8)
    if reader.kinds:
        labels += drawn & (painted.dense > -0.5 * reader.margin_mm)
    return labels


def overlook_small(labels: NDArray[np.uint8], smallest_ml: float, voxel_ml: float) -> None:
    """Remove connected lesions below a volume, in place."""
    if smallest_ml <= 0 or not labels.any():
        return
    from scipy.ndimage import label

    parts, _ = label(labels > 0)
    sizes = np.bincount(parts.ravel())
    labels[(sizes * voxel_ml < smallest_ml)[parts]] = 0


def plant_faults(
    labels: NDArray[np.uint8],
    lungs: NDArray[np.uint8],
    body: NDArray[np.bool_],
    protocol: Protocol,
    patient: int,
    rng: np.random.Generator,
) -> list[Fault]:
    """Draw the faults of Maganaris 2022b, figure 4, into `labels`: patients 2, 6, 10, ... get a speck of three voxels
    outside the lungs, patients 3, 7, 11, ... infiltrate on a slice without lung.
    """
    if patient % 4 == 2:
        return _speck(labels, lungs, body, protocol, rng)
    if patient % 4 == 3:
        return _without_lung(labels, lungs, body, protocol, rng)
    return []


def _speck(
    labels: NDArray[np.uint8], lungs: NDArray[np.uint8], body: NDArray[np.bool_], protocol: Protocol,
    rng: np.random.Generator,
) -> list[Fault]:  # fmt: skip
    """Three voxels in a row in the body, away from lung, on a slice with lung and preferably without infiltrate."""
    from scipy.ndimage import binary_dilation

    with_lung = lungs.any(axis=(1, 2))
    clean = with_lung & ~labels.any(axis=(1, 2))
    slices = np.flatnonzero(clean if clean.any() else with_lung)
    if len(slices) == 0:
        return []
    k = int(rng.choice(slices))
    near = binary_dilation(lungs[k] > 0, iterations=max(2, round(4 / protocol.pixel_mm)))
    free = body[k] & ~near
    free[:, 1:-1] &= free[:, :-2] & free[:, 2:]
    free[:, [0, -1]] = False
    return _draw(labels, k, free, (0, SPECK_VOXELS), "speck", protocol, rng)


def _without_lung(
    labels: NDArray[np.uint8], lungs: NDArray[np.uint8], body: NDArray[np.bool_], protocol: Protocol,
    rng: np.random.Generator,
) -> list[Fault]:  # fmt: skip
    """A blot of about 12 x 20 mm in the body on a slice that shows no lung."""
    empty = np.flatnonzero(~lungs.any(axis=(1, 2)) & body.any(axis=(1, 2)))
    if len(empty) == 0:
        return []
    tall, wide = (max(1, round(size / protocol.pixel_mm)) for size in (12, 20))
    return _draw(labels, int(rng.choice(empty)), body[empty[0]], (tall // 2, wide), "no-lung", protocol, rng)


def _draw(
    labels: NDArray[np.uint8], k: int, allowed: NDArray[np.bool_], size: tuple[int, int], kind: str,
    protocol: Protocol, rng: np.random.Generator,
) -> list[Fault]:  # fmt: skip
    """An ellipse (or, of height 0, a line) of label 1 around a place that is allowed."""
    places = np.argwhere(allowed)
    if len(places) == 0:
        return []
    row, column = (int(v) for v in places[int(rng.integers(len(places)))])
    tall, half = size[0], size[1] // 2
    rows = np.arange(max(row - tall, 0), min(row + tall + 1, labels.shape[1]))
    columns = np.arange(max(column - half, 0), min(column + half + 1, labels.shape[2]))
    inside = ((rows[:, None] - row) / (tall + 0.5)) ** 2 + ((columns[None, :] - column) / (half + 0.5)) ** 2 <= 1
    patch = labels[k, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    patch[inside] = 1
    where = protocol.where
    x, y, z = where.x_mm[column], where.y_mm[row], where.z_mm[k]
    return [Fault(kind, k, int(inside.sum()), round(float(x), 2), round(float(y), 2), round(float(z), 2))]
