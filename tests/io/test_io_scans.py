"""Which scans a path means, case names, and the CSV manifest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from border_files import chest, grid_of, nifti_bytes, scan_file
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pneumoscope.errors import InputError, ReadError
from pneumoscope.io.kinds import MAX_CASE_BYTES, case_name, kind_of, suffix_of
from pneumoscope.io.read import read_volume
from pneumoscope.io.scans import ScanRef, find_scans, list_scans, read_manifest
from pneumoscope.io.write import write_mask, write_volume
from pneumoscope.volume import Mask, Volume


@pytest.fixture(autouse=True)
def salted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNEUMOSCOPE_SALT", "test")


def write_dicom(
    folder: Path, *, uid: str = "1.2.826.9", modality: str = "CT", shift: float = 0.0, hu: np.ndarray | None = None
) -> Path:
    """A CT series of the small chest, patient DOE^JOHN, names without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    hu = chest() if hu is None else hu
    for k in range(hu.shape[2]):
        tags = pydicom.Dataset()
        tags.file_meta = pydicom.dataset.FileMetaDataset()
        tags.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        tags.file_meta.MediaStorageSOPClassUID = tags.SOPClassUID = CTImageStorage
        tags.file_meta.MediaStorageSOPInstanceUID = tags.SOPInstanceUID = generate_uid()
        tags.StudyInstanceUID, tags.SeriesInstanceUID, tags.FrameOfReferenceUID = uid + ".1", uid, uid + ".2"
        tags.Modality, tags.PatientName, tags.PatientID, tags.InstanceNumber = modality, "DOE^JOHN", "7", k + 1
        tags.ImageOrientationPatient, tags.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-6, -7, -100 + 1.25 * k]
        tags.PixelSpacing, tags.SliceThickness = [0.75, 0.5], 1.25
        tags.SamplesPerPixel, tags.PhotometricInterpretation = 1, "MONOCHROME2"
        tags.Columns, tags.Rows = hu.shape[:2]
        tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 16, 16, 15, 1
        tags.RescaleSlope, tags.RescaleIntercept = 1, int(shift)
        tags.PixelData = hu[:, :, k].tobytes(order="F")
        tags.save_as(folder / f"IM{k:03d}", enforce_file_format=True)
    return folder


def cases(*paths: Path) -> list[str]:
    return [ref.case for ref in find_scans(list(paths))]


def test_listing_dicom_never_hands_a_file_to_pydicom_unchecked(tmp_path: Path, monkeypatch) -> None:
    """A deflated file could inflate without bound, a damaged one be quoted: only the strict header reader looks."""
    write_dicom(tmp_path / "one")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pydicom.dcmread was called in this process")

    monkeypatch.setattr(pydicom, "dcmread", refuse)
    (ref,) = find_scans(tmp_path)
    assert ref.case.startswith("ct-")


def test_one_file(tmp_path: Path) -> None:
    path = scan_file(tmp_path, "case 7.nii.gz")
    assert find_scans(path) == [ScanRef("case_7", path)]
    assert find_scans(str(path)) == [ScanRef("case_7", path)]


