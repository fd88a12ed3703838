"""`view.html`: one offline page with a case's slices, masks, surfaces and numbers.

The page fetches nothing: the Content-Security-Policy forbids it, and its one script is named by its SHA-256.
Slices are drawn on plain canvases, so they need no WebGL; the surfaces need WebGL2, and without it a line says so.
Two scans of one patient on one grid make a page side by side with one cursor.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.io.files import atomic_path
from pneumoscope.reports.page import SEVERITY_ROWS, environment, ml, render
from pneumoscope.reports.view_data import BITS, STEPS_HU, Packed, PackedMesh, pack_mesh, pack_scan, text_of
from pneumoscope.severity.measure import Severity
from pneumoscope.surfaces.files import LOOKS, structures
from pneumoscope.surfaces.mesh import Mesh, build_mesh
from pneumoscope.volume import Mask, Volume

WINDOWS: tuple[tuple[str, float, float], ...] = (
    ("Lung", -1350.0, 150.0),
    ("Mediastinum", -160.0, 240.0),
    ("Bone", -500.0, 1300.0),
    ("Paper 1", -970.0, -150.0),
    ("Paper 2", -700.0, -450.0),
    ("Paper 3", -450.0, -150.0),
)
"""Name and bounds in HU: usual reading windows, then those of Maganaris et al. 2022b, section 3.1, equations 1 to 3."""

CHANGE_LOOKS: Mapping[int, tuple[str, str]] = {
    1: ("new", "#ff5252"),
    2: ("resolved", "#56b4e9"),
    3: ("persistent", "#ffb000"),
}
"""What the labels of a change mask mean and how they are coloured."""

_PAYLOADS = "<!-- payloads -->"


@dataclass(frozen=True, eq=False)
class ViewScan:
    """One scan to show."""

    title: str  # stands above it, e.g. the case or ``baseline``.
    volume: Volume  # the scan
    lungs: Mask  # its lungs
    infiltrate: Mask  # the infiltrate found
    truth: Mask | None = None  # what a reader annotated, or None
    # its surfaces by the names of `structures.LOOKS`; empty masks have none. None has them made for the page.
    meshes: Mapping[str, Mesh] | None = None

    def surfaces(self) -> dict[str, Mesh]:
        """The surfaces to draw."""
        if self.meshes is not None:
            return dict(self.meshes)
        parts = structures(self.lungs, self.infiltrate, self.truth)
        made = {name: build_mesh(where(), self.volume.grid) for name, where in parts.items()}
        return {name: mesh for name, mesh in made.items() if mesh is not None}


@dataclass(frozen=True)
class Table:
    """Numbers beside the picture."""

    head: tuple[str, ...]  # the column titles; the first may be empty
    rows: tuple[tuple[str, ...], ...]  # as many texts each as `head` has

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.head)]
        if wrong:
            raise InputError(f"a table of {len(self.head)} columns has a row of {len(wrong[0])}: {wrong[0]}")


def severity_table(severity: Severity) -> Table:
    """The measurements per lung as texts with units; what cannot be measured says so."""
    parts = (severity.right, severity.left, severity.total)
    rows = [
        (label, *("sides not known" if part is None else write(getattr(part, key)) for part in parts))
        for label, key, write in SEVERITY_ROWS
    ]
    return Table(("", "Right lung", "Left lung", "Both"), tuple(rows))


def write_case_view(
    path: str | Path, scan: ViewScan, severity: Severity, *, still: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Write the page of one case, whole or not at all.

    Args:
        path: the file, ``view.html``.
        scan: what to show.
        severity: of these masks; becomes the table.
        still: a picture of the surfaces as a ``data:`` address, for browsers without WebGL2.
        notes: sentences for the foot of the page, such as why a surface is missing.

    Raises:
        GeometryError: when a mask lies on another grid than the scan.
    """
    _write(Path(path), [scan], None, severity_table(severity), still, notes)


def write_change_view(
    path: str | Path, baseline: ViewScan, followup: ViewScan, change: Mask, numbers: Table, *, notes: Sequence[str] = ()
) -> None:
    """Write the page of two scans of one patient side by side, whole or not at all.

    Args:
        path: the file, ``view.html``.
        baseline: the earlier scan, shown on the left.
        followup: the later one, resampled to the baseline's grid.
        change: 1 = new, 2 = resolved, 3 = persistent infiltrate, on the same grid.
        numbers: the table beside the pictures.
        notes: sentences for the foot of the page.

    Raises:
        GeometryError: when the scans or a mask lie on different grids.
    """
    baseline.volume.grid.require_same_space(followup.volume.grid, "the follow-up")
    _write(Path(path), [baseline, followup], change, numbers, None, notes)


