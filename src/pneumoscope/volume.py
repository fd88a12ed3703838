"""A chest CT in Hounsfield units, masks on it, and radiographs: arrays that know what and where they are.

Inside pneumoscope axes (i, j, k) run RAS+; `from_native` is the one way in, `to_native` the one way out. The scan's
own grid is kept as `native`, and every mask is written back on exactly that grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, GeometryError
from pneumoscope.geometry import Grid, Scalar, contiguous, reorient_array
from pneumoscope.objects import Voxels

RAS = ("R", "A", "S")

LUNG_LABELS: Mapping[int, str] = {1: "right lung", 2: "left lung"}
"""House order of lung labels, whatever order a dataset uses on disk."""

LUNG_LABEL: Mapping[int, str] = {1: "lung"}  # Lung label where sides are not distinguished

INFILTRATE_LABELS: Mapping[int, str] = {1: "ground-glass", 2: "consolidation"}
"""Infiltrate labels where model or reader tells the two apart."""

INFILTRATE_LABEL: Mapping[int, str] = {1: "infiltrate"}  # Infiltrate label where they are not distinguished


def _to_ras(array: NDArray[Scalar], native: Grid) -> tuple[NDArray[Scalar], Grid]:
    order, flips = native.reorientation(RAS)
    return reorient_array(array, order, flips), native.reorient(RAS)


def _check(array: NDArray[np.generic], grid: Grid, what: str) -> None:
    if array.shape != grid.shape:
        raise GeometryError(f"{what} has shape {array.shape}, its grid {grid.shape}")
    if grid.axis_codes != RAS:
        raise GeometryError(
            f"{what} must have RAS+ axes inside pneumoscope, got {''.join(grid.axis_codes)}; use from_native"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Volume(Voxels):
    """A scan: Hounsfield units on a grid.

    Attributes:
        hu: (i, j, k) float32 Hounsfield units, finite.
        grid: the RAS+ grid of `hu`.
        native: the grid as the scan lies on disk; the same points, axes permuted and flipped.
        case: the name used in outputs; never a patient's name.
        findings: what the reader accepted or repaired and wants reported.
        source: plain facts for reports (format, convolution kernel, ...), without personal data.
        series: of a DICOM series, what its SEG and SR are made from (`pneumoscope.io.dicom.results`): JSON values that
            may say who the patient is and are never printed; else None.
    """

    hu: NDArray[np.float32]
    grid: Grid
    native: Grid
    case: str = "scan"
    findings: tuple[Finding, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check(self.hu, self.grid, "a volume")
        self.native.reorient(RAS).require_same_space(self.grid, "a volume's grid")
        if self.hu.dtype != np.float32:
            raise GeometryError(f"a volume holds float32 Hounsfield units, got {self.hu.dtype}")
        if not np.isfinite(self.hu).all():
            raise GeometryError("a volume must be finite; replace NaN and infinite voxels before")

    def __repr__(self) -> str:
        return f"Volume({self.case!r}, {self.native}, {self.hu.min():.0f} to {self.hu.max():.0f} HU)"

    def _numbers(self) -> dict[str, str]:
        spacing = " x ".join(f"{step:.3g}" for step in self.native.spacing_mm)
        return {
            "case": self.case,
            "voxels": " x ".join(map(str, self.native.shape)),
            "spacing": f"{spacing} mm",
            "Hounsfield units": f"{self.hu.min():.0f} to {self.hu.max():.0f}",
            **{f"finding {finding.code}": finding.message for finding in self.findings},
        }

    @property
    def voxels(self) -> NDArray[np.float32]:
        """`hu`."""
        return self.hu

    @classmethod
    def from_native(
        cls,
        array: NDArray[np.generic],
        native: Grid,
        *,
        case: str = "scan",
        findings: tuple[Finding, ...] = (),
        source: Mapping[str, str] | None = None,
        series: Mapping[str, Any] | None = None,
    ) -> Volume:
        """A volume from an array in the order it is stored, on its own grid of any orientation."""
        if array.shape != native.shape:
            raise GeometryError(f"a volume has shape {array.shape}, its grid {native.shape}")
        turned, grid = _to_ras(array, native)
        with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite and is refused
            hu = contiguous(turned, np.float32)
        return cls(hu, grid, native, case, findings, dict(source or {}), series)

    def with_findings(self, *more: Finding) -> Volume:
        """The same scan with findings added."""
        return replace(self, findings=(*self.findings, *more))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing along (i, j, k) = (right, anterior, superior)."""
        return self.grid.spacing_mm


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Voxels):
    """Named labels on a grid.

    Attributes:
        labels: (i, j, k) uint8; 0 is background.
        grid: the RAS+ grid of `labels`.
        names: what each label means, e.g. ``{1: "right lung", 2: "left lung"}``; each label present is named.
        native: the grid of the scan's file, on which `save` and `to_nibabel` give the mask; None for that of `labels`.
    """

    labels: NDArray[np.uint8]
    grid: Grid
    names: Mapping[int, str]
    native: Grid | None = None

    def __post_init__(self) -> None:
        _check(self.labels, self.grid, "a mask")
        if self.labels.dtype != np.uint8:
            raise GeometryError(f"a mask holds uint8 labels, got {self.labels.dtype}")
        unknown = [v for v in present_labels(self.labels) if v not in self.names]
        if unknown:
            raise GeometryError(f"the mask holds labels {unknown} that have no name; known are {dict(self.names)}")

    def __repr__(self) -> str:
        return f"Mask({', '.join(f'{name} {ml}' for name, ml in self._numbers().items()) or 'empty'}, {self.grid})"

    def _numbers(self) -> dict[str, str]:
        return {name: f"{self.volume_ml(number):.1f} ml" for number, name in sorted(self.names.items())}

    @property
    def voxels(self) -> NDArray[np.uint8]:
        """`labels`."""
        return self.labels

    @classmethod
    def from_native(cls, array: NDArray[np.generic], native: Grid, names: Mapping[int, str]) -> Mask:
        """A mask from an array in stored order. Values must be whole numbers from 0 to 255."""
        if array.shape != native.shape:
            raise GeometryError(f"a mask has shape {array.shape}, its grid {native.shape}")
        with np.errstate(invalid="ignore"):  # NaN and out of range: found by the comparison
            labels = array.astype(np.uint8)
        if not np.array_equal(labels, array):
            raise GeometryError("mask values must be whole numbers from 0 to 255; round or rescale them first")
        turned, grid = _to_ras(labels, native)
        return cls(contiguous(turned), grid, dict(names), native)

    @classmethod
    def empty(cls, grid: Grid, names: Mapping[int, str]) -> Mask:
        """A mask of background only."""
        return cls(np.zeros(grid.shape, np.uint8), grid, dict(names))

    def to_native(self, native: Grid) -> NDArray[np.uint8]:
        """The labels in the order of `native`, which must be this grid up to permuted and flipped axes.

        Raises:
            GeometryError: when `native` is another place.
        """
        native.reorient(RAS).require_same_space(self.grid)
        return array_to_native(self.labels, native)

    @property
    def any(self) -> NDArray[np.bool_]:
        """Voxels with any label, (i, j, k)."""
        return self.labels > 0

    def of(self, label: int | str) -> NDArray[np.bool_]:
        """Voxels of one label, by number or name."""
        if isinstance(label, str):
            numbers = [n for n, name in self.names.items() if name == label]
            if not numbers:
                raise GeometryError(f"the mask has no label {label!r}; it has {dict(self.names)}")
            return np.isin(self.labels, numbers)
        return self.labels == label

    def volume_ml(self, label: int | str | None = None) -> float:
        """Volume of one label, or of all, in millilitres; 0.0 when there is none."""
        voxels = self.any if label is None else self.of(label)
        return float(np.count_nonzero(voxels)) * self.grid.voxel_volume_ml


