"""The same synthetic patient on another day: changed lesions, pose and breath; the change is known exactly.

A baseline and its follow-ups share the body, vessels and texture. `change` alters the lesions, `pose` where and how the
patient lies. Truth of the follow-up is also painted on the grid of the baseline, without any registration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom.patient import NO_LESION, LesionPlan, Lesions, Patient, draw_patient, place_lesions
from pneumoscope.datasets.phantom.scanner import Protocol, chunks, expose, paint_slab, true_labels
from pneumoscope.datasets.phantom.shapes import Positions
from pneumoscope.datasets.phantom.sites import PhantomSite, phantom_site
from pneumoscope.datasets.phantom.tissue import lung_labels
from pneumoscope.errors import DatasetError
from pneumoscope.geometry import Grid
from pneumoscope.volume import INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume


@dataclass(frozen=True)
class LesionChange:
    """What became of the lesions.

    Attributes:
        grow_mm: every border moves outwards by so much; negative moves it inwards, and small lesions vanish.
        right_resolved: lesions of the right lung are gone.
        new_share: further lesions elsewhere, as a share of the lungs.
        denser_hu: the ground glass is denser by so much; negative makes it fainter.
    """

    grow_mm: float = 0.0
    right_resolved: bool = False
    new_share: float = 0.0
    denser_hu: float = 0.0


@dataclass(frozen=True)
class Pose:
    """How the patient lies and breathes on that day.

    Attributes:
        shift_mm: along right, front, head.
        turn_degrees: about the right, front and head axes.
        breath: the chest's height relative to the baseline; 1.05 is deeper.
    """

    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    breath: float = 1.0


@dataclass(frozen=True, eq=False)
class DatedScan:
    """One day of a patient.

    Attributes:
        volume: the scan.
        lungs: exact lungs.
        truth: exact infiltrate, 1 = ground-glass, 2 = consolidation.
        truth_on_baseline: the same infiltrate on the grid of the baseline.
    """

    volume: Volume
    lungs: Mask
    truth: Mask
    truth_on_baseline: Mask


def scan_dates(
    site: str,
    patient: int,
    days: list[tuple[LesionChange, Pose]],
    *,
    seed: int = 0,
    spacing_mm: tuple[float, float] = (3.0, 5.0),
    detail: tuple[float, int] = (6.0, 300),
) -> list[DatedScan]:
    """A baseline and one scan for each of `days`.

    Args:
        site: ``A``, ``B`` or ``C``: scanner and kind of patients.
        patient: 0 or more.
        days: change since the baseline, and pose, of each follow-up.
        seed: another seed gives other people.
        spacing_mm: pixel size and slice distance.
        detail: how finely the body is kept, in mm, and how many branches its vessels have.

    Returns:
        The baseline, then a scan for each day.

    Raises:
        DatasetError: unknown site, negative patient or seed.
    """
    if patient < 0 or seed < 0:
        raise DatasetError(f"a phantom needs a patient and a seed of 0 or more, got {patient} and {seed}")
    hospital = phantom_site(site)
    rng = np.random.default_rng([seed, ord(hospital.name), patient])
    of_body, _, of_noise, of_change = rng.spawn(4)
    body = draw_patient(hospital, of_body, step_mm=detail[0], branches=detail[1])
    protocol = _plan(hospital, body, spacing_mm)
    scans = []
    for number, (change, pose) in enumerate([(LesionChange(), Pose()), *days]):
        changed = _changed(body, change, hospital, of_change.spawn(1)[0])
        there = _breathing(protocol, pose.breath, number)
        hu, lungs, truth = _expose(changed, there, hospital, of_noise.spawn(1)[0])
        grid = _posed(there.grid, pose)
        _, _, on_baseline = _expose(changed, protocol, hospital, None)
        scans.append(
            DatedScan(
                Volume(hu, grid, grid, f"{hospital.name}-{patient:03d}-day{number}"),
                Mask(lungs, grid, LUNG_LABELS),
                Mask(truth, grid, INFILTRATE_LABELS),
                Mask(on_baseline, protocol.grid, INFILTRATE_LABELS),
            )
        )
    return scans


def _plan(site: PhantomSite, body: Patient, spacing_mm: tuple[float, float]) -> Protocol:
    pixel, step = spacing_mm
    z = body.shapes.lattice.positions().z_mm
    levels = z[(body.shapes.lungs < 0).any(axis=(1, 2))]
    across = np.arange(-170.0, 170.0, pixel)
    where = Positions(across, np.arange(-140.0, 130.0, pixel), np.arange(levels[0] - 22, levels[-1] + 22, step))
    return Protocol(where, pixel, step, min(site.scanner.slab_mm, step), (0.0, 0.0))


def _breathing(protocol: Protocol, breath: float, number: int) -> Protocol:
    """The lattice of another day, in places of the body: shifted by part of a voxel and stretched along the height.

    Slices keep their distance on the scanner, so a deeper breath needs more of them.
    """
    z = protocol.where.z_mm
    offset = 0.37 * (number % 3)
    count = round(len(z) * breath)
    inside = z[0] + (np.arange(count) + offset) * protocol.slice_mm / breath
    x, y = (axis + offset * protocol.pixel_mm for axis in (protocol.where.x_mm, protocol.where.y_mm))
    return replace(protocol, where=Positions(x, y, inside), slice_mm=protocol.slice_mm / breath)


def _posed(grid: Grid, pose: Pose) -> Grid:
    """The scanner's frame: the height stretched back, then turned about the middle of the chest and shifted."""
    affine = grid.affine.copy()
    stretch = np.diag([1.0, 1.0, pose.breath, 1.0])
    return Grid(grid.shape, _rigid(pose) @ stretch @ affine)


