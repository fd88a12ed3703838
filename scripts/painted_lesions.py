"""Synthetic infiltrates painted into a real scan: lesions whose exact place is known, on real anatomy.

Places, sizes and borders are those of the phantom's lesions (`phantom_lesions`). Ground glass adds to what the scan
shows, so that its noise and vessels stay; consolidation replaces it. Everything outside of the lungs stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope.datasets.case import LabelledScan
from pneumoscope.datasets.phantom.patient import PLACING_STEP_MM, LesionPlan, Lesions, Room, place_in
from pneumoscope.datasets.phantom.shapes import Field, Lattice, Positions, smoothstep
from pneumoscope.errors import DatasetError
from pneumoscope.volume import INFILTRATE_LABEL, Mask, Volume

STEP_MM = 4.5
DENSEST_HU = 60.0
CONSOLIDATION_HU = 22.0
SLICES_AT_ONCE = 8


def paint_lesions(
    volume: Volume,
    lungs: Mask,
    plan: LesionPlan,
    seed: int,
    *,
    rise_hu: tuple[float, float] = (190.0, 480.0),
    meshwork_hu: float = 60.0,
) -> LabelledScan:
    """The scan with lesions in its lungs; `infiltrate` and `truth` are where they are, exactly.

    Args:
        volume: a scan whose axes run along the body's.
        lungs: its lungs, on its grid.
        plan: how much, how large, where.
        seed: another seed gives other lesions.
        rise_hu: how much faint and full ground glass adds (those of site A of the phantom).
        meshwork_hu: how much the pattern inside ground glass stands out.

    Raises:
        DatasetError: the grid is tilted by more than a hundredth, or there is no lung.
    """
    where, box = _positions(volume, lungs)
    inside = np.ascontiguousarray(lungs.any[box].transpose(2, 1, 0))
    of_places, of_noise = np.random.default_rng(seed).spawn(2)
    lattice = _lattice(where, STEP_MM)
    rough = _lattice(where, PLACING_STEP_MM)
    lesions = place_in(Room(rough, _distance(rough, where, inside)), lattice, plan, of_places, of_noise)
    hu, drawn = volume.hu.astype(np.float32, copy=True), np.zeros(volume.hu.shape, np.uint8)
    part_hu, part_drawn = hu[box].transpose(2, 1, 0), drawn[box].transpose(2, 1, 0)
    for low in range(0, len(where.z_mm), SLICES_AT_ONCE):
        part = slice(low, low + SLICES_AT_ONCE)
        shown, labels = _paint(part_hu[part], inside[part], lesions, where.slices(part), rise_hu, meshwork_hu)
        part_hu[part] = shown
        part_drawn[part] = labels
    mask = Mask(drawn, volume.grid, INFILTRATE_LABEL)
    return LabelledScan(replace(volume, hu=hu), lungs, mask, mask)


def _positions(volume: Volume, lungs: Mask) -> tuple[Positions, tuple[slice, slice, slice]]:
    """Voxel centres of the box of the lungs, in mm about its middle, and the box (i, j, k)."""
    axes = volume.grid.affine[:3, :3]
    steps = np.diag(axes)
    if np.abs(axes - np.diag(steps)).max() > 0.01 * np.abs(steps).min():
        raise DatasetError(f"the grid of {volume.case!r} is tilted; lesions are painted into upright scans only")
    boxes = ndimage.find_objects(lungs.any.astype(np.uint8))
    if not boxes or boxes[0] is None:
        raise DatasetError(f"{volume.case!r} has no lung to paint lesions into")
    box = boxes[0]
    x, y, z = (
        (np.arange(part.stop - part.start) - (part.stop - part.start - 1) / 2) * abs(float(step))
        for part, step in zip(box, steps, strict=True)
    )
    return Positions(x, y, z), box


def _lattice(where: Positions, step: float) -> Lattice:
    axes = (where.z_mm, where.y_mm, where.x_mm)
    low, high = (
        [float(end) for end in ends] for ends in zip(*((a[0] - step, a[-1] + step) for a in axes), strict=True)
    )
    return Lattice.covering((low[0], low[1], low[2]), (high[0], high[1], high[2]), step)


def _distance(lattice: Lattice, where: Positions, inside: NDArray[np.bool_]) -> Field:
    """Signed distance to the lungs' surface on the lattice, negative inside: from its points, to half a step."""
    at = lattice.positions()
    nearest, there = [], []
    for points, voxels in ((at.z_mm, where.z_mm), (at.y_mm, where.y_mm), (at.x_mm, where.x_mm)):
        step = float(voxels[1] - voxels[0]) if len(voxels) > 1 else 1.0
        index = np.rint((points - voxels[0]) / step).astype(int)
        there.append((index >= 0) & (index < len(voxels)))
        nearest.append(np.clip(index, 0, len(voxels) - 1))
    lung = inside[np.ix_(*nearest)] & there[0][:, None, None] & there[1][:, None] & there[2]
    outer, inner = (np.asarray(ndimage.distance_transform_edt(side)) for side in (~lung, lung))
    return ((np.where(lung, 0.5, -0.5) + outer - inner) * lattice.spacing_mm).astype(np.float32)


def _paint(
    hu: Field, inside: NDArray[np.bool_], lesions: Lesions, where: Positions, rise_hu: tuple[float, float],
    meshwork_hu: float,
) -> tuple[Field, NDArray[np.bool_]]:  # fmt: skip
    """Slices (z, y, x) with their lesions, and where these are."""
    depth, _, dense = lesions.depth_at(where)
    grade = lesions.lattice.sample(lesions.grade, where)
    mesh = lesions.fine.sample(lesions.meshwork, where, smooth=True)
    faint, full = rise_hu
    rise = faint + (full - faint) * grade + np.float32(meshwork_hu) * (np.exp(-((mesh / 0.25) ** 2)) - 0.3)
    shown = np.minimum(hu + smoothstep(depth, -1.5, 5.0) * np.maximum(rise, 40), np.maximum(hu, DENSEST_HU))
    solid = smoothstep(dense, -1.2, 2.2)
    shown += solid * np.maximum(np.float32(CONSOLIDATION_HU) - shown, 0)
    return np.where(inside, np.rint(shown), hu), (depth > 0) & inside
