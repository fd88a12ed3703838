"""Writing one case: the only place that knows which files a case folder holds, whoever made the masks.

`report.json` is written last, so its presence says that the case is complete. Case files hold no times or dates,
but for the time of creation that DICOM asks for: the same scan and masks give the same bytes. An empty mask leaves no
surface file, not an empty one, and its reason in `report.json`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.cases.options import CaseOptions, SegmentOptions
from pneumoscope.errors import Finding, PneumoscopeError
from pneumoscope.io.dicom.results import write_dicom_results
from pneumoscope.io.files import write_bytes
from pneumoscope.io.write import write_image, write_mask, write_volume
from pneumoscope.preprocess.registration import coarse_copy
from pneumoscope.progress import Progress, silent
from pneumoscope.reports.case import CaseContent, slices_png, write_case_report
from pneumoscope.reports.figures import data_uri
from pneumoscope.reports.view import ViewScan, write_case_view
from pneumoscope.severity.measure import Severity
from pneumoscope.severity.regions import ZONES
from pneumoscope.surfaces.files import LOOKS, structures, write_case_points, write_glb, write_stl, write_vti, write_vtp
from pneumoscope.surfaces.mesh import Mesh, build_mesh
from pneumoscope.surfaces.still import Still, draw_still
from pneumoscope.volume import Mask, Volume

REPORT_FILE = "report.json"

COPY_FILE = "registration.nii.gz"
"""A coarse copy of the scan around the lungs, about 1 MB: what `compare` needs of the scan."""

SIDE_BY_SIDE = 2  # Files written at the same time; more would hold more copies of the scan

MAX_POINTS = 2_000_000
"""Rows of a point table at most; a larger structure is thinned to every n-th voxel along each axis (about 50 MB)."""


WRITING, PAGE = "writing", "page"  # Steps that `write_case` reports: its files, then the page and `report.json`


def write_case(
    folder: Path,
    content: CaseContent,
    options: CaseOptions | None = None,
    *,
    spent: dict[str, float] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the files of a case into its folder, side by side, `report.html` and then `report.json` last.

    Args:
        folder: made when missing; a `report.json` of an earlier run is removed before anything else is written, and
            so is every file of ours that these options leave out.
        content: what to write.
        options: which of the optional files are written.
        spent: takes the seconds of each step by name; steps overlap.
        progress: called per file, or kind of files, that is written.

    Returns:
        What stands in `report.json`.

    Raises:
        GeometryError: a mask lies on another grid than the scan.
    """
    options = options or CaseOptions()
    for name in (REPORT_FILE, *_optional_files()):
        (folder / name).unlink(missing_ok=True)
    done = _side_by_side(_steps(folder, content, options), spent, progress)
    progress(PAGE, 0, 1)
    shown = done.get("surfaces")
    return write_case_report(
        folder,
        content,
        findings=done.get("DICOM") or (),
        page=not options.fast,
        picture=done.get("picture"),
        still=None if shown is None or shown.still is None else shown.still.png,
        surfaces=None if shown is None else shown.as_dict(),
    )


def _optional_files() -> list[str]:
    maps = [f"{name}.nii.gz" for name in ("probability", "uncertainty-entropy", "uncertainty-variance")]
    points = [f"points/{name}.csv" for name in ("lungs", "infiltrate", "truth")]
    return [COPY_FILE, *maps, *points, *three_d_files(), *DICOM_FILES, "report.html"]


