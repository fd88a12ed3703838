"""COVID-19-CT-Seg: names, label order, grey levels, mirrored headers and the combined mask."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from trees import MA_CASES, embedded_name, ma_scan, make_covid19ctseg, patient, to_grey

from pneumoscope.datasets.formats.labelled import write_as_filed
from pneumoscope.datasets.public.covid19ctseg import (
    case_of,
    is_eight_bit,
    patient_of,
    read_covid19ctseg_cases,
    with_sides,
)
from pneumoscope.datasets.registry import DATASETS, read_dataset
from pneumoscope.errors import DatasetError, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.write import write_mask
from pneumoscope.volume import LUNG_LABELS, Mask

SOME = ("coronacases_001", "coronacases_009", "radiopaedia_4_85506_1", "radiopaedia_7_85703_0")


def loaded(root, case="", **options):
    cases = read_covid19ctseg_cases(root, **options)
    return next(c for c in cases if c.case == case or not case).load()


def codes(scan):
    return [finding.code for finding in scan.volume.findings]


def same(scan, expected):
    np.testing.assert_allclose(scan.volume.hu, np.maximum(expected.volume.hu, -1024), rtol=0, atol=0.01)
    np.testing.assert_array_equal(scan.lungs.labels, expected.lungs.labels)
    np.testing.assert_array_equal(scan.infiltrate.labels, expected.infiltrate.labels)


def stored(path):
    return np.asarray(nibabel.load(path).dataobj)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MA_CASES)
def test_a_case_is_known_by_all_its_names(case):
    kaggle = f"coronacases_org_{case[-3:]}" if "corona" in case else embedded_name(case)
    for name in (case, case.upper(), f" {case} ", embedded_name(case), kaggle):
        assert case_of(name) == case


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("coronacases_org_001", "coronacases_001"), ("coronacases_org_case007", "coronacases_007"),
        ("coronacases_case010", "coronacases_010"), ("case009", "coronacases_009"),
        ("coronacases_3", "coronacases_003"),
        ("radiopaedia_org_covid-19-pneumonia-10_85902_3-dcm", "radiopaedia_10_85902_3"),
        ("radiopaedia_org_covid-19-pneumonia-23_86359_0-dcm", "radiopaedia_23_86359_0"), ("rp_1", None),
        ("001", None), ("study_0001", None),
    ],
)  # fmt: skip
def test_names(name, case):
    assert case_of(name) == case


def test_scans_may_lie_in_any_folder(tmp_path):
    root = make_covid19ctseg(tmp_path, cases=SOME[:2])
    (root / "COVID-19-CT-Seg_20cases").rename(root / "my scans")
    assert len(read_covid19ctseg_cases(root)) == 2


# --- which folders suffice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        ({"Lung_and_Infection_Mask"}, ""), ({"Lung_Mask", "Infection_Mask"}, ""),
        ({"Lung_Mask", "Lung_and_Infection_Mask"}, ""), ({"Infection_Mask", "Lung_and_Infection_Mask"}, ""),
        ({"Lung_Mask"}, "infection mask"), ({"Infection_Mask"}, "lung mask"), (set(), "lung mask"),
    ],
)  # fmt: skip
def test_any_folders_that_suffice(tmp_path, kept, missing):
    root = make_covid19ctseg(tmp_path, cases=SOME[:1])
    for folder in ("Lung_Mask", "Infection_Mask", "Lung_and_Infection_Mask"):
        if folder not in kept:
            (root / folder).rename(tmp_path.parent / f"{tmp_path.name}-{folder}")
    if missing:
        with pytest.raises(DatasetError, match=f"coronacases_001 without {missing}"):
            read_covid19ctseg_cases(root)
        return
    scan = loaded(root)
    np.testing.assert_array_equal(scan.infiltrate.labels, ma_scan(SOME[0]).infiltrate.labels)
    if "Lung_Mask" in kept:
        np.testing.assert_array_equal(scan.lungs.labels, ma_scan(SOME[0]).lungs.labels)


@pytest.mark.parametrize(
    ("among", "absent", "labels"),
    [("Infection_Mask", "", r"\[2"), ("Infection_Mask", "Lung_Mask", r"\[2"), ("Lung_Mask", "", r"\[3\]")],
)
def test_a_combined_mask_among_others(tmp_path, among, absent, labels):
    """Taken for infection, its label 1 would be the left lung; taken for lungs, it would lack what is infected."""
    root = make_covid19ctseg(tmp_path, cases=SOME[:1])
    name = f"{SOME[0]}.nii.gz"
    (root / among / name).write_bytes((root / "Lung_and_Infection_Mask" / name).read_bytes())
    if absent:
        (root / absent / name).unlink()
    with pytest.raises(DatasetError, match=rf"{among}/coronacases_001\.nii\.gz: holds the labels {labels}"):
        loaded(root)


def test_coronacases_alone_with_all_masks(tmp_path):
    root = make_covid19ctseg(tmp_path, cases=SOME)
    for image in (root / "COVID-19-CT-Seg_20cases").glob("radio*"):
        image.unlink()
    assert [c.case for c in read_covid19ctseg_cases(root)] == list(SOME[:2])


# --- labels ---------------------------------------------------------------------------------------------------------


def test_masks_with_decimals_are_rounded_with_a_finding(tmp_path):
    scan = loaded(make_covid19ctseg(tmp_path, variant="decimals", cases=SOME[:1]))
    same(scan, ma_scan(SOME[0]))
    assert codes(scan).count("IN-SET-083") == 2  # once per mask


def test_in_the_combined_mask_infected_voxels_get_a_side(tmp_path):
    """Against the phantoms' exact lungs: right for more than 99 % of infected voxels inside a lung, overall."""
    names = [c for c in MA_CASES if c != "radiopaedia_14_85914_0"][:14]
    root = make_covid19ctseg(tmp_path, variant="combined", cases=names)
    right = total = 0
    for case in read_covid19ctseg_cases(root):
        scan, truth = case.load(), ma_scan(case.case)
        np.testing.assert_array_equal(scan.infiltrate.labels, truth.infiltrate.labels)
        healthy = truth.infiltrate.labels == 0
        np.testing.assert_array_equal(scan.lungs.labels[healthy], truth.lungs.labels[healthy])
        inside = ~healthy & (truth.lungs.labels > 0)
        assert (scan.lungs.labels[~healthy] > 0).all()  # no infected voxel is left without a side
        right += int((scan.lungs.labels[inside] == truth.lungs.labels[inside]).sum())
        total += int(inside.sum())
        assert "IN-SET-085" in codes(scan)
    assert total > 1000
    assert right / total > 0.99


