"""Meshes as files: binary STL for printing and CAD, GLB for viewers, phones and the web.

Both hold the scan's own RAS+ millimetres. STL knows neither unit nor axes: ParaView, MeshLab and printers take its
numbers as they are, 3D Slicer takes them as LPS millimetres unless the header says ``SPACE=RAS``, which it does. GLB
is in metres with y up by its specification (glTF 2.0, section 3.4), so its numbers stay millimetres and the root node,
named ``RAS millimetres to glTF metres``, turns and shrinks them: x = -R/1000, y = S/1000, z = A/1000. Upright, facing
the viewer, and of true size; a program that ignores the node has RAS millimetres.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope._version import __version__
from pneumoscope.io.files import write_bytes
from pneumoscope.surfaces.mesh import Mesh
from pneumoscope.surfaces.structures import LOOKS

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
