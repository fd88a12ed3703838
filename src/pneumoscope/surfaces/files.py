"""What is drawn in 3D, its names and colours, and the files that hold it: STL, GLB, and for ParaView VTK's and tables.

Maganaris et al. (2022b, section 5) showed lungs and infiltrates in 3D by writing tables with one line per voxel,
``x,y,z,value``, and turning them to points with ParaView's filter Table To Points (X Column x, Y Column y, Z Column z,
Keep All Data Arrays on). They counted z up slice by slice; here x, y and z are the voxel centre's place in the patient
in RAS+ millimetres, so tables of one patient, and the meshes, lie on each other. No blanks are written: ParaView's
reader takes columns with blanks for text.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope._version import __version__
from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.io.files import atomic_path, write_bytes
from pneumoscope.surfaces.mesh import Mesh, joined, poly_data
from pneumoscope.volume import Mask, Volume


@dataclass(frozen=True)
class Look:
    """How a structure is shown."""

    title: str  # for people
    colour: str  # ``#rrggbb``; the colours of the report's pictures, which colour-blind readers can tell apart
    opacity: float  # in 3D, 0 to 1

    @property
    def rgb(self) -> tuple[float, float, float]:
        """The colour as sRGB parts, 0 to 1."""
        red, green, blue = (int(self.colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
        return red, green, blue


LOOKS: Mapping[str, Look] = {
    "right_lung": Look("right lung", "#56b4e9", 0.22),
    "left_lung": Look("left lung", "#2ee6a8", 0.22),
    "lungs": Look("lungs", "#56b4e9", 0.22),
    "infiltrate": Look("infiltrate", "#ff7f2a", 1.0),
    "truth": Look("infiltrate of the reference", "#fff26b", 0.6),
}
"""Every structure by the stem of its files."""


def structures(lungs: Mask, infiltrate: Mask, truth: Mask | None = None) -> dict[str, Callable[[], NDArray[np.bool_]]]:
    """What makes each mask to draw, by the names of `LOOKS`; (i, j, k) bool, empty ones too.

    A lung mask that does not tell sides gives ``lungs`` instead of ``right_lung`` and ``left_lung``. Masks are made
    when called: on a large scan each takes 80 MB.
    """
    parts: dict[str, Callable[[], NDArray[np.bool_]]] = {}
    if {"right lung", "left lung"} <= set(lungs.names.values()):
        parts["right_lung"] = lambda: lungs.of("right lung")
        parts["left_lung"] = lambda: lungs.of("left lung")
    else:
        parts["lungs"] = lambda: lungs.any
    parts["infiltrate"] = lambda: infiltrate.any
    if truth is not None:
        parts["truth"] = lambda: truth.any
    return parts


STL_HEADER = b"pneumoscope surface, millimetres, SPACE=RAS"  # The first bytes of every STL file, padded to 80

ROOT_NODE = "RAS millimetres to glTF metres"
RAS_MM_TO_GLTF = np.array([[-1e-3, 0, 0, 0], [0, 0, 1e-3, 0], [0, 1e-3, 0, 0], [0, 0, 0, 1]])
"""The root node's matrix: RAS+ millimetres to glTF's metres; its determinant is positive, nothing is mirrored."""

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942
_FLOAT, _UINT = 5126, 5125
_VERTICES, _INDICES = 34962, 34963


def write_stl(path: str | Path, mesh: Mesh) -> None:
    """Write a binary STL file, whole or not at all."""
    corners = mesh.vertices_mm.astype(np.float32)[mesh.triangles]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(across, axis=1, keepdims=True)
    table = np.zeros(len(corners), _TRIANGLE)
    table["normal"] = np.divide(across, lengths, out=np.zeros_like(across), where=lengths > 0)
    table["corners"] = corners
    write_bytes(path, STL_HEADER.ljust(80) + struct.pack("<I", len(table)) + table.tobytes())


def write_glb(path: str | Path, meshes: Mapping[str, Mesh]) -> None:
    """Write a GLB file with one named node, mesh and material per structure, whole or not at all.

    Args:
        meshes: by the names of `structures.LOOKS`, which give titles, colours and opacities; at least one.
    """
    binary = bytearray()
    views: list[dict[str, int]] = []
    accessors: list[dict[str, object]] = []

    def add(array: NDArray[np.generic], target: int, **more: object) -> int:
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes, "target": target})
        binary.extend(array.tobytes())  # all parts are of four bytes: nothing to align
        accessors.append({"bufferView": len(views) - 1, **more})
        return len(accessors) - 1

    materials: list[dict[str, object]] = []
    parts: list[dict[str, object]] = []
    nodes: list[dict[str, object]] = []
    for name, mesh in meshes.items():
        look = LOOKS[name]
        vertices = mesh.vertices_mm.astype("<f4")
        limits = {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
        vector = {"componentType": _FLOAT, "count": len(vertices), "type": "VEC3"}
        position = add(vertices, _VERTICES, **vector, **limits)
        normal = add(_unit(mesh.normals()), _VERTICES, **vector)
        flat = mesh.triangles.astype("<u4").ravel()
        index = add(flat, _INDICES, componentType=_UINT, count=len(flat), type="SCALAR")
        materials.append(_material(name))
        attributes = {"POSITION": position, "NORMAL": normal}
        primitive = {"attributes": attributes, "indices": index, "material": len(parts)}
        parts.append({"name": look.title, "primitives": [primitive]})
        nodes.append({"name": look.title, "mesh": len(parts) - 1})
    root = {"name": ROOT_NODE, "matrix": RAS_MM_TO_GLTF.T.ravel().tolist(), "children": list(range(len(nodes)))}
    document = {
        "asset": {"version": "2.0", "generator": f"pneumoscope {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [len(nodes)]}],
        "nodes": [*nodes, root],
        "meshes": parts,
        "materials": materials,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), _JSON_CHUNK) + text
    chunks += struct.pack("<II", len(binary), _BINARY_CHUNK) + binary
    write_bytes(path, struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def _unit(normals: NDArray[np.float64]) -> NDArray[np.float32]:
    """glTF wants each normal of length one; a vertex without area gets an arbitrary one."""
    whole = normals.copy()
    whole[np.linalg.norm(whole, axis=1) < 0.5] = (0.0, 0.0, 1.0)
    return whole.astype("<f4")


def _material(name: str) -> dict[str, object]:
    look = LOOKS[name]
    linear = [((part + 0.055) / 1.055) ** 2.4 if part > 0.04045 else part / 12.92 for part in look.rgb]  # sRGB
    colour = [round(part, 5) for part in linear] + [look.opacity]
    return {
        "name": look.title,
        "pbrMetallicRoughness": {"baseColorFactor": colour, "metallicFactor": 0.0, "roughnessFactor": 0.8},
        "alphaMode": "BLEND" if look.opacity < 1 else "OPAQUE",
    }


def write_vti(path: str | Path, volume: Volume, lungs: Mask, infiltrate: Mask, truth: Mask | None = None) -> None:
    """Write the scan as ``hu`` (int16, rounded and clipped) with ``lungs``, ``infiltrate`` and ``truth`` beside it.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOXML import vtkXMLImageDataWriter

    grid = volume.grid
    masks = {"lungs": lungs, "infiltrate": infiltrate, **({} if truth is None else {"truth": truth})}
    for name, mask in masks.items():
        grid.require_same_space(mask.grid, f"the mask {name}")
    image = vtkImageData()
    image.SetDimensions(*grid.shape)
    image.SetOrigin(*grid.affine[:3, 3])
    image.SetSpacing(*grid.spacing_mm)
    image.SetDirectionMatrix(*(grid.affine[:3, :3] / np.asarray(grid.spacing_mm)).ravel())
    hu = np.empty(volume.hu.shape[::-1], np.int16)  # (k, j, i): i is fastest, as VTK wants it
    for k, piece in enumerate(hu):
        piece[:] = np.clip(np.rint(volume.hu[:, :, k].T), -32768, 32767)
    _add(image.GetPointData(), "hu", hu.ravel())
    del hu
    for name, mask in masks.items():
        _add(image.GetPointData(), name, mask.labels.ravel(order="F"))
    image.GetPointData().SetActiveScalars("hu")
    _write(path, vtkXMLImageDataWriter(), image)


