from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers import enclosed_ml

from grids import any_grid, build_grid
from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.surfaces import mesh as meshes
from pneumoscope.surfaces.mesh import Mesh, build_mesh, joined
from pneumoscope.volume import RAS


def ball(shape, spacing_mm, centre_mm, radius_mm):
    at = [np.arange(n) * s - c for n, s, c in zip(shape, spacing_mm, centre_mm, strict=True)]
    x, y, z = np.meshgrid(*at, indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2


def edge_counts(mesh):
    edges = np.sort(np.concatenate([mesh.triangles[:, [0, 1]], mesh.triangles[:, [1, 2]], mesh.triangles[:, [2, 0]]]))
    return np.unique(edges, axis=0, return_counts=True)[1]


def off_by(mesh, where, grid):
    """Relative error of the volume, by another formula than the mesh's own."""
    truth = np.count_nonzero(where) * grid.voxel_volume_ml
    return abs(enclosed_ml(mesh.vertices_mm, mesh.triangles) / truth - 1)


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7, 1.0), (0.7, 0.7, 8.0), (1.0, 1.0, 1.0)], ids=str)
@pytest.mark.parametrize("radius_mm", [0.3, 2.0, 5.0, 12.0])
def test_lesions_of_all_sizes_keep_their_volume(spacing_mm, radius_mm):
    shape = tuple(int(40 / s) for s in spacing_mm)
    centre = [(n // 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    where = ball(shape, spacing_mm, centre, radius_mm)
    grid = Grid.from_spacing(shape, spacing_mm, (-100.0, 40.0, 900.0))
    mesh = build_mesh(where, grid)
    assert off_by(mesh, where, grid) < 0.005
    assert mesh.is_watertight
    assert (edge_counts(mesh) == 2).all()
    np.testing.assert_allclose(mesh.vertices_mm.mean(axis=0), np.add(centre, (-100.0, 40.0, 900.0)), atol=0.1)


@given(any_grid(max_side=6), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.9]))
def test_any_mask_on_any_grid_is_closed_and_of_its_volume(native, seed, share):
    grid = native.reorient(RAS)
    where = np.random.default_rng(seed).random(grid.shape) < share
    mesh = build_mesh(where, grid)
    if not where.any():
        assert mesh is None
        return
    assert mesh.is_watertight
    assert off_by(mesh, where, grid) < 0.02


def test_every_single_voxel_among_many_keeps_its_volume():
    """Pieces are mended each for itself: a large one cannot pay for small ones."""
    grid = Grid.from_spacing((30, 30, 12), (0.7, 0.7, 8.0))
    where = np.zeros(grid.shape, bool)
    where[2:14, 2:14, 2:8] = True
    where[20:28:3, 2:28:3, 2:11:3] = True
    mesh = build_mesh(where, grid)
    pieces = mesh.pieces()
    volumes = meshes._piece_volumes(mesh, pieces) / (grid.voxel_volume_ml * 1000)
    assert len(volumes) == 1 + 3 * 9 * 3
    np.testing.assert_allclose(np.sort(volumes), [*[1.0] * 81, 12 * 12 * 6], rtol=0.02)


def test_a_cavity_is_a_hole():
    grid = Grid.from_spacing((14, 14, 14), (1, 1, 1))
    where = np.zeros(grid.shape, bool)
    where[1:13, 1:13, 1:13] = True
    where[4:9, 4:9, 4:9] = False
    mesh = build_mesh(where, grid)
    assert off_by(mesh, where, grid) < 0.005
    assert mesh.pieces().max() == 1


def test_it_is_smooth_and_not_a_staircase():
    grid = Grid.from_spacing((50, 50, 50), (1, 1, 1))
    where = ball(grid.shape, (1, 1, 1), (25, 25, 25), 18.0)
    distance = np.linalg.norm(build_mesh(where, grid).vertices_mm - 25.0, axis=1)
    assert abs(distance - 18.0).max() < 0.75
    assert distance.std() < 0.15


@pytest.mark.parametrize("spacing_mm", [(0.6, 0.6, 0.8), (0.6, 0.7, 3.0)], ids=str)
def test_large_structures_are_meshed_from_blocks(spacing_mm):
    grid = build_grid(shape=(70, 70, int(48 / spacing_mm[2])), spacing_mm=spacing_mm, tilt_degrees=(8, -5, 3))
    where = ball(grid.shape, spacing_mm, (20, 20, 23), 18.0)
    where[0, 0, 0] = where[40:44, 0, :2] = True  # pieces that no block holds keep their volume too
    mesh = build_mesh(where, grid, triangles=4000)
    assert len(mesh.triangles) <= 4000 + 200
    assert mesh.is_watertight
    assert off_by(mesh, where, grid) < 0.01
    pieces = mesh.pieces()
    volumes = np.sort(meshes._piece_volumes(mesh, pieces)) / (grid.voxel_volume_ml * 1000)
    np.testing.assert_allclose(volumes[:2], [1, 8], rtol=0.02)
    large = np.bincount(pieces).argmax()
    centre = grid.world(np.divide((20, 20, 23), spacing_mm))
    distance = np.linalg.norm(mesh.vertices_mm[pieces == large] - centre, axis=1)
    np.testing.assert_allclose(distance, 18.0, atol=1.0)


