"""One synthetic patient: everything about the body that does not depend on how it is scanned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pneumoscope.datasets.phantom import anatomy as bones
from pneumoscope.datasets.phantom.anatomy import LATTICE_MM, Anatomy, Shapes, build_shapes, draw_anatomy
from pneumoscope.datasets.phantom.lesions import LesionPlan, Lesions, place_lesions
from pneumoscope.datasets.phantom.shapes import Field, Lattice, Tubes, grow_tree, joined
from pneumoscope.datasets.phantom.sites import PhantomSite

THINNEST_MM = 0.5
"""Radius of the last branches of a tree of 700; a tree of fewer has thicker ones, so that trunks stay the same."""


@dataclass(frozen=True, eq=False)
class Texture:
    """Irregularity of tissues: noise on lattices of two sizes, (z, y, x) each."""

    coarse: Lattice
    clouds: Field
    fine: Lattice
    grain: Field


@dataclass(frozen=True, eq=False)
class Patient:
    """A body, ready to be scanned.

    Attributes:
        anatomy, shapes, lesions, texture: see their classes.
        vessels: lung arteries and veins, thick to thin.
        bronchi: small airways beside the arteries, the air in them.
        airways, great_vessels, ribs, cartilage, sternum, shoulders, processes: see `phantom_bones`, scaled.
        ground_glass_hu: faintest and densest ground glass of this patient.
        lung_hu, dependent_hu: healthy parenchyma in the middle, and how much denser the back is than the front.
        meshwork_hu: how much the pattern inside ground glass stands out.
    """

    anatomy: Anatomy
    shapes: Shapes
    lesions: Lesions
    texture: Texture
    vessels: Tubes
    bronchi: Tubes
    airways: Tubes
    great_vessels: Tubes
    ribs: Tubes
    cartilage: Tubes
    sternum: Tubes
    shoulders: Tubes
    processes: Tubes
    ground_glass_hu: tuple[float, float]
    lung_hu: float
    dependent_hu: float
    meshwork_hu: float


def draw_patient(
    site: PhantomSite, rng: np.random.Generator, *, step_mm: float = LATTICE_MM, branches: int = 700
) -> Patient:
    """A patient of a site. The same generator state gives the same body; `step_mm` is only how finely it is kept.

    `branches` counts the branching points of each of the four vessel trees.
    """
    of_body, of_lesions, of_noise, of_vessels, of_values = rng.spawn(5)
    anatomy = draw_anatomy(of_body)
    shapes = build_shapes(anatomy, step_mm)
    plan = _plan(site, of_values)
    faintest, densest = site.patients.ground_glass_hu
    shift = of_values.uniform(-0.12, 0.12) * (densest - faintest)
    rib, cartilage = bones.ribs(anatomy)
    vessels, bronchi = _vessels(shapes, anatomy, of_vessels, branches)
    scale = anatomy.scale
    return Patient(
        anatomy,
        shapes,
        place_lesions(anatomy, shapes, plan, of_lesions, of_noise.spawn(1)[0]),
        _texture(shapes, of_noise),
        vessels,
        bronchi,
        bones.airways().scaled(scale),
        bones.great_vessels().scaled(scale),
        rib.scaled(scale),
        cartilage.scaled(scale),
        bones.sternum(anatomy).scaled(scale),
        bones.shoulder_bones(anatomy).scaled(scale),
        bones.vertebral_processes(anatomy).scaled(scale),
        ground_glass_hu=(faintest + shift, densest + shift),
        lung_hu=site.patients.lung_hu + of_values.uniform(-18, 18),
        dependent_hu=site.patients.dependent_hu * of_values.uniform(0.6, 1.4),
        meshwork_hu=float(of_values.uniform(0, 110)),
    )


def _plan(site: PhantomSite, rng: np.random.Generator) -> LesionPlan:
    kind = site.patients
    share = kind.severe_share if rng.random() < kind.severe else kind.mild_share
    return LesionPlan(
        share=float(np.exp(rng.uniform(np.log(share[0]), np.log(share[1])))),
        height=float(rng.uniform(*kind.height)),
        radius_mm=kind.radius_mm,
        consolidation=kind.consolidation,
        dorsal=float(rng.uniform(0.4, 2.5)),
    )


def _texture(shapes: Shapes, rng: np.random.Generator) -> Texture:
    low = (-220.0, -170.0, -240.0)
    coarse = Lattice(low, 11.0, (38, 32, 44))
    fine = Lattice(low, 4.0, (104, 86, 121))
    return Texture(coarse, coarse.noise(rng), fine, fine.noise(rng))


def _vessels(shapes: Shapes, anatomy: Anatomy, rng: np.random.Generator, branches: int) -> tuple[Tubes, Tubes]:
    """Arteries and veins of both lungs, and bronchi beside the thicker arteries."""
    x = shapes.lattice.positions().open_grid()[2]
    thinnest = THINNEST_MM * (700 / branches) ** (1 / 2.7)
    trees, bronchi = [], []
    for side, hilum in bones.HILA_MM.items():
        lung = np.where(x * side > 0, shapes.lungs, np.float32(50))
        for vein in (False, True):
            root = np.array(hilum[::-1]) * anatomy.scale[::-1] + (np.array([-14.0, 6.0, 0.0]) if vein else 0.0)
            tree = grow_tree(root, lung, shapes.lattice, rng, tips=branches, thinnest_mm=thinnest)
            tree = replace(tree, radius_mm=np.minimum(tree.radius_mm, 5.5))
            trees.append(tree)
            if not vein:
                bronchi.append(_beside(tree.where(tree.radius_mm > 1.15)))
    return joined(trees), joined(bronchi)


def _beside(arteries: Tubes) -> Tubes:
    """Airways that run along arteries, shifted by about the two radii, a little narrower."""
    shift = np.zeros_like(arteries.start)
    shift[:, 1] = 0.8 * (2 * arteries.radius_mm + 0.8)
    shift[:, 0] = 0.5 * (2 * arteries.radius_mm + 0.8)
    return Tubes(arteries.start + shift, arteries.end + shift, 0.8 * arteries.radius_mm)
