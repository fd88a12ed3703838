from __future__ import annotations

import csv
import json

import numpy as np
import pydicom
import pytest

from pneumoscope.cases.audit import audit_dataset
from pneumoscope.cases.options import AuditOptions
from pneumoscope.datasets.convert import convert_cases
from pneumoscope.datasets.phantom.folder import read_phantom, scan_patient, write_phantom
from pneumoscope.datasets.registry import read_dataset
from pneumoscope.errors import DatasetError, InputError


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Four tiny patients of sites A and C."""
    root = tmp_path_factory.mktemp("phantoms")
    for site in "AC":
        write_phantom(root / site, site, 4, seed=3, size="tiny")
    return root


@pytest.mark.parametrize("site", "AC")
def test_what_was_made_comes_back(written, site):
    cases = read_phantom(written / site)
    assert [c.case for c in cases] == [f"{site}-{n:03d}" for n in range(4)]
    assert {c.licence for c in cases} == {"CC0 1.0"}
    made = scan_patient(site, 1, seed=3, size="tiny")
    scan = cases[1].load()
    np.testing.assert_array_equal(scan.volume.hu, made.scan.volume.hu)
    assert scan.volume.grid.is_same_space(made.scan.volume.grid)
    assert scan.volume.native.axis_codes == made.scan.volume.native.axis_codes
    np.testing.assert_array_equal(scan.infiltrate.labels, made.scan.infiltrate.labels)
    np.testing.assert_array_equal(scan.truth.labels, made.scan.truth.labels)
    if site == "C":
        assert scan.lungs is None
        assert not (written / "C" / "lungs").exists()
    else:
        np.testing.assert_array_equal(scan.lungs.labels, made.lungs.labels)
        assert dict(scan.infiltrate.names) == {1: "ground-glass", 2: "consolidation"}


def test_the_description_and_the_faults(written):
    held = json.loads((written / "A" / "phantom.json").read_text())
    assert (held["site"], held["seed"], held["size"], held["licence"]) == ("A", 3, "tiny", "CC0 1.0")
    assert (written / "A" / "faults.csv").read_text().startswith("case,slice,kind,voxels,x,y,z\n")
    faults = list(csv.DictReader((written / "A" / "faults.csv").read_text().splitlines()))
    assert [(f["case"], f["kind"]) for f in faults] == [("A-002", "speck"), ("A-003", "no-lung")]
    assert faults[0]["voxels"] == "3"
    table = (written / "A" / "manifest.csv").read_text().splitlines()
    assert table[0] == "case,image,lungs,infiltrate,patient,date,source"
    assert table[1] == "A-000,images/A-000.nii.gz,lungs/A-000.nii.gz,infiltrate/A-000.nii.gz,A-000,2020-03-01,phantom-A"


def test_a_synthetic_folder_is_a_manifest_and_stands_in_for_other_sets(written):
    assert len(read_dataset("phantom", written / "A")) == 4
    assert [c.dataset for c in read_dataset("mosmed", written / "C")] == ["phantom"] * 4
    assert [c.dataset for c in read_dataset("manifest", written / "C" / "manifest.csv")] == ["phantom"] * 4


@pytest.mark.parametrize("to", ["nnunet", "slices", "manifest"])
def test_converted_and_repaired_copies_are_known_as_synthetic(written, tmp_path, to):
    """Else a study on them says that its data are real."""
    cases = read_dataset("phantom", written / "A")[:2]
    convert_cases(cases, tmp_path / to, to)
    back = read_dataset(to, tmp_path / to)
    assert [(c.dataset, c.source, c.licence) for c in back] == [("phantom", "phantom-A", "CC0 1.0")] * 2
    audit_dataset("manifest", written / "A" / "manifest.csv", tmp_path / "audit", AuditOptions(fix=tmp_path / "fixed"))
    assert {c.dataset for c in read_dataset("manifest", tmp_path / "fixed")} == {"phantom"}


def test_same_call_same_bytes(written, tmp_path):
    write_phantom(tmp_path / "A", "A", 4, seed=3, size="tiny")
    for path in sorted((written / "A").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "A" / path.relative_to(written / "A")).read_bytes(), path.name


def test_a_finished_folder_is_left_alone_and_another_refused(tmp_path):
    calls = []
    cases = write_phantom(tmp_path, "b", 1, seed=1, size="tiny", progress=lambda *a, **k: calls.append(a))
    assert cases == ["B-000"]
    assert calls == [("phantom B", 0, 1), ("phantom B", 1, 1)]
    before = (tmp_path / "phantom.json").stat().st_mtime_ns
    assert write_phantom(tmp_path, "B", 1, seed=1, size="tiny") == ["B-000"]
    assert (tmp_path / "phantom.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="already holds"):
        write_phantom(tmp_path, "B", 1, seed=2, size="tiny")
    write_phantom(tmp_path, "B", 1, seed=2, size="tiny", overwrite=True)
    assert json.loads((tmp_path / "phantom.json").read_text())["seed"] == 2


def test_dicom_reads_back_the_same(tmp_path):
    write_phantom(tmp_path, "A", 1, seed=3, size="tiny", format="dicom")
    first = pydicom.dcmread(sorted((tmp_path / "images" / "A-000").glob("*.dcm"))[0], stop_before_pixels=True)
    assert (first.PatientID, first.ConvolutionKernel) == ("PHANTOM-A-000", "SOFT")
    (case,) = read_phantom(tmp_path)
    scan = case.load()
    made = scan_patient("A", 0, seed=3, size="tiny").scan
    np.testing.assert_array_equal(scan.volume.hu, made.volume.hu)
    np.testing.assert_array_equal(scan.infiltrate.labels, made.infiltrate.labels)


def test_bad_calls_are_refused(tmp_path):
    with pytest.raises(InputError, match="format is 'png'"):
        write_phantom(tmp_path, "A", 1, format="png", size="tiny")
    with pytest.raises(InputError, match="one patient or more"):
        write_phantom(tmp_path, "A", 0, size="tiny")


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"no phantom\.json"):
        read_phantom(tmp_path)
    write_phantom(tmp_path, "A", 1, size="tiny")
    text = (tmp_path / "phantom.json").read_text()
    (tmp_path / "phantom.json").write_text(text[:40])
    with pytest.raises(DatasetError, match="is damaged"):
        read_phantom(tmp_path)
    (tmp_path / "phantom.json").write_text("[]")
    with pytest.raises(DatasetError, match="expected an object"):
        read_phantom(tmp_path)
    (tmp_path / "phantom.json").write_text(text.replace("A-000", "A-001"))
    with pytest.raises(DatasetError, match="different cases"):
        read_phantom(tmp_path)
    (tmp_path / "phantom.json").write_text(text)
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(DatasetError, match="damaged"):
        read_phantom(tmp_path)


def test_a_folder_being_rewritten_is_no_finished_set(tmp_path, monkeypatch):
    write_phantom(tmp_path, "A", 1, size="tiny")

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pneumoscope.datasets.phantom.folder.scan_patient", stop)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path, "A", 1, seed=1, size="tiny", overwrite=True)
    with pytest.raises(DatasetError, match=r"no phantom\.json"):
        read_phantom(tmp_path)
