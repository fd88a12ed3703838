"""Grids and arrays for tests, awkward on purpose; `conftest.py` makes fixtures of them."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import strategies as st

from pneumoscope.geometry import AxisCodes, Grid

SHAPE = (4, 5, 6)
SPACING_MM = (0.5, 0.8, 1.2)
ORIGIN_MM = (-31.25, 17.5, -402.0)
BRIGHT_HU = 3000.0


def all_axis_codes() -> list[AxisCodes]:
    """The 48 ways to lay voxel axes along the patient's, e.g. ``("R", "A", "S")`` or ``("P", "S", "L")``."""
    pairs = product(("RL", "AP", "SI"), repeat=3)
    return [codes for triple in pairs if len(set(triple)) == 3 for codes in product(*triple)]


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """(3, 3) turn about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def build_grid(
    codes: AxisCodes = ("R", "A", "S"),
    *,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    tilt_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shear: float = 0.0,
    origin_mm: tuple[float, float, float] = ORIGIN_MM,
) -> Grid:
    """A grid whose voxel axes run along `codes`, tilted, and sheared in j by k as a tilted gantry does."""
    signs = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    directions = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        world, sign = signs[code]
        directions[world, axis] = sign
    sheared = np.eye(3)
    sheared[1, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = rotation(tilt_degrees) @ directions @ sheared * np.asarray(spacing_mm)
    affine[:3, 3] = origin_mm
    return Grid(shape, affine)


def bright_corner(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Air with one bright voxel, the last of every axis, and a slope so that no two voxels are alike."""
    hu = -1000 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    hu[-1, -1, -1] = BRIGHT_HU
    return hu


def any_grid(*, max_tilt: float = 14.0, max_side: int = 6) -> st.SearchStrategy[Grid]:
    """Grids of all 48 axis codes, anisotropic, tilted and sheared, down to a single voxel along an axis."""
    angle = st.floats(-max_tilt, max_tilt)
    return st.builds(
        build_grid,
        st.sampled_from(all_axis_codes()),
        shape=st.tuples(*[st.integers(1, max_side)] * 3),
        spacing_mm=st.tuples(*[st.floats(0.3, 10.0)] * 3),
        tilt_degrees=st.tuples(angle, angle, angle),
        shear=st.floats(-0.2, 0.2),
        origin_mm=st.tuples(*[st.floats(-800, 800)] * 3),
    )


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values 1, 2, 3 ...: no two voxels alike, none zero."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
