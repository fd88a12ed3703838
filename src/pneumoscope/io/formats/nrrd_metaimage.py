"""NRRD and MetaImage, in and out: both headers are a few lines of text, read strictly, so that no file reaches a parser
that allocates before it checks."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import Finding, GeometryError
from pneumoscope.geometry import LPS_TO_RAS, Grid
from pneumoscope.io.files import atomic_path
from pneumoscope.io.formats.nifti import LABEL_LEVEL, SPACING_LIMITS_MM, slabs
from pneumoscope.io.masks import LABELS_KEY, labels_text, parse_labels
from pneumoscope.io.stored import (
    MAX_BZIP2_RATIO,
    MAX_DEFLATE_RATIO,
    Bzip2Source,
    GzipSource,
    Place,
    Source,
    Stored,
    check_budget,
    open_regular,
    read_array,
    read_tail,
)

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


FAMILY = "IN-ITK"
MAX_HEADER_BYTES = 2**20

_NRRD_ALIASES = {
    "signed char": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8_t": "u1",
    "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2", "int16_t": "i2",
    "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16_t": "u2",
    "int": "i4", "signed int": "i4", "int32_t": "i4", "uint": "u4", "unsigned int": "u4", "uint32_t": "u4",
    "longlong": "i8", "long long": "i8", "long long int": "i8", "signed long long": "i8", "int64_t": "i8",
    "ulonglong": "u8", "unsigned long long": "u8", "unsigned long long int": "u8", "uint64_t": "u8",
}  # fmt: skip
NRRD_DTYPES: Mapping[str, str] = {**{name: code for code, name in NRRD_TYPES.items()}, **_NRRD_ALIASES}
META_DTYPES: Mapping[str, str] = {name: code for code, name in META_TYPES.items()}

SPACES: Mapping[str, tuple[float, float, float]] = {
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip
"""Signs that turn an NRRD space into RAS+."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a header promises, before any voxel is read."""

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    affine: NDArray[np.float64]
    labels: Mapping[int, str] | None
    sparse: bool
    scan: Grid | None


def read_nrrd(path: str | Path, *, sparse: bool = False, scan: Grid | None = None) -> Stored:
    """Read and check one .nrrd file (header and data in one); `sparse` and `scan` as in `read_nifti`.

    Raises:
        ReadError: rows 51-56, 59, 60, 62 and 66 of the input codes.
    """
    place = Place(Path(path), FAMILY)
    with open_regular(place) as stream:
        fields = _nrrd_fields(stream, place)
        if "data file" in fields or "datafile" in fields:
            raise place.error(53, "keeps its voxels in another file, expected one .nrrd with both; save it again")
        if fields.get("line skip", "0") != "0" or fields.get("byte skip", "0") != "0":
            raise place.error(53, "skips lines or bytes before its voxels, which is not read; save it again")
        plan = _Plan(
            name="NRRD",
            shape=_sizes(fields.get("sizes", ""), fields.get("dimension", ""), place),
            dtype=_dtype(NRRD_DTYPES.get(fields.get("type", "").lower()), fields.get("endian", ""), place),
            affine=_nrrd_affine(fields, place),
            labels=parse_labels(fields.get(f"={LABELS_KEY}", "")) or _segments(fields, place),
            sparse=sparse,
            scan=scan,
        )
        encoding = fields.get("encoding", "").lower()
        if encoding in ("gzip", "gz"):
            return _finish(plan, GzipSource(stream, place), _bytes_left(stream), place, packed=True)
        if encoding in ("bzip2", "bz2"):
            return _finish(plan, Bzip2Source(stream, place), _bytes_left(stream), place, packed=True)
        if encoding == "raw":
            return _finish(plan, stream, _bytes_left(stream), place, packed=False)
        raise place.error(53, f"has the encoding {encoding!r}, expected raw, gzip or bzip2; save it again")


