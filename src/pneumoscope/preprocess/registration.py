"""Laying one scan of a patient over another: rigid, affine, then a smooth deformation, driven by the lungs.

Work happens on coarse copies of both scans cut to the lungs (`working_copy`). What is compared is tissue that ought to
be the same on both days: infiltrates of either day are left out, so that a lesion that grew is not pressed into its old
shape. The result maps places of the baseline (fixed) to places of the follow-up (moving), in RAS+ millimetres.

Everything is deterministic: voxels are sampled by a fixed seed, and the number of threads is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.write import sitk_image
from pneumoscope.preprocess.spatial import Resample, crop_to
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

WORKING_MM = 3.0  # Spacing of the copies that are compared
MARGIN_MM = 24.0  # Tissue kept around the lungs: ribs and spine steer the rigid step

HU_RANGE = (-1000.0, 200.0)
THREADS = 2

SAMPLED = 0.2  # Share of the voxels that the deformation samples

OUTSIDE_HU = -1000.0


@dataclass(frozen=True)
class RegistrationRules:
    """How the steps are done."""

    body_mm: float = 15.0  # the rigid and affine steps use the lungs and this far around them
    # the deformation uses the lungs and this far around them: far enough to see their edge, near enough that ribs,
    # along which the lung slides, do not hold it
    lung_mm: float = 6.0
    knots_mm: float = 45.0  # distance between knots of the deformation; smaller follows more and folds more easily
    iterations: tuple[int, int] = (60, 25)  # at most, of the affine steps and of the deformation
    spacing_mm: float = WORKING_MM  # of the working copies


@dataclass(frozen=True, eq=False)
class WorkingCopy:
    """A scan as it is registered."""

    volume: Volume  # on an upright grid of about `WORKING_MM`, cut to the lungs and a margin
    lungs: NDArray[np.float32]  # (i, j, k) share of each voxel that is lung, 0 to 1
    infiltrate: NDArray[np.float32]  # (i, j, k) share that is infiltrate


@dataclass(frozen=True, eq=False)
class Registration:
    """A map from the baseline to the follow-up."""

    grid: Grid  # the baseline's working grid
    # (i, j, k, 3) RAS+; a place p of the baseline lies at p + displacement in the follow-up
    displacement_mm: NDArray[np.float32]
    stages: dict[str, float]  # similarity (correlation, 1 is equal) inside the lungs after each step

    def displacement_at(self, index: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Displacement at fractional indices (3, ...) of the working grid, (3, ...); the border goes on outside."""
        return np.stack(
            [
                ndimage.map_coordinates(self.displacement_mm[..., axis], index, order=1, mode="nearest")
                for axis in range(3)
            ]
        )

    def jacobian(self) -> NDArray[np.float32]:
        """How much a small volume grows from baseline to follow-up, (i, j, k); at or below 0 the map folds."""
        steps = self.grid.spacing_mm
        matrix = np.empty((*self.grid.shape, 3, 3), np.float32)
        for axis in range(3):
            for along, slope in enumerate(np.gradient(self.displacement_mm[..., axis], *steps)):
                matrix[..., axis, along] = slope
        return np.linalg.det(matrix + np.eye(3, dtype=np.float32)).astype(np.float32)

    def warp(
        self, values: NDArray[Any], source: Grid, target: Grid, *, order: int = 0, outside: float = 0.0
    ) -> NDArray[Any]:
        """What the follow-up shows at the voxels of a grid in the baseline's space.

        Args:
            values: (i, j, k) on `source`.
            target: a grid in the baseline's space, e.g. the baseline scan's.
            order: 0 nearest neighbour, 1 linear.
            outside: what lies beyond `source`.
        """
        result = np.empty(target.shape, values.dtype)
        j, k = np.meshgrid(np.arange(target.shape[1]), np.arange(target.shape[2]), indexing="ij")
        for i in range(target.shape[0]):  # plane by plane: the whole map would take several scans' memory
            places = target.world(np.stack([np.full(j.shape, i), j, k], axis=-1))  # (j, k, 3)
            index = np.moveaxis(self.grid.index(places), -1, 0)
            moved = places + np.moveaxis(self.displacement_at(index), 0, -1)
            there = np.moveaxis(source.index(moved), -1, 0)
            result[i] = ndimage.map_coordinates(values, there, order=order, mode="constant", cval=outside)
        return result