def test_folder_of_images_is_one_case_each(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii", "c.nrrd", "d.mha", "e.zip", "notes.txt", ".hidden.nii", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    listing = list_scans(tmp_path)
    assert [ref.case for ref in listing.scans] == ["a", "b", "c", "d", "e"]
    assert listing.sentence() == "5 scans, 1 other file and 2 hidden or system files ignored; first: a"


def test_a_cleaned_copy_below_its_scans_is_passed_over(tmp_path: Path) -> None:
    """What ``data audit --fix`` wrote; given by itself it is read."""
    (tmp_path / "clean" / "images").mkdir(parents=True)
    scan_file(tmp_path, "a.nii.gz")
    scan_file(tmp_path / "clean" / "images", "a.nii.gz")
    (tmp_path / "clean" / "changes.csv").write_text("case,change\n")
    (tmp_path / "clean" / "manifest.csv").write_text("case,image\na,images/a.nii.gz\n")
    assert [ref.path for ref in find_scans(tmp_path)] == [tmp_path / "a.nii.gz"]
    assert [ref.path for ref in find_scans(tmp_path / "clean")] == [tmp_path / "clean" / "images" / "a.nii.gz"]


def test_masks_beside_their_scan_are_not_cases(tmp_path: Path) -> None:
    for name in ("id1.nii.gz", "id1-msk.nii.gz", "id1_lungs.nii.gz", "id2_mask.nii.gz", "lungs.nii.gz"):
        scan_file(tmp_path, name)
    listing = list_scans(tmp_path)
    assert [ref.case for ref in listing.scans] == ["id1", "id2_mask", "lungs"]
    assert listing.ignored == 2


def test_folders_of_masks_are_passed_over(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr", "lungs", "Infiltrate"):
        (tmp_path / folder).mkdir()
        scan_file(tmp_path / folder, "a.nii.gz")
    listing = list_scans(tmp_path)
    assert [ref.case for ref in listing.scans] == ["a"]
    assert listing.ignored == 3
    assert cases(tmp_path / "lungs") == ["a"]  # when it is given itself, it is meant


def test_a_manifest_in_the_folder_counts(tmp_path: Path) -> None:
    scan_file(tmp_path, "a.nii.gz")
    scan_file(tmp_path, "b.nii.gz")
    table(tmp_path, "name,file\n1,2\n", "manifest.csv")
    assert cases(tmp_path) == ["a", "b"]
    table(tmp_path, "case,image\nonly,b.nii.gz\n", "manifest.csv")
    assert cases(tmp_path) == ["only"]


def test_tags_that_cannot_be_read_do_not_stop_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RecursionError

    folder = write_dicom(tmp_path / "a")
    monkeypatch.setattr(pydicom, "dcmread", fails)
    assert len(cases(folder)) == 1


def test_folder_called_nii(tmp_path: Path) -> None:
    for case in ("x", "y"):
        (tmp_path / f"{case}.nii").mkdir()
        scan_file(tmp_path / f"{case}.nii", "inside.nii")
    assert cases(tmp_path) == ["x", "y"]
    assert cases(tmp_path / "x.nii") == ["x"]
    assert read_volume(tmp_path / "x.nii").case == "x"


def test_equal_stems_are_told_apart(tmp_path: Path) -> None:
    for folder in ("p1", "p2", "p3/deep"):
        (tmp_path / folder).mkdir(parents=True)
        scan_file(tmp_path / folder, "ct.nii.gz")
    scan_file(tmp_path, "other.nii")
    assert cases(tmp_path) == ["other", "p1_ct", "p2_ct", "deep_ct"]
    assert cases(tmp_path / "p1" / "ct.nii.gz", tmp_path / "p1" / "ct.nii.gz") == ["ct"]  # given twice, read once


@pytest.mark.parametrize(
    "clash",
    ["Other.nii", "other.nrrd", "OTHER.nii.gz", "o\u0308ther.nii", "a\N{NO-BREAK SPACE}b.nii", "a:b.nii", "a__b.nii"],
)
def test_a_file_more_renames_no_other_case(tmp_path: Path, clash: str) -> None:
    for name in ("other.nii", "\u00f6ther.nii", "a_b.nii", "a b.mha", "a?b.nii", "a*b.nii"):
        (tmp_path / name).touch()
    before = {ref.path.name: ref.case for ref in find_scans(tmp_path)}
    (tmp_path / clash).touch()
    after = {ref.path.name: ref.case for ref in find_scans(tmp_path)}
    assert {name: after[name] for name in before} == before
    folded = {unicodedata.normalize("NFKC", case).casefold() for case in after.values()}
    assert len(folded) == 7  # apart on every file system


def test_dicom_folder_is_one_case_that_hides_the_patient(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "DOE JOHN", uid="1.2.3")
    (folder / "Thumbs.db").write_bytes(b"junk")
    (ref,) = find_scans(folder)
    assert ref.path == folder
    assert ref.case.startswith("ct-")
    volume = read_volume(ref.path, case=ref.case)
    assert volume.case == ref.case == read_volume(folder).case
    assert cases(folder / "IM003") == [ref.case]


def test_folder_of_dicom_folders(tmp_path: Path) -> None:
    write_dicom(tmp_path / "one", uid="1.2.3")
    write_dicom(tmp_path / "two" / "study" / "series", uid="1.2.4")
    write_dicom(tmp_path / "structures", uid="1.2.5", modality="RTSTRUCT")
    scan_file(tmp_path, "three.nii")
    (tmp_path / "empty").mkdir()
    listing = list_scans(tmp_path)
    assert [ref.path.name for ref in listing.scans] == ["three.nii", "one", "two"]
    assert listing.ignored == chest().shape[2]
    assert len({ref.case for ref in listing.scans}) == 3
    assert len(cases(tmp_path / "one", tmp_path / "one")) == 1


def test_damaged_dicom_is_listed_and_refused_when_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "IM1").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI\x00\x04 1.2" + b"\xff" * 40)
    (ref,) = find_scans(tmp_path)
    assert ref.case.startswith("ct-")
    with pytest.raises(ReadError, match="IN-DCM"):
        read_volume(ref.path)


@pytest.mark.parametrize("name", ["b.nii", "b.zip", "lungs.nii.gz", "b.nrrd"])
def test_an_image_among_dicom_slices_is_passed_over_and_counted(tmp_path: Path, name: str) -> None:
    """By its kind, as its name may be the patient's."""
    name = f"DOE_JOHN {name}"
    folder = write_dicom(tmp_path / "a")
    wanted = read_volume(folder).hu
    scan_file(folder, name) if "nii" in name else (folder / name).write_bytes(b"x")
    listing = list_scans(tmp_path)
    assert [ref.path for ref in listing.scans] == [folder]
    assert "1 image beside DICOM slices" in listing.sentence()
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.hu, wanted)
    (note,) = (f.message for f in volume.findings if f.severity == "warning")
    assert f"1 other image(s) ({suffix_of(name)}) beside the DICOM slices" in note
    assert "DOE" not in note


