"""Faults of an infiltrate mask: what lies where no infiltrate can be, and islands that nobody meant to draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pneumoscope import components
from pneumoscope.datasets.audit.anatomy import FLIPS, Anatomy, best_flip, flip_words, mirrored
from pneumoscope.datasets.audit.rules import AuditFinding, AuditRules, Severity, spotted
from pneumoscope.volume import Volume

THIN_SLICE_MM = 10.0

GUESS_SHARE = 0.02
"""A slice shows lung by guess when it has this share of the largest slice's: gut at the rim of a slice is less."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What an infiltrate mask is judged against."""

    volume: Volume  # the scan
    lung: NDArray[np.bool_] | None  # (i, j, k) lung of mask or model, or None
    anatomy: Anatomy | None  # density of the scan, None where values are no Hounsfield units
    sized: bool = True  # whether millimetres are real
    stacked: bool = True  # whether neighbouring slices are neighbours in the body, a slice distance apart

    @property
    def guess(self) -> NDArray[np.bool_] | None:
        """Lung by density alone on the thinned grid, for want of a mask; None where there is one, or no density."""
        return None if self.lung is not None or self.anatomy is None else self.anatomy.lung


def infiltrate_fit(case: str, drawn: NDArray[np.bool_], scene: Scene, rules: AuditRules) -> list[AuditFinding]:
    """Whether the mask as a whole belongs on this scan: at most one finding, after which its pieces are not judged.

    By density the mask is held against lung that is denser than the patient's typical lung; without Hounsfield units
    against the lung mask alone.
    """
    if scene.anatomy is not None:
        anatomy = scene.anatomy
        lung = anatomy.lung if scene.lung is None else anatomy.thin(scene.lung) | anatomy.lung
        middle = float(np.median(anatomy.hu[anatomy.aerated])) if anatomy.aerated.any() else anatomy.typical_hu
        target, thin = lung & (anatomy.hu > middle + 100), anatomy.thin(drawn)
        chance = float(np.count_nonzero(target)) / max(1, int(np.count_nonzero(lung)))
        needed, gain, words = rules.infiltrate_fit, rules.infiltrate_gain, "on dense lung"
    elif scene.lung is not None:
        target, thin, chance = scene.lung, drawn, 0.0
        needed, gain, words = 0.9, 2.0, "inside the lung mask"
    else:
        return []
    if np.count_nonzero(thin) < rules.infiltrate_voxels:
        return []
    score = {flip: float(target[mirrored(thin, flip)].mean()) for flip in FLIPS}
    own, best = score[FLIPS[0]], best_flip(score)
    if score[best] >= max(needed, gain * own) and score[best] >= own + 0.15:
        detail = f"mirrored {flip_words(best)}, {score[best]:.0%} of the infiltrate lies {words}, as it is {own:.0%}"
        return [AuditFinding(case, "mirrored-mask", "error", detail, confidence=score[best] - own, mask="infiltrate")]
    if scene.anatomy is not None and own < rules.infiltrate_chance * chance and own < needed:
        detail = f"{own:.0%} of the infiltrate lies {words}, by chance it would be {chance:.0%}"
        return [AuditFinding(case, "foreign-mask", "warning", detail, confidence=1 - own, mask="infiltrate")]
    return []


def infiltrate_pieces(case: str, drawn: NDArray[np.bool_], scene: Scene, rules: AuditRules) -> Iterator[AuditFinding]:
    """Faults of the mask's connected components (26 neighbours); every voxel is part of one finding at most.

    Tried in this order: on a slice without lung, speck, in air, in bone, away from the lung, on one slice only. An
    empty mask gives nothing.
    """
    if not drawn.any():
        return
    box = ndimage.find_objects(drawn.view(np.uint8))[0]
    start = np.array([side.start for side in box])
    part = drawn[box].copy()
    lungless = _lungless(scene, part.shape[2], int(start[2]))
    far = _distance(scene)
    bare = part & lungless[None, None, :]
    touching = part & ~lungless[None, None, :]
    for piece in components.each(bare):
        yield _without_lung(case, piece, start, touching, scene)
    part = touching
    numbered, sizes = components.label(part)
    reach = _reach(sizes, numbered, scene, rules)
    crumbs: list[NDArray[np.integer]] = []
    for label, region in enumerate(ndimage.find_objects(numbered), start=1):
        if region is None:
            continue
        where = np.argwhere(numbered[region] == label) + [axis.start for axis in region]
        found, crumb = _judge(case, where, start, scene, rules, far, reach)
        if crumb:
            crumbs.append(where + start)
        yield from found
    if crumbs:
        where = np.concatenate(crumbs)
        detail = f"{len(crumbs)} islands of up to {rules.speck_voxels} voxels beside larger infiltrate"
        yield spotted(case, "crumbs", "note", detail, where, scene.volume.grid, sized=scene.sized)