def working_copy(
    volume: Volume, lungs: Mask, infiltrate: Mask, *, spacing_mm: float = WORKING_MM, margin_mm: float = MARGIN_MM
) -> WorkingCopy:
    """A coarse upright copy of a scan around its lungs, with its masks; finer voxels are averaged, not skipped.

    The scan may be coarser than, or lie on another grid than the masks: a copy made earlier serves as well.

    Raises:
        InputError: there is no lung.
    """
    copy = coarse_copy(volume, lungs, spacing_mm=spacing_mm, margin_mm=margin_mm)
    spots, there = _around(infiltrate.labels, infiltrate.grid, copy.grid)
    inside, here = _around(lungs.labels, lungs.grid, copy.grid)
    return WorkingCopy(
        copy,
        _coarse((inside > 0).astype(np.float32), here, copy.grid, 0.0),
        _coarse((spots > 0).astype(np.float32), there, copy.grid, 0.0),
    )


def coarse_copy(volume: Volume, lungs: Mask, *, spacing_mm: float = WORKING_MM, margin_mm: float = MARGIN_MM) -> Volume:
    """The scan of `working_copy`.

    Raises:
        InputError: there is no lung.
    """
    if not lungs.any.any():
        raise InputError(f"{volume.case} shows no lung, so it cannot be laid over another scan")
    box = crop_to(lungs)
    part = lungs.grid.crop(box.start, box.shape)
    low, high = part.corners().min(0) - margin_mm, part.corners().max(0) + margin_mm
    shape = np.maximum(8, np.ceil((high - low) / spacing_mm).astype(int) + 1)
    grid = Grid.from_spacing(shape.tolist(), (spacing_mm,) * 3, low.tolist())
    hu, where = _around(volume.hu, volume.grid, grid)
    return Volume(_coarse(np.clip(hu, *HU_RANGE), where, grid, OUTSIDE_HU), grid, grid, volume.case)


def _around(array: NDArray[Any], source: Grid, target: Grid) -> tuple[NDArray[Any], Grid]:
    """The part of an array that `target` needs, with two voxels to spare."""
    index = source.index(target.corners())
    low = np.clip(np.floor(index.min(0)).astype(int) - 2, 0, np.asarray(source.shape) - 1)
    high = np.clip(np.ceil(index.max(0)).astype(int) + 3, low + 1, source.shape)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return array[box], source.crop(low.tolist(), (high - low).tolist())


def _coarse(array: NDArray[np.float32], source: Grid, target: Grid, fill: float) -> NDArray[np.float32]:
    """Averaged over the target's voxel along each axis (in place), then sampled."""
    sizes = [max(1, round(t / s)) for t, s in zip(target.spacing_mm, source.spacing_mm, strict=True)]
    for axis, size in enumerate(sizes):
        if size > 1:
            ndimage.uniform_filter1d(array, size, axis=axis, output=array, mode="nearest")
    moved, _ = Resample(target, fill_hu=fill).move(array, source)
    return moved


def register(
    baseline: WorkingCopy,
    followup: WorkingCopy,
    rules: RegistrationRules | None = None,
    *,
    start_mm: Sequence[float] = (0.0, 0.0, 0.0),
    seed: int = 1,
) -> Registration:
    """Find the map from baseline to follow-up.

    Args:
        baseline: fixed.
        followup: moving.
        start_mm: added to the first guess, which lays the centres of the lungs over each other; another start ends
            at nearly the same map when the registration is stable.
        seed: which voxels the deformation samples; the same seed gives the same map.

    Raises:
        InputError: the images hardly overlap, so that nothing can be compared.
    """
    import SimpleITK as sitk  # noqa: N813

    rules = rules or RegistrationRules()
    images = [sitk_image(copy.volume.hu, copy.volume.grid) for copy in (baseline, followup)]
    fixed = images[0]
    wide = [_near(copy, rules.body_mm) for copy in (baseline, followup)]
    close = [_near(copy, rules.lung_mm) for copy in (baseline, followup)]
    stages = {}
    try:
        rigid = sitk.Euler3DTransform()
        rigid.SetCenter(_centre(baseline))
        offset = np.subtract(_centre(followup), _centre(baseline)) + _lps(start_mm)
        rigid.SetTranslation(offset.tolist())
        rigid = _optimise(images, wide, rigid, rules.iterations[0], shrink=(3, 2))
        affine = sitk.AffineTransform(3)
        affine.SetCenter(rigid.GetCenter())
        affine.SetMatrix(rigid.GetMatrix())
        affine.SetTranslation(rigid.GetTranslation())
        affine = _optimise(images, close, affine, rules.iterations[0], shrink=(2,))
        size = [max(2, round(n * s / rules.knots_mm)) for n, s in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
        spline = sitk.BSplineTransformInitializer(fixed, size, order=3)
        spline = _deform(images, close, affine, spline, rules.iterations[1], seed)
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1][:160]
        raise InputError(f"the scans cannot be laid over each other ({reason}); are they of one patient?") from None
    both = sitk.CompositeTransform([affine, spline])
    for name, transform in (("affine", affine), ("deformable", both)):
        stages[name] = similarity(baseline, followup, _field(transform, fixed))
    return Registration(baseline.volume.grid, _field(both, fixed), stages)


