"""One marked corner, written in every format, read back by other programs, must lie at one place in millimetres."""

from __future__ import annotations

from itertools import product

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from readers import poly_arrays, read_glb_parts, read_glb_with_vtk, read_stl, read_vti, read_vtp, slicer_model

from grids import build_grid
from pneumoscope.io.dicom.results import write_dicom_results
from pneumoscope.io.read import read_volume
from pneumoscope.io.write import write_dicom_series, write_mask, write_volume
from pneumoscope.surfaces.files import RAS_MM_TO_GLTF, write_glb, write_points, write_stl, write_vti, write_vtp
from pneumoscope.surfaces.mesh import build_mesh
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

pytestmark = pytest.mark.usefixtures("in_process")

GRIDS = {
    "upright": build_grid(),
    "flipped and tilted": build_grid(("L", "P", "I"), tilt_degrees=(6.0, 2.0, -3.0)),
    "sagittal": build_grid(("P", "I", "R"), tilt_degrees=(-4.0, 8.0, 3.0), spacing_mm=(0.7, 8.0, 0.7)),
    "gantry": build_grid(("L", "A", "S"), tilt_degrees=(12.0, -7.0, 5.0), shear=0.1, spacing_mm=(0.7, 0.7, 8.0)),
}


def corner_from_nifti(path):
    image = nib.load(path)
    (index,) = np.argwhere(np.asarray(image.dataobj) > 0)
    return image.affine[:3, :3] @ index + image.affine[:3, 3]


def corner_from_nifti_by_itk(path):
    image = sitk.ReadImage(str(path))
    (index,) = np.argwhere(sitk.GetArrayFromImage(image) > 0)
    return np.array(image.TransformIndexToPhysicalPoint([int(n) for n in index[::-1]])) * (-1, -1, 1)


def corner_from_csv(path):
    table = pd.read_csv(path)
    assert len(table) == 1
    return table[["x", "y", "z"]].to_numpy()[0]


def corner_from_vti(path):
    matrix, arrays = read_vti(path)
    (index,) = np.argwhere(arrays["infiltrate"] == 1)
    assert arrays["hu"][tuple(index)] == 3000
    assert arrays["hu"].argmax() == np.ravel_multi_index(index, arrays["hu"].shape)
    return matrix[:3, :3] @ index + matrix[:3, 3]


def corner_from_glb_in_metres(path):
    """Through VTK, which obeys the root node, and back by the inverse of its matrix."""
    vertices, _ = read_glb_with_vtk(path)
    homogeneous = np.c_[vertices, np.ones(len(vertices))]
    return (homogeneous @ np.linalg.inv(RAS_MM_TO_GLTF).T)[:, :3].mean(axis=0)


def corner_from_glb_in_mm(path):
    """By hand: the raw numbers are RAS millimetres."""
    _, parts = read_glb_parts(path)
    return parts["infiltrate"][0].mean(axis=0)


def corner_by_slicer(path):
    """As Slicer loads a model (vtkMRMLModelStorageNode): LPS unless header or field data say ``SPACE=RAS``."""
    return slicer_model(path)[0].mean(axis=0)


READERS = {
    "infiltrate.nii.gz": [corner_from_nifti, corner_from_nifti_by_itk],
    "points.csv": [corner_from_csv],
    "volume.vti": [corner_from_vti],
    "infiltrate.stl": [lambda path: read_stl(path)[0].mean(axis=0), corner_by_slicer],
    "infiltrate.glb": [corner_from_glb_in_metres, corner_from_glb_in_mm],
    "surfaces.vtp": [lambda path: poly_arrays(read_vtp(path))[0].mean(axis=0), corner_by_slicer],
}
"""By file: what finds the corner in it. A format that joins later is one line here and one in `write_everything`."""


def write_everything(folder, volume, infiltrate):
    lungs = Mask.empty(volume.grid, LUNG_LABELS)
    meshes = {"infiltrate": build_mesh(infiltrate.any, volume.grid)}
    write_volume(volume, folder / "scan.nii.gz")
    write_mask(infiltrate, folder / "infiltrate.nii.gz", volume.native)
    write_points(folder / "points.csv", volume.hu, infiltrate.any, volume.grid)
    write_vti(folder / "volume.vti", volume, lungs, infiltrate)
    write_vtp(folder / "surfaces.vtp", meshes)
    write_stl(folder / "infiltrate.stl", meshes["infiltrate"])
    write_glb(folder / "infiltrate.glb", meshes)