def read_metaimage(path: str | Path, *, sparse: bool = False, scan: Grid | None = None) -> Stored:
    """Read and check a .mha file, or a .mhd with its one data file beside it; `sparse` and `scan` as in `read_nifti`.

    Raises:
        ReadError: rows 51-56, 59, 60, 62 and 66 of the input codes.
    """
    place = Place(Path(path), FAMILY)
    with open_regular(place) as stream:
        fields = _meta_fields(stream, place)
        if fields.get("ElementNumberOfChannels", "1") != "1":
            raise place.error(59, "has several channels per voxel, expected one; extract it first")
        if fields.get("HeaderSize", "0") != "0" or not _true(fields.get("BinaryData", "True")):
            raise place.error(53, "has text voxels or a foreign header, expected plain binary ones; save it again")
        msb = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
        plan = _Plan(
            name="MetaImage",
            shape=_sizes(fields.get("DimSize", ""), fields.get("NDims", ""), place),
            dtype=_dtype(META_DTYPES.get(fields.get("ElementType", "")), "big" if _true(msb) else "little", place),
            affine=_meta_affine(fields, place),
            labels=parse_labels(fields.get(LABELS_KEY, "")),
            sparse=sparse,
            scan=scan,
        )
        packed = _true(fields.get("CompressedData", "False"))
        target = fields["ElementDataFile"]
        if target.upper() == "LOCAL":
            return _meta_voxels(plan, stream, place, packed)
    if Path(target).name != target or re.search(r"[%\\:\0]|^LIST", target):
        raise place.error(53, f"keeps its voxels in {target!r}, expected LOCAL or one file in the same folder")
    beside = Place(place.path.with_name(target), FAMILY)
    with open_regular(beside) as stream:
        return _meta_voxels(plan, stream, beside, packed)


def _meta_voxels(plan: _Plan, stream: BinaryIO, place: Place, packed: bool) -> Stored:
    source: Source | BinaryIO = GzipSource(stream, place, window_bits=47) if packed else stream
    return _finish(plan, source, _bytes_left(stream), place, packed=packed)


def _bytes_left(stream: BinaryIO) -> int:
    start = stream.tell()
    end = stream.seek(0, 2)
    stream.seek(start)
    return end - start


def _finish(plan: _Plan, source: Source | BinaryIO, left: int, place: Place, *, packed: bool) -> Stored:
    """Check what the header asks for against what there is, then read to the end."""
    try:
        grid = Grid(plan.shape, plan.affine)
    except GeometryError as error:
        raise place.error(62, f"{error.message}; write a valid orientation into the header") from None
    low, high = SPACING_LIMITS_MM
    if min(grid.spacing_mm) < low or max(grid.spacing_mm) > high:
        raise place.error(66, f"voxel edges are {grid.spacing_mm} mm, expected {low} to {high}; correct the header")
    limit = (left, MAX_BZIP2_RATIO if isinstance(source, Bzip2Source) else MAX_DEFLATE_RATIO) if packed else None
    n_bytes = check_budget(place, plan.shape, plan.dtype.itemsize, limit, sparse=plan.sparse, scan=plan.scan)
    if not packed and n_bytes > left:
        raise place.error(51, f"is cut off: {left} bytes of voxels, expected {n_bytes}; fetch or export it again")
    array = read_array(source, plan.shape, plan.dtype, place, sparse=plan.sparse)
    findings: tuple[Finding, ...] = read_tail(source, place)
    if not grid.is_orthogonal:
        findings += (place.note(63, "voxel axes are not perpendicular; kept as stored"),)
    return Stored(array, grid, plan.name, findings=findings, labels=plan.labels)


def _nrrd_fields(stream: BinaryIO, place: Place) -> dict[str, str]:
    """Lower-case fields, and keys of the file's own with ``=`` in front."""
    fields: dict[str, str] = {}
    lines = _lines(stream, place)
    if not next(lines, "").startswith("NRRD000"):
        raise place.error(53, "does not begin with NRRD, expected an image; fetch or convert it again")
    for line in lines:
        if not line:
            return fields
        if line.startswith("#"):
            continue
        own, mark, value = line.partition(":=")
        if mark and ": " not in own:
            fields["=" + own] = value
            continue
        key, mark, value = line.partition(":")
        if mark:
            fields[key.strip().lower()] = value.strip()
    raise place.error(51, "is cut off inside the header; fetch it again")