def masks(lungs, infected):
    grid = Grid.from_spacing(lungs.shape, (2.0, 2.0, 5.0))
    return Mask(lungs, grid, LUNG_LABELS), Mask(infected, grid, {1: "infiltrate"})


def test_sides_by_the_nearest_lung_and_by_the_midline_where_one_is_missing():
    lungs, infected = np.zeros((12, 6, 3), np.uint8), np.zeros((12, 6, 3), np.uint8)
    lungs[8:11, :, :], lungs[1:3, :, :] = 1, 2  # x grows to the right: the right lung has the larger i
    infected[3:6, 2, 0] = 1  # nearer to the left lung, 5 is as far from 2 as from 8
    lungs[:7, :, 1], infected[0:4, :, 1] = 0, 1  # the left lung infected throughout: no voxel is nearer to it
    lungs[:, :, 2], infected[[1, 9], 3, 2] = 0, 1  # a slice without any healthy lung
    filled, count = with_sides(*masks(lungs, infected))
    assert filled.labels[3:5, 2, 0].tolist() == [2, 2]
    assert (filled.labels[0:4, :, 1] == 2).all()
    assert filled.labels[[1, 9], 3, 2].tolist() == [2, 1]
    assert count == 3 + 24 + 2
    assert lungs[3, 2, 0] == 0  # the given mask is left alone


