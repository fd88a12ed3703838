"""The private key: from cases back to scans, for the user alone; and no name of a DICOM file anywhere else."""

import json
import os

import pydicom
import pytest

from pneumoscope.cases.quantify import quantify_cases
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.errors import InputError
from pneumoscope.io.masks import fit_mask
from pneumoscope.io.read import read_volume
from pneumoscope.io.scans import find_scans, list_scans
from pneumoscope.io.write import write_dicom_series, write_mask, write_volume
from tables import rows_of

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def work(tmp_path):
    """A manifest of a sound NIfTI scan, and DICOM exports under a patient's name: one cut short, one with a gap."""
    made = scan_patient("B", 0, size="tiny")
    volume = made.scan.volume
    write_volume(volume, tmp_path / "p0.nii.gz")
    write_mask(made.lungs, tmp_path / "l.nii.gz", volume.native)
    write_mask(made.scan.truth, tmp_path / "i.nii.gz", volume.native)
    for name in ("cut", "gap"):
        folder = tmp_path / f"DOE^JOHN {name}"
        write_dicom_series(volume, folder)
        files = sorted(folder.iterdir())
        for n, path in enumerate(files):
            data = pydicom.dcmread(path)
            data.PatientID, data.StudyDate = "SECRET7", "20200317"
            data.SeriesInstanceUID = {"cut": "2.25.311", "gap": "2.25.312"}[name]
            data.save_as(folder / f"DOE^JOHN {n:03d}")
            path.unlink()
        files = sorted(folder.iterdir())
        if name == "gap":
            files[4].unlink()
        else:
            os.truncate(files[4], files[4].stat().st_size - 50)
    rows = "".join(f"{name},DOE^JOHN {name},l.nii.gz,i.nii.gz,P-{name},{name} ward,x\n" for name in ("cut", "gap"))
    text = f'case,image,lungs,infiltrate,patient,Ward,status\n{rows}sound,p0.nii.gz,l.nii.gz,i.nii.gz,P-0,"a, b",=1\n'
    (tmp_path / "list.csv").write_text(text)
    return tmp_path


