"""The 3D part of a case folder: surfaces for `view.html` and, on request, for other programs with a still picture.

An empty mask leaves no file, not an empty one, and its reason in `report.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.volume import Mask

if TYPE_CHECKING:
    from pneumoscope.reports.case import CaseContent
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
        still: the picture, for the report; None when none was asked for.
    """

    files: tuple[str, ...]
    missing: Mapping[str, str]
    volumes_ml: Mapping[str, float]
    still: Still | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values for `report.json`, the same for the same scan and masks."""
        return {
            "frame": "RAS+ millimetres; GLB: metres, y up, by its root node",
            "files": list(self.files),
            "missing": dict(self.missing),
            "enclosed_ml": {name: round(value, 4) for name, value in self.volumes_ml.items()},
            "picture_by": None if self.still is None else self.still.by,
        }


def write_three_d(folder: Path, content: CaseContent, *, mesh: bool) -> ThreeD:
    """Write ``view.html`` and, with `mesh`, ``mesh/*.stl``, ``mesh/*.glb``, ``surfaces.vtp`` and ``render.png``.

    Args:
        folder: the case's.
        content: the case.
        mesh: also write the surfaces as files.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    from pneumoscope.io.files import write_bytes
    from pneumoscope.reports.figures import data_uri
    from pneumoscope.reports.view import ViewScan, write_case_view
    from pneumoscope.surfaces.still import draw_still

    volume, lungs, infiltrate, truth = content.volume, content.lungs, content.infiltrate, content.truth
    meshes, missing = _meshes(lungs, infiltrate, truth)
    notes = [f"No surface of {name}: {why}." for name, why in missing.items()]
    files, still = _write_meshes(folder, meshes) if mesh else [], draw_still(meshes) if mesh else None
    if still is not None and still.png is None:
        missing[STILL_FILE] = still.reason
    elif still is not None and still.png is not None:
        write_bytes(folder / STILL_FILE, still.png)
        files.append(STILL_FILE)
    scan = ViewScan(volume.case, volume, lungs, infiltrate, truth, meshes)
    picture = None if still is None or still.png is None else data_uri(still.png)
    write_case_view(folder / VIEW_FILE, scan, content.severity, still=picture, notes=notes)
    volumes = {name: mesh.volume_ml for name, mesh in meshes.items()}
    return ThreeD((*files, VIEW_FILE), missing, volumes, still)


def three_d_files() -> list[str]:
    """Every name that `write_three_d` may write, and `volume.vti`."""
    from pneumoscope.surfaces.files import LOOKS

    names = [f"mesh/{name}{suffix}" for name in LOOKS for suffix in (".stl", ".glb")]
    return [*names, SCENE_FILE, SURFACES_FILE, VOLUME_FILE, STILL_FILE, VIEW_FILE]


def _meshes(lungs: Mask, infiltrate: Mask, truth: Mask | None) -> tuple[dict[str, Mesh], dict[str, str]]:
    """The surfaces, and why others have none."""
    from pneumoscope.surfaces.files import structures
    from pneumoscope.surfaces.mesh import build_mesh

    meshes, missing = {}, {}
    for name, where in structures(lungs, infiltrate, truth).items():
        mesh = build_mesh(where(), lungs.grid)
        if mesh is None:
            missing[f"mesh/{name}"] = "the mask is empty"
        else:
            meshes[name] = mesh
    return meshes, missing


def _write_meshes(folder: Path, meshes: Mapping[str, Mesh]) -> list[str]:
    from pneumoscope.surfaces.files import write_glb, write_stl, write_vtp

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
