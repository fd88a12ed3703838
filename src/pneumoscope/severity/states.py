"""What a reader must know before believing the numbers: named states, and when a scan is outside the intended use.

The intended use is an adult's chest CT in Hounsfield units with both lungs in it. Limits are our choice, wide on
purpose: they catch a wrong kind of input, not unusual patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pneumoscope import components

if TYPE_CHECKING:
    from pneumoscope.severity.tally import LungPart


OUTSIDE_TOLERANCE = 0.05  # More than this part of the infiltrate outside the lungs is reported as a state
THICKEST_SLICE_MM = 10.0  # Slices further apart leave out lesions of usual size; the public sets we read go up to 10 mm

LUNG_VOLUME_ML = (700.0, 10_000.0)
"""Both lungs of an adult together. Below: expiration of a small adult, or a child; above: not lungs alone."""

LUNG_HU = (-980.0, -400.0)
"""Mean density of lung without its infiltrate. Beyond: values are hardly Hounsfield units, or it is not lung."""

UNEQUAL = 3.0  # One lung larger than the other by more than this factor
DENSE_PERCENT = 30.0  # More than this part of one lung in the density class of consolidation is a state

THIN_HU, THIN_PERCENT = -930.0, 15.0
"""More than this part of the lung with a lower mean over 9 mm is a state. Noise and single voxels of air, which raise
the share below -950 HU of radiologists (LAA-950), do not pass such a mean; healthy lungs have up to 5 %."""

STATES: Mapping[str, str] = {
    "no_lung_found": "No lung was found. There are no shares; volumes of infiltrate count only what lies outside.",
    "one_lung_only": "Only one lung was found. Shares refer to that lung.",
    "lungs_not_sided": "The lung mask does not separate right from left. Only totals are given.",
    "sides_exchanged": "Right and left lung of the mask lie on each other's side of the body. Every figure per "
    "side and zone is exchanged; exchange the two labels of the mask.",
    "lung_left_out": "The lung network is sure of more lung than the mask holds; rules of density and shape left it "
    "out. Volumes and shares may miss it.",
    "pleural_fluid": "The lung network sees fluid in the pleural space (effusion, or after pneumonectomy). It "
    "is no lung and in no share; a lung that is white as a whole may look like it.",
    "pleural_air": "The lung network sees air in the pleural space (pneumothorax). It is no lung and in no share.",
    "lung_dense": f"More than {DENSE_PERCENT:.0f} % of a lung is as dense as soft tissue. Consolidation, collapse and "
    "tumour do this; where lung and what lies beside it are alike, the border is the network's.",
    "lung_thin": f"More than {THIN_PERCENT:.0f} % of the lung is below {THIN_HU:.0f} HU, as in emphysema or "
    "in a large bulla.",
    "lung_incomplete": "The lungs reach the edge of the scan and may be cut off. Volumes and shares "
    "refer to the part that was scanned.",
    "no_infiltrate_found": "No infiltrate was found in this scan.",
    "infiltrate_outside_lungs": f"More than {OUTSIDE_TOLERANCE:.0%} of the infiltrate lies outside the lung mask and "
    "is in no share. The lung mask may leave out dense lung, or the infiltrate mask may be wrong.",
    "lungs_unequal": f"One lung is more than {UNEQUAL:.0f} times as large as the other. A collapsed or removed lung or "
    "an effusion does this; so does a lung mask that missed one lung.",
    "lobes_incomplete": "The lobe mask does not hold all five lobes, so there is no total score.",
    "lobes_exchanged": "Right and left, or upper and lower lobes of the lobe mask lie where the others should. The "
    "scores are of the wrong lobes; name the labels of the mask.",
    "slices_too_thick": f"Outside the intended use: slices lie more than {THICKEST_SLICE_MM:.0f} mm apart. "
    "Lesions between them are not seen, and volumes are rough.",
    "lung_volume_implausible": "Outside the intended use: both lungs together are smaller than "
    f"{LUNG_VOLUME_ML[0]:.0f} ml or larger than {LUNG_VOLUME_ML[1]:.0f} ml. This may be a child, a part of a chest, or "
    "no chest at all.",
    "density_implausible": "Outside the intended use: lung without infiltrate has a mean density outside "
    f"{LUNG_HU[0]:.0f} to {LUNG_HU[1]:.0f} HU. The values may not be Hounsfield units, or the mask is not of lung.",
    "metal_or_undiluted_contrast": "More than 1 ml of the chest is denser than 2500 HU: metal, or contrast medium not "
    "yet diluted. Streaks beside it can look like infiltrate or hide it.",
    "sternal_wires": "Pieces of metal lie one above the other in the sternum, as after open-heart surgery. Effusion, "
    "collapse and scars are frequent then and can be marked as infiltrate.",
    "breathing_motion": "From the base upwards the lungs get narrower again, as when the patient breathed or moved "
    "during the scan; a lung mask with gaps does this as well. Blurred lung can look like ground-glass.",
    "contrast_medium": "The blood is dense: contrast medium was given. Vessels and well perfused lung are denser than "
    "without it, and small vessels can be marked as infiltrate.",
    "lung_dense_throughout": "Lung without infiltrate is denser than in a held deep breath: expiration, free breathing "
    "or a diffuse disease. Faint ground-glass cannot be distinguished from it; the share may be too large or too "
    "small.",
    "infiltrate_diffuse": "More than half of the lung is marked. Oedema, haemorrhage, ARDS and fibrosis look like "
    "this as well; the share says nothing about the cause.",
    "mass_in_lung": "A solid mass borders on aerated lung, which is unlike pneumonia. It may be counted as "
    "infiltrate or left out; the model does not distinguish a tumour from consolidation.",
    "solid_region": "A region of the lung more than 3 cm thick holds no air. Consolidation, collapse and tumour look "
    "alike to the model; the share does not say which it is.",
    "unlike_training_scans": "The slices look unlike the chest CTs that the infiltrate model was trained on. Its "
    "numbers were not tested on such scans.",
}
"""What each state means, in a sentence for reports."""


def use_states(slice_mm: float, total: LungPart, right: LungPart | None, left: LungPart | None) -> list[str]:
    """States of a scan that should not have come, and of lungs that are suspiciously unequal; None is no side known."""
    found = []
    if right is not None and left is not None and min(right.lung_ml, left.lung_ml) > 0:
        larger = max(right.lung_ml, left.lung_ml) / min(right.lung_ml, left.lung_ml)
        found += ["lungs_unequal"] if larger > UNEQUAL else []
    if slice_mm > THICKEST_SLICE_MM + 0.01:
        found.append("slices_too_thick")
    if total.share_percent is not None and not LUNG_VOLUME_ML[0] <= total.lung_ml <= LUNG_VOLUME_ML[1]:
        found.append("lung_volume_implausible")
    if total.lung_mean_hu is not None and total.lung_ml > total.infiltrate_ml:
        spot = total.infiltrate_ml * (total.infiltrate_mean_hu or 0.0)
        healthy_hu = (total.lung_ml * total.lung_mean_hu - spot) / (total.lung_ml - total.infiltrate_ml)
        found += [] if LUNG_HU[0] <= healthy_hu <= LUNG_HU[1] else ["density_implausible"]
    return found


STEP_MM = 3.0

METAL_HU, METAL_ML = 2500.0, 1.0  # Denser than any bone; fewer millilitres are clips and calcium

WIRES, WIRES_MM, WIRE_HU, MIDLINE_MM, APART_MM = 3, 50.0, 2000.0, 25.0, 8.0
"""Pieces of metal at so many heights, apart by at least so much, over such a height and near the midline; contrast
medium in a vein is one piece, a port or a tooth lies at one height, and around an infusion line on the skin is air."""

REVERSAL_PERCENT, BREATH_MM, DIP_MM = 4.0, 6.0, 25.0
"""By more than this part of its largest the lungs' cross-section dips on the way up from the base to where it is
largest, in dips of up to ``DIP_MM``: a large heart makes a wider one. Seven whole scans and a synthetic one at rest
have up to 2.9; moved up and down by 6 mm every 20 mm of table those with slices of up to 3 mm have 10 to 28. Slices
further apart than ``BREATH_MM`` do not show a breath."""

CONTRAST_HU = 100.0  # Blood without contrast medium has 30 to 60 HU
DENSE_LUNG_HU = -720.0  # Median of lung without its infiltrate; -850 to -880 in full inspiration

DIFFUSE_PERCENT = 50.0

MASS_RADIUS_MM, SOLID_HU, AERATED_HU, AERATED_RIM = 10.0, -150.0, -650.0, 0.6
"""A ball of at least this radius of solid tissue, most of whose surroundings in the lung are aerated."""

MASS_ML = 200.0  # What is larger is rather a lobe without air than a mass (a ball of 73 mm)
TISSUE_HU = 150.0  # Denser is counted as this, so that metal and bone do not make solid what lies beside them
REGION_RADIUS_MM = 15.0  # A solid ball of this radius is a state whatever lies around it


def applicability_states(
    hu: NDArray[np.float32], lung: NDArray[np.bool_], infiltrate: NDArray[np.bool_], spacing_mm: tuple[float, ...]
) -> list[str]:
    """Signs found in the box of the lungs, arrays (i, j, k), RAS+; none without lung."""
    from scipy import ndimage

    if not lung.any():
        return []
    found = []
    if np.count_nonzero(hu >= METAL_HU) * float(np.prod(spacing_mm)) / 1000 >= METAL_ML:
        found.append("metal_or_undiluted_contrast")
    if spacing_mm[2] <= BREATH_MM and dips_upwards(lung, spacing_mm[2]) > REVERSAL_PERCENT:
        found.append("breathing_motion")
    steps = [max(1, round(STEP_MM / spacing)) for spacing in spacing_mm]
    thin = tuple(slice(step // 2, None, step) for step in steps)
    coarse_mm = tuple(step * spacing for step, spacing in zip(steps, spacing_mm, strict=True))
    hu, lung, infiltrate = np.clip(hu[thin], -1024, 3071), lung[thin], infiltrate[thin]
    if not lung.any():
        return found
    smooth = ndimage.uniform_filter(hu, 3)
    blood = blood_hu(smooth, lung, coarse_mm)
    if blood is not None and blood >= CONTRAST_HU:
        found.append("contrast_medium")
    healthy = lung & ~infiltrate
    if healthy.any() and np.median(hu[healthy]) > DENSE_LUNG_HU:
        found.append("lung_dense_throughout")
    if 100 * np.mean(smooth[lung] < THIN_HU) > THIN_PERCENT:
        found.append("lung_thin")
    if 100 * np.mean(infiltrate[lung]) > DIFFUSE_PERCENT:
        found.append("infiltrate_diffuse")
    return found + solid_states(ndimage.uniform_filter(np.minimum(hu, TISSUE_HU), 3), lung, coarse_mm)


def dips_upwards(lung: NDArray[np.bool_], slice_mm: float) -> float:
    """Depths of all narrow dips of the lungs' cross-section (i, j, k) below its largest slice, in percent of that."""
    from scipy import ndimage

    area = lung.sum(axis=(0, 1), dtype=np.int64)
    area = area[: len(area) - int(area[::-1].argmax())]
    width = max(3, round(DIP_MM / slice_mm))
    edged = np.pad(area, width, mode="edge")
    depth = (ndimage.grey_closing(edged, width) - edged)[width : width + len(area)]
    deeper = np.diff(depth)
    return float(100 * deeper[deeper > 0].sum() / area.max())


