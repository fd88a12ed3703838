"""NIfTI in and out: one `.nii` or `.nii.gz` to an array and its grid or a refusal, and back, byte-reproducible."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, GeometryError
from pneumoscope.geometry import Grid, contiguous
from pneumoscope.io.files import atomic_path
from pneumoscope.io.masks import labels_extension, labels_in_extensions
from pneumoscope.io.stored import (
    GZIP_MAGIC,
    MAX_DEFLATE_RATIO,
    GzipSource,
    Place,
    Source,
    Stored,
    check_budget,
    open_regular,
    read_array,
    read_tail,
    read_up_to,
)

FAMILY = "IN-NII"

DTYPES: Mapping[int, str] = {
    2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 1024: "i8", 1280: "u8", 16: "f4", 64: "f8",
}  # fmt: skip
"""NIfTI datatype codes that can hold HU or labels."""

REFUSED_DTYPES: Mapping[int, str] = {
    0: "unknown", 1: "binary", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128", 2304: "RGBA",
}  # fmt: skip

UNIT_MM: Mapping[int, float] = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
"""Millimetres per unit of length (xyzt_units & 7): unknown, metre, millimetre, micron."""

QUATERNION_TOLERANCE = 1e-3
"""By how much the three stored parts of a unit quaternion may be longer than 1: rounding by the writer."""

FORMS_TOLERANCE = 1e-3  # sform and qform agree when no direction differs by more than this part of a voxel step ..
FORMS_ORIGIN_VOXELS = 0.05  # ... and their origins by no more than this part of a voxel.
SPACING_LIMITS_MM = (0.02, 50.0)  # A chest CT's voxel edge lies between these; outside, the unit is wrong

MAX_EXTENSION_BYTES = 16 * 2**20


def read_nifti(path: str | Path, *, sparse: bool = False, scan: Grid | None = None) -> Stored:
    """Read and check one NIfTI file, or a folder called ``X.nii`` that holds exactly one.

    Args:
        path: the file or folder.
        sparse: it is a mask, which may compress without bound.
        scan: the mask's scan; a mask of more than twice its voxels is refused from the header.

    Raises:
        ReadError: rows 51-56, 58-62, 65 and 66 of the input codes.
    """
    place = Place(_inside_folder(Path(path)), FAMILY)
    with open_regular(place) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        start = stream.read(2)
        stream.seek(0)
        packed = start == GZIP_MAGIC
        if not size:
            raise place.error(53, "is empty (0 bytes), expected a NIfTI file; fetch it again")
        if place.path.name.lower().endswith(".gz") and not packed:
            raise place.error(53, "is not gzip although its name says so; rename it, or fetch it again")
        source: Source | BinaryIO = GzipSource(stream, place) if packed else stream
        with np.errstate(all="ignore"):  # damaged headers hold odd numbers, which are tested for
            return _read(source, size, place, packed=packed, sparse=sparse, scan=scan)


def _read(
    source: Source | BinaryIO, size: int, place: Place, *, packed: bool, sparse: bool, scan: Grid | None
) -> Stored:
    header, block = _header(source, place)
    shape, findings = _shape(header, place)
    dtype = _dtype(header, place)
    slope, intercept, broken = _scaling(header)
    affine, notes = _affine(header, place)
    findings += notes
    offset = float(header["vox_offset"])
    if not (len(block) <= offset <= len(block) + MAX_EXTENSION_BYTES) or offset != int(offset):
        raise place.error(54, f"voxels begin at byte {offset:g}, expected {len(block)} or a little more")
    limit = (size, MAX_DEFLATE_RATIO) if packed else None
    n_bytes = check_budget(place, shape, dtype.itemsize, limit, sparse=sparse, scan=scan)
    if not packed and offset + n_bytes > size:
        raise place.error(
            51, f"is cut off: {size} bytes, expected {int(offset) + n_bytes}; fetch or export the file again"
        )
    extensions = read_up_to(source, int(offset) - len(block))
    array = read_array(source, shape, dtype, place, sparse=sparse)
    findings += read_tail(source, place)
    labels = labels_in_extensions(extensions, header.endianness) if block[-4] else None
    return Stored(array, Grid(shape, affine), "NIfTI", slope, intercept, broken, findings, labels)


def _inside_folder(path: Path) -> Path:
    """The one NIfTI file in a folder called ``X.nii`` (made by unpackers that expand the gzip layer)."""
    if not path.is_dir():
        return path
    names = (p for p in path.iterdir() if p.name.lower().endswith((".nii", ".nii.gz")))
    inside = sorted(p for p in names if not p.is_dir() and not p.name.startswith("."))  # "._X" holds Finder's notes
    if len(inside) != 1:
        raise Place(path, FAMILY).error(53, f"is a folder with {len(inside)} NIfTI files, expected a file or just one")
    return inside[0]


def _header(source: Source | BinaryIO, place: Place) -> tuple[Any, bytes]:
    """The header, unchecked, and its bytes up to and including the extension flag."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = read_up_to(source, 348)
    sizes = {order: struct.unpack(order + "i", block[:4])[0] for order in "<>"} if len(block) >= 4 else {}
    order = next((o for o, n in sizes.items() if n in (348, 540)), None)
    if order is None:
        raise place.error(53, "is not a NIfTI file (no header of 348 or 540 bytes); fetch or convert it again")
    length = sizes[order]
    block += read_up_to(source, length + 4 - len(block))
    if len(block) < length + 4:
        raise place.error(51, f"is cut off inside the header ({len(block)} bytes); fetch it again")
    kind = Nifti1Header if length == 348 else Nifti2Header
    header = kind(block[:length], endianness=order, check=False)
    magic = bytes(header["magic"].tobytes())[:3]
    if magic in (b"ni1", b"ni2"):
        raise place.error(53, "is one half of a .hdr/.img pair, expected a single .nii file; convert it")
    if magic not in (b"n+1", b"n+2"):
        raise place.error(53, "is Analyze 7.5 or damaged (no NIfTI signature), which has no orientation; convert it")
    return header, block


