from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pneumoscope.datasets.case import CaseFiles
from pneumoscope.errors import InputError
from pneumoscope.io.write import write_mask
from pneumoscope.recipes.papers.maganaris_2022b import four_channel, four_channel_demo
from pneumoscope.recipes.registry import build_any
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.data import build_set, draw_split, find_cases, lung_folders, roots_of, set_names
from pneumoscope.study.learners.slices import two_channel_target
from pneumoscope.study.lungs import LungSupply
from pneumoscope.volume import LUNG_LABELS, Mask


def no_lungs(volume):
    raise AssertionError("nobody asked for lungs")


@pytest.fixture
def three_folders(tmp_path):
    names = ("medseg", "covid19ctseg", "mosmed")
    for name in names:
        (tmp_path / name).mkdir()
    return {name: tmp_path / name for name in names}


def test_folders_go_to_sets_by_name_or_number(three_folders):
    full = four_channel()
    by_name = roots_of(full, three_folders)
    by_number = roots_of(full, {str(n): root for n, root in by_name.items()})
    assert by_name == by_number
    assert roots_of(full, {}) == {}


def test_some_data_and_some_not_is_refused(three_folders):
    full = four_channel()
    three_folders.pop("mosmed")
    with pytest.raises(InputError, match=r"--data is missing for mosmed \(or 3\)"):
        roots_of(full, three_folders)
    with pytest.raises(InputError, match="fits 0 sets"):
        roots_of(full, {"mosmet": three_folders["medseg"]})
    with pytest.raises(InputError, match="no such folder"):
        roots_of(full, {"medseg": three_folders["medseg"] / "absent"})


def test_one_data_set_twice_is_given_by_number(three_folders):
    twice = with_overrides(four_channel(), ["data.sites.1.dataset=manifest", "data.sites.2.dataset=manifest"])
    root = three_folders["mosmed"]
    with pytest.raises(InputError, match="fits 2 sets"):
        roots_of(twice, {"manifest": root})
    assert roots_of(twice, {"1": root, "2": root, "3": root}) == {1: root, 2: root, 3: root}


def test_cases_are_chosen_by_pattern(monkeypatch, hospitals, tmp_path):
    full = with_overrides(four_channel(), ["data.sites.2.cases=s2p[01]"])
    monkeypatch.setattr("pneumoscope.datasets.registry.read_dataset", lambda name, root: hospitals[int(root.name)])
    found = find_cases(full, {n: tmp_path / str(n) for n in (1, 2, 3)}, tmp_path)
    assert [len(found[n]) for n in (1, 2, 3)] == [4, 2, 4]
    none = with_overrides(full, ["data.sites.3.cases=nobody*"])
    with pytest.raises(InputError, match=r"set 3 \(mosmed\) has no case named 'nobody\*'"):
        find_cases(none, {n: tmp_path / str(n) for n in (1, 2, 3)}, tmp_path)


def test_scans_that_nobody_drew_on_are_left_out(monkeypatch, hospitals, tmp_path):
    drawn = [replace(c, files=CaseFiles(tmp_path, infiltrate=tmp_path)) for c in hospitals[1]]
    bare = [replace(c, case=f"bare-{c.case}", files=CaseFiles(tmp_path)) for c in hospitals[1]]
    monkeypatch.setattr("pneumoscope.datasets.registry.read_dataset", lambda name, root: [*bare, *drawn])
    full = with_overrides(four_channel(), ["data.sites.2.cases=*"])
    found = find_cases(full, dict.fromkeys((1, 2, 3), tmp_path), tmp_path)
    assert [c.case for c in found[3]] == [c.case for c in drawn]


def test_sets_are_called_after_their_data(hospitals):
    full = four_channel()
    assert set_names(full, hospitals) == {1: "phantom-A", 2: "phantom-B", 3: "phantom-C"}
    real = {**hospitals, 1: [replace(case, dataset="medseg") for case in hospitals[1]]}
    assert set_names(full, real)[1] == "medseg"
    twice = with_overrides(full, ["data.sites.1.dataset=manifest", "data.sites.2.dataset=manifest"])
    listed = {n: [replace(case, dataset="manifest") for case in cases] for n, cases in hospitals.items()}
    assert set_names(twice, listed) == {1: "manifest-1", 2: "manifest-2", 3: "mosmed"}


def test_synthetic_sets_are_called_after_the_site_they_are_of(hospitals):
    """Whatever set they stand in for, and apart where two are of one site."""
    full = four_channel()
    assert set_names(full, {1: hospitals[3], 2: hospitals[2], 3: hospitals[1]}) == {
        1: "phantom-C", 2: "phantom-B", 3: "phantom-A",
    }  # fmt: skip
    assert set_names(full, {1: hospitals[3], 2: hospitals[2], 3: hospitals[3]}) == {
        1: "phantom-C-1", 2: "phantom-B", 3: "phantom-C-3",
    }  # fmt: skip


def test_two_synthetic_sets_of_one_site_have_patients_and_files_of_their_own(tmp_path):
    plan = with_overrides(four_channel_demo(), [
        "data.sites.2.phantom_site=A", "data.phantom_size=tiny",
        *(f"data.sites.{n}.phantom_patients=1" for n in (1, 2, 3)),
    ])  # fmt: skip
    cases = find_cases(plan, {}, tmp_path)
    assert set_names(plan, cases) == {1: "phantom-A-1", 2: "phantom-A-2", 3: "phantom-C"}
    one, two = (cases[n][0].load().volume.hu for n in (1, 2))
    assert one.shape != two.shape or not np.array_equal(one, two)


