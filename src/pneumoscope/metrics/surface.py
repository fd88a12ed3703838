"""How far apart the surfaces of two masks lie, in mm: surface Dice, 95 % Hausdorff distance, mean surface distance.

Surfaces are made of elements with a place and a size, so that a finely sampled axis does not count more than a coarse
one. The distance of an element is that to the nearest element of the other mask.

=========  ===========  ===  =====  =====
prediction  reference   NSD  HD95   MSD
=========  ===========  ===  =====  =====
empty      empty        NaN  NaN    NaN
not empty  empty        0.0  inf    inf
empty      not empty    0.0  inf    inf
=========  ===========  ===  =====  =====

NaN means "there is no surface to judge": such pairs are left out of means and counted. Infinity means "one surface is
missing": a missed lesion never reads as a small distance. Means of distances are taken over pairs where both masks hold
something, and say how many were infinite; the median and NSD take those in.

There is one element per corner where 2 x 2 x 2 voxels meet. Which of the eight belong to the mask is a code of 8 bits.
Marching cubes (Lorensen and Cline, Computer Graphics 21(4), 1987) says which surface a code stands for, and so how
large it is; in a slice the same holds for 2 x 2 pixels and the length of a contour. The areas are those of the table
of 256 codes behind the surface Dice of Nikolov et al. (arXiv:1809.04430) and of the benchmark of Ma et al. (Medical
Physics 48, 2021). They are derived here, not copied: take the side, mask or background, that holds fewer voxels. Its
voxels fall into pieces connected by cube edges, and each piece is cut off through the middles of the edges that leave
it. There are six shapes of piece (two in a slice), and the area vectors of their cuts follow from the corner signs
s = +-1 along each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import InputError
from pneumoscope.metrics.overlap import BoolArray, Empty, require_masks

TOLERANCE_MM = {"infiltrate": 3.0, "lungs": 1.0}
"""How far a surface may be off: of lesions and of lungs, in the benchmark of Ma et al. (Medical Physics 48, 2021)."""

ROUNDING_MM = 1e-6
"""Distances that exceed the tolerance by less than this count as within it: they do so by rounding only."""

Elements = Literal["surfels", "voxels"]
Float64Array = NDArray[np.float64]
_SLAB_VOXELS = 1 << 20


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The elements of two surfaces, each with its distance to the other surface."""

    prediction_mm: Float64Array  # (n,) distances of the prediction's elements; infinite when the reference is empty
    reference_mm: Float64Array  # (m,) distances of the reference's elements; infinite when the prediction is empty
    prediction_sizes: Float64Array  # (n,) their areas in mm² (lengths in mm, in a slice), or 1 each for voxels
    reference_sizes: Float64Array  # (m,) likewise
    elements: Elements = "surfels"  # what was measured between


@dataclass(frozen=True)
class SurfaceScores:
    """The surface scores of one pair of masks."""

    nsd: float  # surface Dice at `tolerance_mm`, in [0, 1]; NaN when both masks are empty
    hd95_mm: float  # 95 % Hausdorff distance; infinite when one mask is empty, NaN when both are
    msd_mm: float  # mean surface distance, both ways together; infinite or NaN likewise
    tolerance_mm: float  # how far a surface may be off and still count as met
    prediction_size: float  # surface of the prediction in mm² (contour in mm, in a slice)
    reference_size: float  # the same of the reference
    empty: Empty  # which mask holds nothing; see `pneumoscope.metrics.overlap.Counts.empty`


def surface_scores(pred: BoolArray, ref: BoolArray, spacing_mm: ArrayLike, tolerance_mm: float) -> SurfaceScores:
    """All surface scores of a pair of masks; the distances are computed once.

    Args:
        pred: boolean mask, (i, j, k) or a single slice (h, w).
        ref: the reference mask, same shape.
        spacing_mm: voxel size along each array axis; or the (d, d) matrix of voxel steps, for sheared grids.
        tolerance_mm: see `TOLERANCE_MM`.

    Raises:
        InputError: masks that are not boolean or differ in shape, other than 2 or 3 axes, a spacing that is not
            positive, a tolerance below 0.
    """
    distances = surface_distances(pred, ref, spacing_mm)
    found, drawn = len(distances.prediction_mm) > 0, len(distances.reference_mm) > 0
    empty: Empty = ("" if drawn else "reference") if found else ("prediction" if drawn else "both")
    return SurfaceScores(
        nsd=surface_dice(distances, tolerance_mm),
        hd95_mm=hausdorff(distances, 95.0),
        msd_mm=mean_distance(distances),
        tolerance_mm=float(tolerance_mm),
        prediction_size=float(distances.prediction_sizes.sum()),
        reference_size=float(distances.reference_sizes.sum()),
        empty=empty,
    )