def _judge(
    case: str,
    where: NDArray[np.integer],
    start: NDArray[np.integer],
    scene: Scene,
    rules: AuditRules,
    far: NDArray[np.float32] | None,
    reach: NDArray[np.bool_] | None,
) -> tuple[list[AuditFinding], bool]:
    """Findings of one piece (indices within the box that begins at `start`), and whether it is a crumb."""
    index, grid = where + start, scene.volume.grid
    voxel_ml = grid.voxel_volume_ml
    away = _away(index, scene, far)
    pixel_mm = 1.01 * max(grid.spacing_mm[:2]) if scene.sized else 1.01
    off = away > (rules.outside_guess_mm if scene.lung is None else max(rules.outside_mm, pixel_mm))
    if len(index) <= rules.speck_voxels:
        small = not scene.sized or len(index) * voxel_ml <= rules.speck_ml
        lost = bool(off.mean() >= 0.5)
        if lost or (small and (reach is None or not reach[tuple(where.T)].any())):
            words = "away from the lung" if lost else "away from other infiltrate"
            detail = f"an island of {len(index)} voxels {words}{_distance_words(away, scene)}"
            return [spotted(case, "speck", "warning", detail, index, grid, sized=scene.sized)], False
        if small:
            return [], True
    dense = _by_density(case, index, scene, rules)
    if dense:
        return [dense], False
    if off.any():
        return list(_outside(case, index[off], away[off], scene, rules)), False
    flat = _flat(case, index, scene, rules)
    return ([flat] if flat else []), False


def _outside(
    case: str, index: NDArray[np.integer], away: NDArray[np.floating], scene: Scene, rules: AuditRules
) -> Iterator[AuditFinding]:
    """The part of a piece that lies away from the lung, one finding per connected part: air, bone or other."""
    grid = scene.volume.grid
    low = index.min(axis=0)
    shape = tuple(index.max(axis=0) - low + 1)
    block, depth = np.zeros(shape, bool), np.zeros(shape, np.float32)
    block[tuple((index - low).T)], depth[tuple((index - low).T)] = True, away
    for where in _gathered(list(components.each(block)), rules.speck_voxels):
        dense = _by_density(case, where + low, scene, rules)
        if dense and len(where) > rules.speck_voxels:
            yield dense
            continue
        furthest = float(depth[tuple(where.T)].max())
        ml = len(where) * grid.voxel_volume_ml
        sure = (
            scene.lung is not None and furthest > rules.outside_error_mm and (not scene.sized or ml >= rules.outside_ml)
        )
        severity: Severity = "error" if sure else "warning"
        lung = "the lung" if scene.lung is not None else "any aerated lung"
        size = f"{ml:.2f} ml" if scene.sized else f"{len(where)} pixels"
        detail = f"{size} up to {furthest:.0f} {'mm' if scene.sized else 'pixels'} away from {lung}"
        yield spotted(case, "outside-lung", severity, detail, where + low, grid, sized=scene.sized)


def _gathered(parts: list[NDArray[np.integer]], small: int) -> list[NDArray[np.integer]]:
    """The parts, those of a few voxels joined to the largest: a ragged edge is one finding."""
    parts.sort(key=len, reverse=True)
    large = [part for n, part in enumerate(parts) if n == 0 or len(part) > small]
    return [np.concatenate([large[0], *parts[len(large) :]]), *large[1:]]


def _by_density(case: str, index: NDArray[np.integer], scene: Scene, rules: AuditRules) -> AuditFinding | None:
    """Voxels of which half are plain air, or bone."""
    if scene.anatomy is None:
        return None
    middle = float(np.median(scene.volume.hu[tuple(index.T)]))
    air = scene.anatomy.air_hu + rules.air_share * max(60.0, scene.anatomy.typical_hu - scene.anatomy.air_hu)
    if air < middle < rules.bone_hu:
        return None
    kind = "in-air" if middle <= air else "in-bone"
    detail = f"half of the {len(index)} voxels read {middle:.0f} HU or {'less' if middle <= air else 'more'}"
    return spotted(case, kind, "error", detail, index, scene.volume.grid, sized=scene.sized)


def _without_lung(
    case: str, where: NDArray[np.integer], start: NDArray[np.integer], rest: NDArray[np.bool_], scene: Scene
) -> AuditFinding:
    """Infiltrate on slices without lung; only a warning where it goes on from infiltrate on a slice with lung."""
    ends = {int(where[:, 2].min()) - 1, int(where[:, 2].max()) + 1}
    goes_on = any(
        0 <= k < rest.shape[2]
        and rest[:, :, k][tuple(slice(max(0, int(a) - 1), int(b) + 2) for a, b in zip(
            where[:, :2].min(axis=0), where[:, :2].max(axis=0), strict=True))].any()
        for k in ends
    )  # fmt: skip
    slices = sorted({int(k) + int(start[2]) for k in where[:, 2]})
    shown = f"slice {slices[0]}" if len(slices) == 1 else f"slices {slices[0]} to {slices[-1]}"
    detail = f"{len(where)} voxels on {shown}, which show{'s' if len(slices) == 1 else ''} no lung"
    detail += "; it continues a lesion of the next slice" if goes_on else ""
    index = where + start
    severity: Severity = "warning" if goes_on or scene.lung is None else "error"
    return spotted(case, "no-lung-slice", severity, detail, index, scene.volume.grid, sized=scene.sized)


