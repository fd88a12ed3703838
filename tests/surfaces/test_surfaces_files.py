from __future__ import annotations

import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
from readers import enclosed_ml, read_glb_parts, read_stl, read_vti, read_vtp

from pneumoscope.errors import GeometryError, RunError
from pneumoscope.geometry import Grid
from pneumoscope.surfaces.files import (
    LOOKS,
    ROOT_NODE,
    STL_HEADER,
    structures,
    write_glb,
    write_stl,
    write_vti,
    write_vtp,
)
from pneumoscope.surfaces.mesh import build_mesh
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume


@pytest.fixture
def two_meshes():
    grid = Grid.from_spacing((12, 12, 12), (0.8, 0.8, 1.5), (-40.0, 20.0, 300.0))
    lung, spot = (np.zeros(grid.shape, bool) for _ in range(2))
    lung[2:10, 2:10, 2:10] = True
    spot[4:6, 4:7, 5:8] = True
    return {"right_lung": build_mesh(lung, grid), "infiltrate": build_mesh(spot, grid)}


def test_stl(tmp_path, two_meshes):
    mesh = two_meshes["right_lung"]
    write_stl(tmp_path / "lung.stl", mesh)
    data = (tmp_path / "lung.stl").read_bytes()
    assert data.startswith(STL_HEADER)
    assert not data.startswith(b"solid")
    assert struct.unpack_from("<I", data, 80) == (len(mesh.triangles),)
    assert len(data) == 84 + 50 * len(mesh.triangles)
    first = np.frombuffer(data, "<f4", 12, 84)
    assert np.linalg.norm(first[:3]) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(first[3:].reshape(3, 3), mesh.vertices_mm[mesh.triangles[0]], atol=1e-4)
    assert enclosed_ml(*read_stl(tmp_path / "lung.stl")) == pytest.approx(mesh.volume_ml, rel=1e-5)


def test_glb_has_names_colours_and_outward_normals(tmp_path, two_meshes):
    write_glb(tmp_path / "case.glb", two_meshes)
    document, parts = read_glb_parts(tmp_path / "case.glb")
    assert list(parts) == ["right lung", "infiltrate"]
    assert [material["name"] for material in document["materials"]] == ["right lung", "infiltrate"]
    lung, spot = (m["pbrMetallicRoughness"]["baseColorFactor"] for m in document["materials"])
    # #ff7f2a by the sRGB formula, by hand: 255 -> 1, 127 -> 0.21223, 42 -> 0.02315
    np.testing.assert_allclose(spot, [1.0, 0.21223, 0.02315, 1.0], atol=2e-5)
    assert lung[3] == LOOKS["right_lung"].opacity
    assert [material["alphaMode"] for material in document["materials"]] == ["BLEND", "OPAQUE"]
    for mesh, (positions, normals, triangles) in zip(two_meshes.values(), parts.values(), strict=True):
        np.testing.assert_allclose(positions, mesh.vertices_mm, atol=1e-4)
        np.testing.assert_array_equal(triangles, mesh.triangles)
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-5)
        assert (np.einsum("ij,ij->i", normals, positions - positions.mean(axis=0)) > 0).mean() > 0.95
    for accessor in document["accessors"]:
        assert "min" in accessor or accessor["type"] == "SCALAR" or accessor["bufferView"] % 3 == 1
    (root,) = document["scenes"][0]["nodes"]
    assert document["nodes"][root]["name"] == ROOT_NODE


def test_glb_stands_upright_and_true_to_size(tmp_path, two_meshes):
    """glTF: metres, y up, the front towards +z; the patient's right is then on the viewer's left (-x)."""
    write_glb(tmp_path / "a.glb", two_meshes)
    document, _ = read_glb_parts(tmp_path / "a.glb")
    matrix = np.array(document["nodes"][-1]["matrix"]).reshape(4, 4).T
    for ras_mm, gltf_m in (((1000, 0, 0), (-1, 0, 0)), ((0, 1000, 0), (0, 0, 1)), ((0, 0, 1000), (0, 1, 0))):
        np.testing.assert_allclose(matrix @ [*ras_mm, 1], [*gltf_m, 1], atol=1e-12)
    assert np.linalg.det(matrix) > 0


