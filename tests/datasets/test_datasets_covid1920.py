"""COVID-19-20 and An et al.: scans of one origin under two names."""

from __future__ import annotations

import pytest
from trees import TRAIN_IDS, VALIDATION_IDS, make_an2020, make_covid1920

from pneumoscope.datasets.public.an2020 import read_an2020_cases
from pneumoscope.datasets.public.covid1920 import VALIDATION, read_covid1920_cases
from pneumoscope.errors import DatasetError


def names(keys):
    return [f"volume-covid19-A-{key}" for key in keys]


def test_parts_by_folder(tmp_path):
    cases = read_covid1920_cases(make_covid1920(tmp_path))
    by_part = {part: [c.case for c in cases if c.source == part] for part in ("train", "validation")}
    assert by_part == {"train": names(TRAIN_IDS), "validation": names(VALIDATION_IDS)}
    assert [c.case for c in cases if c.files.infiltrate is None] == names(VALIDATION_IDS)


def test_the_folder_goes_before_the_number(tmp_path):
    """A scan with a validation number in Train needs a mask; in a test folder nothing needs one."""
    top = make_covid1920(tmp_path) / "COVID-19-20_v2"
    scan = top / "Validation" / "volume-covid19-A-0004_ct.nii.gz"
    (top / "Test").mkdir()
    scan.rename(top / "Test" / scan.name)
    (top / "Train" / "volume-covid19-A-0247_ct.nii.gz").rename(top / "Test" / "volume-covid19-A-0300_ct.nii.gz")
    (top / "Train" / "volume-covid19-A-0247_seg.nii.gz").unlink()
    sources = {case.case: case.source for case in read_covid1920_cases(tmp_path)}
    assert sources["volume-covid19-A-0004"] == sources["volume-covid19-A-0300"] == "test"
    (top / "Test" / scan.name).rename(top / "Train" / scan.name)
    with pytest.raises(DatasetError, match=r"Train/volume-covid19-A-0004_ct\.nii\.gz: .* without mask"):
        read_covid1920_cases(tmp_path)


def test_the_validation_numbers():
    assert len(VALIDATION) == 50
    assert {"0004", "0180_0", "0369_1", "0697"} <= VALIDATION
    assert {key for key in VALIDATION if "_" in key} == {"0180_0", "0189_0", "0287_0", "0318_0", "0369_1"}


@pytest.mark.parametrize(("read", "make"), [(read_covid1920_cases, make_covid1920), (read_an2020_cases, make_an2020)])
def test_scans_that_differ_in_the_suffix_are_of_one_patient(tmp_path, read, make):
    patients = {c.case: c.patient for c in read(make(tmp_path))}
    first, second = (patients[name] for name in names(("0012_0", "0012_1")))
    assert first == second == "covid19-A-0012"
    assert len(set(patients.values())) == len(patients) - 1


def test_both_sets_name_scans_and_patients_alike(tmp_path):
    """So that a scan of one is recognised in the other."""
    challenge = {c.case: c.patient for c in read_covid1920_cases(make_covid1920(tmp_path / "a"))}
    an = {c.case: c.patient for c in read_an2020_cases(make_an2020(tmp_path / "b"))}
    common = challenge.keys() & an.keys()
    assert common == set(names(("0003", "0004", "0012_0", "0012_1")))
    assert {challenge[name] == an[name] for name in common} == {True}


def test_one_part_alone_can_be_named(tmp_path):
    top = make_covid1920(tmp_path) / "COVID-19-20_v2"
    assert {c.source for c in read_covid1920_cases(top / "Train")} == {"train"}
    assert {c.source for c in read_covid1920_cases(top / "Validation")} == {"validation"}


def test_the_mask_is_binary_infiltrate(tmp_path):
    scan = read_covid1920_cases(make_covid1920(tmp_path))[0].load()
    assert dict(scan.infiltrate.names) == {1: "infiltrate"}
    assert scan.lungs is None


def test_a_set_for_the_other(tmp_path):
    with pytest.raises(DatasetError, match=r"_seg\.nii\.gz: holds masks, .* read it as covid1920"):
        read_an2020_cases(make_covid1920(tmp_path / "a"))
    with pytest.raises(DatasetError, match=r"holds no volume-covid19-A-NNNN_ct"):
        read_covid1920_cases(make_an2020(tmp_path / "b"))
