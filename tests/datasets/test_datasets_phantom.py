from __future__ import annotations

import time

import numpy as np
import pytest

from pneumoscope.datasets.phantom import SITES, make_phantom, scan_patient
from pneumoscope.errors import DatasetError

EVERYONE = [(site, n) for site in "ABC" for n in range(4)]


@pytest.mark.parametrize("who", EVERYONE)
def test_lungs_are_of_human_size_and_the_right_one_is_bigger(tiny, who):
    lungs = tiny[who].lungs
    right, left = lungs.volume_ml("right lung"), lungs.volume_ml("left lung")
    assert 2800 < right + left < 7500
    assert 1.0 < right / left < 1.6
    x = lungs.grid.world(np.argwhere(lungs.of(1)))[:, 0]
    assert x.min() > 0  # RAS+: the patient's right is positive


@pytest.mark.parametrize("who", EVERYONE)
def test_the_truth_lies_in_the_lungs_and_some_slices_have_none(tiny, who):
    made = tiny[who]
    truth, lungs = made.scan.truth, made.lungs
    assert dict(truth.names) == {1: "ground-glass", 2: "consolidation"}
    assert truth.any.any()
    assert not (truth.any & ~lungs.any).any()
    assert truth.volume_ml() < 0.6 * lungs.volume_ml()
    with_lung = lungs.any.any(axis=(0, 1))
    with_lesion = truth.any.any(axis=(0, 1))
    assert 0 < with_lesion.sum() < with_lung.sum() < len(with_lung)


def test_tissues_have_their_hounsfield_units(tiny):
    """Site B stores Hounsfield units as they are."""
    made = tiny["B", 0]
    hu, lungs, truth = made.scan.volume.hu, made.lungs.any, made.scan.truth
    from scipy.ndimage import binary_erosion

    deep = binary_erosion(lungs, iterations=1) & ~truth.any
    assert -890 < np.median(hu[deep]) < -760
    assert hu.min() >= -1024
    assert np.median(hu[:3]) < -950  # air beside the patient
    soft = (hu > 0) & (hu < 100)
    assert soft.mean() > 0.05
    assert (hu > 250).any()  # bone
    glass = truth.of(1)
    assert np.median(hu[deep]) + 80 < np.median(hu[glass]) < -350


def test_the_back_of_the_lung_is_denser(tiny):
    made = tiny["B", 1]
    hu, healthy = made.scan.volume.hu, made.lungs.any & ~made.scan.truth.any
    y = np.broadcast_to(np.arange(hu.shape[1])[None, :, None], hu.shape)
    middle = np.median(y[healthy])
    assert np.median(hu[healthy & (y < middle)]) > np.median(hu[healthy & (y > middle)]) + 10


@pytest.mark.parametrize("site", "ABC")
def test_same_seed_same_scan(tiny, site):
    again = scan_patient(site, 2, seed=11, size="tiny")
    first = tiny[site, 2]
    assert again.scan.volume.hu.tobytes() == first.scan.volume.hu.tobytes()
    assert again.scan.infiltrate.labels.tobytes() == first.scan.infiltrate.labels.tobytes()
    assert again.faults == first.faults
    assert again.scan.volume.grid == first.scan.volume.grid


def test_other_seeds_patients_and_sites_are_other_people(tiny):
    volumes = {round(made.lungs.volume_ml(), 3) for made in tiny.values()}
    assert len(volumes) == len(tiny)
    other = scan_patient("A", 0, seed=12, size="tiny")
    assert round(other.lungs.volume_ml(), 3) not in volumes


def test_size_changes_the_matrix_and_not_the_anatomy(small):
    coarse, fine = scan_patient("A", 0, seed=5, size="tiny"), small["A"]
    assert fine.scan.volume.hu.shape[:2] == (192, 192)
    assert 24 <= fine.scan.volume.hu.shape[2] <= 44
    assert fine.lungs.volume_ml() == pytest.approx(coarse.lungs.volume_ml(), rel=0.12)
    middles = []
    for made in (coarse, fine):
        where = made.lungs.grid.world(np.argwhere(made.scan.truth.any))
        middles.append(where.mean(axis=0))
        share = made.scan.truth.volume_ml() / made.lungs.volume_ml()
        assert share == pytest.approx(fine.scan.truth.volume_ml() / fine.lungs.volume_ml(), rel=0.4)
    assert np.abs(middles[0] - middles[1]).max() < 20


