"""Point tables for ParaView: one line per voxel, ``x,y,z,value``, in RAS+ millimetres.

Maganaris et al. (2022b, section 5) showed lungs and infiltrates in 3D by writing such tables and turning
them to points with ParaView's filter Table To Points (X Column x, Y Column y, Z Column z, Keep All Data Arrays on).
They counted z up slice by slice; here x, y and z are the voxel centre's place in the patient, so tables of one
patient, and the meshes, lie on each other. No blanks are written: ParaView's reader takes columns with blanks for text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import atomic_path
from pneumoscope.volume import Mask, Volume

HEADER = b"x,y,z,value\n"
_SLAB_VOXELS = 1 << 20
_CHUNK_ROWS = 1 << 16
_LARGEST = 99_999


@dataclass(frozen=True)
class PointTable:
    """A written table."""

    path: Path  # the CSV file
    points: int  # lines below the header
    stride: int  # every how manieth voxel along each axis is taken


def write_points(
    path: str | Path, values: NDArray[np.generic] | float, where: NDArray[np.bool_], grid: Grid, *, stride: int = 1
) -> PointTable:
    """Write one line per chosen voxel, in array order (k fastest), whole or not at all.

    Memory stays bounded (a few tens of MB) whatever the size of the scan. Coordinates and values are rounded to a
    thousandth and written in their shortest form (``-12.5``, ``0``).

    Args:
        path: the CSV file.
        values: (i, j, k) numbers, or one number for every point.
        where: (i, j, k) bool, the voxels to write. None set: a table with only its header.
        grid: where the voxels lie.
        stride: look only at every stride-th voxel along each axis; 2 makes a table about eight times smaller. The
            lungs of a thin-slice chest CT have some ten million voxels, a table of 250 MB.

    Raises:
        GeometryError: shapes that differ from the grid's.
        InputError: a mask that is not boolean, values that are not finite or beyond +-99999, a stride below 1.
    """
    if where.dtype != np.bool_:
        raise InputError(f"the voxels to write must be a boolean array, got {where.dtype}")
    if where.shape != grid.shape or (np.ndim(values) and np.shape(values) != grid.shape):
        raise GeometryError(
            f"points need arrays of the grid's shape {grid.shape}, got {np.shape(values)}, {where.shape}"
        )
    if stride < 1:
        raise InputError(f"a stride must be at least 1, got {stride}")
    points = 0
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(HEADER)
        for index, value in _chunks(values, where, stride):
            columns = [_texts(column, b",") for column in grid.world(index).T]
            stream.write(_lines([*columns, _texts(value, b"\n")]))
            points += len(index)
    return PointTable(Path(path), points, stride)


def stride_for(where: NDArray[np.bool_], max_points: int) -> int:
    """The smallest stride that writes at most `max_points` of these voxels.

    Raises:
        InputError: when `max_points` is below 1.
    """
    if max_points < 1:
        raise InputError(f"a table needs room for at least one point, got {max_points}")
    stride = max(1, int((np.count_nonzero(where) / max_points) ** (1 / 3)))
    while np.count_nonzero(where[::stride, ::stride, ::stride]) > max_points:
        stride += 1
    return stride


def write_case_points(
    folder: str | Path,
    volume: Volume,
    lungs: Mask,
    infiltrate: Mask,
    truth: Mask | None = None,
    *,
    max_points: int | None = None,
) -> dict[str, PointTable]:
    """Write the paper's three tables for one case into ``folder/points``.

    ``lungs.csv`` carries the Hounsfield units of the lung voxels; ``infiltrate.csv``, and ``truth.csv`` when a
    reference is given, the value 1 at each voxel marked.

    Args:
        folder: the case's folder.
        lungs: its lungs.
        infiltrate: the infiltrate found.
        truth: the infiltrate a reader annotated.
        max_points: at most this many points per table, by a stride of its own for each; None writes every voxel.

    Returns:
        The tables by name.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    tables: dict[str, tuple[NDArray[np.generic] | float, Mask]] = {
        "lungs": (volume.hu, lungs),
        "infiltrate": (1, infiltrate),
    }
    if truth is not None:
        tables["truth"] = (1, truth)
    for name, (_, mask) in tables.items():
        volume.grid.require_same_space(mask.grid, f"the mask {name}")
    written = {}
    for name, (values, mask) in tables.items():
        where = mask.any
        stride = 1 if max_points is None else stride_for(where, max_points)
        path = Path(folder) / "points" / f"{name}.csv"
        written[name] = write_points(path, values, where, volume.grid, stride=stride)
    return written


def _chunks(
    values: NDArray[np.generic] | float, where: NDArray[np.bool_], stride: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64] | float]]:
    """Voxel indices (rows, 3) and their values, a slab of the array at a time."""
    whole = np.ndim(values) > 0
    every = (slice(None, None, stride),) * 2
    step = stride * max(1, _SLAB_VOXELS // max(1, where[0].size))
    for first in range(0, where.shape[0], step):
        slab = (slice(first, first + step, stride), *every)
        index = np.argwhere(where[slab])
        value = np.asarray(values)[slab][tuple(index.T)].astype(np.float64) if whole else float(values)  # type: ignore[arg-type]
        index *= stride
        index[:, 0] += first
        for start in range(0, len(index), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            yield index[part], value[part] if isinstance(value, np.ndarray) else value


def _lines(columns: list[NDArray[np.bytes_]]) -> bytes:
    """CSV lines of columns of text (rows,), each with its comma or line end; a column of one serves all rows."""
    rows = np.empty(len(columns[0]), [(f"c{n}", column.dtype) for n, column in enumerate(columns)])
    for n, column in enumerate(columns):
        rows[f"c{n}"] = column
    return rows.tobytes().translate(None, b"\0")  # shorter texts are padded with zero bytes


def _texts(numbers: NDArray[np.floating[Any]] | float, end: bytes) -> NDArray[np.bytes_]:
    """Each number as text with `end` behind it, (rows,); equal ones, of which there are many, are made once."""
    thousandths = np.rint(np.atleast_1d(np.multiply(numbers, 1000.0)))
    if not (np.abs(thousandths) <= 1000.0 * _LARGEST).all():  # catches NaN too
        raise InputError(f"a point table holds finite numbers up to +-{_LARGEST}; check values and affine of the scan")
    each, places = np.unique(thousandths.astype(np.int32), return_inverse=True)
    return np.array([f"{n / 1000:.3f}".rstrip("0").rstrip(".").encode() + end for n in each])[places]