def test_slices_without_lung_are_kept_for_the_lung_network_only(small, hospitals, find_all_lungs, tmp_path):
    one = build_set(small, small.site(1), hospitals[1], tmp_path, lungs_for=no_lungs)
    assert not one.slices.table["has_lung"].all()
    assert len(one.split) == one.slices.table["has_lung"].sum()
    three = build_set(small, small.site(3), hospitals[3], tmp_path, lungs_for=find_all_lungs)
    assert three.slices.table["has_lung"].all()
    assert (three.supplied, len(find_all_lungs.asked)) == (4, 4)
    assert (tmp_path / "splits" / "phantom-C.csv").read_text().startswith("case,slice,patient,part\n")


def test_parts_do_not_overlap_and_are_balanced(small, hospitals, tmp_path):
    one = build_set(small, small.site(1), hospitals[1], tmp_path, lungs_for=no_lungs)
    parts = {part: set(one.rows(part)) for part in ("train", "val", "test")}
    assert not parts["train"] & parts["val"]
    assert not (parts["train"] | parts["val"]) & parts["test"]
    infected = one.slices.table["has_infiltrate"].to_numpy()
    assert infected[list(parts["train"])].mean() == 0.5
    assert one.leaks  # by slice, as the paper: patients stand in several parts


def test_a_resumed_study_on_other_data_is_refused(small, hospitals, tmp_path):
    build_set(small, small.site(1), hospitals[1], tmp_path, lungs_for=no_lungs)
    build_set(small, small.site(1), hospitals[1], tmp_path, lungs_for=no_lungs)
    with pytest.raises(InputError, match="patients or lung masks have changed"):
        build_set(small, small.site(1), hospitals[1][:3], tmp_path, lungs_for=no_lungs)


def test_split_by_patient_keeps_patients_whole(small):
    table = pd.DataFrame(
        {
            "case": [f"c{n // 6}" for n in range(60)],
            "slice": [n % 6 for n in range(60)],
            "patient": [f"p{n // 6}" for n in range(60)],
            "has_lung": True,
            "has_infiltrate": [n % 2 == 0 for n in range(60)],
        }
    )
    split = draw_split(table, with_overrides(small, ["split.by=patient", "split.patient_test_share=0.4"]).split)
    parts = split.groupby("patient")["part"].agg(["nunique", "first"])
    assert (parts["nunique"] == 1).all()
    assert (parts["first"] == "test").sum() == 4


def test_two_channels_are_opposites():
    labels = np.array([[[0, 1], [2, 0]]], np.uint8)
    target = two_channel_target(labels, 2)
    assert target.tolist() == [[[[0, 1], [1, 0]], [[1, 0], [0, 1]]]]
    assert two_channel_target(labels, 1).shape == (1, 1, 2, 2)


def test_lungs_from_elsewhere_are_laid_on_the_scans_of_one_set(hospitals, tmp_path, monkeypatch):
    monkeypatch.setattr("pneumoscope.datasets.registry.read_dataset", lambda name, root: hospitals[3])
    full = four_channel()
    for case in hospitals[3]:
        scan = case.load()
        lungs = Mask.empty(scan.volume.grid, LUNG_LABELS)
        lungs.labels[2:6, 2:6, :] = 1
        write_mask(lungs, tmp_path / f"{case.case}.nii.gz", scan.volume.native)
    masks = lung_folders(full, {"mosmed": tmp_path})
    assert masks == {3: tmp_path}
    any_case = with_overrides(full, ["data.sites.2.cases=*", "data.sites.1.cases=*", "data.sites.3.cases=*"])
    found = find_cases(any_case, dict.fromkeys((1, 2, 3), tmp_path), tmp_path, lungs=masks)
    assert all(case.load().lungs.labels.sum() == 16 * case.load().volume.grid.shape[2] for case in found[3])
    with pytest.raises(InputError, match="--lungs mosmet: fits 0 sets"):
        lung_folders(full, {"mosmet": tmp_path})
    with pytest.raises(InputError, match="8-bit pictures"):
        lung_folders(build_any("transfer-slices"), {"coronacases": tmp_path})


def test_the_shipped_lung_model_can_supply(small, hospitals, tmp_path, monkeypatch):
    asked = []

    def finder(volume):
        asked.append(volume.case)
        return Mask.empty(volume.grid, LUNG_LABELS)

    monkeypatch.setattr("pneumoscope.inference.segmenter.LungFinder", lambda **options: finder)
    supply = LungSupply(with_overrides(small, ["lung.supply=shipped"]), {}, tmp_path)
    volume = hospitals[1][0].load().volume
    assert not supply(volume).any.any()
    assert asked == [volume.case], "no network is trained for it"
    with pytest.raises(InputError):
        with_overrides(small, ["lung.supply=nobody"])


def test_with_a_cache_no_scan_is_read_a_second_time(small, tmp_path, monkeypatch):
    from pneumoscope.datasets.phantom.folder import read_phantom, write_phantom

    write_phantom(tmp_path / "site", "A", 4, seed=1, size="tiny")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    experiment = with_overrides(small, ["split.shortage=proportional"])
    site = experiment.data.sites[0]
    first = build_set(experiment, site, read_phantom(tmp_path / "site"), tmp_path / "one", lungs_for=no_lungs)
    reads = []
    from pneumoscope.io.formats import nifti

    monkeypatch.setattr(nifti, "read_nifti", lambda *a, **k: reads.append(a) or pytest.fail("read again"))
    second = build_set(experiment, site, read_phantom(tmp_path / "site"), tmp_path / "two", lungs_for=no_lungs)
    assert not reads
    assert np.array_equal(first.slices.images, second.slices.images)
    assert first.split.equals(second.split)
