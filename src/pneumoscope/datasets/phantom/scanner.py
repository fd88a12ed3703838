"""Scanning a patient: where the slices lie, the kernel, the noise, and what the stored values are worth; how a site's
reader outlines the infiltrate, and the slips that happen on the way."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom.patient import Patient
from pneumoscope.datasets.phantom.shapes import Field, Positions, smoothstep
from pneumoscope.datasets.phantom.sites import Reader, Scanner
from pneumoscope.datasets.phantom.tissue import Painted, paint_patient
from pneumoscope.geometry import Grid

LUNG_PART_OF_SCAN = 0.85
"""Part of the slices that show lung: 713 of 829, 2156 of 2581 and 1748 of 2049 in Maganaris 2022b, Table 1."""

LOWEST_HU = -1024.0
VOXELS_AT_ONCE = 1_500_000


@dataclass(frozen=True, eq=False)
class Protocol:
    """How one patient was scanned."""

    where: Positions  # voxel centres; x and y rising, z rising
    # in-plane spacing, slice distance, thickness a slice averages over
    pixel_mm: float
    slice_mm: float
    slab_mm: float
    centre_mm: tuple[float, float]  # (x, y) of the round field of view

    @property
    def grid(self) -> Grid:
        """The grid of the scan, RAS+."""
        k, j, i = self.where.shape
        origin = (self.where.x_mm[0], self.where.y_mm[0], self.where.z_mm[0])
        return Grid.from_spacing((i, j, k), (self.pixel_mm, self.pixel_mm, self.slice_mm), origin)


def plan_scan(scanner: Scanner, patient: Patient, size: str, rng: np.random.Generator) -> Protocol:
    """Field of view, slice distance and range for one patient; the lungs fill about 85 % of the slices."""
    field = float(rng.uniform(*scanner.field_mm))
    slices = scanner.slice_mm[size]
    step = float(slices[int(rng.random() * len(slices))])
    centre = (float(rng.normal(0, 4)), float(rng.normal(-6, 4)) * patient.anatomy.scale[1])
    pixels = scanner.pixels[size]
    pixel = round(field / pixels, 4)
    across = (np.arange(pixels, dtype=np.float64) - (pixels - 1) / 2) * pixel
    z = patient.shapes.lattice.positions().z_mm
    levels = z[(patient.shapes.lungs < 0).any(axis=(1, 2))]
    height = (levels[-1] - levels[0]) / LUNG_PART_OF_SCAN
    count = max(8, round(height / step))
    below = 0.5 * height + 0.3 * (height - (levels[-1] - levels[0])) * rng.uniform(-1, 1)
    start = round((levels[0] + levels[-1]) / 2 - below + rng.uniform(0, 0.4) * step, 2)
    middle_x, middle_y = np.float64(round(centre[0], 2)), np.float64(round(centre[1], 2))
    where = Positions(across + middle_x, across + middle_y, start + step * np.arange(count, dtype=np.float64))
    return Protocol(where, pixel, step, min(scanner.slab_mm, step), centre)


def chunks(protocol: Protocol) -> list[slice]:
    """Runs of slices small enough to work on in memory at once."""
    _, j, i = protocol.where.shape
    each = max(1, VOXELS_AT_ONCE // (j * i))
    return [slice(k, min(k + each, len(protocol.where.z_mm))) for k in range(0, len(protocol.where.z_mm), each)]


def paint_slab(patient: Patient, protocol: Protocol, part: slice) -> Painted:
    """Slices painted with the averaging of their thickness: two planes, or three where pixels are fine.

    Distances are averaged like the picture, so that masks are those of the middle of each slice.
    """
    where = protocol.where.slices(part)
    soft = max(protocol.pixel_mm, 0.8)
    planes = 1 if protocol.slab_mm <= 3.5 else 3 if protocol.pixel_mm < 1.2 else 2
    shifts = protocol.slab_mm * ((np.arange(planes) + 0.5) / planes - 0.5)
    mean: Painted | None = None
    for shift in shifts:
        painted = paint_patient(patient, Positions(where.x_mm, where.y_mm, where.z_mm + shift), soft)
        if mean is None:
            mean = painted
            continue
        for item in fields(Painted):
            total = getattr(mean, item.name)
            total += getattr(painted, item.name)
    assert mean is not None
    if planes > 1:
        for item in fields(Painted):
            average = getattr(mean, item.name)
            average /= np.float32(planes)
    return mean


def expose(painted: Painted, protocol: Protocol, scanner: Scanner, part: slice, rng: np.random.Generator) -> Field:
    """What the scanner stores: kernel, noise, offset, grey levels, blanked corners; whole numbers as float32.

    Args:
        painted: slices without noise; `painted.hu` is changed.
    """
    hu = painted.hu
    if scanner.kernel == "soft":
        _blur(hu, 0.5 / protocol.pixel_mm)
    elif protocol.pixel_mm < 1.2:
        softened = hu.copy()
        _blur(softened, 0.9 / protocol.pixel_mm)
        hu += np.float32(0.45) * (hu - softened)
    noise = _noise(hu.shape, scanner, rng)
    noise *= np.float32(0.4) + np.float32(0.6) * smoothstep(painted.body, 25, -45)
    hu += np.float32(scanner.noise_hu) * noise
    hu *= np.float32(scanner.gain)
    hu += np.float32(scanner.offset_hu)
    np.clip(hu, LOWEST_HU, scanner.ceiling_hu, out=hu)
    if scanner.levels is not None:
        step = np.float32((scanner.ceiling_hu - LOWEST_HU) / (scanner.levels - 1))
        hu -= np.float32(LOWEST_HU)
        np.rint(hu / step, out=hu)
        hu *= step
        hu += np.float32(LOWEST_HU)
    if scanner.air_outside:
        hu[:, _outside(protocol, part)] = LOWEST_HU
    return np.rint(hu, out=hu)


def _blur(stack: Field, sigma_px: float) -> None:
    """Gaussian blur of each slice in place; nothing below a quarter of a pixel."""
    from scipy.ndimage import gaussian_filter1d

    if sigma_px < 0.25:
        return
    for axis in (1, 2):
        gaussian_filter1d(stack, sigma_px, axis=axis, mode="nearest", truncate=3.0, output=stack)


def _noise(shape: tuple[int, ...], scanner: Scanner, rng: np.random.Generator) -> Field:
    """Noise of standard deviation one: blotchy for a soft kernel, grainy for a sharp one."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if scanner.kernel == "soft":
        _blur(noise, 0.85)
    else:
        low = noise.copy()
        _blur(low, 1.3)
        noise -= np.float32(0.7) * low
    noise /= np.float32(max(float(noise.std()), 1e-6))
    return noise


def _outside(protocol: Protocol, part: slice) -> NDArray[np.bool_]:
    """Pixels outside the round field of view, (y, x)."""
    _, y, x = protocol.where.slices(part).open_grid()
    middle = (float(protocol.where.x_mm.mean()), float(protocol.where.y_mm.mean()))
    radius = protocol.pixel_mm * len(protocol.where.x_mm) / 2
    return ((x - middle[0]) ** 2 + (y - middle[1]) ** 2 > radius**2)[0]


SPECK_VOXELS = 3


@dataclass(frozen=True)
class Fault:
    """A planted annotation fault."""

    kind: str  # ``speck`` (a few voxels outside the lungs) or ``no-lung`` (infiltrate on a slice without lung)
    slice: int  # index k of the RAS+ volume
    voxels: int  # how many
    # middle, RAS+
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
