"""Several CT series in one study: which is read, what is said of the others, and what becomes of a batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import dicom_making as making
import numpy as np
import pytest
from pydicom.dataset import FileDataset

from pneumoscope.errors import InputError, ReadError
from pneumoscope.io.dicom.read import read_dicom
from pneumoscope.io.read import read_volume
from pneumoscope.io.scans import find_scans, list_scans

Change = Callable[[FileDataset], None]


def tags(**values: object) -> Change:
    def change(data: FileDataset) -> None:
        for name, value in values.items():
            setattr(data, name, value)

    return change


def thick(mm: float) -> dict[str, object]:
    return {"step": (0, 0, mm), "change": tags(SliceThickness=str(mm))}


CORONAL = (1, 0, 0, 0, 0, -1)


def save(folder: Path, name: str, number: int, count: int = 12, change: Change | None = None, **options: object) -> str:
    """A series of 12 slices of 2.5 mm with its own number; the UID."""
    uid = f"2.25.{9000 + number}"
    slices = making.make_series(count, uid=uid, **options)
    for data in slices:
        data.SeriesNumber = number
        data.BodyPartExamined = "CHEST"
        if change:
            change(data)
    making.save(slices, folder / name, lambda n: f"DOE-JOHN{number}-{n:03d}")
    return uid


def kernel(name: str | list[str], **more: object) -> dict[str, object]:
    return {"change": tags(ConvolutionKernel=name), **more}


SOFT = "softer kernel"
WORSE: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "not axial": ({}, {"orientation": CORONAL, "count": 18}, "not axial"),
    "projections": (
        {},
        {"change": tags(ImageType=["DERIVED", "PRIMARY", "AXIAL", "MIP"], ConvolutionKernel="B70f")},
        "a reformat or projection",
    ),
    "post-processed": ({}, {"count": 18, "change": tags(ImageType=["DERIVED", "SECONDARY"])}, "a reformat"),
    "abdomen by words": ({}, kernel("B60f") | {"change": tags(SeriesDescription="Abdomen 1.0")}, "another part"),
    "abdomen by tag": ({}, {"change": tags(BodyPartExamined="ABDOMEN"), "count": 18}, "another part of the body"),
    "a part not said": ({}, {"change": tags(BodyPartExamined=""), "count": 18}, "another part of the body"),
    "a slab": ({}, kernel("B60f", count=4), "covers too little"),
    "one place": ({}, {"step": (0, 0, 0.001), "count": 18}, "covers too little"),
    "gaps": (
        {},
        {"step": (0, 0, 10), "count": 4, "change": tags(SliceThickness="1", ConvolutionKernel="B60f")},
        "has gaps",
    ),
    "Siemens": (kernel("B60f"), {"count": 18}, SOFT),
    "Siemens iterative": (kernel(["Bl57d", "3"]), kernel(["Br40d", "3"]), SOFT),
    "both soft": (kernel("B41f"), kernel("B20f"), SOFT),
    "GE": (kernel("LUNG"), kernel("STANDARD", count=18), SOFT),
    "GE sharp": (kernel("BONEPLUS"), kernel("SOFT"), SOFT),
    "lung before bone": (kernel("LUNG"), kernel("BONE"), SOFT),
    "Canon": (kernel("FC51"), kernel("FC08"), SOFT),
    "Philips": (kernel("YA"), kernel("B"), SOFT),
    "by words": ({"change": tags(ConvolutionKernel="", SeriesDescription="LUNG 1.25")}, kernel(""), SOFT),
    "thick": (thick(2.5), {**thick(5), "count": 8}, "thicker slices"),
    "few": ({"count": 16}, {"count": 14}, "fewer slices"),
    "derived": ({}, {"change": tags(ImageType=["DERIVED", "PRIMARY", "AXIAL"])}, "derived images"),
    "nothing": ({}, {}, "equal by all rules"),
}


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "folders"])
@pytest.mark.parametrize("name", WORSE)
def test_the_best_is_read_and_the_finding_says_why(tmp_path: Path, name: str, flat: bool) -> None:
    better, worse, why = WORSE[name]
    study = tmp_path / "DOE JOHN"
    swapped = name != "nothing"  # of equal ones the lower number is read; else the order of files must not matter
    first = save(study, "x" if flat else "b", 7 if swapped else 3, **better)
    save(study, "x" if flat else "a", 5, **worse)
    volume = read_dicom(study)
    (finding,) = [f for f in volume.findings if f.code == "IN-DCM-013"]
    assert finding.message.startswith("read series")
    assert why in finding.message
    assert finding.severity == ("info" if swapped else "warning")
    assert "DOE" not in finding.message
    np.testing.assert_array_equal(volume.hu, read_dicom(study, series=first).hu)
    (ref,) = find_scans(tmp_path)
    assert ref.series == first
    assert ref.case == volume.case
    listed = read_volume(ref.path, series=ref.series)
    np.testing.assert_array_equal(listed.hu, volume.hu)
    assert any(why in f.message for f in (*ref.findings, *listed.findings))


def hospital(study: Path) -> list[str]:
    """Scout, lung and soft kernel, an arterial phase, coronal reformats and a dose report, a folder each."""
    scout = making.make_series(2, uid="2.25.1")
    for data in scout:
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    making.save(scout, study / "1")
    report = making.make_series(1, uid="2.25.2")[0]
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    report.Modality = "SR"
    del report.PixelData
    making.save([report], study / "999")
    return [
        save(study, "2", 2, change=tags(ConvolutionKernel="B30f")),
        save(study, "3", 3, change=tags(ConvolutionKernel="B70f")),
        save(study, "4", 4, change=tags(SeriesDescription="arterial", ConvolutionKernel="B30f")),
        save(study, "5", 5, orientation=CORONAL, change=tags(ImageType=["DERIVED", "SECONDARY", "MPR"])),
    ]


def test_a_hospitals_study_is_one_case(tmp_path: Path) -> None:
    uids = hospital(tmp_path / "export" / "DOE")
    for given in (tmp_path, tmp_path / "export", tmp_path / "export" / "DOE"):
        listing = list_scans(given)
        assert [ref.series for ref in listing.scans] == [uids[1]]
        volume = read_volume(given)
        assert volume.source["kernel"] == "B70f"
        assert volume.case == listing.scans[0].case
    assert listing.sentence() == (
        "1 scan, 3 other DICOM series of their studies and 3 DICOM files without a CT volume ignored"
    )
    (note,) = listing.scans[0].findings
    assert note.message.count("softer kernel") == 2
    assert note.message.count("not axial") == 1


def test_all_number_and_uid(tmp_path: Path) -> None:
    uids = hospital(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes().replace(b"2.25.7\0", b"2.25.8\0"))  # the study
    assert [ref.series for ref in find_scans(tmp_path, series="all")] == uids * 2
    assert len({ref.case for ref in find_scans(tmp_path, series="all")}) == 8
    assert [ref.series for ref in find_scans(tmp_path, series="3")] == [uids[2]] * 2
    assert [ref.path.name for ref in find_scans(tmp_path, series=uids[0])] == ["a", "b"]
    with pytest.raises(InputError, match="holds no scan"):
        find_scans(tmp_path, series="2.25.404")
    (first, _) = find_scans(tmp_path, series="9")
    with pytest.raises(ReadError, match=r"IN-DCM-013.*no series '9'"):
        read_volume(first.path, series=first.series)
    with pytest.raises(InputError, match="all series"):
        read_volume(tmp_path / "a", series="all")


def test_patients_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    """All slices of two patients, or of two dates of one, in one folder: a case each, never one of the two."""
    other = {"two dates": tags(StudyInstanceUID="2.25.70"), "two patients": tags(PatientID="SECOND")}
    for name, change in other.items():
        first, second = save(tmp_path / name, "x", 1), save(tmp_path / name, "x", 2, change=change)
        assert [ref.series for ref in find_scans(tmp_path / name)] == [first, second]
        with pytest.raises(ReadError, match=r"IN-DCM-013.*2 studies"):
            read_volume(tmp_path / name)


def test_one_study_uid_over_many_patients_does_not_join_them(tmp_path: Path) -> None:
    """Made anonymous with one constant UID and id: folders whose series nothing tells apart are patients."""
    for patient in ("a", "b", "c"):
        for number in (1, 2):
            uid = f"2.25.{ord(patient)}{number}"
            slices = making.make_series(12, uid=uid)
            for data in slices:
                data.SeriesNumber = number
                data.ConvolutionKernel = "B30f" if number == 1 else "B60f"
            making.save(slices, tmp_path / patient / str(number))
    assert [ref.path.name for ref in find_scans(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(ReadError, match=r"IN-DCM-013.*3 studies"):
        read_volume(tmp_path)


def test_damage_in_a_folder_of_another_series_does_not_matter(tmp_path: Path) -> None:
    save(tmp_path, "lung", 1, change=tags(ConvolutionKernel="B60f"))
    save(tmp_path, "soft", 2)
    (tmp_path / "soft" / "DOE-JOHN2-003").write_bytes(b"")
    assert read_volume(tmp_path).source["kernel"] == "B60f"
    (tmp_path / "lung" / "DOE-JOHN1-003").write_bytes(b"")
    with pytest.raises(ReadError, match=r"IN-DCM-003.* file 4 of 24: ") as caught:
        read_volume(tmp_path)
    assert "DOE" not in str(caught.value)
    assert caught.value.file == str(tmp_path / "lung" / "DOE-JOHN1-003")