def similarity(baseline: WorkingCopy, followup: WorkingCopy, displacement_mm: NDArray[np.float32]) -> float:
    """Correlation of the two scans inside the lungs common to both, infiltrates left out; 0 where there is too little.

    Args:
        baseline: fixed.
        followup: moving.
        displacement_mm: (i, j, k, 3) RAS+ on the baseline's working grid.
    """
    registration = Registration(baseline.volume.grid, displacement_mm, {})
    grid, source = baseline.volume.grid, followup.volume.grid
    hu = registration.warp(followup.volume.hu, source, grid, order=1, outside=OUTSIDE_HU)
    lungs = registration.warp(followup.lungs, source, grid, order=1)
    spots = registration.warp(followup.infiltrate, source, grid, order=1)
    inside = (baseline.lungs > 0.99) & (lungs > 0.99) & (baseline.infiltrate < 0.01) & (spots < 0.01)
    if np.count_nonzero(inside) < 500:
        return 0.0
    detail = [_detail(values, inside) for values in (baseline.volume.hu, hu)]
    norm = float(np.sqrt((detail[0] ** 2).sum() * (detail[1] ** 2).sum()))
    return float((detail[0] * detail[1]).sum() / norm) if norm > 0 else 0.0


def _detail(hu: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Density less its mean over the neighbourhood inside the lungs: vessels, which differ between people."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), 3.0)
    mean = ndimage.gaussian_filter(np.where(inside, hu, 0).astype(np.float32), 3.0) / np.maximum(weight, 1e-3)
    return (hu - mean)[inside].astype(np.float64)


def _near(copy: WorkingCopy, margin_mm: float) -> sitk.Image:
    """Lungs and `margin_mm` around them, without infiltrate and its border."""
    step = copy.volume.grid.spacing_mm[0]
    near = ndimage.distance_transform_edt(copy.lungs < 0.5) * step <= margin_mm
    spots = ndimage.binary_dilation(copy.infiltrate > 0.05, iterations=1)
    return sitk_image((near & ~spots).astype(np.uint8), copy.volume.grid)


def _centre(copy: WorkingCopy) -> list[float]:
    """Centre of the lungs in LPS+ millimetres."""
    centre = copy.volume.grid.world(ndimage.center_of_mass(copy.lungs))
    return [float(v) for v in _lps(centre)]


def _lps(ras: Sequence[float] | NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.asarray(ras, np.float64) * (-1, -1, 1)


def _field(transform: sitk.Transform, fixed: sitk.Image) -> NDArray[np.float32]:
    """Displacement (i, j, k, 3) in RAS+ of a transform at the voxels of `fixed`."""
    import SimpleITK as sitk  # noqa: N813

    field = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    )
    lps = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3)
    return (lps * (-1, -1, 1)).astype(np.float32)


def _method(masks: Sequence[sitk.Image], shrink: Sequence[int]) -> sitk.ImageRegistrationMethod:
    import SimpleITK as sitk  # noqa: N813

    method = sitk.ImageRegistrationMethod()
    method.SetGlobalDefaultNumberOfThreads(THREADS)
    method.SetNumberOfThreads(THREADS)
    method.SetMetricAsCorrelation()
    method.SetMetricFixedMask(masks[0])
    method.SetMetricMovingMask(masks[1])
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel(list(shrink))
    method.SetSmoothingSigmasPerLevel([float(n) for n in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _optimise(
    images: Sequence[sitk.Image], masks: Sequence[sitk.Image], transform: Any, iterations: int, *, shrink: Sequence[int]
) -> Any:
    """A rigid or affine transform from the first image to the second, coarse to fine."""
    method = _method(masks, shrink)
    method.SetOptimizerAsRegularStepGradientDescent(4.0, 0.02, iterations, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(*images)
    return transform


def _deform(
    images: Sequence[sitk.Image], masks: Sequence[sitk.Image], affine: Any, spline: Any, iterations: int, seed: int
) -> Any:
    """A B-spline on top of the affine map; evaluated before it, in the baseline's space."""
    method = _method(masks, (2,))
    method.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-5, numberOfIterations=iterations, maximumNumberOfCorrections=5
    )
    method.SetMovingInitialTransform(affine)
    method.SetInitialTransform(spline, inPlace=True)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(SAMPLED, seed)
    method.Execute(*images)
    return spline