def _shape(header: Any, place: Place) -> tuple[tuple[int, int, int], tuple[Finding, ...]]:
    dim = [int(n) for n in header["dim"]]
    n_axes = dim[0]
    if not 1 <= n_axes <= 7:
        raise place.error(54, f"the header counts {n_axes} axes, expected 3; it is damaged")
    sizes = dim[1 : n_axes + 1]
    if min(sizes) < 1:
        raise place.error(54, f"the header gives sizes {sizes}, expected positive ones; it is damaged")
    if n_axes == 3:
        return (sizes[0], sizes[1], sizes[2]), ()
    if n_axes == 4 and sizes[3] == 1:
        note = place.note(59, "four axes with one time point were read as three", "info")
        return (sizes[0], sizes[1], sizes[2]), (note,)
    shown = " x ".join(map(str, sizes))
    raise place.error(59, f"has {n_axes} axes ({shown}), expected one 3D volume; extract it first")


def _dtype(header: Any, place: Place) -> np.dtype[np.generic]:
    code = int(header["datatype"])
    if code not in DTYPES:
        name = REFUSED_DTYPES.get(code, "unknown")
        raise place.error(56, f"holds voxels of type {code} ({name}), expected integers or real numbers; convert it")
    return np.dtype(header.endianness + DTYPES[code])