def has_sternal_wires(hu: NDArray[np.float32], box: tuple[slice, ...], spacing_mm: tuple[float, ...]) -> bool:
    """Whether metal lies one above the other, in tissue, in front of the middle of the lungs' box (i, j, k)."""
    across, deep, high = box
    half, ahead = round(MIDLINE_MM / spacing_mm[0]), round(40 / spacing_mm[1])
    middle = (across.start + across.stop) // 2
    front = slice(deep.start + round(0.7 * (deep.stop - deep.start)), deep.stop + ahead)
    part = hu[max(0, middle - half) : middle + half, front, high]
    rim = [round(6 / step) for step in spacing_mm]
    heights = []
    for piece in components.each(part >= WIRE_HU):
        around = zip(piece.min(axis=0), piece.max(axis=0), rim, strict=True)
        if np.median(part[tuple(slice(max(0, low - r), top + r + 1) for low, top, r in around)]) > 0:
            heights.append(piece[:, 2].mean() * spacing_mm[2])
    levels = [height for height, below in pairwise(sorted(heights, reverse=True)) if height - below >= APART_MM]
    return len(levels) + 1 >= WIRES and max(heights) - min(heights) >= WIRES_MM


def blood_hu(smooth: NDArray[np.float32], lung: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> float | None:
    """Density of heart and great vessels: of the denser part of what lies between the lungs, before the spine.

    None where less than 20 ml of soft tissue lies between the lungs.
    """
    from scipy import ndimage

    before = np.logical_or.accumulate(lung, axis=0)
    behind = np.logical_or.accumulate(lung[::-1], axis=0)[::-1]
    between = ndimage.binary_erosion(before & behind & ~lung, np.ones((5, 3, 1)))
    rows = np.flatnonzero(lung.any(axis=(0, 2)))
    depth = rows[-1] - rows[0]
    between[:, : rows[0] + round(0.42 * depth)] = False  # spine
    between[:, rows[0] + round(0.85 * depth) :] = False  # sternum
    soft = smooth[between & (smooth > 0) & (smooth < 700)]
    return float(np.percentile(soft, 80)) if soft.size * float(np.prod(spacing_mm)) > 20_000 else None


def solid_states(smooth: NDArray[np.float32], lung: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> list[str]:
    """``mass_in_lung`` for a solid ball that borders mostly on aerated lung, else ``solid_region`` for a large one.

    Consolidation of pneumonia lies in ground-glass mostly, but tumours do as well, with collapse behind them. The chest
    wall and the diaphragm are outside of the mask.
    """
    from scipy import ndimage

    solid = lung & (smooth > SOLID_HU)
    depth = ndimage.distance_transform_edt(np.pad(solid, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    cores, _ = components.label(depth >= MASS_RADIUS_MM, 6)
    whole, _ = components.label(solid, 6)
    ml = np.bincount(whole.ravel()) * float(np.prod(spacing_mm)) / 1000
    margin = [int(np.ceil((MASS_RADIUS_MM + 12) / step)) for step in spacing_mm]
    for number, core in enumerate(ndimage.find_objects(cores), 1):
        if ml[whole[core][cores[core] == number][0]] > MASS_ML:
            continue
        box = tuple(slice(max(0, c.start - m), c.stop + m) for c, m in zip(core, margin, strict=True))
        away = ndimage.distance_transform_edt(cores[box] != number, sampling=spacing_mm)
        rim = lung[box] & (away > MASS_RADIUS_MM + 4) & (away < MASS_RADIUS_MM + 12)
        if rim.any() and np.mean(smooth[box][rim] < AERATED_HU) >= AERATED_RIM:
            return ["mass_in_lung"]
    return ["solid_region"] if depth.max(initial=0) >= REGION_RADIUS_MM else []
