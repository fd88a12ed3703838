"""Images of other libraries in and out: nibabel, SimpleITK, arrays with an affine, torch, MONAI, TorchIO."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import GeometryError, InputError, InputTypeError
from pneumoscope.geometry import LPS_TO_RAS, Grid
from pneumoscope.io.read import read_mask, read_volume
from pneumoscope.io.stored import Stored
from pneumoscope.io.write import write_mask, write_volume
from pneumoscope.volume import Mask, Volume, array_to_native

Image = TypeVar("Image", Volume, Mask)

ACCEPTED = "a path, a nibabel or SimpleITK image, a MONAI or TorchIO image, or (array, affine)"


def source_of(image: Any, what: str, kind: type) -> str | Path | Stored:
    """What the readers take for a path or for another library's image; the voxels are not copied.

    Args:
        image: see `ACCEPTED`.
        what: it is for, e.g. ``the scan``.
        kind: our own class that would be taken too, for the message.

    Raises:
        InputTypeError: anything else.
        InputError: an image that is not three-dimensional, or has several values a voxel.
    """
    if isinstance(image, (str, Path)):
        return image
    if isinstance(image, (tuple, list)) and len(image) == 2 and np.shape(image[1]) == (4, 4):
        array, affine, name = _array_of(image[0], what), _array_of(image[1], what), "array"
    elif type(image).__module__.startswith("SimpleITK"):
        (array, affine), name = _of_sitk(image, what), "SimpleITK image"
    elif hasattr(image, "affine") and hasattr(image, "dataobj"):
        array, affine, name = np.asanyarray(image.dataobj), image.affine, "nibabel image"
    elif hasattr(image, "affine") and (hasattr(image, "detach") or hasattr(image, "numpy")):
        array, affine, name = _array_of(image, what), _array_of(image.affine, what), "tensor"
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
    else:
        needs = ""
        if isinstance(image, (tuple, list)) and len(image) == 2:
            needs = f"; the affine has shape {np.shape(image[1])}, expected (4, 4)"
        elif hasattr(image, "__array__") and not isinstance(image, (Volume, Mask)):
            needs = "; an array alone does not say where it lies: give (array, affine)"
        raise InputTypeError(f"{what} is of type {type(image).__name__}, expected {kind.__name__}, {ACCEPTED}{needs}")
    array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise InputError(f"{what} has shape {array.shape} of {array.dtype}, expected one number a voxel, (i, j, k)")
    return Stored(array.astype(np.uint8) if array.dtype.kind == "b" else array, Grid(array.shape, affine), name)


def made_of(kind: type[Image], image: Any, **options: Any) -> Image:
    """One of our images from another's; `options` are those of `read_volume` or `read_mask`."""
    if isinstance(image, kind) and not options:
        return image
    read: Callable[..., Any] = read_volume if issubclass(kind, Volume) else read_mask
    made: Image = read(source_of(image, "the image", kind), **options)
    return made


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


def _array_of(values: Any, what: str) -> NDArray[Any]:
    """Numbers as a NumPy array; of a tensor on any device, without its gradient and bfloat16 widened."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    try:
        return np.asarray(values.numpy() if hasattr(values, "numpy") else values)
    except ValueError as error:
        raise InputError(f"{what} holds no array: {error}") from None


def _of_sitk(image: Any, what: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import SimpleITK as sitk  # noqa: N813

    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{what} is a SimpleITK image of size {image.GetSize()}, expected (i, j, k) and one value each"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.asarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0)), LPS_TO_RAS @ affine