def test_sites_differ_as_the_papers_sets_do(tiny):
    def healthy(site: str) -> float:
        values = [m.scan.volume.hu[m.lungs.any & ~m.scan.truth.any] for (s, _), m in tiny.items() if s == site]
        return float(np.median(np.concatenate(values)))

    assert healthy("A") > healthy("B") + 20 > healthy("C") + 40
    shapes = {site: tiny[site, 0].scan.volume.hu.shape[0] for site in "ABC"}
    assert shapes == {"A": 64, "B": 56, "C": 48}
    full = {site: (SITES[site].scanner.pixels["full"], SITES[site].scanner.slice_mm["full"]) for site in "ABC"}
    assert full["A"][0] == 630
    assert full["B"] == (512, (1.0,))
    assert full["C"] == (512, (8.0,))
    assert len({tiny[s, 0].scan.volume.native.axis_codes for s in "ABC"}) > 1


def test_noise_differs_in_strength_and_grain(small):
    from scipy.ndimage import gaussian_filter

    strength, grain = {}, {}
    for site in "ABC":
        made = small[site]
        hu = made.scan.volume.hu
        middle = hu[:, :, hu.shape[2] // 2]
        flat = gaussian_filter(middle, 4)
        body = (flat > -20) & (flat < 90)
        rest = middle - gaussian_filter(middle, 2)
        strength[site] = rest[body].std()
        right = np.roll(rest, 1, axis=0)
        grain[site] = np.corrcoef(rest[body], right[body])[0, 1]
    assert strength["B"] > 1.5 * strength["A"]
    assert strength["B"] > 1.3 * strength["C"]
    assert grain["B"] < grain["A"] - 0.1


def test_only_site_c_hides_its_lungs(tiny):
    assert all((made.scan.lungs is None) == (site == "C") for (site, _), made in tiny.items())
    assert dict(tiny["A", 0].scan.infiltrate.names) == {1: "ground-glass", 2: "consolidation"}
    assert dict(tiny["B", 0].scan.infiltrate.names) == {1: "infiltrate"}


def test_readers_draw_in_their_own_way(small):
    ratio = {}
    for site in "ABC":
        made = small[site]
        inside = made.lungs.any
        ratio[site] = (made.scan.infiltrate.any & inside).sum() / made.scan.truth.any.sum()
    assert ratio["A"] > 1.05 > 1 > ratio["C"]
    assert ratio["B"] < 1


@pytest.mark.parametrize("who", EVERYONE)
def test_planted_faults_are_where_they_are_said_to_be(tiny, who):
    made = tiny[who]
    drawn, lungs = made.scan.infiltrate.any, made.lungs.any
    outside = drawn & ~lungs
    if who[1] < 2:
        assert made.faults == ()
        assert not outside.any()
        return
    (fault,) = made.faults
    assert outside.sum() == fault.voxels
    assert set(np.argwhere(outside)[:, 2]) == {fault.slice}
    middle = made.lungs.grid.world(np.argwhere(outside)).mean(axis=0)
    assert np.linalg.norm(middle - (fault.x_mm, fault.y_mm, fault.z_mm)) < 2 * made.lungs.grid.spacing_mm[0]
    if who[1] == 2:
        assert (fault.kind, fault.voxels) == ("speck", 3)
        assert lungs[:, :, fault.slice].any()
    else:
        assert fault.kind == "no-lung"
        assert not lungs[:, :, fault.slice].any()
    assert not made.scan.truth.labels[outside].any()


def test_vessels_branch_and_grow_thinner():
    from pneumoscope.datasets.phantom.patient import draw_patient

    patient = draw_patient(SITES["B"], np.random.default_rng(0), step_mm=9.0)
    radius = patient.vessels.radius_mm
    assert len(radius) > 1000
    assert 3 < radius.max() <= 5.5
    assert 0.3 < np.median(radius) < 1.2
    assert radius.min() > 0.3


def test_a_tiny_scan_takes_a_moment():
    scan_patient("A", 5, size="tiny")
    began = time.process_time()
    scan_patient("A", 6, size="tiny")
    assert time.process_time() - began < 10  # 0.4 s on an idle machine, a full scan 40


@pytest.mark.slow
def test_a_full_scan_takes_seconds():
    began = time.process_time()
    made = make_phantom("C", 0)
    assert made.volume.hu.shape[:2] == (512, 512)
    assert 30 <= made.volume.hu.shape[2] <= 64
    assert made.volume.spacing_mm[2] == pytest.approx(8.0)
    assert time.process_time() - began < 200


def test_bad_calls_are_refused():
    with pytest.raises(DatasetError, match="unknown synthetic site 'D'"):
        make_phantom("D", 0)
    with pytest.raises(DatasetError, match="unknown phantom size"):
        make_phantom("A", 0, size="huge")
    with pytest.raises(DatasetError, match="0 or more"):
        make_phantom("A", -1)
