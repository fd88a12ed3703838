"""How much surface passes between the voxels of a mask: one element per corner where 2 x 2 x 2 voxels meet.

Which of the eight voxels belong to the mask is a code of 8 bits. Marching cubes (Lorensen and Cline, Computer Graphics
21(4), 1987) says which surface a code stands for, and so how large it is; in a slice the same holds for 2 x 2 pixels
and the length of a contour. The areas are those of the table of 256 codes behind the surface Dice of Nikolov et al.
(arXiv:1809.04430) and of the benchmark of Ma et al. (Medical Physics 48, 2021). They are derived here, not copied:

Take the side, mask or background, that holds fewer voxels. Its voxels fall into pieces connected by cube edges, and
each piece is cut off through the middles of the edges that leave it. There are six shapes of piece (two in a slice),
and the area vectors of their cuts follow from the corner signs s = +-1 along each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pneumoscope.errors import InputError

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
