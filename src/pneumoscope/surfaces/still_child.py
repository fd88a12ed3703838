"""Runs in a process of its own: draw meshes with VTK without a screen. ``still_child MESHES.npz OUT.png PARENT``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.processes import end_with_parent
from pneumoscope.surfaces.files import LOOKS
from pneumoscope.surfaces.mesh import Mesh, poly_data
from pneumoscope.surfaces.still import BACKGROUND, SIZE, VIEWS, placed

if TYPE_CHECKING:
    from vtkmodules.vtkRenderingCore import vtkActor, vtkTextActor


def main(source: str, target: str) -> None:
    """Draw the meshes of a file into another."""
    with np.load(source, allow_pickle=False) as stored:
        names = [key.removesuffix(".vertices") for key in stored if key.endswith(".vertices")]
        meshes = {name: Mesh(stored[f"{name}.vertices"], stored[f"{name}.triangles"]) for name in names}
    _draw(meshes, target)


def _draw(meshes: dict[str, Mesh], target: str) -> None:
    import vtkmodules.vtkRenderingFreeType
    import vtkmodules.vtkRenderingOpenGL2  # noqa: F401  both register the classes that draw
    from vtkmodules.vtkIOImage import vtkPNGWriter
    from vtkmodules.vtkRenderingCore import vtkRenderer, vtkRenderWindow, vtkWindowToImageFilter

    window = vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetSize(*SIZE)
    window.SetAlphaBitPlanes(1)
    window.SetMultiSamples(0)
    middle, half = placed(meshes)
    for number, (_, rows, letters) in enumerate(VIEWS):
        renderer = vtkRenderer()
        renderer.SetViewport(number / len(VIEWS), 0.0, (number + 1) / len(VIEWS), 1.0)
        renderer.SetBackground(*BACKGROUND)
        renderer.SetUseDepthPeeling(1)
        renderer.SetMaximumNumberOfPeels(5)
        for name, mesh in meshes.items():
            renderer.AddActor(_actor(name, mesh))
        for x, letter in ((0.04, letters[0]), (0.96, letters[1])):
            renderer.AddViewProp(_letter(letter, x))
        camera = renderer.GetActiveCamera()
        camera.ParallelProjectionOn()
        camera.SetFocalPoint(*middle)
        camera.SetPosition(*(middle + rows[2] * 4 * half))
        camera.SetViewUp(*rows[1])
        camera.SetParallelScale(half)
        renderer.ResetCameraClippingRange()
        window.AddRenderer(renderer)
    window.Render()
    grab = vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    writer = vtkPNGWriter()
    writer.SetFileName(target)
    writer.SetInputConnection(grab.GetOutputPort())
    writer.Write()


def _actor(name: str, mesh: Mesh) -> vtkActor:
    from vtkmodules.vtkFiltersCore import vtkPolyDataNormals
    from vtkmodules.vtkRenderingCore import vtkActor, vtkPolyDataMapper

    normals = vtkPolyDataNormals()
    normals.SetInputData(poly_data(mesh.vertices_mm, mesh.triangles))
    normals.SplittingOff()
    normals.ConsistencyOff()
    mapper = vtkPolyDataMapper()
    mapper.SetInputConnection(normals.GetOutputPort())
    actor = vtkActor()
    actor.SetMapper(mapper)
    actor.GetProperty().SetColor(*LOOKS[name].rgb)
    actor.GetProperty().SetOpacity(LOOKS[name].opacity)
    actor.GetProperty().SetAmbient(0.15)
    actor.GetProperty().SetSpecular(0.1)
    return actor


def _letter(text: str, x: float) -> vtkTextActor:
    from vtkmodules.vtkRenderingCore import vtkTextActor

    actor = vtkTextActor()
    actor.SetInput(text)
    actor.GetTextProperty().SetFontSize(22)
    actor.GetTextProperty().SetBold(1)
    actor.GetTextProperty().SetJustificationToCentered()
    actor.GetPositionCoordinate().SetCoordinateSystemToNormalizedViewport()
    actor.GetPositionCoordinate().SetValue(x, 0.5)
    return actor


if __name__ == "__main__":
    end_with_parent(int(sys.argv[3]))
    main(*sys.argv[1:3])