def test_sides_without_lungs_or_without_infection():
    empty = np.zeros((4, 4, 2), np.uint8)
    infected = empty.copy()
    infected[[0, 3], 1, 1] = 1
    filled, count = with_sides(*masks(empty, infected))
    assert (filled.labels[0, 1, 1], filled.labels[3, 1, 1], count) == (2, 1, 2)
    filled, count = with_sides(*masks(empty, empty))
    assert (filled.labels.any(), count) == (False, 0)


# --- grey levels ----------------------------------------------------------------------------------------------------


def test_grey_levels_are_mapped_back(tmp_path):
    root = make_covid19ctseg(tmp_path, cases=SOME[2:3])
    raw = stored(root / "COVID-19-CT-Seg_20cases" / f"{SOME[2]}.nii.gz").astype(np.float64)
    scan = loaded(root)
    by_formula = np.maximum(raw / 255 * 1500 - 1250, -1024)
    np.testing.assert_allclose(scan.volume.hu[::-1, ::-1], by_formula, rtol=0, atol=1e-3)
    truth = patient("A", MA_CASES.index(SOME[2])).scan.volume.hu
    assert np.abs(scan.volume.hu - truth)[truth < 250].max() <= 3.0  # half a grey level
    assert scan.volume.hu.max() <= 250
    (note,) = [f for f in scan.volume.findings if f.code == "IN-SET-082"]
    assert "-1250..250 HU in steps of 5.9" in note.message


def test_grey_levels_can_be_refused(tmp_path):
    root = make_covid19ctseg(tmp_path, cases=(SOME[0], SOME[2]))
    corona, radio = read_dataset("covid19ctseg", root, eight_bit="refuse")
    same(corona.load(), ma_scan(corona.case))
    with pytest.raises(DatasetError, match=r"radiopaedia_4_85506_1\.nii\.gz: holds 8-bit grey levels"):
        radio.load()


def rewrite(path, change):
    image = nibabel.load(path)
    nibabel.Nifti1Image(change(np.asarray(image.dataobj)), image.affine).to_filename(path)


def test_each_file_is_judged_by_itself(tmp_path):
    """A Coronacases scan in grey levels is mapped, a Radiopaedia scan in HU is left as it is."""
    root = make_covid19ctseg(tmp_path, cases=(SOME[0], SOME[2]))
    folder = root / "COVID-19-CT-Seg_20cases"
    rewrite(folder / f"{SOME[0]}.nii.gz", to_grey)
    rewrite(folder / f"{SOME[2]}.nii.gz", lambda grey: np.rint(grey / 255 * 1500 - 1250).astype(np.int16))
    corona, radio = (case.load() for case in read_covid19ctseg_cases(root))
    assert "IN-SET-082" in codes(corona)
    assert "IN-SET-082" not in codes(radio)
    expected = ma_scan(SOME[2]).volume.hu
    np.testing.assert_allclose(radio.volume.hu, np.maximum(expected, -1024), rtol=0, atol=0.51)


def test_the_test_for_grey_levels():
    assert is_eight_bit(np.array([0.0, 255.0]))
    assert not is_eight_bit(np.array([-1.0, 200.0]))
    assert not is_eight_bit(np.array([0.0, 256.0]))


@pytest.mark.parametrize("change", [lambda grey: grey / 255.0, lambda grey: (grey > 100).astype(np.uint8) * 255])
def test_what_is_neither_grey_levels_nor_hu_is_refused(tmp_path, change):
    root = make_covid19ctseg(tmp_path, cases=SOME[2:3])
    rewrite(root / "COVID-19-CT-Seg_20cases" / f"{SOME[2]}.nii.gz", change)
    with pytest.raises(ReadError, match=r"looks like (normalised to \[0\.2|a mask \(values 0, 255\))"):
        loaded(root)


def test_metal_far_above_bone_is_kept(tmp_path):
    """Coronacases reach 8000 HU."""
    root = make_covid19ctseg(tmp_path, cases=SOME[:1])

    def metal(array):
        array = array.copy()
        array[5, 5, 5] = 8000
        return array

    rewrite(root / "COVID-19-CT-Seg_20cases" / f"{SOME[0]}.nii.gz", metal)
    assert loaded(root).volume.hu.max() == 8000