def _scaling(header: Any) -> tuple[float, float, bool]:
    """(slope, intercept, broken): slope 0 means none by the format's definition; broken means NaN or infinite."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:
        return 1.0, 0.0, False
    if not np.isfinite([slope, intercept]).all():
        return 1.0, 0.0, True
    return slope, intercept, False


def _affine(header: Any, place: Place) -> tuple[NDArray[np.float64], tuple[Finding, ...]]:
    """Voxel index to RAS+ mm: the sform where there is one, else the qform; never a guess from pixdim."""
    steps = header["pixdim"][1:4].astype(np.float64)
    if not np.isfinite(steps).all() or (steps == 0).any():
        raise place.error(65, f"voxel sizes are {steps.tolist()}, expected positive numbers; correct the header")
    findings: tuple[Finding, ...] = ()
    if (steps < 0).any():
        header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
        findings += (place.note(65, f"negative voxel sizes {steps.tolist()} were taken as positive"),)
    sform = _sform(header, place) if int(header["sform_code"]) > 0 else None
    qform, qfac_note = _qform(header, place, sform) if int(header["qform_code"]) > 0 else (None, ())
    findings += qfac_note
    if sform is not None and qform is not None:
        _require_agreement(sform, qform, place)
    affine = sform if sform is not None else qform
    if affine is None:
        raise place.error(60, "has neither sform nor qform: left and right are unknown; export it with its orientation")
    if sform is not None and qform is None:
        edges = np.linalg.norm(sform[:3, :3], axis=0)
        if np.abs(edges - np.abs(steps)).max() > FORMS_TOLERANCE * edges.max():
            text = f"the sform's voxel size {np.round(edges, 4).tolist()} was taken, pixdim says {steps.tolist()}"
            findings += (place.note(61, text),)
    affine, unit_note = _in_mm(affine, header, place)
    return affine, findings + unit_note + _shear_note(affine, place)


def _sform(header: Any, place: Place) -> NDArray[np.float64]:
    affine: NDArray[np.float64] = header.get_sform().astype(np.float64)
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * steps.prod():
        raise place.error(62, f"the sform is singular or not finite: {affine[:3].tolist()}; correct the header")
    return affine


def _qform(
    header: Any, place: Place, sform: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64] | None, tuple[Finding, ...]]:
    """The qform; pixdim[0] is its handedness by sign, and 0 means 1 (nifti1.h, method 2).

    Where there is an sform, that is what places the scan: it gives the handedness that pixdim[0] leaves open, and a
    qform that is no rotation is left out (None).
    """
    from nibabel.spatialimages import HeaderDataError

    fields = [float(header[name]) for name in ("quatern_b", "quatern_c", "quatern_d")]
    fields += [float(header[name]) for name in ("qoffset_x", "qoffset_y", "qoffset_z")]
    handed = float(header["pixdim"][0])
    notes: tuple[Finding, ...] = ()
    if handed not in (1.0, -1.0):
        turned = handed < 0 if sform is None else np.linalg.det(sform[:3, :3]) < 0
        header["pixdim"][0] = -1.0 if turned else 1.0
        notes = (place.note(62, f"pixdim[0] is {handed:g} and was taken as {header['pixdim'][0]:g}", "info"),)
    length = float(np.linalg.norm(fields[:3]))
    if 1 < length <= 1 + QUATERNION_TOLERANCE:  # as nifti1_io does, which the other readers use
        for name in ("quatern_b", "quatern_c", "quatern_d"):
            header[name] /= length
    try:
        if not np.isfinite([*fields, handed if sform is None else 0]).all():
            raise ValueError
        affine = header.get_qform().astype(np.float64)
    except (ValueError, HeaderDataError):
        if sform is not None:
            return None, (place.note(62, f"the qform is not a rotation ({fields}); the sform was taken"),)
        raise place.error(62, f"the qform is not a rotation: {fields}; correct the header") from None
    return affine, notes


def _require_agreement(sform: NDArray[np.float64], qform: NDArray[np.float64], place: Place) -> None:
    """Refuse two orientations that say different things; a qform cannot hold shear, so that part is left out."""
    edges = np.linalg.norm(sform[:3, :3], axis=0)
    u, _, v = np.linalg.svd(sform[:3, :3] / edges)
    candidates = (sform[:3, :3], (u @ v) * edges)
    turn = min(float(np.abs((c - qform[:3, :3]) / edges).max()) for c in candidates)
    shift = float(np.linalg.norm(sform[:3, 3] - qform[:3, 3])) / float(edges.min())
    if turn > FORMS_TOLERANCE or shift > FORMS_ORIGIN_VOXELS:
        raise place.error(
            61,
            f"sform and qform disagree (directions by {turn:.2g} of a step, origin by {shift:.2g} voxels); "
            "readers would place it differently, keep the right one in the header",
        )


def _in_mm(affine: NDArray[np.float64], header: Any, place: Place) -> tuple[NDArray[np.float64], tuple[Finding, ...]]:
    unit = int(header["xyzt_units"]) & 7
    factor = UNIT_MM.get(unit)
    if factor is None:
        raise place.error(66, f"the unit of length has code {unit}, expected millimetres; correct the header")
    result = affine
    if factor != 1.0:
        result = affine.copy()
        result[:3] *= factor
    edges = np.linalg.norm(result[:3, :3], axis=0)
    low, high = SPACING_LIMITS_MM
    if edges.min() < low or edges.max() > high:
        raise place.error(
            66, f"voxel edges are {np.round(edges, 6).tolist()} mm, expected {low} to {high}; correct unit or size"
        )
    if factor == 1.0:
        return result, ()
    name = "metres" if unit == 1 else "microns"
    return result, (place.note(66, f"lengths in {name} were turned into millimetres"),)


def _shear_note(affine: NDArray[np.float64], place: Place) -> tuple[Finding, ...]:
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    shear = float(np.abs(unit.T @ unit - np.eye(3)).max())
    if shear <= 1e-5:
        return ()
    text = f"voxel axes are off perpendicular (cosine {shear:.2g}); kept as stored, volumes use the determinant"
    return (place.note(63, text, "info" if shear <= FORMS_TOLERANCE else "warning"),)


FAST_LEVEL = 1  # Deflate level for intensities: higher ones cost seconds and save little of a noisy picture
LABEL_LEVEL = 3  # Deflate level for masks: as fast as level 1 on label maps, and smaller

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

    The grid is kept to the bit when it fits the format as sform (float32), or else as qform alone when the grid came
    from one, then to what a quaternion of float32 holds. Other grids, such as a DICOM's in float64, are rounded to
    float32 (less than 1e-4 mm).
    No time, name or description is stored, so equal input gives equal bytes.

    Args:
        array: (i, j, k), of a type NIfTI knows.
        path: ends in .nii or .nii.gz.
        slope: real value = slope * stored value.
    """
    if max(array.shape) > 32767:
        raise GeometryError(f"NIfTI-1 holds at most 32767 voxels along an axis, got {array.shape}", path=path)
    extension = labels_extension(labels) if labels else b""
    header = _new_header(array, native, slope, 352 + len(extension))
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


def _new_header(array: NDArray[np.generic], native: Grid, slope: float, offset: int) -> Any:
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