def write_vtp(path: str | Path, meshes: Mapping[str, Mesh]) -> None:
    """Write surfaces into one file; the cell array ``structure`` numbers them in the order of `meshes`, from 1.

    Names and numbers also stand in the field data ``names``; ``SPACE`` keeps 3D Slicer from taking the points as LPS.
    At least one mesh must be given.
    """
    from vtkmodules.vtkCommonCore import vtkStringArray
    from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter

    whole = joined(list(meshes.values()))
    data = poly_data(whole.vertices_mm, whole.triangles)
    number = np.concatenate([np.full(len(m.triangles), n, np.uint8) for n, m in enumerate(meshes.values(), start=1)])
    colour = np.stack([np.round(255 * np.asarray(LOOKS[name].rgb)).astype(np.uint8) for name in meshes])
    _add(data.GetCellData(), "structure", number)
    _add(data.GetCellData(), "colour", colour[number - 1])
    data.GetCellData().SetActiveScalars("structure")
    names = "; ".join(f"{n} {LOOKS[name].title}" for n, name in enumerate(meshes, start=1))
    for title, text in (("names", names), ("SPACE", "RAS")):
        field = vtkStringArray()
        field.SetName(title)
        field.InsertNextValue(text)
        data.GetFieldData().AddArray(field)
    _write(path, vtkXMLPolyDataWriter(), data)


def _add(where: Any, name: str, values: NDArray[Any]) -> None:
    from vtkmodules.util.numpy_support import numpy_to_vtk

    array = numpy_to_vtk(np.ascontiguousarray(values), deep=True)
    array.SetName(name)
    where.AddArray(array)


def _write(path: str | Path, writer: Any, data: Any) -> None:
    """VTK's XML, appended raw and compressed lightly: noise does not pack better with more effort.

    Raises:
        OSError: VTK could not write, as on a full disk.
    """
    from vtkmodules.vtkCommonCore import vtkObject

    with atomic_path(path) as temporary:
        writer.SetFileName(str(temporary))
        writer.SetInputData(data)
        writer.EncodeAppendedDataOff()
        writer.SetCompressorTypeToZLib()
        writer.SetCompressionLevel(1)
        vtkObject.GlobalWarningDisplayOff()  # the error says it
        if not writer.Write():
            code = writer.GetErrorCode()  # the system's, or one of VTK's own from 20000, for a full disk most of all
            raise OSError(code if 0 < code < 20000 else errno.ENOSPC, "VTK could not write the file", str(path))


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