def _write(
    path: Path, scans: Sequence[ViewScan], change: Mask | None, numbers: Table, still: str | None, notes: Sequence[str]
) -> None:
    packed = _pack(scans, change)
    surfaces = [[pack_mesh(name, mesh) for name, mesh in scan.surfaces().items()] for scan in scans]
    script = environment().get_template("view.js").render()
    hidden = [
        f"{scan.title}: {ml(mesh.left_out_ml)} of small pieces of {LOOKS[mesh.name].title} are not drawn in 3D."
        for scan, meshes in zip(scans, surfaces, strict=True)
        for mesh in meshes
        if mesh.left_out_ml
    ]
    page = render(
        "view.html",
        {
            "title": " and ".join(scan.title for scan in scans),
            "titles": [scan.title for scan in scans],
            "script_hash": b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            "facts": _facts(scans, packed, surfaces, change),
            "table": numbers,
            "windows": WINDOWS,
            "has_truth": any(scan.truth is not None for scan in scans),
            "change": CHANGE_LOOKS if change is not None else {},
            "looks": LOOKS,
            "still": still,
            "losses": dict.fromkeys(one.loss() for one in packed),
            "notes": [*notes, *hidden],
        },
    )
    before, after = page.split(_PAYLOADS)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(before)
        for name, payload in _payloads(packed, surfaces):
            stream.write(f'<script type="text/plain" id="{name}">{text_of(payload)}</script>\n')
        stream.write(after)


def _pack(scans: Sequence[ViewScan], change: Mask | None) -> list[Packed]:
    """The scans at one resolution, the coarsest that one of them needs."""

    def pack(scan: ViewScan, at_least: tuple[int, int, int] = (1, 1, 1)) -> Packed:
        masks = {"lungs": scan.lungs, "infiltrate": scan.infiltrate, "truth": scan.truth, "change": change}
        present = {name: mask for name, mask in masks.items() if mask is not None}
        return pack_scan(scan.volume, present, share=1 / len(scans), at_least=at_least)

    packed = [pack(scan) for scan in scans]
    i, j, k = (max(one.factors[axis] for one in packed) for axis in range(3))
    return [one if one.factors == (i, j, k) else pack(scan, (i, j, k)) for one, scan in zip(packed, scans, strict=True)]


def _payloads(packed: Sequence[Packed], surfaces: Sequence[Sequence[PackedMesh]]) -> list[tuple[str, bytes]]:
    """Element ids and contents, as the script looks for them."""
    named = []
    for n, (scan, meshes) in enumerate(zip(packed, surfaces, strict=True)):
        named += [(f"picture-{n}", scan.picture), (f"masks-{n}", scan.masks)]
        for m, mesh in enumerate(meshes):
            named += [(f"vertices-{n}-{m}", mesh.vertices), (f"triangles-{n}-{m}", mesh.triangles)]
    return named


def _facts(
    scans: Sequence[ViewScan], packed: Sequence[Packed], surfaces: Sequence[Sequence[PackedMesh]], change: Mask | None
) -> dict[str, Any]:
    """Plain values for the script, as JSON in the page."""
    grid = packed[0].grid
    facts = {
        "shape": list(grid.shape),
        "affine": grid.affine.tolist(),
        "spacing": list(grid.spacing_mm),
        "steps": STEPS_HU.tolist(),
        "bits": dict(BITS),
        "windows": [list(window) for window in WINDOWS],
        "colours": {name: look.colour for name, look in LOOKS.items()},
        "change": {str(label): list(look) for label, look in CHANGE_LOOKS.items()} if change is not None else {},
        "scans": [
            {
                "title": scan.title,
                "truth": scan.truth is not None,
                "start": _start(scan, one),
                "meshes": [mesh.facts() for mesh in meshes],
            }
            for scan, one, meshes in zip(scans, packed, surfaces, strict=True)
        ],
    }
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def _start(scan: ViewScan, packed: Packed) -> list[int]:
    """The voxel shown first, (i, j, k): in the middle of the slice with most infiltrate, else of the lungs."""
    import numpy as np

    for mask in (scan.infiltrate, scan.truth, scan.lungs):
        if mask is None or not mask.labels.any():
            continue
        area = np.count_nonzero(mask.labels, axis=(0, 1))
        k = int(area.argmax())
        i, j = np.nonzero(mask.labels[:, :, k])
        place = (float(np.median(i)), float(np.median(j)), k)
        return [int(p // f) for p, f in zip(place, packed.factors, strict=True)]
    return [n // 2 for n in packed.grid.shape]