def _steps(folder: Path, content: CaseContent, options: CaseOptions) -> dict[str, Callable[[], Any]]:
    """What is to be written, by name, the longest first; each on its own."""
    parts = content.volume, content.lungs, content.infiltrate, content.truth
    steps: dict[str, Callable[[], Any]] = {}
    if not options.fast:
        steps["DICOM"] = lambda: write_dicom(folder, content, deidentify=options.deidentify)
        steps["surfaces"] = lambda: write_three_d(folder, content, mesh="mesh" in options.save)
        steps["picture"] = lambda: slices_png(*parts)
        steps["copy"] = lambda: write_copy(folder / COPY_FILE, *parts[:2])
    if "vti" in options.save:
        steps["vti"] = lambda: write_vti(folder / VOLUME_FILE, *parts)
    if "points" in options.save:
        steps["points"] = lambda: write_case_points(folder, *parts, max_points=MAX_POINTS)
    probability = isinstance(options, SegmentOptions) and options.probability
    return steps | {"masks": lambda: _write_masks(folder, content, with_probability=probability)}


def _side_by_side(
    steps: Mapping[str, Callable[[], Any]], spent: dict[str, float] | None, progress: Progress
) -> dict[str, Any]:
    """The results by name. NumPy, zlib and child processes let other threads run."""

    def timed(name: str) -> Any:
        started = time.perf_counter()
        result = steps[name]()
        if spent is not None:
            spent[name] = time.perf_counter() - started
        return result

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        running = {pool.submit(timed, name): name for name in steps}
        for number, _ in enumerate(as_completed(running), start=1):
            progress(WRITING, number, len(steps))
    return {name: future.result() for future, name in running.items()}


def _write_masks(folder: Path, content: CaseContent, *, with_probability: bool) -> None:
    native = content.volume.native
    write_mask(content.lungs, folder / "lungs.nii.gz", native)
    write_mask(content.infiltrate, folder / "infiltrate.nii.gz", native)
    maps = {
        "probability": content.probability if with_probability else None,
        "uncertainty-entropy": content.entropy,
        "uncertainty-variance": content.variance,
    }
    for name, values in maps.items():
        if values is not None:  # as the bytes that they are, with the slope to [0, 1]
            write_image(values, native, folder / f"{name}.nii.gz", scaled=True)


def write_copy(path: Path, volume: Volume, lungs: Mask) -> None:
    """The coarse copy; none where there is no lung."""
    if lungs.any.any():
        write_volume(coarse_copy(volume, lungs), path)


SUMMARY_COLUMNS = (
    "lung_ml", "infiltrate_ml", "share_percent", "states", "findings",
    "right_share_percent", "left_share_percent", "ground_glass_ml", "consolidation_ml", "infiltrate_mean_hu",
    "lesions", "largest_lesion_ml", "peripheral_percent", "low_percent", "high_percent", "ct_score",
    *(f"{zone}_percent" for zone in ZONES),
)  # fmt: skip
"""Columns of `cases.csv` that measure; those after the first five were added later and stand behind ``error``."""


def summary_of(content: CaseContent) -> dict[str, Any]:
    """Plain numbers of a case for `cases.csv`: `SUMMARY_COLUMNS`, None where there is nothing to measure."""
    found = content.severity
    total, lesions, spread, interval = found.total, found.lesions, found.distribution, found.interval
    return {
        "lung_ml": round(total.lung_ml, 2),
        "infiltrate_ml": round(total.infiltrate_ml, 3),
        "share_percent": _number(total, "share_percent", 3),
        "states": " ".join(found.states),
        "findings": len(content.volume.findings) + len(content.findings),
        "right_share_percent": _number(found.right, "share_percent", 3),
        "left_share_percent": _number(found.left, "share_percent", 3),
        "ground_glass_ml": round(total.ground_glass_ml, 3),
        "consolidation_ml": round(total.consolidation_ml, 3),
        "infiltrate_mean_hu": _number(total, "infiltrate_mean_hu", 1),
        "lesions": _number(lesions, "count", 0),
        "largest_lesion_ml": _number(lesions, "largest_ml", 3),
        "peripheral_percent": _number(spread, "peripheral_percent", 2),
        "low_percent": _number(interval, "low_percent", 3),
        "high_percent": _number(interval, "high_percent", 3),
        "ct_score": _number(found.lobes, "total", 0),
        **{f"{zone}_percent": _number(part, "share_percent", 3) for zone, part in found.zones.items() if zone in ZONES},
    }


