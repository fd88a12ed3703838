"""What a reader must know before believing the numbers: named states, and when a scan is outside the intended use.

The intended use is an adult's chest CT in Hounsfield units with both lungs in it. Limits are our choice, wide on
purpose: they catch a wrong kind of input, not unusual patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pneumoscope.severity.tally import LungPart

OUTSIDE_TOLERANCE = 0.05
"""More than this part of the infiltrate outside the lungs is reported as a state."""

THICKEST_SLICE_MM = 10.0
"""Slices further apart leave out lesions of usual size; the public sets we read go up to 10 mm."""

LUNG_VOLUME_ML = (700.0, 10_000.0)
"""Both lungs of an adult together. Below: expiration of a small adult, or a child; above: not lungs alone."""

LUNG_HU = (-980.0, -400.0)
"""Mean density of lung without its infiltrate. Beyond: values are hardly Hounsfield units, or it is not lung."""

UNEQUAL = 3.0
"""One lung larger than the other by more than this factor."""

DENSE_PERCENT = 30.0
"""More than this part of one lung in the density class of consolidation is a state."""

THIN_HU = -910.0
"""Lungs with a lower mean are a state; full inspiration reaches about -880."""

STATES: Mapping[str, str] = {
    "no_lung_found": "No lung was found. There are no shares; volumes of infiltrate count only what lies outside.",
    "one_lung_only": "Only one lung was found. Shares refer to that lung.",
    "lungs_not_sided": "The lung mask does not tell right from left. Only totals are given.",
    "sides_exchanged": "Right and left lung of the mask lie on each other's side of the body. Every figure per "
    "side and zone is exchanged; exchange the two labels of the mask.",
    "lung_left_out": "The lung network is sure of more lung than the mask holds; rules of density and shape left it "
    "out. Volumes and shares may miss it.",
    "pleural_fluid": "The lung network sees fluid in the pleural space (effusion, or a side that was operated out). It "
    "is no lung and in no share; a lung that is white as a whole may look like it.",
    "pleural_air": "The lung network sees air in the pleural space (pneumothorax). It is no lung and in no share.",
    "lung_dense": f"More than {DENSE_PERCENT:.0f} % of a lung is as dense as soft tissue. Consolidation, collapse and "
    "tumour do this; where lung and what lies beside it are alike, the border is the network's.",
    "lung_thin": f"The lungs have a mean below {THIN_HU:.0f} HU without their infiltrate, as in emphysema.",
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
    "contrast_medium": "The blood is dense: contrast medium was given. Vessels and well perfused lung are denser than "
    "without it, and small vessels can be marked as infiltrate.",
    "lung_dense_throughout": "Lung without infiltrate is denser than in a held deep breath: expiration, free breathing "
    "or a diffuse disease. Faint ground-glass cannot be told from it, and the share may be too large or too small.",
    "infiltrate_diffuse": "More than half of the lung is marked. Oedema, haemorrhage, ARDS and fibrosis look like "
    "this as well; the share says nothing about the cause.",
    "mass_in_lung": "A solid mass borders on aerated lung, which is unlike pneumonia. It may be counted as "
    "infiltrate or left out; the model does not tell a tumour from consolidation.",
    "solid_region": "A region of the lung more than 3 cm thick holds no air. Consolidation, collapse and tumour look "
    "alike to the model; the share does not say which it is.",
    "unlike_training_scans": "The slices look unlike the chest CTs that the infiltrate model learnt from. Its numbers "
    "were not tested on such scans.",
}
"""What each state means, in a sentence for reports."""

OUTSIDE_USE = ("slices_too_thick", "lung_volume_implausible", "density_implausible")
"""States that say: outside the intended use."""


def use_states(
    slice_mm: float, total: LungPart, right: LungPart | None, left: LungPart | None, healthy_mean_hu: float | None
) -> list[str]:
    """States of a scan that should not have come, and of lungs that are suspiciously unequal or thin.

    Args:
        slice_mm: distance between slices.
        total: both lungs.
        right: the right lung, None when sides are not known.
        left: the left lung, likewise.
        healthy_mean_hu: mean density of the lung without its infiltrate; None when there is none.
    """
    found = []
    if right is not None and left is not None and min(right.lung_ml, left.lung_ml) > 0:
        larger = max(right.lung_ml, left.lung_ml) / min(right.lung_ml, left.lung_ml)
        found += ["lungs_unequal"] if larger > UNEQUAL else []
    if slice_mm > THICKEST_SLICE_MM + 0.01:
        found.append("slices_too_thick")
    if total.share_percent is not None and not LUNG_VOLUME_ML[0] <= total.lung_ml <= LUNG_VOLUME_ML[1]:
        found.append("lung_volume_implausible")
    if healthy_mean_hu is not None and healthy_mean_hu < THIN_HU:
        found.append("lung_thin")
    if healthy_mean_hu is not None and not LUNG_HU[0] <= healthy_mean_hu <= LUNG_HU[1]:
        found.append("density_implausible")
    return found