def test_a_dicom_folder_beside_images_is_no_single_scan(tmp_path: Path) -> None:
    scan_file(tmp_path, "b.nii")
    write_dicom(tmp_path / "DOE JOHN")
    assert [ref.path.name for ref in find_scans(tmp_path)] == ["b.nii", "DOE JOHN"]
    with pytest.raises(ReadError, match=r"2 scans \(b.nii, a DICOM series\)") as caught:
        read_volume(tmp_path)
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize("mark", ["report.json", "change.json", "done.json", None])
def test_own_results_are_no_scans(tmp_path: Path, mark: str | None) -> None:
    """A case folder, finished or killed half-way, in the input folder; a scan in the same folder stays one."""
    scan_file(tmp_path, "p1.nii.gz")
    volume = read_volume(tmp_path / "p1.nii.gz")
    case = tmp_path / "out" / "p1"
    write_mask(Mask(np.uint8(volume.hu < -500), volume.grid, {1: "lung"}), case / "lungs.nii.gz", volume.native)
    for name in ("infiltrate", "probability", "uncertainty-entropy", "registration", "change", "p1"):
        scan_file(case, f"{name}.nii.gz")
    if mark:
        (case / mark).write_text("{}")
    listing = list_scans(tmp_path)
    assert sorted(ref.path for ref in listing.scans) == [case / "p1.nii.gz", tmp_path / "p1.nii.gz"]
    assert listing.passed["results of pneumoscope"] == 6
    (case / "p1.nii.gz").unlink()
    with pytest.raises(InputError, match="results of pneumoscope"):
        find_scans(case)


def test_links_are_followed_once(tmp_path: Path) -> None:
    store, cohort = tmp_path / "store", tmp_path / "cohort"
    write_dicom(store / "a", uid="1.2.3")
    write_dicom(store / "b", uid="1.2.4")
    scan_file(store, "c.nii")
    (store / "a" / "round").symlink_to(store / "a")
    cohort.mkdir()
    for name, target in {
        "a": store / "a", "again": store / "a", "c.nii": store / "c.nii", "d.nii": store / "c.nii",
        "up": "..", "self": "self", "gone": store / "gone", "gone.nii": store / "gone.nii",
    }.items():  # fmt: skip
        (cohort / name).symlink_to(target)
    (cohort / "b").mkdir()
    for path in sorted((store / "b").iterdir()):
        (cohort / "b" / path.name).symlink_to(path)
    listing = list_scans(cohort)
    assert [ref.path.name for ref in listing.scans] == ["c.nii", "gone.nii", "a", "b"]
    assert listing.passed == {"links to nothing": 2, "links to what is listed already": 4}
    assert "2 links to nothing" in listing.sentence()
    for name in ("a", "b"):
        np.testing.assert_array_equal(read_volume(cohort / name).hu, read_volume(store / name).hu)
    with pytest.raises(ReadError, match="IN-NII-053"):
        read_volume(cohort / "gone.nii")


