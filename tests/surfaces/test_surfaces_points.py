from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.errors import GeometryError, InputError
from pneumoscope.geometry import Grid
from pneumoscope.surfaces import files
from pneumoscope.surfaces.files import stride_for, write_case_points, write_points
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume


def read(path):
    table = np.genfromtxt(path, delimiter=",", skip_header=1)
    return table.reshape(-1, 4)


def test_lines_by_hand(tmp_path):
    grid = Grid.from_spacing((2, 1, 2), (0.5, 0.8, 1.2), (-1.0, 0.0, -0.0004))
    values = np.array([[[-1024.0, 7.25]], [[0.0, 40.0]]], np.float32)
    where = np.array([[[True, True]], [[False, True]]])
    table = write_points(tmp_path / "points" / "p.csv", values, where, grid)
    assert table.points == 3
    assert table.path.read_bytes() == b"x,y,z,value\n-1,0,0,-1024\n-1,0,1.2,7.25\n-0.5,0,1.2,40\n"


def test_every_point_lies_where_the_grid_says(tmp_path, tilted, rng):
    where = rng.random(tilted.shape) < 0.5
    values = rng.normal(0, 400, tilted.shape).astype(np.float32)
    table = read(write_points(tmp_path / "p.csv", values, where, tilted).path)
    np.testing.assert_allclose(table[:, :3], tilted.world(np.argwhere(where)), atol=5.1e-4)
    np.testing.assert_allclose(table[:, 3], values[where], atol=5.1e-4)


@pytest.mark.parametrize("values", [(-1024, 3071), (-9000, 9000), (0.25, 1.75), (-4096, 4095), (-4097, 4096)], ids=str)
def test_upright_and_oblique_grids_write_numbers_alike(tmp_path, rng, values):
    """The quick ways (coordinates made once, whole Hounsfield units from a table) give the text of the plain one."""
    grid = Grid.from_spacing((4, 5, 6), (0.5, 0.8, 1.2), (-2.0004, -0.8, 1234.5675))
    hu = rng.choice(values, grid.shape)
    affine = grid.affine.copy()
    affine[0, 1] = 1e-9
    every = np.ones(grid.shape, bool)
    upright = write_points(tmp_path / "a.csv", hu, every, grid).path.read_bytes()
    oblique = write_points(tmp_path / "b.csv", hu, every, Grid(grid.shape, affine)).path.read_bytes()
    assert upright == oblique
    np.testing.assert_allclose(read(tmp_path / "a.csv")[:, 3], hu.ravel())


def test_no_blanks_and_no_exponents(tmp_path, tilted, rng):
    values = rng.normal(0, 1e-3, tilted.shape)
    text = write_points(tmp_path / "p.csv", values, np.ones(tilted.shape, bool), tilted).path.read_text()
    assert set(text.removeprefix("x,y,z,value\n")) <= set("0123456789.,-\n")
    assert "-0," not in text
    assert "-0\n" not in text


def test_one_value_for_all(tmp_path, tilted):
    table = read(write_points(tmp_path / "p.csv", 1, np.ones(tilted.shape, bool), tilted).path)
    assert table.shape == (4 * 5 * 6, 4)
    assert (table[:, 3] == 1).all()


def test_nothing_to_write_leaves_a_header(tmp_path, tilted):
    table = write_points(tmp_path / "p.csv", 1, np.zeros(tilted.shape, bool), tilted)
    assert table.points == 0
    assert table.path.read_text() == "x,y,z,value\n"


def test_stride_keeps_every_nth_voxel_in_its_place(tmp_path, tilted):
    where = np.ones(tilted.shape, bool)
    values = np.arange(where.size, dtype=np.float32).reshape(where.shape)
    written = write_points(tmp_path / "p.csv", values, where, tilted, stride=2)
    table = read(written.path)
    assert written.points == len(table) == 2 * 3 * 3
    index = np.stack(np.meshgrid([0, 2], [0, 2, 4], [0, 2, 4], indexing="ij"), -1).reshape(-1, 3)
    np.testing.assert_allclose(table[:, :3], tilted.world(index), atol=5.1e-4)
    np.testing.assert_array_equal(table[:, 3], values[::2, ::2, ::2].ravel())


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_small_slabs_and_chunks_write_the_same_bytes(tmp_path, tilted, rng, monkeypatch, stride):
    where = rng.random(tilted.shape) < 0.6
    values = rng.normal(0, 400, tilted.shape).astype(np.float32)
    whole = write_points(tmp_path / "a.csv", values, where, tilted, stride=stride)
    monkeypatch.setattr(files, "_SLAB_VOXELS", 30)
    monkeypatch.setattr(files, "_CHUNK_ROWS", 7)
    parts = write_points(tmp_path / "b.csv", values, where, tilted, stride=stride)
    assert whole.path.read_bytes() == parts.path.read_bytes()
    assert whole.points == parts.points


