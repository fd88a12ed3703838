"""The 3D part of a case folder: surfaces, the VTK image, a still picture and the page that shows them.

An empty mask leaves no file, not an empty one, and its reason in `report.json`. Files of an earlier run whose masks
are empty now are removed, so that a folder never shows another run's lesion.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.severity.measure import Severity
from pneumoscope.volume import Mask, Volume

if TYPE_CHECKING:
    from pneumoscope.surfaces.mesh import Mesh
    from pneumoscope.surfaces.still import Still

VIEW_FILE = "view.html"
VOLUME_FILE = "volume.vti"
SURFACES_FILE = "surfaces.vtp"
STILL_FILE = "render.png"
SCENE_FILE = "mesh/case.glb"


@dataclass(frozen=True, eq=False)
class ThreeD:
    """What was written.

    Attributes:
        files: names inside the case folder.
        missing: names that could have been written, each with why not.
        volumes_ml: what each surface encloses, by the names of `structures.LOOKS`.
        still: the picture, for the report.
        seconds: wall time by step.
    """

    files: tuple[str, ...]
    missing: Mapping[str, str]
    volumes_ml: Mapping[str, float]
    still: Still
    seconds: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values for `report.json`, the same for the same scan and masks."""
        return {
            "frame": "RAS+ millimetres; GLB: metres, y up, by its root node",
            "files": list(self.files),
            "missing": dict(self.missing),
            "enclosed_ml": {name: round(value, 4) for name, value in self.volumes_ml.items()},
            "picture_by": self.still.by,
        }


def write_three_d(
    folder: Path, volume: Volume, lungs: Mask, infiltrate: Mask, severity: Severity, truth: Mask | None = None
) -> ThreeD:
    """Write ``mesh/*.stl``, ``mesh/*.glb``, ``surfaces.vtp``, ``volume.vti``, ``render.png`` and ``view.html``.

    Args:
        folder: the case's.
        volume: the scan.
        lungs: its lungs.
        infiltrate: its infiltrates.
        severity: of these masks; the table of the page.
        truth: a reader's infiltrate, or None.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    from pneumoscope.io.files import write_bytes
    from pneumoscope.reports.figures import data_uri
    from pneumoscope.reports.view import ViewScan, write_case_view
    from pneumoscope.surfaces.still import draw_still
    from pneumoscope.surfaces.vtk_files import write_vti

    clock = _Clock()
    remove_three_d(folder)
    write_vti(folder / VOLUME_FILE, volume, lungs, infiltrate, truth)
    clock.note("volume.vti")
    meshes, missing = _meshes(lungs, infiltrate, truth)
    files = [VOLUME_FILE, *_write_meshes(folder, meshes)]
    clock.note("surfaces")
    still = draw_still(meshes)
    if still.png is None:
        missing[STILL_FILE] = still.reason
    else:
        write_bytes(folder / STILL_FILE, still.png)
        files.append(STILL_FILE)
    clock.note("picture")
    scan = ViewScan(volume.case, volume, lungs, infiltrate, truth, meshes)
    notes = [f"No surface of {name}: {why}." for name, why in missing.items() if name.startswith("mesh/")]
    picture = None if still.png is None else data_uri(still.png)
    write_case_view(folder / VIEW_FILE, scan, severity, still=picture, notes=notes)
    clock.note("page")
    volumes = {name: mesh.volume_ml for name, mesh in meshes.items()}
    return ThreeD((*files, VIEW_FILE), missing, volumes, still, clock.seconds)


def remove_three_d(folder: Path) -> None:
    """Remove what an earlier run wrote; files of other names stay."""
    from pneumoscope.surfaces.structures import LOOKS

    names = [f"mesh/{name}{suffix}" for name in LOOKS for suffix in (".stl", ".glb")]
    for name in (*names, SCENE_FILE, SURFACES_FILE, VOLUME_FILE, STILL_FILE, VIEW_FILE):
        (folder / name).unlink(missing_ok=True)


def _meshes(lungs: Mask, infiltrate: Mask, truth: Mask | None) -> tuple[dict[str, Mesh], dict[str, str]]:
    """The surfaces, and why others have none."""
    from pneumoscope.surfaces.mesh import build_mesh
    from pneumoscope.surfaces.structures import structures

    meshes, missing = {}, {}
    for name, where in structures(lungs, infiltrate, truth).items():
        mesh = build_mesh(where(), lungs.grid)
        if mesh is None:
            missing[f"mesh/{name}"] = "the mask is empty"
        else:
            meshes[name] = mesh
    return meshes, missing


def _write_meshes(folder: Path, meshes: Mapping[str, Mesh]) -> list[str]:
    from pneumoscope.surfaces.mesh_files import write_glb, write_stl
    from pneumoscope.surfaces.vtk_files import write_vtp

    files = []
    for name, mesh in meshes.items():
        write_stl(folder / f"mesh/{name}.stl", mesh)
        write_glb(folder / f"mesh/{name}.glb", {name: mesh})
        files += [f"mesh/{name}.stl", f"mesh/{name}.glb"]
    if meshes:
        write_glb(folder / SCENE_FILE, meshes)
        write_vtp(folder / SURFACES_FILE, meshes)
        files += [SCENE_FILE, SURFACES_FILE]
    return files


class _Clock:
    """Seconds since the note before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def note(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._last
        self._last = now