@pytest.mark.parametrize("native", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("corner", [(0, 0, 0), (-1, 0, -1), (-1, -1, -1)], ids=str)
def test_all_files_agree_where_the_corner_is(tmp_path, native, corner):
    stored = np.full(native.shape, -1000.0, np.float32)
    marked = np.zeros(native.shape, np.uint8)
    stored[corner], marked[corner] = 3000.0, 1
    volume = Volume.from_native(stored, native)
    write_everything(tmp_path, volume, Mask.from_native(marked, native, INFILTRATE_LABEL))
    expected = native.world([n - 1 if c else 0 for n, c in zip(native.shape, corner, strict=True)])
    for name, readers in READERS.items():
        for reader in readers:
            if reader is corner_from_nifti_by_itk and not native.is_orthogonal:
                continue  # ITK opens no sheared image
            np.testing.assert_allclose(reader(tmp_path / name), expected, atol=2e-3, err_msg=f"{name}: {reader}")


def corner_from_seg(path):
    """From the plain attributes of the one frame that a SEG of one voxel has."""
    seg = pydicom.dcmread(path)
    shared, (frame,) = seg.SharedFunctionalGroupsSequence[0], seg.PerFrameFunctionalGroupsSequence
    along_row, down = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: seg.Rows * seg.Columns]
    ((row, column),) = np.argwhere(bits.reshape(seg.Rows, seg.Columns))
    origin = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
    return (origin + column * columns_mm * along_row + row * rows_mm * down) * (-1, -1, 1)


@pytest.mark.parametrize("name", ["upright", "flipped and tilted", "sagittal"])
def test_the_dicom_segmentation_has_the_corner_there_too(tmp_path, name):
    native, corner = GRIDS[name], (-1, 0, -1)
    stored, marked = np.full(native.shape, -1000.0, np.float32), np.zeros(native.shape, np.uint8)
    stored[corner], marked[corner] = 3000.0, 1
    write_dicom_series(Volume.from_native(stored, native), tmp_path / "series")
    volume = read_volume(tmp_path / "series", intensity="hu")
    there = Mask((volume.hu > 2000).astype(np.uint8), volume.grid, INFILTRATE_LABEL)
    seg, _ = write_dicom_results(volume, (there,), tmp_path, measured={})
    expected = native.world([n - 1 if c else 0 for n, c in zip(native.shape, corner, strict=True)])
    np.testing.assert_allclose(corner_from_seg(seg), expected, atol=2e-3)


@pytest.mark.parametrize("native", GRIDS.values(), ids=GRIDS)
def test_the_image_has_every_voxel_at_its_place(tmp_path, native, rng):
    hu = rng.integers(-1024, 3000, native.shape).astype(np.float32)
    volume = Volume.from_native(hu, native)
    labels = rng.integers(0, 3, volume.grid.shape).astype(np.uint8)
    write_vti(tmp_path / "v.vti", volume, Mask(labels, volume.grid, LUNG_LABELS), Mask.empty(volume.grid, {}))
    matrix, arrays = read_vti(tmp_path / "v.vti")
    assert arrays["hu"].dtype == np.int16
    np.testing.assert_array_equal(arrays["hu"], volume.hu)
    np.testing.assert_array_equal(arrays["lungs"], labels)
    assert arrays["infiltrate"].max() == 0
    np.testing.assert_allclose(matrix, volume.grid.affine, atol=1e-9)


@pytest.mark.parametrize("native", GRIDS.values(), ids=GRIDS)
def test_surfaces_look_outwards_and_bound_what_is_marked(tmp_path, native):
    """Not only the middle: each of the eight outer voxel corners of a block is near the surface of every format."""
    labels = np.zeros(native.shape, np.uint8)
    labels[1:3, 1:4, 1:5] = 1
    volume = Volume.from_native(np.zeros(native.shape, np.float32), native)
    infiltrate = Mask.from_native(labels, native, INFILTRATE_LABEL)
    write_everything(tmp_path, volume, infiltrate)
    outer = native.world(list(product((0.5, 2.5), (0.5, 3.5), (0.5, 4.5))))
    step = max(native.spacing_mm)
    for vertices, triangles in (
        read_stl(tmp_path / "infiltrate.stl"),
        slicer_model(tmp_path / "infiltrate.stl"),
        slicer_model(tmp_path / "surfaces.vtp"),
        poly_arrays(read_vtp(tmp_path / "surfaces.vtp")),
    ):
        nearest = np.linalg.norm(vertices[:, None] - outer, axis=2).min(axis=0)
        assert nearest.max() < step
        middle = vertices[triangles].mean(axis=1) - outer.mean(axis=0)
        across = np.cross(
            vertices[triangles[:, 1]] - vertices[triangles[:, 0]], vertices[triangles[:, 2]] - vertices[triangles[:, 0]]
        )
        assert (np.einsum("ij,ij->i", middle, across) > 0).all()
