"""Other programs' readers for the files of one case, each giving points in RAS+ millimetres."""

from __future__ import annotations

import json
import struct

import numpy as np


def read_stl(path):
    """VTK's reader: (vertices, triangles)."""
    from vtkmodules.vtkIOGeometry import vtkSTLReader

    reader = vtkSTLReader()
    reader.SetFileName(str(path))
    return poly_arrays(updated(reader).GetOutput())


def read_vtp(path):
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

    reader = vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    return updated(reader).GetOutput()


def slicer_model(path):
    """(vertices, triangles) in RAS+ as 3D Slicer places a model: LPS unless the file itself says ``SPACE=RAS``.

    Its rules (vtkMRMLModelStorageNode): ``SPACE=RAS`` anywhere in the STL reader's header, or the string ``RAS`` in the
    array ``SPACE`` of a .vtp file's field data. LPS becomes RAS by a half turn.
    """
    if path.suffix == ".stl":
        from vtkmodules.vtkIOGeometry import vtkSTLReader

        reader = vtkSTLReader()
        reader.SetFileName(str(path))
        surface = updated(reader).GetOutput()
        is_ras = "SPACE=RAS" in reader.GetHeader()
    else:
        surface = read_vtp(path)
        said = surface.GetFieldData().GetAbstractArray("SPACE")
        is_ras = said is not None and said.GetValue(0) == "RAS"
    vertices, triangles = poly_arrays(surface)
    return vertices if is_ras else vertices * (-1, -1, 1), triangles


def read_vti(path):
    """((4, 4) index to mm, {name: (i, j, k) array})."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXML import vtkXMLImageDataReader

    reader = vtkXMLImageDataReader()
    reader.SetFileName(str(path))
    image = updated(reader).GetOutput()
    shape = image.GetDimensions()
    steps = image.GetIndexToPhysicalMatrix()
    matrix = np.array([[steps.GetElement(row, column) for column in range(4)] for row in range(4)])
    data = image.GetPointData()
    names = [data.GetArrayName(n) for n in range(data.GetNumberOfArrays())]
    arrays = {name: vtk_to_numpy(data.GetArray(name)).reshape(shape, order="F") for name in names}
    return matrix, arrays


def read_glb_with_vtk(path):
    """Vertices as VTK places them in the scene, in glTF metres with y up."""
    from vtkmodules.vtkFiltersCore import vtkAppendPolyData
    from vtkmodules.vtkIOGeometry import vtkGLTFReader

    reader = vtkGLTFReader()
    reader.SetFileName(str(path))
    reader.ApplyDeformationsToGeometryOn()
    blocks = updated(reader).GetOutput()
    append = vtkAppendPolyData()
    leaves = blocks.NewIterator()
    while not leaves.IsDoneWithTraversal():
        append.AddInputData(leaves.GetCurrentDataObject())
        leaves.GoToNextItem()
    append.Update()
    return poly_arrays(append.GetOutput())


def read_glb_parts(path):
    """The glTF document and, by mesh name, its own parse: (positions, normals, triangles)."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<II", data, 12)
    assert kind == 0x4E4F534A
    assert size % 4 == 0
    document = json.loads(data[20 : 20 + size])
    size_of_rest, kind = struct.unpack_from("<II", data, 20 + size)
    assert (kind, size_of_rest) == (0x004E4942, len(data) - 28 - size)
    binary = data[28 + size :]

    def array(number):
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        width = {"VEC3": 3, "SCALAR": 1}[accessor["type"]]
        dtype = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        flat = np.frombuffer(binary, dtype, accessor["count"] * width, view["byteOffset"])
        assert flat.nbytes == view["byteLength"]
        return flat.reshape(-1, 3)

    parts = {}
    for mesh in document["meshes"]:
        (primitive,) = mesh["primitives"]
        place = primitive["attributes"]
        parts[mesh["name"]] = array(place["POSITION"]), array(place["NORMAL"]), array(primitive["indices"])
    return document, parts


def poly_arrays(surface):
    from vtkmodules.util.numpy_support import vtk_to_numpy

    vertices = vtk_to_numpy(surface.GetPoints().GetData()).astype(float)
    return vertices, vtk_to_numpy(surface.GetPolys().GetConnectivityArray()).reshape(-1, 3)


def updated(reader):
    """The reader after its work; a complaint of VTK is an error."""
    problems = []
    reader.AddObserver("ErrorEvent", lambda *_: problems.append("error"))
    reader.Update()
    assert not problems
    return reader


def enclosed_ml(vertices, triangles):
    a, b, c = (vertices[triangles[:, n]] - vertices.mean(axis=0) for n in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c))) / 6000.0