def surface_dice(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of both surfaces that lies within `tolerance_mm` of the other, in [0, 1] (Nikolov et al., eq. 3).

    Both masks empty: NaN. One empty: 0.0.

    Raises:
        InputError: a tolerance that is negative or not a number.
    """
    if not tolerance_mm >= 0:
        raise InputError(f"a surface tolerance is a length in mm of at least 0, got {tolerance_mm}")
    sides = ((distances.prediction_mm, distances.prediction_sizes), (distances.reference_mm, distances.reference_sizes))
    whole = sum(float(sizes.sum()) for _, sizes in sides)
    if whole == 0:
        return math.nan
    met = sum(float(sizes[(mm <= tolerance_mm + ROUNDING_MM) & (mm < math.inf)].sum()) for mm, sizes in sides)
    return min(met / whole, 1.0)


def hausdorff(distances: SurfaceDistances, percent: float = 95.0) -> float:
    """Distance that `percent` of each surface does not exceed, the larger of the two sides, in mm.

    Surfels are weighed by their area: the smallest distance below which lies that share of the surface. Voxels are
    counted alike, with linear interpolation between ranks. 100 is the Hausdorff distance. Both masks empty: NaN; one
    empty: infinite.

    Raises:
        InputError: a percentage outside [0, 100].
    """
    if not 0 <= percent <= 100:
        raise InputError(f"a percentage lies between 0 and 100, got {percent}")
    mm = (distances.prediction_mm, distances.reference_mm)
    if not all(map(len, mm)):
        return math.inf if any(map(len, mm)) else math.nan
    if distances.elements == "voxels":
        return max(float(np.percentile(side, percent)) for side in mm)
    sizes = (distances.prediction_sizes, distances.reference_sizes)
    return max(_weighted_percentile(side, weights, percent) for side, weights in zip(mm, sizes, strict=True))


def mean_distance(distances: SurfaceDistances) -> float:
    """Mean distance over both surfaces together, weighed by size, in mm (average symmetric surface distance).

    Both masks empty: NaN; one empty: infinite.
    """
    if not (len(distances.prediction_mm) and len(distances.reference_mm)):
        return math.inf if len(distances.prediction_mm) or len(distances.reference_mm) else math.nan
    total = distances.prediction_mm @ distances.prediction_sizes + distances.reference_mm @ distances.reference_sizes
    return float(total / (distances.prediction_sizes.sum() + distances.reference_sizes.sum()))


def surface_distances(
    pred: BoolArray, ref: BoolArray, spacing_mm: ArrayLike, *, elements: Elements = "surfels"
) -> SurfaceDistances:
    """The surface elements of two masks with their distances to each other.

    A mask that reaches the border of the array ends there: its surface is closed.

    Args:
        pred: as for `surface_scores`.
        ref: likewise.
        spacing_mm: likewise.
        elements: ``surfels`` between voxels, as the surface Dice is defined; or ``voxels``, the mask's own voxels that
            touch a face of the background, all counting alike, as MONAI's Hausdorff distance is.

    Raises:
        InputError: as `surface_scores`.
    """
    require_masks(pred, ref)
    if pred.ndim not in (2, 3) or pred.size == 0:
        raise InputError(f"surfaces are measured on slices (h, w) and volumes (i, j, k), got shape {pred.shape}")
    steps = as_steps(spacing_mm, pred.ndim)
    order = np.argsort([-abs(step) for step in ref.strides], kind="stable")  # walk memory in the order it is laid out
    pred, ref, steps = pred.transpose(order), ref.transpose(order), steps[:, order]
    box = _bounding_box(pred, ref)
    find = _surfels if elements == "surfels" else _boundary_voxels
    (found, found_sizes), (drawn, drawn_sizes) = (find(mask[box], steps) for mask in (pred, ref))
    shape = tuple(cut.stop - cut.start + 1 for cut in box)
    there = _nearest(found, drawn, shape, steps)
    back = _nearest(drawn, found, shape, steps)
    return SurfaceDistances(there, back, found_sizes, drawn_sizes, elements)


def _bounding_box(*masks: BoolArray) -> tuple[slice, ...]:
    """The smallest box that holds all masks; a box of no voxels when they are empty."""
    ndim = masks[0].ndim
    first = np.array([any(mask[n].any() for mask in masks) for n in range(masks[0].shape[0])], dtype=bool)
    if not first.any():
        return (slice(0, 0),) * ndim
    start, stop = int(first.argmax()), len(first) - int(first[::-1].argmax())
    shadow = np.zeros(masks[0].shape[1:], dtype=bool)
    for mask in masks:
        shadow |= mask[start:stop].any(axis=0)
    rest = _bounding_box(shadow) if ndim > 1 else ()
    return (slice(start, stop), *rest)


def _surfels(mask: BoolArray, steps: Float64Array) -> tuple[NDArray[np.int64], Float64Array]:
    """Flat indices of the corners where surface passes, in an array one longer than the mask, and their areas."""
    areas = area_table(steps)
    shape = tuple(n + 1 for n in mask.shape)
    plane = math.prod(shape[1:])
    thick = max(1, _SLAB_VOXELS // plane)
    where: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    sizes: list[Float64Array] = [np.zeros(0)]
    inner = (slice(1, -1),) * (mask.ndim - 1)
    for start in range(0, shape[0] if mask.size else 0, thick):
        stop = min(start + thick, shape[0])
        voxels = mask[max(start - 1, 0) : stop]  # corner n lies between the planes n - 1 and n
        if not voxels.any():
            continue
        padded = np.zeros((stop - start + 1, *(n + 1 for n in shape[1:])), np.uint8)
        first = int(start == 0)
        padded[(slice(first, first + len(voxels)), *inner)] = voxels
        codes = corner_codes(padded).reshape(-1)
        on = np.flatnonzero(codes - np.uint8(1) < len(areas) - 2)  # neither 0 nor all ones, in one comparison
        where.append(on + start * plane)
        sizes.append(areas[codes[on]])
    return np.concatenate(where), np.concatenate(sizes)


def _boundary_voxels(mask: BoolArray, steps: Float64Array) -> tuple[NDArray[np.int64], Float64Array]:
    """Flat indices, in an array one longer than the mask, of voxels with a face to the background; sizes of 1."""
    padded = np.pad(mask, 1)
    inside = padded.copy()
    for axis in range(mask.ndim):
        for shift in (1, -1):
            inside &= np.roll(padded, shift, axis)
    core = (slice(1, -1),) * mask.ndim
    index = np.nonzero(mask & ~inside[core])
    flat = np.ravel_multi_index(index, tuple(n + 1 for n in mask.shape)).astype(np.int64)
    return flat, np.ones(len(flat))


def _nearest(
    own: NDArray[np.int64], others: NDArray[np.int64], shape: tuple[int, ...], steps: Float64Array
) -> Float64Array:
    """Distance of each own element to the nearest of the others; infinite when there are none."""
    from scipy.spatial import cKDTree

    if not len(others) or not len(own):
        return np.full(len(own), math.inf)
    distance = np.zeros(len(own))
    apart = np.flatnonzero(np.isin(own, others, assume_unique=True, invert=True))  # shared ones lie at 0
    if len(apart):
        tree = cKDTree(_places(others, shape, steps), leafsize=32, balanced_tree=False, compact_nodes=False)
        distance[apart] = tree.query(_places(own[apart], shape, steps))[0]
    return distance


def _places(flat: NDArray[np.int64], shape: tuple[int, ...], steps: Float64Array) -> Float64Array:
    """Flat indices to mm, (n, d)."""
    return np.stack(np.unravel_index(flat, shape), axis=1).astype(np.float64) @ steps.T


def _weighted_percentile(values: Float64Array, weights: Float64Array, percent: float) -> float:
    """The smallest value at which the weights of all values up to it reach `percent` of the whole."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    at = int(np.searchsorted(reached, reached[-1] * percent / 100))
    return float(values[order[min(at, len(order) - 1)]])


Corner = tuple[int, ...]


def as_steps(spacing_mm: ArrayLike, ndim: int) -> NDArray[np.float64]:
    """The step in mm from voxel to voxel along each array axis, as the columns of a (ndim, ndim) matrix.

    Args:
        spacing_mm: `ndim` positive lengths, or the matrix itself (m, ndim) for grids that are sheared or turned.
        ndim: 2 or 3.

    Raises:
        InputError: anything else, or a matrix whose axes coincide.
    """
    steps = np.asarray(spacing_mm, dtype=np.float64)
    if steps.shape == (ndim,) and np.isfinite(steps).all() and (steps > 0).all():
        return np.diag(steps)
    if steps.ndim == 2 and steps.shape[1] == ndim <= steps.shape[0] and np.isfinite(steps).all():
        gram = steps.T @ steps  # lengths and angles are all that counts, not how the grid lies in the world
        if np.linalg.det(gram) > 1e-12 * np.prod(np.diag(gram)):
            return np.asarray(np.linalg.cholesky(gram).T, dtype=np.float64)
    raise InputError(f"a spacing for {ndim} axes is {ndim} positive numbers in mm, got {steps.tolist()}")


def area_table(steps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Surface in mm² (contour in mm, in a slice) of each of the 256 (16) codes of `corner_codes`.

    Args:
        steps_mm: of `as_steps`, (3, 3) or (2, 2).
    """
    ndim = len(steps_mm)
    cofactors = np.linalg.det(steps_mm) * np.linalg.inv(steps_mm).T  # how area vectors move under the steps
    areas = np.zeros(1 << (1 << ndim))
    for code, vectors in enumerate(_vectors_of_codes(ndim)):
        areas[code] = np.linalg.norm(np.asarray(vectors).reshape(-1, ndim) @ cofactors.T, axis=1).sum()
    return areas


def corner_codes(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The code of every inner corner of a 0/1 array (n, ...), 2 or 3 axes: (n - 1, ...).

    Bit ``c0 + 2 c1 + 4 c2`` of a corner stands for the voxel at offset (c0, c1, c2) from its lowest one.
    """
    codes: NDArray[np.uint8] = mask
    for axis in range(mask.ndim):
        low, high = (
            tuple(cut if a == axis else slice(None) for a in range(mask.ndim)) for cut in (np.s_[:-1], np.s_[1:])
        )
        shifted = codes[high] << np.uint8(1 << axis)
        shifted |= codes[low]
        codes = shifted
    return codes


@lru_cache(maxsize=2)
def _vectors_of_codes(ndim: int) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Area vectors, in cube units, of the surface of every code."""
    corners = list(product((0, 1), repeat=ndim))
    table = []
    for code in range(1 << len(corners)):
        inside = [c for c in corners if code >> sum(x << a for a, x in enumerate(c)) & 1]
        fewer = inside if 2 * len(inside) <= len(corners) else [c for c in corners if c not in inside]
        vectors = [v for piece in _pieces(fewer) for v in _cut(piece, ndim)]
        table.append(tuple(tuple(map(float, v)) for v in vectors))
    return tuple(table)


def _pieces(corners: Sequence[Corner]) -> list[list[Corner]]:
    """Corners grouped by connection along edges of the cube."""
    pieces: list[list[Corner]] = []
    for corner in corners:
        touching = [p for p in pieces if any(_axis(corner, other) is not None for other in p)]
        pieces = [p for p in pieces if p not in touching] + [[corner, *(c for p in touching for c in p)]]
    return pieces


def _axis(a: Corner, b: Corner) -> int | None:
    """The axis of the edge between two corners; None when they share none."""
    differ = [axis for axis, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    return differ[0] if len(differ) == 1 else None


def _cut(piece: list[Corner], ndim: int) -> list[NDArray[np.float64]]:
    """Area vectors of the surface that cuts a piece off: flat polygons, or polygons broken into flat ones."""
    sign = {c: 2.0 * np.asarray(c) - 1 for c in piece}
    edges = [(a, b, axis) for a, b in combinations(piece, 2) if (axis := _axis(a, b)) is not None]
    degree = {c: sum(c in edge[:2] for edge in edges) for c in piece}
    centre = max(piece, key=lambda c: degree[c])
    if len(piece) == 1:  # one corner: a triangle (in a slice: half a diagonal)
        return [sign[centre] / (8 if ndim == 3 else 2)]
    if len(piece) == 2:  # an edge: a rectangle
        return [_without(sign[centre], edges[0][2]) / 2 ** (ndim - 2)]
    if len(piece) == 3:  # a bend: half a face, and a trapezoid below it
        free = ({0, 1, 2} - {axis for *_, axis in edges}).pop()
        return [np.eye(3)[free] / 2, sign[centre] * 3 / 8]
    if len(edges) == 4:  # a face
        return [np.eye(3)[({0, 1, 2} - {axis for *_, axis in edges}).pop()]]
    if degree[centre] == 3:  # a corner and its three neighbours: a hexagon, flat
        return [sign[centre] * 6 / 8]
    # a chain that turns twice: a hexagon that is not flat, broken into four triangles
    vectors = []
    for end in (c for c in piece if degree[c] == 1):
        axis, neighbour = next((axis, b if a == end else a) for a, b, axis in edges if end in (a, b))
        vectors += [_without(sign[end], axis) / 4, sign[neighbour] / 4]
    return vectors


def _without(vector: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.where(np.arange(len(vector)) == axis, 0.0, vector)