def _segments(fields: Mapping[str, str], place: Place) -> dict[int, str] | None:
    """Names of 3D Slicer's segmentations (.seg.nrrd) by their labels; None for other files."""
    numbers = [key[8:-5] for key in fields if re.fullmatch(r"=Segment\d+_Name", key)]
    try:
        names = {int(fields.get(f"=Segment{n}_LabelValue", int(n) + 1)): fields[f"=Segment{n}_Name"] for n in numbers}
    except ValueError:
        raise place.error(54, "has segments whose label is no number; save the segmentation again") from None
    return {label: name for label, name in names.items() if 0 < label < 256} or None


def _meta_fields(stream: BinaryIO, place: Place) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in _lines(stream, place):
        key, mark, value = line.partition("=")
        if not mark:
            raise place.error(53, "is not a MetaImage header (a line without '='); fetch or convert it again")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return fields
    raise place.error(51, "has no ElementDataFile line: the header is cut off; fetch it again")


def _lines(stream: BinaryIO, place: Place) -> Iterator[str]:
    """Header lines, one at a time: the stream is never read ahead into the voxels."""
    left = MAX_HEADER_BYTES
    while line := stream.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise place.error(54, f"has a header of more than {MAX_HEADER_BYTES} bytes; it is damaged")
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def _sizes(text: str, axes: str, place: Place) -> tuple[int, int, int]:
    try:
        sizes = [int(part) for part in text.split()]
        count = int(axes)
    except ValueError:
        raise place.error(54, f"has sizes {text!r} for {axes!r} axes, expected three numbers") from None
    if count != 3:
        raise place.error(59, f"has {count} axes, expected one 3D volume; extract it first")
    if len(sizes) != 3 or min(sizes) < 1:
        raise place.error(54, f"has sizes {text!r}, expected three positive numbers; the header is damaged")
    return sizes[0], sizes[1], sizes[2]


def _dtype(code: str | None, endian: str, place: Place) -> np.dtype[np.generic]:
    if code is None:
        raise place.error(56, "holds voxels of a type that is not read, expected integers or real numbers; convert it")
    if code[1] != "1" and endian.lower() not in ("little", "big"):
        raise place.error(56, f"gives the byte order {endian!r}, expected little or big; save it again")
    return np.dtype((">" if endian.lower() == "big" else "<") + code)


def _numbers(text: str, count: int, what: str, row: int, place: Place) -> NDArray[np.float64]:
    try:
        values = np.array([float(part) for part in re.split(r"[\s(),]+", text.strip(" ()")) if part])
    except ValueError:
        values = np.zeros(0)
    if values.size != count:
        raise place.error(row, f"has no usable {what} ({text[:60]!r}), so its place in the patient is unknown")
    return values


def _nrrd_affine(fields: Mapping[str, str], place: Place) -> NDArray[np.float64]:
    signs = SPACES.get(fields.get("space", "").lower())
    if signs is None:
        raise place.error(60, f"has the space {fields.get('space', '')!r}, expected LPS, RAS or LAS; save it again")
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", "", "millimeter", "millimeters"}
    if units:
        raise place.error(66, f"has lengths in {sorted(units)}, expected mm; convert it")
    affine = np.eye(4)
    affine[:3, :3] = _numbers(fields.get("space directions", ""), 9, "space directions", 60, place).reshape(3, 3).T
    affine[:3, 3] = _numbers(fields.get("space origin", ""), 3, "space origin", 60, place)
    return np.diag([*signs, 1.0]) @ affine


def _meta_affine(fields: Mapping[str, str], place: Place) -> NDArray[np.float64]:
    def first(*names: str) -> str:
        return next((fields[name] for name in names if name in fields), "")

    directions = _numbers(first("TransformMatrix", "Rotation", "Orientation"), 9, "TransformMatrix", 60, place)
    spacing = _numbers(first("ElementSpacing", "ElementSize"), 3, "ElementSpacing", 65, place)
    if not (spacing > 0).all():
        raise place.error(65, f"has voxel sizes {spacing.tolist()}, expected positive numbers; correct the header")
    affine = np.eye(4)
    affine[:3, :3] = directions.reshape(3, 3).T * spacing
    affine[:3, 3] = _numbers(first("Offset", "Position", "Origin"), 3, "Offset", 60, place)
    return LPS_TO_RAS @ affine


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "t", "1", "yes")