def test_files_of_other_systems_are_counted_and_not_read(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a")
    for name in ("._IM001", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._IM001", "@eaDir/IM001"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "IM001").read_bytes()[:200])
    scan_file(tmp_path, "b.nii")
    scan_file(tmp_path, "._b.nii")
    listing = list_scans(tmp_path)
    assert [ref.path.name for ref in listing.scans] == ["b.nii", "a"]
    assert listing.passed == {"hidden or system files": 7}
    assert read_volume(folder).hu.shape == chest().shape


def test_zip_of_dicom(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"x/{path.name}")
    volume = read_volume(tmp_path / "scan.zip")
    assert volume.case == "scan"
    np.testing.assert_array_equal(volume.hu, read_volume(folder).hu)
    assert kind_of(tmp_path / "scan.zip") == "zip"


def test_dicom_that_is_no_hu_is_refused_unless_overridden(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a", shift=1024)
    with pytest.raises(ReadError, match=r"IN-DCM-067.*\+1024"):
        read_volume(folder)
    assert read_volume(folder, intensity="hu").hu.min() == 4


CONTENTS = {
    "one value": ("068 refused", lambda hu: hu * 0 + 7),
    "air": ("068 refused", lambda hu: -1000 + hu % 2),
    "what a failed masking leaves": ("068 error", lambda hu: np.clip(hu, -1024, -770) - hu % 97),
    "masked to lung": ("068 error", lambda hu: np.where(hu < -700, hu, -1024)),
    "a stent": ("067 warning", lambda hu: np.where((hu > 380) & (hu < 382), 13_000, hu)),
    "a template of functional MR": ("067 refused", lambda hu: np.where(hu > -700, 5000 + 20 * hu, hu)),
}


@pytest.mark.parametrize("suffix", [".dcm", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("name", CONTENTS)
def test_values_are_plausible_in_every_format(name: str, suffix: str, tmp_path: Path) -> None:
    expected, change = CONTENTS[name]
    hu = change(chest().astype(np.int32)).astype(np.int16)
    path = tmp_path / f"scan{suffix}"
    if suffix == ".dcm":
        write_dicom(path, hu=hu)
    else:
        write_volume(Volume.from_native(hu, grid_of(hu)), path)
    try:
        told = {f"{f.code[-3:]} {f.severity}" for f in read_volume(path).findings if f.severity != "info"}
    except ReadError as error:
        told = {f"{str(error.code)[-3:]} refused"}
    assert told == {expected}


def test_errors_inside_a_zip_of_dicom_name_the_zip(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in sorted(folder.iterdir())[:2]:
            archive.write(path, path.name)
    with pytest.raises(ReadError) as caught:
        read_volume(tmp_path / "scan.zip")
    assert str(tmp_path / "scan.zip") in str(caught.value)
    assert "pneumoscope-" not in str(caught.value)


def test_folder_with_one_image_can_be_read_as_a_scan(tmp_path: Path) -> None:
    scan_file(tmp_path, "a.nii.gz")
    (tmp_path / "notes.txt").write_text("hello")
    assert read_volume(tmp_path).case == "a"
    scan_file(tmp_path, "b.nii.gz")
    with pytest.raises(ReadError, match="2 images"):
        read_volume(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no scan"):
        find_scans(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="1 other file ignored"):
        find_scans(tmp_path)
    with pytest.raises(ReadError, match="no image"):
        read_volume(tmp_path)
    with pytest.raises(ReadError, match="no such file"):
        find_scans(tmp_path / "gone")
    with pytest.raises(ReadError, match="not a readable image"):
        find_scans(tmp_path / "a.txt")
    with pytest.raises(InputError, match="no scan was given"):
        find_scans([])


def test_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(InputError, match="cannot be listed"):
        find_scans(tmp_path)


def test_a_search_says_first_how_to_stop_it_and_then_where_it_is(tmp_path: Path) -> None:
    """A narrow terminal cuts the end off."""
    (tmp_path / "deep" / "down").mkdir(parents=True)
    said: list[str] = []
    with pytest.raises(InputError, match="holds no scan"):
        list_scans(tmp_path, progress=lambda step, done, total, note="": said.append(note))
    assert said[0].startswith("Ctrl-C stops; ")
    assert said[-1].endswith("down")


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumoscope.io.contents.MAX_FILES", 3)
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text("x")
    with pytest.raises(InputError, match="more than 3"):
        find_scans(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b/scan.nii.gz", "scan"), ("scan.NII.GZ", "scan"), ("x.nii/", "x"), ("v1.2.nii.gz", "v1.2"),
        ("IM0001.dcm", "IM0001"), ("case 7.nii", "case_7"), ("\u674e\u56db (1).nii", "\u674e\u56db_(1)"),
        ("\u0418\u0432\u0430\u043d.nii.gz", "\u0418\u0432\u0430\u043d"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940.nii", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("Ju\u0308rgen.nii", "J\u00fcrgen"), ("J\u00fcrgen #3.nrrd", "J\u00fcrgen_3-*"), ("../..", "scan-*"),
        ("-rf.nii", "rf-*"), ("=cmd|x.nii", "cmd_x-*"), ("<b>x</b>.mha", "b-*"), ("a\\b:c.nii", "a_b_c-*"),
        ("a\u202eb\x07.nii", "a_b-*"), ("..hidden..nii", "hidden-*"), ("blank .nii", "blank-*"),
        ("\udce4.nii", "scan-*"), ("con.nii", "con-*"), ("Aux.txt.nii", "Aux_txt-*"),
        ("run.json.nii.gz", "run_json-*"), ("cases.csv.nii.gz", "cases_csv-*"), ("done.json.nii.gz", "done_json-*"),
        ("private.nii", "private-*"), ("a" * 300 + ".nii", "a" * 113 + "-*"),
        ("\u674e" * 200 + ".nii", "\u674e" * 37 + "-*"),
    ],
)  # fmt: skip
def test_case_names_are_safe(name: str, expected: str) -> None:
    """A star stands for six hex digits: the name had to change, and the hash keeps it apart from others."""
    case = case_name(name)
    assert re.fullmatch(re.escape(expected).replace(r"\*", "[0-9a-f]{6}"), case), case
    assert len(case.encode()) <= MAX_CASE_BYTES


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8-sig"))
    return path


def test_manifest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    a, b = scan_file(tmp_path / "sub", "a.nii.gz"), scan_file(tmp_path, "b.nii.gz")
    path = table(
        tmp_path,
        "case, image ,lungs,infiltrate,patient,date,source,Notes\r\n"
        f"one, sub/a.nii.gz ,b.nii.gz,,P1,2020-03-01,site A,hello\r\n\r\n two x ,{b},,,,,,\r\n",
    )
    told = (("patient", "P1"), ("date", "2020-03-01"), ("source", "site A"))
    assert find_scans(path) == [
        ScanRef("one", a, b, None, None, "P1", "2020-03-01", "site A", (*told, ("Notes", "hello"))),
        ScanRef("two_x", b, columns=tuple((name, "") for name in ("patient", "date", "source", "Notes"))),
    ]


@pytest.mark.parametrize("head", ["", "sep={}\r\n"], ids=["plain", "sep"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_manifests_of_spreadsheets(tmp_path: Path, separator: str, head: str) -> None:
    """Written with commas, semicolons or tabs; cells that hold one of them are quoted."""
    scan_file(tmp_path, "a, b;c.nii")
    rows = ("case", "image", "patient"), ("x", '"a, b;c.nii"', '"Doe, Jane; 2"')
    text = head.format(separator) + "".join(separator.join(row) + "\r\n" for row in rows)
    for name in ("list.csv", "manifest.csv"):
        path = table(tmp_path, text, name)
        (ref,) = find_scans(path if name == "list.csv" else tmp_path)
        assert (ref.case, ref.path, ref.patient) == ("x", tmp_path / "a, b;c.nii", "Doe, Jane; 2")


def test_names_in_manifests_with_separators_stay_two(tmp_path: Path) -> None:
    scan_file(tmp_path, "s.nii")
    names = [ref.case for ref in read_manifest(table(tmp_path, "case,image\nA/1,s.nii\nB/1,s.nii\nB\\1,s.nii\n"))]
    assert len(set(names)) == 3
    assert [name[:4] for name in names] == ["A_1-", "B_1-", "B_1-"]


def test_manifest_takes_a_dicom_folder(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a")
    (ref,) = read_manifest(table(tmp_path, "case,image\n1,a\n"))
    assert ref == ScanRef("1", folder)


BAD_TABLES = {
    "empty": ("", "columns none"),
    "no image column": ("case,file\na,b\n", "columns case, file"),
    "semicolons": ("case;scan\na;s.nii\n", "expected case,image"),
    "column twice": ("case,image,image\na,s.nii,s.nii\n", "each once"),
    "no rows": ("case,image\n\n", "lists no scan"),
    "no case": ("case,image\n,s.nii\n", "line 2 has no case"),
    "no image": ("case,image\na,\n", "line 2 has no image"),
    "gone": ("case,image\na,gone.nii\n", "line 2: image 'gone.nii' does not exist"),
    "mask gone": ("case,image,lungs\na,s.nii,gone.nii\n", "lungs 'gone.nii'"),
    "pipe": ("case,image\na,pipe\n", "neither a file nor a folder"),
    "case twice": ("case,image\na,s.nii\nb,s.nii\na,s.nii\n", "line 4: case 'a' stands in line 2 too"),
    "too many cells": ("case,image\na,s.nii,x\n", "line 2 has 3 cells"),
    "NUL in a path": ("case,image\na,s\0.nii\n", "list.csv"),
    "open quote": ('case,image\na,"s.nii\n', "no CSV table"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_manifests_name_the_line(tmp_path: Path, name: str) -> None:
    text, words = BAD_TABLES[name]
    scan_file(tmp_path, "s.nii")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as caught:
        find_scans(table(tmp_path, text))
    assert words in str(caught.value)


def test_manifest_that_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv").write_bytes(b"case,image\n\xff\xfe,x\n")
    with pytest.raises(InputError, match="UTF-8"):
        find_scans(tmp_path / "list.csv")
    monkeypatch.setattr("pneumoscope.io.scans.MAX_BYTES", 5)
    with pytest.raises(InputError, match="larger than"):
        find_scans(tmp_path / "list.csv")


def test_nothing_heavy_is_imported_with_the_package() -> None:
    code = (
        "import sys, pneumoscope.io, pneumoscope.io.scans, pneumoscope.io.write, pneumoscope.io.read\n"
        "heavy = {'torch', 'nibabel', 'pydicom', 'SimpleITK', 'pandas', 'scipy', 'psutil'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kinds_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(nifti_bytes(chest()))
    assert kind_of(tmp_path / "a.bin") == "nifti"
    assert read_volume(tmp_path / "a.bin").grid.shape == chest().shape
    (tmp_path / "b.bin").write_bytes(b"\x1f\x8b damaged gzip, no suffix" * 30)
    assert kind_of(tmp_path / "b.bin") is None
    with pytest.raises(ReadError, match="IN-NII-053"):
        read_volume(tmp_path / "b.bin")


@pytest.mark.real
def test_real_folders(real_data: Path) -> None:
    listing = list_scans(real_data / "ct-volumes" / "imlab")
    assert [ref.case for ref in listing.scans] == ["id001", "id002"]
    assert listing.ignored == 2
    (ref,) = find_scans(real_data / "ct-volumes" / "nsclc-LUNG1-001")
    assert ref.path.name == "image"
    slices = find_scans(real_data / "ct-volumes" / "covid-slices-ny-sbu")
    assert len(slices) == 5
    with pytest.raises(ReadError):
        read_volume(slices[0].path)
