"""Results out: masks, volumes and probability maps on exactly the scan's own grid, the format chosen by suffix; and as
images of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import LPS_TO_RAS, Grid
from pneumoscope.io.formats.nifti import FAST_LEVEL, LABEL_LEVEL, save_nifti
from pneumoscope.io.formats.nrrd_metaimage import save_metaimage, save_nrrd
from pneumoscope.io.kinds import suffix_of
from pneumoscope.volume import RAS, Mask, Volume, array_to_native

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".mha")


def write_mask(mask: Mask, path: str | Path, native: Grid) -> None:
    """Write a mask on the scan's own grid with its label names inside.

    Args:
        mask: labels, (i, j, k) RAS+; an empty one is written as all zeros.
        path: ends in .nii.gz, .nii, .nrrd or .mha; replaced when it exists, whole or not at all.
        native: the scan's `Volume.native`; must be the mask's place up to permuted and flipped axes.

    Raises:
        GeometryError: `native` is another place.
        InputError: another suffix.
    """
    _save(mask.to_native(native), native, path, labels=mask.names, is_mask=True)


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write a volume in whole HU (int16, values beyond it clipped) on its native grid; suffixes as `write_mask`."""
    hu: NDArray[np.int16] = np.empty(volume.grid.shape, np.int16)
    for k in range(volume.grid.shape[2]):  # slice by slice: no second float copy of the whole
        hu[:, :, k] = np.clip(np.rint(volume.hu[:, :, k]), -32768, 32767)
    _save(array_to_native(hu, volume.native), volume.native, path)


def write_image(array: NDArray[np.generic], native: Grid, path: str | Path, *, scaled: bool = False) -> None:
    """Write any finite array, e.g. a probability map, on the scan's own grid.

    Args:
        array: (i, j, k) RAS+, numbers; float64 and half are stored as float32, booleans as uint8.
        native: the scan's `Volume.native`.
        scaled: the array holds bytes of 255ths, stored as they are with slope 1/255 (NIfTI only).

    Raises:
        GeometryError: the shape does not fit, values are not finite, or no bytes with `scaled`.
        InputError: another suffix.
    """
    if array.shape != native.reorient(RAS).shape:
        raise GeometryError(f"the image has shape {array.shape}, its grid {native.reorient(RAS).shape}", path=path)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise GeometryError("the image holds NaN or infinite values; replace them before writing", path=path)
    if scaled:
        if suffix_of(path) not in (".nii", ".nii.gz"):
            raise InputError(f"scaled images are written as .nii or .nii.gz, got {suffix_of(path)!r}", path=path)
        if array.dtype != np.uint8:
            raise GeometryError(f"expected bytes of 255ths, got {array.dtype}", path=path)
        _save(array_to_native(array, native), native, path, slope=1 / 255)
        return
    if array.dtype.kind in "fb":
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.uint8, copy=False)
    _save(array_to_native(array, native), native, path)


def _save(
    array: NDArray[np.generic],
    native: Grid,
    path: str | Path,
    *,
    labels: Mapping[int, str] | None = None,
    slope: float = 1.0,
    is_mask: bool = False,
) -> None:
    final, suffix = Path(path), suffix_of(path)
    if suffix in (".nii", ".nii.gz"):
        level = LABEL_LEVEL if is_mask else FAST_LEVEL
        save_nifti(array, native, final, labels=labels, slope=slope, level=level)
    elif suffix == ".nrrd":
        save_nrrd(array, native, final, labels=labels)
    elif suffix == ".mha":
        save_metaimage(array, native, final, labels=labels)
    else:
        raise InputError(f"ends in {suffix!r}, expected one of {', '.join(WRITABLE)}", path=final)


def stored_voxels(image: Volume | Mask) -> tuple[NDArray[Any], Grid]:
    """Voxels in the order of the scan's file, and their grid."""
    native = image.native or image.grid
    return array_to_native(image.voxels, native), native


def save(image: Volume | Mask, path: str | Path) -> None:
    """Write an image, see `pneumoscope.io.write`."""
    if isinstance(image, Volume):
        write_volume(image, path)
    else:
        write_mask(image, path, image.native or image.grid)


def to_nibabel(image: Volume | Mask) -> Any:
    """See `Voxels.to_nibabel`."""
    import nibabel as nib

    array, grid = stored_voxels(image)
    made = nib.Nifti1Image(array, grid.affine)
    made.header.set_xyzt_units("mm")
    return made


def to_sitk(image: Volume | Mask) -> Any:
    """See `Voxels.to_sitk`."""
    return sitk_image(*stored_voxels(image))


def sitk_image(array: NDArray[Any], grid: Grid) -> Any:
    """An ITK image, in LPS+, of an array (i, j, k) on its grid.

    Raises:
        GeometryError: the axes are not perpendicular.
    """
    import SimpleITK as sitk  # noqa: N813

    if not grid.is_orthogonal:
        raise GeometryError(f"the axes of {grid} are not perpendicular, which ITK does not know; resample it first")
    affine, steps = LPS_TO_RAS @ grid.affine, np.asarray(grid.spacing_mm)
    made = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    made.SetSpacing(steps.tolist())
    made.SetOrigin(affine[:3, 3].tolist())
    made.SetDirection((affine[:3, :3] / steps).ravel().tolist())
    return made


def to_torch(image: Volume | Mask) -> Any:
    """See `Voxels.to_torch`; called by its name, because nothing at this height of the package needs PyTorch."""
    return _installed("torch", "PyTorch").from_numpy(np.ascontiguousarray(image.voxels)[None].copy())


def to_monai(image: Volume | Mask) -> Any:
    """See `Voxels.to_monai`."""
    return _installed("monai.data", "MONAI").MetaTensor(image.to_torch(), affine=np.array(image.grid.affine))


def to_torchio(image: Volume | Mask) -> Any:
    """See `Voxels.to_torchio`."""
    torchio = _installed("torchio", "TorchIO")
    kind = torchio.ScalarImage if isinstance(image, Volume) else torchio.LabelMap
    return kind(tensor=image.to_torch(), affine=np.array(image.grid.affine))


def _installed(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise InputError(f"{name} is not installed; run `pip install {name.lower()}`") from None
