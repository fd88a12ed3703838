from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.geometry import Grid
from pneumoscope.reports.case import _banners
from pneumoscope.severity.measure import assess
from pneumoscope.severity.states import STATES, applicability_states, blood_hu, has_sternal_wires
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask, Volume

SPACING = (4.0, 5.0, 6.0)
SHAPE = (60, 44, 24)


def ball(centre, radius_mm):
    away = [(np.arange(n) - c) * s for n, c, s in zip(SHAPE, centre, SPACING, strict=True)]
    x, y, z = np.meshgrid(*away, indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2


@pytest.fixture
def chest():
    """Soft tissue with two lungs in full inspiration, a spine behind and blood without contrast medium."""
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 8, SHAPE)
    lung = np.zeros(SHAPE, bool)
    lung[4:22, 6:38, 2:22] = lung[38:56, 6:38, 2:22] = True
    hu[lung] = rng.normal(-860, 15, np.count_nonzero(lung))
    hu[26:34, 6:16, :] = 400  # spine
    return hu.astype(np.float32), lung


def states(hu, lung, infiltrate=None, spacing=SPACING):
    return applicability_states(hu, lung, np.zeros_like(lung) if infiltrate is None else infiltrate, spacing)


def test_a_healthy_chest_has_no_sign(chest):
    hu, lung = chest
    assert states(hu, lung) == []
    assert blood_hu(hu, lung, SPACING) == pytest.approx(47, abs=3)  # the 80th percentile of 40 +- 8


def test_no_lung_has_no_sign(chest):
    hu, lung = chest
    assert states(hu, np.zeros_like(lung)) == []


def metal(hu, lung):
    hu[30, 30, 5:15] = 3071  # 10 voxels of 0.12 ml
    return


def contrast(hu, lung):
    hu[24:36, 18:36, :] = 160
    return


def expiration(hu, lung):
    hu[lung] += 200
    return


def emphysema(hu, lung):
    hu[5:20, 7:34, 3:20] = -985
    return


def everywhere(hu, lung):
    infiltrate = lung.copy()
    infiltrate[:, 28:] = False
    hu[infiltrate] = -500
    return infiltrate


def breath(hu, lung):
    hu[8:18, 6:38, 6:8] = 40  # the dome of the diaphragm a second time
    lung[8:18, 6:38, 6:8] = False
    return


def mass(hu, lung):
    hu[ball((13, 22, 12), 22)] = 45
    return


SIGNS = {
    "metal_or_undiluted_contrast": metal,
    "contrast_medium": contrast,
    "lung_dense_throughout": expiration,
    "lung_thin": emphysema,
    "breathing_motion": breath,
    "infiltrate_diffuse": everywhere,
    "mass_in_lung": mass,
}


@pytest.mark.parametrize("state", SIGNS)
def test_each_sign_is_a_state_and_its_sentence_stands_in_the_report(chest, state):
    hu, lung = chest
    infiltrate = SIGNS[state](hu, lung)
    assert states(hu, lung, infiltrate) == [state]
    grid = Grid.from_spacing(SHAPE, SPACING)
    labels = lung.astype(np.uint8)
    labels[:30][lung[:30]] = 2
    marks = (np.zeros(SHAPE) if infiltrate is None else infiltrate).astype(np.uint8)
    found = assess(Volume(hu, grid, grid), Mask(labels, grid, LUNG_LABELS), Mask(marks, grid, INFILTRATE_LABEL))
    assert state in found.states
    banners = _banners({"severity": found.as_dict(), "findings": []})
    assert STATES[state] in [banner["text"] for banner in banners]


def test_a_large_heart_between_the_lungs_is_no_breath(chest):
    hu, lung = chest
    for k in range(4, 16):  # 72 mm high, up to 8 % of the cross-section
        heart = slice(14, 14 + round(16 * np.sin(np.pi * (k - 3) / 13)))
        hu[16:22, heart, k], lung[16:22, heart, k] = 40, False
    assert states(hu, lung) == []


def test_consolidation_in_ground_glass_is_no_mass(chest):
    hu, lung = chest
    hu[ball((13, 22, 12), 40) & lung] = -450
    hu[ball((13, 22, 12), 22)] = 45
    assert states(hu, lung) == ["solid_region"]
    hu[ball((13, 22, 12), 22)] = -450
    hu[ball((13, 22, 12), 14)] = 45
    assert states(hu, lung) == []


def test_a_lobe_without_air_is_no_mass(chest):
    hu, lung = chest
    hu[4:22, 6:26, 2:14] = 45  # 518 ml with sharp borders
    assert states(hu, lung) == ["solid_region"]


def test_metal_beside_a_vessel_is_no_mass(chest):
    hu, lung = chest
    hu[12:15, 21:24, 11:14] = 3071
    hu[10:17, 19:26, 10:15:4] = -500
    assert states(hu, lung) == ["metal_or_undiluted_contrast"]


def test_wires_of_the_sternum_are_distinguished_from_contrast_medium_in_a_vein(chest):
    hu, lung = chest
    box = (slice(4, 56), slice(6, 38), slice(2, 22))
    assert not has_sternal_wires(hu, box, SPACING)
    hu[30, 36, 4:20] = 3000
    assert not has_sternal_wires(hu, box, SPACING)
    hu[30, 36, 5:20:2] = 40
    assert not has_sternal_wires(np.roll(hu, -12, axis=0), box, SPACING), "beside the sternum"
    outside = hu.copy()
    outside[:, 34:39][outside[:, 34:39] < 2000] = -1000
    assert not has_sternal_wires(outside, box, SPACING), "an infusion line on the skin"
    assert has_sternal_wires(hu, box, SPACING)
    grid = Grid.from_spacing(SHAPE, SPACING)
    none = Mask(np.zeros(SHAPE, np.uint8), grid, INFILTRATE_LABEL)
    assert (
        "sternal_wires" in assess(Volume(hu, grid, grid), Mask(lung.astype(np.uint8), grid, {1: "lung"}), none).states
    )


def test_a_small_nodule_and_a_clip_are_no_sign(chest):
    hu, lung = chest
    hu[ball((13, 22, 12), 9)] = 45
    hu[30, 30, 5:9] = 3071  # 0.5 ml
    assert states(hu, lung) == []


def test_a_noisy_lung_and_a_small_bulla_are_not_thin(chest):
    hu, lung = chest
    hu += np.random.default_rng(1).normal(0, 90, SHAPE).astype(np.float32)
    assert np.mean(hu[lung] < -950) > 0.15
    hu[ball((13, 22, 12), 22)] = -990
    assert states(hu, lung) == []


def test_fine_voxels_say_the_same(chest):
    hu, lung = chest
    contrast(hu, lung)
    fine = [np.repeat(np.repeat(a, 4, axis=0), 5, axis=1) for a in (hu, lung)]
    assert states(*fine, spacing=(1.0, 1.0, 6.0)) == ["contrast_medium"]
