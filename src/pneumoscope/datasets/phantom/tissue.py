"""Painting a patient: Hounsfield units of every tissue at voxel centres, without noise, and the exact masks.

Typical values of CT at 120 kV without contrast medium: fat -100, muscle 50, blood 42, liver 58, spongy bone 160-250,
compact bone 500 and more, healthy lung about -850.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.phantom.anatomy import SPINE_Y_MM, Shapes, vertebra_heights
from pneumoscope.datasets.phantom.patient import NO_LESION, Patient
from pneumoscope.datasets.phantom.shapes import Field, Positions, Tubes, blend, coverage, paint, smoothstep

AIR_HU = -1000.0


@dataclass(frozen=True, eq=False)
class Painted:
    """Slices of a patient, each array (z, y, x)."""

    hu: Field  # float32 Hounsfield units, without noise
    lung: Field  # signed distance to the lungs' surface in mm, negative inside
    depth: Field  # mm inside the infiltrate, irregular border included; negative outside
    smooth_depth: Field  # the same without the fine irregularities, as an outline drawn by hand would run
    dense: Field  # mm inside consolidation
    vessels: Field  # share of each voxel that is vessel
    body: Field  # signed distance to the skin in mm


def lung_labels(painted: Painted, where: Positions) -> NDArray[np.uint8]:
    """Exact lungs, (z, y, x): 1 = right, 2 = left."""
    side = np.where(where.open_grid()[2] > 0, np.uint8(1), np.uint8(2))
    return np.where(painted.lung < 0, side, np.uint8(0))


def paint_patient(patient: Patient, where: Positions, soft_mm: float) -> Painted:
    """Tissues at voxel centres; edges run over `soft_mm`, about the width of a pixel."""
    shapes = patient.shapes
    body = shapes.lattice.sample(shapes.body, where)
    clouds = patient.texture.coarse.sample(patient.texture.clouds, where, smooth=True)
    grain = patient.texture.fine.sample(patient.texture.grain, where, smooth=True)
    hu = np.full(where.shape, AIR_HU, np.float32)
    _table(hu, patient, where, soft_mm)
    _wall(hu, patient, where, body, clouds, grain, soft_mm)
    _organs(hu, patient, where, clouds, soft_mm)
    _skeleton(hu, patient, where, soft_mm)
    painted = Painted(
        hu,
        lung=np.full(where.shape, 60, np.float32),
        depth=np.full(where.shape, NO_LESION, np.float32),
        smooth_depth=np.full(where.shape, NO_LESION, np.float32),
        dense=np.full(where.shape, NO_LESION, np.float32),
        vessels=np.zeros(where.shape, np.float32),
        body=body,
    )
    _paint(hu, -20.0, where, patient.airways.grown(1.5), soft_mm)
    _lungs(painted, patient, where, clouds, grain, soft_mm)
    _paint(hu, -990.0, where, patient.airways, soft_mm)
    return painted


def _lungs(painted: Painted, patient: Patient, where: Positions, clouds: Field, grain: Field, soft_mm: float) -> None:
    """Lung tissue with its infiltrate, vessels and small airways, in the part of the picture where there is lung."""
    rows, columns = _extent(patient.shapes, where)
    part = (slice(None), rows, columns)
    box = Positions(where.x_mm[columns], where.y_mm[rows], where.z_mm)
    if 0 in box.shape:
        return
    lungs = patient.shapes.lattice.sample(patient.shapes.lungs, box)
    painted.lung[part] = lungs
    depth, smooth, dense = patient.lesions.depth_at(box)
    painted.depth[part], painted.smooth_depth[part], painted.dense[part] = depth, smooth, dense
    tissue = _lung_tissue(patient, box, depth, dense, clouds[part], grain[part], soft_mm)
    hu = painted.hu[part]
    blend(hu, tissue, coverage(lungs, soft_mm))
    vessels = painted.vessels[part]
    paint(vessels, box, patient.vessels, soft_mm)
    blend(hu, np.maximum(hu, 38), vessels)
    wall = np.zeros(box.shape, np.float32)
    paint(wall, box, patient.bronchi.grown(0.7), soft_mm)
    blend(hu, np.maximum(hu, -20), wall)
    _paint(hu, -990.0, box, patient.bronchi, soft_mm)


def _extent(shapes: Shapes, where: Positions) -> tuple[slice, slice]:
    """Rows and columns that hold all lung, with a margin."""
    lung = shapes.lungs < 0
    at = shapes.lattice.positions()
    parts = []
    for axis, lattice_mm, there in (((0, 2), at.y_mm, where.y_mm), ((0, 1), at.x_mm, where.x_mm)):
        reach = lattice_mm[lung.any(axis=axis)]
        inside = np.flatnonzero((there > reach[0] - 12) & (there < reach[-1] + 12))
        parts.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return parts[0], parts[1]


def _table(hu: Field, patient: Patient, where: Positions, soft_mm: float) -> None:
    """A curved foam couch with two thin shells under the back."""
    _, y, x = where.open_grid()
    anatomy = patient.anatomy
    back = anatomy.half_depth_mm + 26 + 0.3 * anatomy.muscle_mm + 0.5 * anatomy.fat_mm
    top = -back * anatomy.scale[1] - 3 + 0.00055 * x * x
    below = top - y  # mm under the surface
    inside = coverage(np.maximum(np.maximum(-below, below - 30), np.abs(x) - 205), soft_mm)
    blend(hu, -930.0, np.broadcast_to(inside, hu.shape))
    shell = np.minimum(np.abs(below), np.abs(below - 30)) - 1.2
    blend(hu, -180.0, np.broadcast_to(coverage(shell, soft_mm) * inside, hu.shape))


def _wall(
    hu: Field, patient: Patient, where: Positions, body: Field, clouds: Field, grain: Field, soft_mm: float
) -> None:
    """Skin, fat and the muscles with their planes of fat."""
    shapes = patient.shapes
    muscle = shapes.lattice.sample(shapes.muscle, where)
    cage = shapes.lattice.sample(shapes.cage, where)
    blend(hu, 20.0, coverage(body, soft_mm))
    blend(hu, -104 + 9 * grain + 5 * clouds, coverage(body + 2.2, soft_mm))
    layer = np.abs((muscle + 4.5 * clouds + 8) % 17 - 8.5)  # sheets of fat between layers of muscle
    planes = np.exp(-((layer / max(1.1, 0.6 * soft_mm)) ** 2)) * smoothstep(cage, 8, 16) * smoothstep(clouds, -0.9, 0.5)
    flesh = 52 + 7 * grain - 125 * min(1.0, 1.5 / soft_mm) * planes
    blend(hu, flesh, coverage(muscle + 1.5 * clouds, soft_mm))
    blend(hu, -96 + 9 * grain, coverage(cage + 2.5, soft_mm))


def _organs(hu: Field, patient: Patient, where: Positions, clouds: Field, soft_mm: float) -> None:
    """Heart, great vessels, and what lies under the diaphragm."""
    shapes = patient.shapes
    sample = shapes.lattice.sample
    abdomen = sample(shapes.abdomen, where)
    if (abdomen < 3).any():
        blend(hu, 45.0, coverage(np.abs(abdomen + 1.5) - 1.5, soft_mm))
        blend(hu, -98 + 8 * clouds, coverage(abdomen + 3, soft_mm))
        blend(hu, 50 + 3 * clouds, coverage(sample(shapes.spleen, where), soft_mm))
        stomach = coverage(sample(shapes.stomach, where) + 2 * clouds, soft_mm)
        y = where.open_grid()[1]
        blend(hu, np.where(y > 44 * patient.anatomy.scale[1], np.float32(-960), np.float32(28)), stomach)
        blend(hu, 58 + 3 * clouds, coverage(sample(shapes.liver, where), soft_mm))
    heart = sample(shapes.heart, where)
    if (heart < 3).any():
        blend(hu, 44 + 3 * clouds, coverage(heart + 2.5, soft_mm))
        grooves = np.exp(-((clouds / 0.1) ** 2)) * smoothstep(heart, -16, -4)
        blend(hu, -60.0, 0.5 * grooves * coverage(heart + 2.5, soft_mm))
    _paint(hu, 42.0, where, patient.great_vessels, soft_mm)


def _paint(hu: Field, value: float, where: Positions, tubes: Tubes, soft_mm: float) -> None:
    share = np.zeros(where.shape, np.float32)
    paint(share, where, tubes, soft_mm)
    blend(hu, value, share)


def _skeleton(hu: Field, patient: Patient, where: Positions, soft_mm: float) -> None:
    """Bones with a compact shell and spongy inside."""
    _paint(hu, 110.0, where, patient.cartilage, soft_mm)
    for tubes, shell_mm, compact, spongy in (
        (patient.ribs, 1.5, 560.0, 210.0),
        (patient.sternum, 1.6, 420.0, 150.0),
        (patient.shoulders, 1.5, 600.0, 220.0),
    ):
        _paint(hu, compact, where, tubes, soft_mm)
        _paint(hu, spongy, where, tubes.where(tubes.radius_mm > shell_mm + 0.4).grown(-shell_mm), soft_mm)
    _spine(hu, patient, where, soft_mm)


def _spine(hu: Field, patient: Patient, where: Positions, soft_mm: float) -> None:
    """Vertebral bodies and discs, the arch around the canal, and the processes."""
    sx, sy, sz = patient.anatomy.scale
    rows = np.flatnonzero((where.y_mm > (SPINE_Y_MM - 62) * sy) & (where.y_mm < (SPINE_Y_MM + 22) * sy))
    columns = np.flatnonzero(np.abs(where.x_mm) < 48 * sx)
    if len(rows) == 0 or len(columns) == 0:
        return
    part = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    box = Positions(where.x_mm[part[2]], where.y_mm[part[1]], where.z_mm)
    z, y, x = box.open_grid()
    x, y, z = x / sx, y / sy, z / sz
    heights = np.asarray(vertebra_heights(patient.anatomy), np.float32)
    from_middle = np.abs(z - heights[0] + 12.5) % 25 - 12.5
    waist = 1 - 0.10 * np.cos(from_middle / 12.5 * np.pi)
    across = np.sqrt((x / (19 * waist)) ** 2 + ((y - SPINE_Y_MM) / (15.5 * waist)) ** 2)
    body = (across - 1) * 15.5
    disc = smoothstep(np.abs(from_middle), 9.2, 10.6)
    view = hu[part]
    radius = np.sqrt(x * x + (y - (SPINE_Y_MM - 24)) ** 2)
    arch = np.maximum(np.abs(radius - 11) - 2.2, y - (SPINE_Y_MM - 15)) + 6 * smoothstep(np.abs(from_middle), 8, 11)
    blend(view, 480.0, coverage(arch, soft_mm))
    _paint(view, 430.0, box, patient.processes, soft_mm)
    _paint(view, 190.0, box, patient.processes.where(patient.processes.radius_mm > 2).grown(-1.5), soft_mm)
    blend(view, 25.0, coverage(radius - 8.6 + 0 * z, soft_mm))
    blend(view, 520 - 430 * disc, coverage(body, soft_mm))
    blend(view, 185 - 100 * disc, coverage(body + 1.7, soft_mm))


def _lung_tissue(
    patient: Patient, where: Positions, depth: Field, dense: Field, clouds: Field, grain: Field, soft_mm: float
) -> Field:
    """Parenchyma: denser towards the back, a fissure, ground glass and consolidation; vessels come later."""
    z, y, x = where.open_grid()
    sx, sy, sz = patient.anatomy.scale
    hu = patient.lung_hu - np.float32(patient.dependent_hu / 110) * y + 12 * clouds + 13 * grain
    fissure = (z / sz + 16 + 1.05 * y / sy + 1.5 * clouds + 0.0016 * (x / sx) ** 2 - 6) / 1.45
    hu += 150 * min(1.0, 1.6 / soft_mm) * np.exp(-((fissure / max(0.8, 0.45 * soft_mm)) ** 2))
    if (depth > -2).any():
        lesions = patient.lesions
        grade = lesions.lattice.sample(lesions.grade, where)
        mesh = lesions.fine.sample(lesions.meshwork, where, smooth=True)
        opacity = smoothstep(depth, -1.5, 5.0)
        faint, full = patient.ground_glass_hu
        rise = (faint - patient.lung_hu) + (full - faint) * grade + 22 * clouds
        rise += np.float32(patient.meshwork_hu) * (np.exp(-((mesh / 0.25) ** 2)) - 0.3)
        hu += opacity * np.maximum(rise, 40)
        blend(hu, 22 + 10 * clouds, smoothstep(dense, -1.2, 2.2))
    return hu