def test_stride_for_is_the_smallest_that_fits():
    where = np.ones((8, 8, 8), bool)
    assert [stride_for(where, n) for n in (512, 511, 64, 63, 27, 1)] == [1, 2, 2, 3, 3, 8]
    assert stride_for(np.zeros((8, 8, 8), bool), 1) == 1


def test_case_tables(tmp_path, tilted, rng):
    volume = Volume(rng.integers(-1000, 100, tilted.shape).astype(np.float32), tilted, tilted)
    lungs = np.zeros(tilted.shape, np.uint8)
    lungs[1:3, 1:4, 1:5] = 1
    spot = np.zeros_like(lungs)
    spot[2, 2, 2] = 1
    infiltrate = Mask(spot, tilted, INFILTRATE_LABEL)
    tables = write_case_points(tmp_path, volume, Mask(lungs, tilted, LUNG_LABELS), infiltrate, infiltrate)
    assert sorted(p.name for p in (tmp_path / "points").iterdir()) == ["infiltrate.csv", "lungs.csv", "truth.csv"]
    np.testing.assert_array_equal(read(tables["lungs"].path)[:, 3], volume.hu[lungs > 0])
    np.testing.assert_allclose(read(tables["infiltrate"].path), [[*tilted.world((2, 2, 2)), 1]], atol=5.1e-4)
    fewer = write_case_points(tmp_path, volume, Mask(lungs, tilted, LUNG_LABELS), infiltrate, max_points=8)
    assert "truth" not in fewer
    assert fewer["lungs"].points <= 8
    assert fewer["infiltrate"].stride == 1


def test_masks_on_another_grid_are_refused_before_anything_is_written(tmp_path, tilted):
    volume = Volume(np.zeros(tilted.shape, np.float32), tilted, tilted)
    lungs = Mask.empty(tilted, LUNG_LABELS)
    elsewhere = Mask.empty(Grid.from_spacing(tilted.shape, (1, 1, 1)), INFILTRATE_LABEL)
    with pytest.raises(GeometryError, match="the mask truth lies on another grid"):
        write_case_points(tmp_path, volume, lungs, Mask.empty(tilted, INFILTRATE_LABEL), elsewhere)
    assert not list(tmp_path.iterdir())


def test_unusable_input_is_refused_and_leaves_no_file(tmp_path, tilted):
    every = np.ones(tilted.shape, bool)
    path = tmp_path / "p.csv"
    with pytest.raises(GeometryError, match="grid's shape"):
        write_points(path, 1, every[:2], tilted)
    with pytest.raises(GeometryError, match="grid's shape"):
        write_points(path, np.zeros((2, 2, 2)), every, tilted)
    with pytest.raises(InputError, match="boolean array, got uint8"):
        write_points(path, 1, every.astype(np.uint8), tilted)
    with pytest.raises(InputError, match="stride"):
        write_points(path, 1, every, tilted, stride=0)
    with pytest.raises(InputError, match="at least one point"):
        stride_for(every, 0)
    for bad in (np.nan, np.inf, 1e6):
        values = np.zeros(tilted.shape)
        values[3, 4, 5] = bad
        with pytest.raises(InputError, match="finite numbers"):
            write_points(path, values, every, tilted)
    assert not list(tmp_path.iterdir())


def test_paraviews_classes_read_it(tmp_path, tilted, rng):
    """ParaView's CSV reader and its filter Table To Points are these two VTK classes."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkFiltersGeneral import vtkTableToPolyData
    from vtkmodules.vtkIOInfovis import vtkDelimitedTextReader

    values = rng.integers(-1000, 400, tilted.shape).astype(np.float32)
    where = rng.random(tilted.shape) < 0.7
    write_points(tmp_path / "p.csv", values, where, tilted)
    reader = vtkDelimitedTextReader()
    reader.SetFileName(str(tmp_path / "p.csv"))
    reader.SetHaveHeaders(True)
    reader.SetDetectNumericColumns(True)
    reader.SetFieldDelimiterCharacters(",")
    points = vtkTableToPolyData()
    points.SetInputConnection(reader.GetOutputPort())
    points.SetXColumn("x")
    points.SetYColumn("y")
    points.SetZColumn("z")
    points.SetPreserveCoordinateColumnsAsDataArrays(True)
    points.Update()
    surface = points.GetOutput()
    np.testing.assert_allclose(
        vtk_to_numpy(surface.GetPoints().GetData()), tilted.world(np.argwhere(where)), atol=5.1e-4
    )
    np.testing.assert_array_equal(vtk_to_numpy(surface.GetPointData().GetArray("value")), values[where])
    assert surface.GetPointData().GetArray("x") is not None