def _number(part: Any, name: str, digits: int) -> float | None:
    """A rounded number of a part; None where part or number is missing. No digits: a whole number."""
    value = getattr(part, name, None)
    return None if value is None else round(value, digits or None)


DICOM_FILES = ("seg.dcm", "seg-infiltrate.dcm", "report.dcm")
NOT_WRITTEN, EMPTY = "OUT-DCM-001", "OUT-DCM-002"


def write_dicom(folder: Path, content: CaseContent, *, deidentify: bool) -> tuple[Finding, ...]:
    """Write the SEGs and SR of a case that was read from DICOM; gives why the files are not there, () if they are.

    A series that can be read but not be referred to must not cost the case: what goes wrong becomes a finding.
    """
    if content.volume.series is None:
        return ()
    try:
        written = write_dicom_results(
            content.volume,
            (content.lungs, content.infiltrate),
            folder,
            measured=measured(content.severity),
            states=content.severity.states,
            models=", ".join(str(card.get("name", "model")) for card in content.cards),
            deidentify=deidentify,
        )
    except PneumoscopeError as problem:
        return (Finding(NOT_WRITTEN, f"the DICOM files were not written: {problem.message}", "warning"),)
    if not written:
        return (Finding(EMPTY, "neither lung nor infiltrate was found: there are no DICOM files", "info"),)
    return ()


def measured(severity: Severity) -> dict[str, dict[str, float]]:
    """Numbers of the structured report by the names of the masks' labels; what cannot be measured is left out."""
    parts = {"right lung": severity.right, "left lung": severity.left}
    if severity.right is None and severity.left is None:
        parts = {"lung": severity.total}
    found = {
        name: {"volume_ml": part.lung_ml, "share_percent": part.share_percent, "mean_hu": part.lung_mean_hu}
        for name, part in parts.items()
        if part is not None
    }
    for name, ml in severity.infiltrate_by_label_ml.items():
        found[name] = {"volume_ml": ml}
    if len(severity.infiltrate_by_label_ml) == 1:
        (name,) = severity.infiltrate_by_label_ml
        found[name] |= {"share_percent": severity.total.share_percent, "mean_hu": severity.total.infiltrate_mean_hu}
    return {name: {k: float(v) for k, v in values.items() if v is not None} for name, values in found.items()}


VIEW_FILE = "view.html"
VOLUME_FILE = "volume.vti"
SURFACES_FILE = "surfaces.vtp"
STILL_FILE = "render.png"
SCENE_FILE = "mesh/case.glb"


@dataclass(frozen=True, eq=False)
class ThreeD:
    """What was written."""

    files: tuple[str, ...]  # names inside the case folder
    missing: Mapping[str, str]  # names that could have been written, each with why not
    volumes_ml: Mapping[str, float]  # what each surface encloses, by the names of `structures.LOOKS`
    still: Still | None  # the picture, for the report; None when none was asked for

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

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
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
    names = [f"mesh/{name}{suffix}" for name in LOOKS for suffix in (".stl", ".glb")]
    return [*names, SCENE_FILE, SURFACES_FILE, VOLUME_FILE, STILL_FILE, VIEW_FILE]


def _meshes(lungs: Mask, infiltrate: Mask, truth: Mask | None) -> tuple[dict[str, Mesh], dict[str, str]]:
    """The surfaces, and why others have none."""
    meshes, missing = {}, {}
    for name, where in structures(lungs, infiltrate, truth).items():
        mesh = build_mesh(where(), lungs.grid)
        if mesh is None:
            missing[f"mesh/{name}"] = "the mask is empty"
        else:
            meshes[name] = mesh
    return meshes, missing


def _write_meshes(folder: Path, meshes: Mapping[str, Mesh]) -> list[str]:
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
