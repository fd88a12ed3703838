"""NRRD and MetaImage out, as ITK and 3D Slicer read them: LPS+, compressed, byte-reproducible."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import GeometryError
from pneumoscope.geometry import LPS_TO_RAS, Grid
from pneumoscope.io.files import atomic_path
from pneumoscope.io.labels import LABELS_KEY, labels_text
from pneumoscope.io.nifti_out import LABEL_LEVEL, slabs

NRRD_TYPES: Mapping[str, str] = {
    "i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32",
    "i8": "int64", "u8": "uint64", "f4": "float", "f8": "double",
}  # fmt: skip
META_TYPES: Mapping[str, str] = {
    "i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "u4": "MET_UINT",
    "i8": "MET_LONG_LONG", "u8": "MET_ULONG_LONG", "f4": "MET_FLOAT", "f8": "MET_DOUBLE",
}  # fmt: skip


def save_nrrd(array: NDArray[np.generic], native: Grid, path: Path, *, labels: Mapping[int, str] | None = None) -> None:
    """Write (i, j, k) voxels in the order of `native` as one .nrrd file; the grid is kept to the bit."""
    affine = LPS_TO_RAS @ native.affine
    directions = " ".join(_vector(affine[:3, axis]) for axis in range(3))
    lines = [
        "NRRD0005",
        f"type: {NRRD_TYPES[_code(array)]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {directions}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(affine[:3, 3])}",
    ]
    if labels:
        lines.append(f"{LABELS_KEY}:={labels_text(labels)}")
    deflate = zlib.compressobj(LABEL_LEVEL, zlib.DEFLATED, 31)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(("\n".join(lines) + "\n\n").encode("ascii"))
        for slab in slabs(array):
            stream.write(deflate.compress(slab))
        stream.write(deflate.flush())


def save_metaimage(
    array: NDArray[np.generic], native: Grid, path: Path, *, labels: Mapping[int, str] | None = None
) -> None:
    """Write (i, j, k) voxels in the order of `native` as one .mha file.

    MetaImage keeps directions and spacing apart: they are rounded to 13 and 12 digits, which moves no voxel by 1e-6 mm
    and makes write, read, write return the same bytes.
    """
    if not native.is_orthogonal:
        raise GeometryError("MetaImage cannot hold voxel axes that are not perpendicular; use .nii.gz", path=path)
    affine = LPS_TO_RAS @ native.affine
    spacing = [float(f"{s:.12g}") for s in native.spacing_mm]
    matrix = " ".join(_number(float(f"{v:.13g}")) for v in (affine[:3, :3] / spacing).T.ravel())
    deflate = zlib.compressobj(LABEL_LEVEL)
    packed = b"".join([*(deflate.compress(slab) for slab in slabs(array)), deflate.flush()])
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        f"CompressedDataSize = {len(packed)}",
        f"TransformMatrix = {matrix}",
        f"Offset = {' '.join(_number(v) for v in affine[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {' '.join(map(_number, spacing))}",
        f"DimSize = {' '.join(map(str, array.shape))}",
        *([f"{LABELS_KEY} = {labels_text(labels)}"] if labels else []),
        f"ElementType = {META_TYPES[_code(array)]}",
        "ElementDataFile = LOCAL",
    ]
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(("\n".join(lines) + "\n").encode("ascii"))
        stream.write(packed)


def _code(array: NDArray[np.generic]) -> str:
    return f"{array.dtype.kind}{array.dtype.itemsize}"


def _number(value: float) -> str:
    return repr(float(value) + 0.0)  # + 0.0: no negative zero


def _vector(values: NDArray[np.float64]) -> str:
    return "(" + ",".join(map(_number, values)) + ")"