def _flat(case: str, index: NDArray[np.integer], scene: Scene, rules: AuditRules) -> AuditFinding | None:
    """A region on one slice that is wide against the slice distance; None where slices are no stack."""
    if not (scene.stacked and scene.sized) or scene.volume.grid.shape[2] < 3 or len(set(index[:, 2].tolist())) > 1:
        return None
    x_mm, y_mm, z_mm = scene.volume.spacing_mm
    wide = float(2 * np.sqrt(len(index) * x_mm * y_mm / np.pi))
    if wide < rules.one_slice_steps * z_mm or len(index) <= rules.speck_voxels:
        return None
    detail = f"a region about {wide:.0f} mm wide on one slice of {z_mm:.1f} mm, with nothing above and below"
    return spotted(case, "single-slice", "warning", detail, index, scene.volume.grid, sized=scene.sized)


def _lungless(scene: Scene, count: int, first: int) -> NDArray[np.bool_]:
    """Slices of the box that show no lung; none where lung is not known at all."""
    lung = scene.lung if scene.lung is not None else scene.guess
    if lung is None or not lung.any():
        return np.zeros(count, bool)
    area = np.count_nonzero(lung, axis=(0, 1))
    least = 1 if scene.lung is not None else max(1, GUESS_SHARE * area.max())
    return np.asarray(area < least)[first : first + count]


def _distance(scene: Scene) -> NDArray[np.float32] | None:
    """Millimetres (pixels where those are unknown) to the lung on a thinned grid; None where no lung is known.

    Slices up to `THIN_SLICE_MM` apart also take the lung of their neighbours: where it ends between two slices is
    nobody's fault.
    """
    lung = scene.lung if scene.lung is not None else scene.guess
    if lung is None or not lung.any():
        return None
    x_mm, y_mm, z_mm = scene.volume.spacing_mm if scene.sized else (1.0, 1.0, 1.0)
    i, j = _steps(scene)
    thin = lung if scene.lung is None else lung[i // 2 :: i, j // 2 :: j]
    longer = thin.copy()
    if scene.stacked:
        if z_mm <= THIN_SLICE_MM or scene.lung is None:
            longer[:, :, 1:] |= thin[:, :, :-1]
            longer[:, :, :-1] |= thin[:, :, 1:]
        return np.asarray(ndimage.distance_transform_edt(~longer, (x_mm * i, y_mm * j, z_mm)), np.float32)
    flat = [ndimage.distance_transform_edt(~longer[:, :, k], (x_mm * i, y_mm * j)) for k in range(longer.shape[2])]
    return np.stack(flat, axis=2).astype(np.float32)


def _steps(scene: Scene) -> tuple[int, int]:
    return scene.anatomy.steps[:2] if scene.anatomy is not None else (1, 1)


def _away(index: NDArray[np.integer], scene: Scene, far: NDArray[np.float32] | None) -> NDArray[np.floating]:
    """Distance of each voxel from the lung, less the width of a thinned voxel; 0 inside and where lung is unknown."""
    if far is None:
        return np.zeros(len(index), np.float32)
    i, j = _steps(scene)
    thinned = np.minimum(index // (i, j, 1), np.asarray(far.shape) - 1)
    away = far[tuple(thinned.T)]
    if scene.lung is not None:
        away = np.where(scene.lung[tuple(index.T)], np.float32(0), away)
    x_mm, y_mm, _ = scene.volume.spacing_mm if scene.sized else (1.0, 1.0, 1.0)
    blur = np.float32(max(x_mm * (i - 1), y_mm * (j - 1)))
    return np.maximum(away - blur, 0)


def _distance_words(away: NDArray[np.floating], scene: Scene) -> str:
    furthest = float(away.max())
    return f", {furthest:.0f} {'mm' if scene.sized else 'pixels'} outside it" if furthest > 0 else ""


def _reach(
    sizes: NDArray[np.integer], numbered: NDArray[np.integer], scene: Scene, rules: AuditRules
) -> NDArray[np.bool_] | None:
    """Places within `crumb_mm` of infiltrate that is larger than a speck; None when there are no specks."""
    large: NDArray[np.bool_] = np.asarray(sizes > rules.speck_voxels)
    large[0] = False
    if not np.any(sizes[1:] <= rules.speck_voxels):
        return None
    spacing = scene.volume.spacing_mm if scene.sized else (1.0, 1.0, 1.0)
    reach = [max(1, round(rules.crumb_mm / step)) for step in spacing]
    grown: NDArray[np.bool_] = np.asarray(large[numbered])
    for axis, steps in enumerate(reach):
        grown = ndimage.maximum_filter1d(grown.view(np.uint8), 2 * steps + 1, axis=axis, mode="constant").view(bool)
    return np.asarray(grown)