def _rigid(pose: Pose) -> NDArray[np.float64]:
    matrix = np.eye(4)
    for axis, angle in enumerate(np.deg2rad(pose.turn_degrees)):
        a, b = (n for n in range(3) if n != axis)
        turn = np.eye(4)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    matrix[:3, 3] = pose.shift_mm
    return matrix


def _expose(
    body: Patient, protocol: Protocol, site: PhantomSite, rng: np.random.Generator | None
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]:
    """Picture, lungs and truth (i, j, k); without a generator the picture is left empty."""
    shape = protocol.where.shape
    hu, lungs, truth = np.zeros(shape, np.float32), np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for part in chunks(protocol):
        painted = paint_slab(body, protocol, part)
        lungs[part] = lung_labels(painted, protocol.where.slices(part))
        truth[part] = true_labels(painted)
        if rng is not None:
            hu[part] = expose(painted, protocol, site.scanner, part, rng)
    return hu.transpose(2, 1, 0), lungs.transpose(2, 1, 0), truth.transpose(2, 1, 0)


def _changed(body: Patient, change: LesionChange, site: PhantomSite, rng: np.random.Generator) -> Patient:
    lesions = body.lesions
    depth, dense = lesions.depth + np.float32(change.grow_mm), lesions.dense + np.float32(change.grow_mm)
    if change.right_resolved:
        right = lesions.lattice.positions().open_grid()[2] > 0
        depth, dense = (np.where(right, np.float32(NO_LESION), field) for field in (depth, dense))
    if change.new_share > 0:
        plan = LesionPlan(change.new_share, 0.9, site.patients.radius_mm, 0.0, 0.3)
        more: Lesions = place_lesions(body.anatomy, body.shapes, plan, *rng.spawn(2))
        depth, dense = np.maximum(depth, more.depth), np.maximum(dense, more.dense)
    faintest, densest = body.ground_glass_hu
    glass = (faintest + change.denser_hu, densest + change.denser_hu)
    return replace(body, lesions=replace(lesions, depth=depth, dense=dense), ground_glass_hu=glass)