def test_vtp_numbers_and_names_its_structures(tmp_path, two_meshes):
    from vtkmodules.util.numpy_support import vtk_to_numpy

    write_vtp(tmp_path / "s.vtp", two_meshes)
    surface = read_vtp(tmp_path / "s.vtp")
    number = vtk_to_numpy(surface.GetCellData().GetArray("structure"))
    np.testing.assert_array_equal(np.bincount(number), [0, *(len(m.triangles) for m in two_meshes.values())])
    assert surface.GetFieldData().GetAbstractArray("names").GetValue(0) == "1 right lung; 2 infiltrate"
    colour = vtk_to_numpy(surface.GetCellData().GetArray("colour"))
    assert colour[-1].tolist() == [0xFF, 0x7F, 0x2A]
    assert surface.GetNumberOfPoints() == sum(len(m.vertices_mm) for m in two_meshes.values())


def test_vti_holds_the_scan_rounded_and_its_masks(tmp_path, rng):
    grid = Grid.from_spacing((7, 5, 19), (0.8, 0.8, 1.5), (-40.0, 20.0, 300.0))
    hu = rng.normal(0, 40000, grid.shape).astype(np.float32)
    labels = rng.integers(0, 3, grid.shape).astype(np.uint8)
    lungs = Mask(labels, grid, LUNG_LABELS)
    truth = Mask((labels == 1).astype(np.uint8), grid, INFILTRATE_LABEL)
    write_vti(tmp_path / "v.vti", Volume(hu, grid, grid), lungs, Mask.empty(grid, INFILTRATE_LABEL), truth)
    _, arrays = read_vti(tmp_path / "v.vti")
    np.testing.assert_array_equal(arrays["hu"], np.clip(np.rint(hu), -32768, 32767))
    np.testing.assert_array_equal(arrays["lungs"], labels)
    np.testing.assert_array_equal(arrays["truth"], labels == 1)


def test_vti_refuses_masks_of_another_grid_and_leaves_nothing(tmp_path):
    grid = Grid.from_spacing((3, 3, 3), (1, 1, 1))
    other = Mask.empty(Grid.from_spacing((3, 3, 3), (1, 1, 2)), LUNG_LABELS)
    volume = Volume(np.zeros(grid.shape, np.float32), grid, grid)
    with pytest.raises(GeometryError, match="the mask lungs lies on another grid"):
        write_vti(tmp_path / "v.vti", volume, other, Mask.empty(grid, INFILTRATE_LABEL))
    assert not list(tmp_path.iterdir())


def test_structures_by_side_and_without():
    grid = Grid.from_spacing((3, 1, 1), (1, 1, 1))
    labels = np.array([1, 2, 0], np.uint8).reshape(3, 1, 1)
    none = Mask.empty(grid, INFILTRATE_LABEL)
    parts = structures(Mask(labels, grid, LUNG_LABELS), none, none)
    assert list(parts) == ["right_lung", "left_lung", "infiltrate", "truth"]
    assert [int(part().sum()) for part in parts.values()] == [1, 1, 0, 0]
    parts = structures(Mask(labels, grid, {1: "lung", 2: "airway"}), none)
    assert list(parts) == ["lungs", "infiltrate"]
    assert set(parts) <= set(LOOKS)


def test_importing_the_room_loads_no_vtk():
    code = (
        "import sys; from pneumoscope.surfaces import files, mesh\n"
        "assert not [m for m in sys.modules if m.startswith(('vtk', 'torch', 'skimage', 'scipy'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_vti_that_finds_no_room_is_a_failure_of_the_machine(tmp_path, rng, capfd):
    grid = Grid.from_spacing((30, 30, 30), (1, 1, 1))
    volume = Volume(rng.normal(0, 40000, grid.shape).astype(np.float32), grid, grid)
    none = Mask.empty(grid, LUNG_LABELS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunError, match=r"volume\.vti: could not be written"):
            write_vti(tmp_path / "volume.vti", volume, none, none)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""
