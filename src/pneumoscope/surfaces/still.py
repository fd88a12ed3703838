"""Still pictures of the surfaces, front and side by side, made without a screen.

VTK draws them in a process of its own: where no graphics driver works, VTK ends the process it runs in. Then
Matplotlib paints the triangles from back to front, without a driver.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.processes import end_with_parent
from pneumoscope.surfaces.files import LOOKS
from pneumoscope.surfaces.mesh import Mesh, poly_data

if TYPE_CHECKING:
    from vtkmodules.vtkRenderingCore import vtkActor, vtkTextActor

SIZE = (1120, 560)
"""Width and height of the picture; the left half is seen from the front, the right half from the patient's left."""

BACKGROUND = (0.043, 0.051, 0.063)
VIEWS: tuple[tuple[str, NDArray[np.float64], tuple[str, str]], ...] = (
    ("front", np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]]), ("R", "L")),
    ("left side", np.array([[0, -1.0, 0], [0, 0, 1], [-1, 0, 0]]), ("A", "P")),
)
"""Name; rows to the screen's right, up and the viewer in RAS; the letters on the left and right edge."""

_SECONDS = 90.0
_MARGIN = 1.08
_LIGHT = np.array([-0.3, 0.45, 0.84])


@dataclass(frozen=True)
class Still:
    """A picture, or why there is none."""

    png: bytes | None  # its bytes; None when nothing could be drawn
    by: Literal["vtk", "software", "none"]  # ``vtk``, ``software``, or ``none``
    reason: str = ""  # why it is not VTK's; empty when it is


def draw_still(meshes: Mapping[str, Mesh], *, seconds: float = _SECONDS) -> Still:
    """Draw surfaces; never raises for want of a graphics driver.

    Args:
        meshes: by the names of `structures.LOOKS`; none gives no picture and says so.
        seconds: how long VTK may take before it is stopped.
    """
    if not meshes:
        return Still(None, "none", "nothing is marked, so there is no surface to draw")
    png, reason = _by_vtk(meshes, seconds)
    if png is not None:
        return Still(png, "vtk")
    return Still(_by_matplotlib(meshes), "software", reason)


def _by_vtk(meshes: Mapping[str, Mesh], seconds: float) -> tuple[bytes | None, str]:
    """VTK's picture from a child process; None and the reason when the child fails."""
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "meshes.npz", Path(name) / "still.png"
        arrays: dict[str, NDArray[Any]] = {}
        for title, mesh in meshes.items():
            arrays[f"{title}.vertices"], arrays[f"{title}.triangles"] = mesh.vertices_mm, mesh.triangles
        np.savez(source, allow_pickle=False, **arrays)  # type: ignore[arg-type]
        command = [sys.executable, "-m", "pneumoscope.surfaces.still", str(source), str(target)]
        command.append(str(os.getpid()))  # the child ends with this process
        try:
            child = subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return None, f"VTK did not draw within {seconds:g} s"
        except OSError as problem:
            return None, f"no process could be started for VTK ({type(problem).__name__})"
        if child.returncode != 0 or not target.is_file():
            return None, f"VTK could not draw without a screen here (exit status {child.returncode})"
        return target.read_bytes(), ""


def placed(meshes: Mapping[str, Mesh]) -> tuple[NDArray[np.float64], float]:
    """The middle of all surfaces and half the side of the square that shows them from every side, in mm."""
    corners = np.concatenate([[mesh.vertices_mm.min(axis=0), mesh.vertices_mm.max(axis=0)] for mesh in meshes.values()])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return (low + high) / 2, float((high - low).max()) / 2 * _MARGIN


def _by_matplotlib(meshes: Mapping[str, Mesh]) -> bytes:
    """Triangles painted from back to front, shaded by their slope to the light."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100)
    FigureCanvasAgg(figure)
    figure.set_facecolor(BACKGROUND)
    middle, half = placed(meshes)
    for number, (_, rows, letters) in enumerate(VIEWS):
        axes = figure.add_axes((number / 2, 0.0, 0.5, 1.0))
        axes.set_axis_off()
        axes.set_xlim(-half, half)
        axes.set_ylim(-half, half)
        corners, colours = _painted(meshes, rows, middle)
        axes.add_collection(PolyCollection(list(corners), facecolors=colours, edgecolors="none", antialiased=False))
        for x, letter, align in ((0.03, letters[0], "left"), (0.97, letters[1], "right")):
            axes.text(x, 0.5, letter, transform=axes.transAxes, color="white", fontsize=15, weight="bold", ha=align)
    stream = BytesIO()
    figure.savefig(stream, format="png", facecolor=BACKGROUND, metadata={"Software": None})
    return stream.getvalue()


def _painted(
    meshes: Mapping[str, Mesh], rows: NDArray[np.float64], middle: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners on the screen (n, 3, 2) and colours (n, 4), the farthest first; only triangles that face the viewer."""
    places, colours, depths = [], [], []
    for name, mesh in meshes.items():
        seen = (mesh.vertices_mm - middle) @ rows.T
        corners = seen[mesh.triangles]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        lengths = np.linalg.norm(across, axis=1)
        front = (across[:, 2] > 0) & (lengths > 0)
        light = np.clip((across[front] / lengths[front, None]) @ _LIGHT, 0, 1)
        shade = np.outer(0.3 + 0.7 * light, LOOKS[name].rgb)
        places.append(corners[front][:, :, :2])
        colours.append(np.c_[shade, np.full(len(shade), LOOKS[name].opacity)])
        depths.append(corners[front][:, :, 2].mean(axis=1))
    order = np.argsort(np.concatenate(depths), kind="stable")
    return np.concatenate(places)[order], np.concatenate(colours)[order]


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