# --- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "header", "truth", "ways"),
    [
        ("radiopaedia_4_85506_1", "LAS", "LPS", "front-back"),
        ("radiopaedia_7_85703_0", "LAS", "LPI", "front-back and head-foot"),
        ("coronacases_001", "LAS", "LAS", ""),
    ],
)
def test_mirrored_headers_are_put_right(tmp_path, case, header, truth, ways):
    root = make_covid19ctseg(tmp_path, cases=(case,))
    on_disk = nibabel.load(root / "COVID-19-CT-Seg_20cases" / f"{case}.nii.gz")
    assert "".join(nibabel.aff2axcodes(on_disk.affine)) == header
    scan = loaded(root)
    assert "".join(scan.volume.native.axis_codes) == truth
    same(scan, ma_scan(case))
    notes = [f.message for f in scan.volume.findings if f.code == "IN-SET-081"]
    assert len(notes) == bool(ways)
    assert all(f"mirrored {ways};" in note for note in notes)


def test_the_same_fix_as_others_make_after_canonical_reorientation(tmp_path):
    """nibabel's as_closest_canonical, then front-back (and head-foot) turned, as published scripts do."""
    for case, turn in (("radiopaedia_27_86410_0", (1,)), ("radiopaedia_7_85703_0", (1, 2))):
        root = make_covid19ctseg(tmp_path / case, cases=(case,))
        image = nibabel.load(root / "COVID-19-CT-Seg_20cases" / f"{case}.nii.gz")
        theirs = np.flip(np.asarray(nibabel.as_closest_canonical(image).dataobj), turn)
        ours = loaded(root).volume.hu
        np.testing.assert_allclose(ours, np.maximum(theirs / 255 * 1500 - 1250, -1024), rtol=0, atol=1e-3)


def test_headers_can_be_trusted(tmp_path):
    root = make_covid19ctseg(tmp_path, cases=SOME[2:3])
    (case,) = read_covid19ctseg_cases(root, headers="trust")
    assert case.files.mirrored == ()
    scan = case.load()
    assert "".join(scan.volume.native.axis_codes) == "LAS"
    np.testing.assert_array_equal(scan.lungs.labels, ma_scan(case.case).lungs.labels[:, ::-1])


def test_simpleitk_sees_the_filed_mask_on_the_original(tmp_path):
    """A second program: same place by its own reading of both headers; with the true header it is elsewhere."""
    import SimpleITK as sitk

    root = make_covid19ctseg(tmp_path, cases=SOME[3:])
    (case,) = read_covid19ctseg_cases(root)
    scan = case.load()
    write_mask(scan.lungs, tmp_path / "true.nii.gz", scan.volume.native)
    write_as_filed(scan.lungs, tmp_path / "filed.nii.gz", scan.volume.native, case.files)
    image, true, filed = (
        sitk.ReadImage(str(p)) for p in (case.files.image, tmp_path / "true.nii.gz", tmp_path / "filed.nii.gz")
    )
    np.testing.assert_allclose(filed.GetOrigin(), image.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(filed.GetDirection(), image.GetDirection(), atol=1e-6)
    assert not np.allclose(true.GetDirection(), image.GetDirection(), atol=0.1)


def test_the_scan_that_is_not_square(tmp_path):
    scan = loaded(make_covid19ctseg(tmp_path, cases=("radiopaedia_14_85914_0",)))
    assert scan.volume.grid.shape[:2] == (64, 41)
    same(scan, ma_scan("radiopaedia_14_85914_0"))


# --- patients and facts ---------------------------------------------------------------------------------------------


def test_patients():
    patients = {case: patient_of(case) for case in MA_CASES}
    assert patients["radiopaedia_10_85902_1"] == patients["radiopaedia_10_85902_3"]
    assert patients["radiopaedia_29_86490_1"] == patients["radiopaedia_29_86491_1"]
    assert len(set(patients.values())) == DATASETS["covid19ctseg"].expected["patients"] == 18


@pytest.mark.parametrize("options", [{"eight_bit": "keep"}, {"headers": "maybe"}])
def test_unknown_options(tmp_path, options):
    with pytest.raises(DatasetError, match="eight_bit is"):
        read_covid19ctseg_cases(tmp_path, **options)
