"""What is drawn in 3D, under which name and colour, and the files that hold it: STL, GLB, and VTK's for ParaView."""

from __future__ import annotations

import json
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from pneumoscope._version import __version__
from pneumoscope.io.files import atomic_path, write_bytes
from pneumoscope.surfaces.mesh import Mesh
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


STL_HEADER = b"pneumoscope surface, millimetres, SPACE=RAS"
"""The first bytes of every STL file, padded to 80."""

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
        path: the file.
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


_BLOCK_BYTES = 1 << 21
_WAITING = 4  # blocks compressed ahead of the one being written
_FAST = 1  # zlib level: noise does not pack better with more effort
_TYPES = {"int16": "Int16", "uint8": "UInt8", "float32": "Float32", "int32": "Int32", "int64": "Int64"}
_OFFSET_WIDTH = 20


@dataclass(frozen=True)
class _Array:
    """An array to write: its name, type and bytes in pieces of whole blocks."""

    name: str
    dtype: str
    total_bytes: int
    blocks: Callable[[], Iterator[bytes]]
    components: int = 1


def write_vti(path: str | Path, volume: Volume, lungs: Mask, infiltrate: Mask, truth: Mask | None = None) -> None:
    """Write the scan as ``hu`` (int16, rounded and clipped) with ``lungs``, ``infiltrate`` and ``truth`` beside it.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    grid = volume.grid
    masks = {"lungs": lungs, "infiltrate": infiltrate, **({} if truth is None else {"truth": truth})}
    for name, mask in masks.items():
        grid.require_same_space(mask.grid, f"the mask {name}")
    arrays = [_image_array("hu", volume.hu, "int16")]
    arrays += [_image_array(name, mask.labels, "uint8") for name, mask in masks.items()]
    direction = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    extent = " ".join(f"0 {n - 1}" for n in grid.shape)
    head = (
        f'<ImageData WholeExtent="{extent}" Origin="{_numbers(grid.affine[:3, 3])}" '
        f'Spacing="{_numbers(np.asarray(grid.spacing_mm))}" Direction="{_numbers(direction)}">\n'
        f'<Piece Extent="{extent}">\n<PointData Scalars="hu">\n'
    )
    _write(path, "ImageData", [(head, arrays, "</PointData>\n<CellData/>\n</Piece>\n</ImageData>\n")])


def write_vtp(path: str | Path, meshes: Mapping[str, Mesh]) -> None:
    """Write surfaces into one file; the cell array ``structure`` numbers them in the order of `meshes`, from 1.

    Names and numbers also stand in the field data ``names``; ``SPACE`` keeps 3D Slicer from taking the points as LPS.
    At least one mesh must be given.
    """
    vertices = np.concatenate([mesh.vertices_mm for mesh in meshes.values()]).astype("<f4")
    starts = np.cumsum([0, *(len(mesh.vertices_mm) for mesh in meshes.values())])
    shifted = [mesh.triangles + start for mesh, start in zip(meshes.values(), starts[:-1], strict=True)]
    corners = np.concatenate(shifted).astype("<i4")
    offsets = np.arange(3, corners.size + 1, 3, dtype="<i4")
    number = np.concatenate([np.full(len(m.triangles), n, np.uint8) for n, m in enumerate(meshes.values(), start=1)])
    colour = [np.round(255 * np.asarray(LOOKS[name].rgb)).astype(np.uint8) for name in meshes]
    names = "; ".join(f"{n} {LOOKS[name].title}" for n, name in enumerate(meshes, start=1))
    head = (
        f"<PolyData>\n<FieldData>{_text_array('names', names)}{_text_array('SPACE', 'RAS')}</FieldData>\n"
        f'<Piece NumberOfPoints="{len(vertices)}" NumberOfVerts="0" NumberOfLines="0" '
        f'NumberOfStrips="0" NumberOfPolys="{len(corners)}">\n'
    )
    cells = [_flat_array("structure", number, "uint8"), _flat_array("colour", np.stack(colour)[number - 1], "uint8", 3)]
    sections = [
        (head + "<Points>\n", [_flat_array("Points", vertices, "float32", 3)], "</Points>\n"),
        ("<Polys>\n", [_flat_array("connectivity", corners, "int32"), _flat_array("offsets", offsets, "int32")], ""),
        ('</Polys>\n<CellData Scalars="structure">\n', cells, "</CellData>\n</Piece>\n</PolyData>\n"),
    ]
    _write(path, "PolyData", sections)


def _text_array(name: str, text: str) -> str:
    """A string of the field data."""
    codes = " ".join(map(str, [*text.encode(), 0]))
    return f'<DataArray type="String" Name="{name}" NumberOfTuples="1" format="ascii">{codes}</DataArray>'


def _image_array(name: str, array: NDArray[np.generic], dtype: str) -> _Array:
    """(i, j, k) values with i fastest, as VTK wants them, in slabs of whole axial slices."""
    size = np.dtype(dtype).itemsize
    per_slice = array.shape[0] * array.shape[1] * size
    step = max(8, _BLOCK_BYTES // per_slice)  # k is fastest in memory: single slices would read it all each time

    def blocks() -> Iterator[bytes]:
        rest = b""
        for k in range(0, array.shape[2], step):
            slab = array[:, :, k : k + step]
            if dtype == "int16":
                slab = np.clip(np.rint(slab), -32768, 32767)  # type: ignore[call-overload]
            rest += slab.astype(f"<{np.dtype(dtype).str[1:]}").tobytes(order="F")
            whole = len(rest) // _BLOCK_BYTES * _BLOCK_BYTES
            for start in range(0, whole, _BLOCK_BYTES):
                yield rest[start : start + _BLOCK_BYTES]
            rest = rest[whole:]
        if rest:
            yield rest

    return _Array(name, dtype, array.size * size, blocks)


def _flat_array(name: str, array: NDArray[np.generic], dtype: str, components: int = 1) -> _Array:
    data = array.tobytes()

    def blocks() -> Iterator[bytes]:
        for start in range(0, len(data), _BLOCK_BYTES):
            yield data[start : start + _BLOCK_BYTES]

    return _Array(name, dtype, len(data), blocks, components)


def _write(path: str | Path, kind: str, sections: list[tuple[str, list[_Array], str]]) -> None:
    """VTK's XML with the arrays appended as compressed blocks (VTK file formats, XML, appended raw data).

    Where an array begins is known only when those before it are packed, so the offsets are filled in at the end.
    """
    arrays = [array for _, part, _ in sections for array in part]
    with atomic_path(path) as temporary, temporary.open("w+b") as stream:
        stream.write(
            f'<?xml version="1.0"?>\n<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" '
            'header_type="UInt64" compressor="vtkZLibDataCompressor">\n'.encode()
        )
        places = []
        for before, part, after in sections:
            stream.write(before.encode())
            for array in part:
                opening = (
                    f'<DataArray type="{_TYPES[array.dtype]}" Name={quoteattr(array.name)} '
                    f'NumberOfComponents="{array.components}" format="appended" offset="'
                )
                stream.write(opening.encode())
                places.append(stream.tell())
                stream.write(b" " * _OFFSET_WIDTH + b'"/>\n')
            stream.write(after.encode())
        stream.write(b'<AppendedData encoding="raw">\n_')
        start = stream.tell()
        offsets = []
        with ThreadPoolExecutor(2) as pool:  # zlib lets other threads run
            for array in arrays:
                offsets.append(stream.tell() - start)
                _append(stream, array, pool)
        stream.write(b"\n</AppendedData>\n</VTKFile>\n")
        for place, offset in zip(places, offsets, strict=True):
            stream.seek(place)
            stream.write(str(offset).encode())
            stream.write(b'"'.ljust(_OFFSET_WIDTH + 1 - len(str(offset))))


def _append(stream: BinaryIO, array: _Array, pool: ThreadPoolExecutor) -> None:
    """One array: number of blocks, block size, size of a last partial block, packed sizes, packed blocks."""
    count = -(-array.total_bytes // _BLOCK_BYTES)
    header = stream.tell()
    stream.write(bytes(8 * (3 + count)))
    sizes: list[int] = []
    waiting: deque[Future[bytes]] = deque()
    for block in array.blocks():
        waiting.append(pool.submit(zlib.compress, block, _FAST))
        if len(waiting) > _WAITING:
            packed = waiting.popleft().result()
            sizes.append(stream.write(packed))
    while waiting:
        sizes.append(stream.write(waiting.popleft().result()))
    assert len(sizes) == count
    end = stream.tell()
    stream.seek(header)
    stream.write(struct.pack(f"<{3 + count}Q", count, _BLOCK_BYTES, array.total_bytes % _BLOCK_BYTES, *sizes))
    stream.seek(end)


def _numbers(values: NDArray[np.float64]) -> str:
    return " ".join(repr(float(value)) for value in values.ravel())
