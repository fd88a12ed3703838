"""Where voxels sit in the patient: `Grid`, a shape and an affine in millimetres.

World axes are RAS+ everywhere: x grows to the patient's right hand (Right), y to the front
(Anterior), z to the head (Superior). Voxel index (i, j, k) names the *centre* of a voxel. DICOM and ITK use
LPS+; they are turned once, in `pneumoscope.io`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pneumoscope.errors import GeometryError

SAME_SPACE_TOLERANCE_MM = 1e-2  # Two grids are the same space when none of their outer corners differ by more than this

ORTHONORMAL_TOLERANCE = 1e-3
"""Direction columns whose dot products stay below this count as perpendicular (NIfTI headers are float32)."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM and ITK world coordinates to ours (and back: it is its own inverse)."""

AxisCodes = tuple[str, str, str]
Scalar = TypeVar("Scalar", bound=np.generic)
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_POSITIVE = ("R", "A", "S")
_WORLD_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxel centres in patient space.

    Attributes:
        shape: voxels along (i, j, k), each at least 1.
        affine: (4, 4) float64, voxel index to RAS+ millimetres; read-only.

    Raises:
        GeometryError: for a shape that is not three positive integers, and an affine that is not finite,
            not invertible or has a last row other than (0, 0, 0, 1).
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __init__(self, shape: Sequence[int], affine: ArrayLike) -> None:
        sizes = whole_triple(shape, "a grid's shape", least=1)
        matrix = np.array(affine, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise GeometryError(f"an affine must be 4 x 4 and finite, got {matrix.tolist()}")
        if not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-9):
            raise GeometryError(f"the last row of an affine must be 0 0 0 1, got {matrix[3].tolist()}")
        steps = np.linalg.norm(matrix[:3, :3], axis=0)
        if steps.min() <= 0 or abs(np.linalg.det(matrix[:3, :3])) < 1e-6 * steps.prod():
            raise GeometryError(f"the affine is singular (spacing {steps.tolist()} mm): axes coincide or vanish")
        matrix.setflags(write=False)
        object.__setattr__(self, "shape", sizes)
        object.__setattr__(self, "affine", matrix)

    @classmethod
    def from_spacing(
        cls, shape: Sequence[int], spacing_mm: Sequence[float], origin_mm: Sequence[float] = (0.0, 0.0, 0.0)
    ) -> Grid:
        """An upright RAS+ grid with the given voxel size and the position of voxel (0, 0, 0)."""
        affine = np.diag([*map(float, spacing_mm), 1.0])
        affine[:3, 3] = origin_mm
        return cls(shape, affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    def __repr__(self) -> str:
        spacing = " x ".join(f"{s:.3g}" for s in self.spacing_mm)
        return f"Grid({' x '.join(map(str, self.shape))}, {spacing} mm, {''.join(self.axis_codes)})"

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along (i, j, k)."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """World position of the centre of voxel (0, 0, 0)."""
        x, y, z = self.affine[:3, 3]
        return float(x), float(y), float(z)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel, from the determinant: right for oblique and sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def is_orthogonal(self) -> bool:
        """Whether the voxel axes stand perpendicular (within ORTHONORMAL_TOLERANCE)."""
        unit = self.affine[:3, :3] / np.asarray(self.spacing_mm)
        return bool(np.abs(unit.T @ unit - np.eye(3)).max() <= ORTHONORMAL_TOLERANCE)

    @property
    def axis_codes(self) -> AxisCodes:
        """The patient direction each voxel axis grows towards, nearest letter, each axis used once."""
        world_axis, positive = _closest_axes(self.affine)
        i, j, k = (_POSITIVE[a] if up else _OPPOSITE[_POSITIVE[a]] for a, up in zip(world_axis, positive, strict=True))
        return i, j, k

    def world(self, index: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (..., 3) to RAS+ millimetres (..., 3)."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world_mm: ArrayLike) -> NDArray[np.float64]:
        """RAS+ millimetres (..., 3) to fractional voxel indices (..., 3)."""
        shifted = np.asarray(world_mm, dtype=np.float64) - self.affine[:3, 3]
        return shifted @ np.linalg.inv(self.affine[:3, :3]).T

    def corners(self) -> NDArray[np.float64]:
        """The eight outer voxel centres in millimetres, (8, 3)."""
        return self.world(list(product(*((0, n - 1) for n in self.shape))))

    def is_same_space(self, other: Grid, tolerance_mm: float = SAME_SPACE_TOLERANCE_MM) -> bool:
        """Whether voxel (i, j, k) of both grids means the same place: equal shape, corners within tolerance.

        Corner centres alone say nothing of an axis with a single voxel, so voxel steps are compared as well.
        """
        if self.shape != other.shape:
            return False
        far = np.linalg.norm(self.corners() - other.corners(), axis=1).max()
        step = np.linalg.norm(self.affine[:3, :3] - other.affine[:3, :3], axis=0).max()
        return bool(far <= tolerance_mm and step <= tolerance_mm)

    def require_same_space(self, other: Grid, what: str = "the mask") -> None:
        """Raise GeometryError naming both grids unless `is_same_space`."""
        if not self.is_same_space(other):
            raise GeometryError(
                f"{what} lies on another grid: expected {self} at {_round(self.origin_mm)}, "
                f"got {other} at {_round(other.origin_mm)}; resample it to the scan first"
            )

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> Grid:
        """The sub-grid that begins at voxel `start`; it must lie inside."""
        begin = whole_triple(start, "the start of a crop", least=0)
        size = whole_triple(shape, "the shape of a crop", least=1)
        if any(b + n > whole for b, n, whole in zip(begin, size, self.shape, strict=True)):
            raise GeometryError(f"a crop of {size} voxels at {begin} does not lie inside {self.shape}")
        return self._moved(begin, size)

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Grid:
        """The grid with voxels added in front of and behind each axis."""
        front = whole_triple(before, "padding in front", least=0)
        back = whole_triple(after, "padding behind", least=0)
        size = [n + f + b for n, f, b in zip(self.shape, front, back, strict=True)]
        return self._moved([-f for f in front], size)

    def _moved(self, begin: Sequence[int], size: Sequence[int]) -> Grid:
        affine = self.affine.copy()
        affine[:3, 3] = self.world(begin)
        return Grid(size, affine)

    def reorientation(self, codes: AxisCodes) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """How to lay the axes along `codes`: (source axis of each new axis, whether that one is flipped)."""
        require_axis_codes(codes)
        own = self.axis_codes
        order, flips = [], []
        for code in codes:
            axis = own.index(code) if code in own else own.index(_OPPOSITE[code])
            order.append(axis)
            flips.append(code not in own)
        return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])

    def reorient(self, codes: AxisCodes) -> Grid:
        """The same lattice of points with axes permuted and flipped towards `codes`."""
        order, flips = self.reorientation(codes)
        start = np.zeros(3)
        steps = np.zeros((3, 3))
        for new, (axis, flip) in enumerate(zip(order, flips, strict=True)):
            steps[:, new] = -self.affine[:3, axis] if flip else self.affine[:3, axis]
            start[axis] = self.shape[axis] - 1 if flip else 0
        affine = np.eye(4)
        affine[:3, :3] = steps
        affine[:3, 3] = self.world(start)
        return Grid([self.shape[axis] for axis in order], affine)

    def resize(self, shape: Sequence[int]) -> Grid:
        """A grid of `shape` voxels over exactly the same field of view (outer voxel edges stay)."""
        size = whole_triple(shape, "the wanted shape", least=1)
        scale = np.asarray(self.shape) / size
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * scale
        affine[:3, 3] = self.world((scale - 1) / 2)
        return Grid(size, affine)

    def respace(self, spacing_mm: Sequence[float]) -> Grid:
        """A grid of the given spacing, centred on the same field of view, rounded to whole voxels."""
        wanted = np.asarray(spacing_mm, dtype=float)
        if wanted.shape != (3,) or not ((wanted > 0) & np.isfinite(wanted)).all():
            raise GeometryError(f"spacing must be three positive numbers, got {spacing_mm} mm")
        scale = wanted / np.asarray(self.spacing_mm)
        size = np.maximum(1, np.round(np.asarray(self.shape) / scale)).astype(int)
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * scale
        centre = (np.asarray(self.shape) - 1) / 2
        affine[:3, 3] = self.world(centre - scale * (size - 1) / 2)
        return Grid(size.tolist(), affine)


_BLOCK = 32


def contiguous(array: NDArray[Any], dtype: DTypeLike | None = None) -> NDArray[Any]:
    """`array` (i, j, k) in C order as `dtype`: itself where it is so already, else a copy.

    Turned axes are copied in blocks, which is several times faster than NumPy's plain copy.
    """
    wanted = array.dtype if dtype is None else np.dtype(dtype)
    if array.flags.c_contiguous and array.dtype == wanted:
        return array
    out: NDArray[Any] = np.empty(array.shape, wanted)
    first, _, last = array.shape
    for i in range(0, first, _BLOCK):
        for k in range(0, last, _BLOCK):
            out[i : i + _BLOCK, :, k : k + _BLOCK] = array[i : i + _BLOCK, :, k : k + _BLOCK]
    return out


def reorient_array(
    array: NDArray[Scalar], order: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> NDArray[Scalar]:
    """Permute, then flip, the first three axes as `Grid.reorientation` says; a view, no copy."""
    turned = array.transpose(*order, *range(3, array.ndim))
    return turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]


Box = tuple[slice, slice, slice]


def box_of(*arrays: NDArray[Any]) -> Box:
    """The smallest box around everything marked in any of the arrays (i, j, k); empty slices when nothing is."""
    marked = arrays[0] != 0
    for more in arrays[1:]:
        marked |= more != 0
    flat = marked.any(axis=0)  # (j, k)
    lines = (marked.any(axis=(1, 2)), flat.any(axis=1), flat.any(axis=0))
    found = [np.flatnonzero(line) for line in lines]
    i, j, k = (slice(int(f[0]), int(f[-1]) + 1) if f.size else slice(0, 0) for f in found)
    return i, j, k


def cut(array: NDArray[Any], start: Sequence[int], shape: Sequence[int], fill: float) -> NDArray[Any]:
    """The box of `shape` from voxel `start` on, which may lie outside: there it is `fill`. A copy."""
    box = np.full(tuple(shape), fill, array.dtype)
    source, target = [], []
    for begin, size, length in zip(start, shape, array.shape, strict=True):
        low, high = max(begin, 0), min(begin + size, length)
        if low >= high:
            return box
        source.append(slice(low, high))
        target.append(slice(low - begin, high - begin))
    box[tuple(target)] = array[tuple(source)]
    return box


def whole_triple(values: Sequence[int], what: str, *, least: int) -> tuple[int, int, int]:
    """Three whole numbers of at least `least`, as plain ints; GeometryError naming `what` for anything else."""
    numbers = np.asarray(values)
    if numbers.shape != (3,) or numbers.dtype.kind not in "iu" or numbers.min() < least:
        raise GeometryError(f"{what} must be three whole numbers of at least {least}, got {values}")
    i, j, k = numbers.tolist()
    return i, j, k


def require_axis_codes(codes: Sequence[str]) -> None:
    """Raise GeometryError unless `codes` names each patient axis once."""
    if len(codes) != 3 or {_WORLD_AXIS.get(code) for code in codes} != {0, 1, 2}:
        raise GeometryError(f"axis codes must name each of R/L, A/P, S/I once, got {codes}")


def _closest_axes(affine: NDArray[np.float64]) -> tuple[list[int], list[bool]]:
    """For each voxel axis the world axis it runs along best, each used once, and whether it grows with it.

    The assignment maximises the product of direction cosines over all six permutations, so that grids tilted by
    45 degrees and more still get three different letters. A grid tilted by exactly 45 degrees leaves a tie; it is
    settled by where the axes point and not by their order, so that a reoriented grid has the letters asked for.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)

    def fit(voxel_axes: tuple[int, ...]) -> tuple[float, ...]:
        x, y, z = (cosines[:, v] for v in voxel_axes)  # the voxel axes taken for Right, Anterior, Superior
        ranked = (abs(x[0] * y[1] * z[2]), x[0] * x[1], x[0] * x[2], y[1] * y[2])
        return tuple(round(float(term), 4) for term in ranked)

    best = max(permutations(range(3)), key=fit)
    world_axis = [best.index(v) for v in range(3)]
    return world_axis, [bool(cosines[world_axis[v], v] > 0) for v in range(3)]


def _round(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.2f}" for v in values) + ") mm"