def test_key_errors_and_a_manifests_own_columns(work):
    out = work / "out"
    batch = quantify_cases(find_scans(work / "list.csv"), out)
    assert [case.status for case in batch.cases] == ["failed", "failed", "done"]
    key = {row["case"]: row for row in rows_of(out / "private" / "key.csv")}
    assert list(key["cut"]) == ["case", "path", "series_uid", "patient", "study_date"]
    for name in ("cut", "gap"):
        assert key[name]["path"] == str(work / f"DOE^JOHN {name}")
        data = pydicom.dcmread(next((work / f"DOE^JOHN {name}").iterdir()))
        assert key[name]["series_uid"] == data.SeriesInstanceUID
        assert (key[name]["patient"], key[name]["study_date"]) == ("SECRET7", "20200317")
    assert [*key["sound"].values()] == ["sound", str(work / "p0.nii.gz"), "", "P-0", ""]  # the manifest's patient
    errors = {row["case"]: row for row in rows_of(out / "private" / "errors.csv")}
    assert errors["cut"]["file"] == str(work / "DOE^JOHN cut" / "DOE^JOHN 004")
    assert errors["gap"]["file"] == str(work / "DOE^JOHN gap")
    assert set(errors) == {"cut", "gap"}
    for path in (out / "private" / "key.csv", out / "private" / "errors.csv"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert (out / "private").stat().st_mode & 0o777 == 0o700

    cases = rows_of(out / "cases.csv")
    assert list(cases[0])[-3:] == ["patient", "Ward", "manifest_status"]
    assert [row["Ward"] for row in cases] == ["cut ward", "gap ward", "a, b"]
    assert [row["status"] for row in cases] == ["failed", "failed", "done"]
    assert "file 5 of" in cases[0]["error"]
    assert cases[0]["error"].startswith("[IN-DCM-001] cut, file 5 of ")
    for path in (p for p in out.rglob("*") if p.is_file() and p.parent.name != "private"):
        for word in (b"DOE^JOHN", b"SECRET7", b"20200317", b"2.25.311", b"2.25.312"):
            assert word not in path.read_bytes(), path


def test_the_key_is_whole_after_any_later_run(work):
    out = work / "out"
    quantify_cases(find_scans(work / "list.csv"), out)
    before = rows_of(out / "private" / "key.csv")
    assert len(before) == 3
    lines = (work / "list.csv").read_text().splitlines(keepends=True)
    (work / "list.csv").write_text("".join([lines[0], lines[3], lines[3].replace("sound", "more")]))
    scans = find_scans(work / "list.csv")
    quantify_cases(scans, out, resume=True)
    assert [row["case"] for row in rows_of(out / "private" / "key.csv")] == ["cut", "gap", "sound", "more"]
    assert rows_of(out / "private" / "key.csv")[:3] == before
    assert len(rows_of(out / "private" / "errors.csv")) == 2
    quantify_cases(scans[:1], out, overwrite=True)
    assert rows_of(out / "private" / "key.csv")[:3] == before


def test_the_key_lies_elsewhere_or_nowhere(work):
    scans = find_scans(work / "list.csv")
    quantify_cases(scans, work / "out", key="none")
    quantify_cases(scans[:1], work / "two", key=work / "safe" / "k.csv")
    for out in ("out", "two"):
        assert not (work / out / "private").exists()
    assert [row["case"] for row in rows_of(work / "safe" / "k.csv")] == ["cut"]
    assert [row["case"] for row in rows_of(work / "safe" / "k-errors.csv")] == ["cut"]
    report = json.loads((work / "two" / "run.json").read_text())
    assert "k.csv" not in json.dumps(report)
    with pytest.raises(InputError, match="is not the key file of a run"):
        quantify_cases(scans, work / "three", key=work / "list.csv")
    assert not (work / "three").exists() or not [p for p in (work / "three").iterdir() if p.name[0] != "."]
    assert (work / "list.csv").read_text().startswith("case,image")


def test_another_series_of_the_same_folder_is_another_result(tmp_path):
    """A manifest keeps the case's name, so only the stamp tells that another series is meant."""
    made = scan_patient("B", 0, size="tiny")
    for number in (1, 2):
        folder = tmp_path / "study" / str(number)
        write_dicom_series(made.scan.volume, folder)
        for path in folder.iterdir():
            data = pydicom.dcmread(path)
            data.SeriesInstanceUID, data.SeriesNumber = f"2.25.{number}", number
            data.save_as(path)
    (first, second) = list_scans(tmp_path / "study", series="all").scans
    volume = read_volume(first.path, series=first.series)
    for name, mask in (("l", made.lungs), ("i", made.scan.truth)):
        write_mask(fit_mask(mask, volume.grid), tmp_path / f"{name}.nii.gz", volume.native)
    (tmp_path / "list.csv").write_text("case,image,lungs,infiltrate\np1,study,l.nii.gz,i.nii.gz\n")
    kept = []
    for series in ("1", "1", "2", "best"):
        (case,) = quantify_cases(find_scans(tmp_path / "list.csv", series=series), tmp_path / "out", resume=True).cases
        assert case.status == "done", case
        kept.append(case.kept)
        (row,) = rows_of(tmp_path / "out" / "private" / "key.csv")
        assert row["series_uid"] == ("2.25.2" if series == "2" else "2.25.1")
    assert kept == [False, True, False, False]
    assert second.series == "2.25.2"


def test_a_scan_called_like_our_files_is_a_case(work):
    names = ("run.json", "cases.csv", "private", "done.json", "report.json", ".lock")
    rows = "".join(f"{name},p0.nii.gz,l.nii.gz,i.nii.gz\n" for name in names)
    (work / "list.csv").write_text(f"case,image,lungs,infiltrate\n{rows}")
    batch = quantify_cases(find_scans(work / "list.csv"), work / "out")
    assert [case.status for case in batch.cases] == ["done"] * len(names)
    assert len(json.loads((work / "out" / "run.json").read_text())["cases"]) == len(names)
    assert len(rows_of(work / "out" / "cases.csv")) == len(names)
