"""NIfTI out: exactly the given grid, byte-reproducible, with nothing of the input's header in it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import GeometryError
from pneumoscope.geometry import Grid, contiguous
from pneumoscope.io.files import atomic_path
from pneumoscope.io.labels import labels_extension

FAST_LEVEL = 1
"""Deflate level for intensities: higher ones cost seconds and save little of a noisy picture."""

LABEL_LEVEL = 3
"""Deflate level for masks: as fast as level 1 on label maps, and smaller."""

_SLAB_BYTES = 4 * 2**20


def save_nifti(
    array: NDArray[np.generic],
    native: Grid,
    path: Path,
    *,
    labels: Mapping[int, str] | None = None,
    slope: float = 1.0,
    level: int = FAST_LEVEL,
) -> None:
    """Write (i, j, k) voxels in the order of `native`, whole or not at all.

    The grid is kept to the bit when it fits the format: as sform (float32), or else as qform alone when the grid came
    from one. Other grids, such as a DICOM's in float64, are rounded to float32 (less than 1e-4 mm).
    No time, name or description is stored, so equal input gives equal bytes.

    Args:
        array: (i, j, k), of a type NIfTI knows.
        native: its grid.
        path: ends in .nii or .nii.gz.
        labels: names for a header extension.
        slope: real value = slope * stored value.
        level: deflate level for .nii.gz.
    """
    if max(array.shape) > 32767:
        raise GeometryError(f"NIfTI-1 holds at most 32767 voxels along an axis, got {array.shape}", path=path)
    extension = labels_extension(labels) if labels else b""
    header = _header(array, native, slope, 352 + len(extension))
    head: bytes = header.binaryblock + (b"\1\0\0\0" + extension if extension else b"\0\0\0\0")
    packed = path.name.lower().endswith(".gz")
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        if not packed:
            stream.write(head)
            for slab in slabs(array):
                stream.write(slab)
            return
        deflate = zlib.compressobj(level, zlib.DEFLATED, 31)  # its gzip header has neither name nor time
        stream.write(deflate.compress(head))
        for slab in slabs(array):
            stream.write(deflate.compress(slab))
        stream.write(deflate.flush())


def slabs(array: NDArray[np.generic]) -> Iterator[memoryview]:
    """Little-endian bytes in Fortran order, a few MiB at a time."""
    little = array.dtype.newbyteorder("<")
    step = max(1, _SLAB_BYTES // max(1, array[:, :, 0].nbytes))
    for start in range(0, array.shape[2], step):
        yield contiguous(array[:, :, start : start + step].transpose(2, 1, 0), little).data


def _header(array: NDArray[np.generic], native: Grid, slope: float, offset: int) -> Any:
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header(endianness="<")
    header.set_data_dtype(array.dtype.newbyteorder("="))
    header.set_data_shape(array.shape)
    header["xyzt_units"] = 2  # mm
    header["scl_slope"], header["scl_inter"] = slope, 0.0
    header["vox_offset"] = offset
    header["magic"] = b"n+1"
    affine = native.affine + 0.0  # no negative zeros
    rounded = affine.astype(np.float32).astype(np.float64) + 0.0
    header["pixdim"][1:4] = np.linalg.norm(rounded[:3, :3], axis=0)
    if native.is_orthogonal:
        header.set_qform(affine, code=1, strip_shears=True)
        if not np.array_equal(rounded, affine) and np.array_equal(header.get_qform(), affine):
            return header
        header.set_qform(rounded, code=1, strip_shears=True)
    for name in ("quatern_b", "quatern_c", "quatern_d"):
        header[name] = header[name] + 0.0
    header.set_sform(rounded, code=1)
    return header