def test_blocks_are_refused_where_they_lose_the_structure(rng):
    grid = Grid.from_spacing((40, 40, 20), (0.7, 0.7, 0.7))
    where = rng.random(grid.shape) < 0.03
    mesh = build_mesh(where, grid, triangles=1000)
    assert off_by(mesh, where, grid) < 0.02
    assert mesh.is_watertight


def test_a_thin_sheet_keeps_its_volume_in_blocks():
    """A fissure or vessel fills less than half of its blocks; at half it would vanish."""
    grid = Grid.from_spacing((200, 180, 90), (0.7, 0.7, 0.7))
    where = np.zeros(grid.shape, bool)
    i, j = np.meshgrid(np.arange(170), np.arange(150), indexing="ij")
    for thickness in (0, 1):
        where[15 + i, 15 + j, (40 + 20 * np.sin(i / 40) * np.cos(j / 50)).astype(int) + thickness] = True
    mesh = build_mesh(where, grid, triangles=60_000)
    assert len(mesh.triangles) < 60_000 < 2 * meshes._faces(where)
    assert mesh.is_watertight
    assert off_by(mesh, where, grid) < 0.01


@pytest.mark.parametrize("triangles", [1_000_000, 4_000])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_between_thick_slices_a_slope_is_no_staircase(axis, triangles):
    """A plate 20 mm thick, tilted by 15 degrees, in slices of 5 mm: its sides are planes. Steps were 1.3 mm off."""
    spacing_mm = np.roll((0.7, 0.7, 5.0), axis + 1)
    shape = tuple(int(60 / s) for s in spacing_mm)
    grid = Grid.from_spacing(shape, spacing_mm, (-30, -30, -30))
    points = grid.world(np.moveaxis(np.indices(shape), 0, -1))
    normal = np.roll((np.sin(np.radians(15)), 0, np.cos(np.radians(15))), axis + 1)
    height = points @ normal
    radius = np.linalg.norm(points - height[..., None] * normal, axis=-1)
    where = (np.abs(height) < 10) & (radius < 24)
    mesh = build_mesh(where, grid, triangles=triangles)
    assert mesh.is_watertight
    assert off_by(mesh, where, grid) < 0.01
    along = mesh.vertices_mm @ normal
    middle = np.linalg.norm(mesh.vertices_mm - along[:, None] * normal, axis=1) < 15
    away = np.abs(along[middle])
    assert away.std() < 0.4
    assert away.mean() == pytest.approx(10, abs=0.7)


def test_unusable_input_is_refused():
    grid = Grid.from_spacing((3, 3, 3), (1, 1, 1))
    with pytest.raises(InputError, match="boolean array"):
        build_mesh(np.zeros(grid.shape, np.uint8), grid)
    with pytest.raises(GeometryError, match="grid's shape"):
        build_mesh(np.zeros((2, 3, 3), bool), grid)
    with pytest.raises(InputError, match="at least 1000"):
        build_mesh(np.zeros(grid.shape, bool), grid, triangles=10)
    with pytest.raises(GeometryError, match="four triangles"):
        Mesh(np.zeros((3, 3)), np.zeros((1, 3), np.int32))
    with pytest.raises(GeometryError, match="finite vertices"):
        Mesh(np.full((4, 3), np.nan), np.zeros((4, 3), np.int32))


def test_an_open_surface_is_not_called_watertight():
    grid = Grid.from_spacing((3, 3, 3), (1, 1, 1))
    where = np.zeros(grid.shape, bool)
    where[1, 1, 1] = True
    mesh = build_mesh(where, grid)
    assert mesh.is_watertight
    assert not Mesh(mesh.vertices_mm, mesh.triangles[1:]).is_watertight
    turned = mesh.triangles.copy()
    turned[0] = turned[0, ::-1]
    assert not Mesh(mesh.vertices_mm, turned).is_watertight
    twice = joined([mesh, Mesh(mesh.vertices_mm + 5, mesh.triangles)])
    assert twice.volume_ml == pytest.approx(2 * mesh.volume_ml)
    assert twice.is_watertight