@dataclass(frozen=True, eq=False)
class Radiograph:
    """A projection X-ray as it is displayed: bone is bright, air is dark.

    Attributes:
        pixels: (rows, columns) float32 in [0, 1]; row 0 is the top, column 0 the left of the picture (the patient's
            right side when it is frontal).
        case: the name used in outputs; never a patient's name.
        spacing_mm: between rows and between columns; None where the file does not say.
        findings: what the reader accepted or repaired and wants reported.
        source: plain facts for reports (format, view, ...), without personal data.
    """

    pixels: NDArray[np.float32]
    case: str = "image"
    spacing_mm: tuple[float, float] | None = None
    findings: tuple[Finding, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype != np.float32 or not self.pixels.size:
            raise GeometryError(
                f"a radiograph holds (rows, columns) float32, got {self.pixels.shape} {self.pixels.dtype}"
            )
        low, high = float(self.pixels.min()), float(self.pixels.max())
        if not (low >= 0.0 and high <= 1.0):
            raise GeometryError(f"a radiograph's pixels lie in [0, 1], got {low:g} to {high:g}")


def is_named(names: Mapping[int, str]) -> bool:
    """Whether any label has a name of its own; ``label 3`` is what a label without one is called."""
    return any(name != f"label {label}" for label, name in names.items())


def present_labels(labels: NDArray[np.uint8]) -> list[int]:
    """The labels above 0 that occur, ascending; counted piece by piece (a count of the whole copies it eightfold)."""
    flat = labels.ravel(order="K")
    seen = np.zeros(256, np.bool_)
    for start in range(0, flat.size, 2**18):
        seen |= np.bincount(flat[start : start + 2**18], minlength=256) > 0
    return [int(v) for v in np.flatnonzero(seen) if v]


def relabelled(labels: NDArray[np.uint8], meaning: Mapping[int, int]) -> NDArray[np.uint8]:
    """Labels by what they mean; those without a meaning become 0."""
    table = np.zeros(256, np.uint8)
    table[list(meaning)] = list(meaning.values())
    return np.asarray(table[labels])


def array_to_native(array: NDArray[Scalar], native: Grid) -> NDArray[Scalar]:
    """A RAS+ array in the axis order of `native`; the exact way back of `from_native`.

    Raises:
        GeometryError: the array does not have the shape of `native` turned to RAS+.
    """
    order, flips = native.reorientation(RAS)
    expected = tuple(native.shape[axis] for axis in order)
    if array.shape != expected:
        raise GeometryError(f"an array of shape {array.shape} does not fit {native}: expected RAS+ shape {expected}")
    unflipped = array[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    return contiguous(unflipped.transpose(*np.argsort(order)))
