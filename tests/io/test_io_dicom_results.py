"""SEG and SR: the right voxels at the right place, references to the source, and nobody's name where none belongs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from shutil import which

import numpy as np
import pydicom
import pytest
from dicom_making import SERIES_UID, make_enhanced, make_series, save

from pneumoscope.errors import InputError
from pneumoscope.geometry import LPS_TO_RAS
from pneumoscope.io.dicom.results import write_dicom_results
from pneumoscope.io.read import read_volume
from pneumoscope.volume import INFILTRATE_LABELS, LUNG_LABELS, Mask, Volume

C, S = np.cos(np.radians(12)), np.sin(np.radians(12))
ORIENTATIONS = {
    "upright": (1, 0, 0, 0, 1, 0), "mirrored": (-1, 0, 0, 0, 1, 0), "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (C, S, 0, -S, C, 0), "tipped": (1, 0, 0, 0, C, S),
}  # fmt: skip
MEASURED = {
    "right lung": {"volume_ml": 1234.5, "share_percent": 7.25, "mean_hu": -801.5},
    "consolidation": {"volume_ml": 0.5},
    "infiltrate": {"volume_ml": 99.0},
}


def marked(volume: Volume) -> tuple[Mask, Mask]:
    """Lungs and infiltrate with no symmetry: one marked corner each, and overlap."""
    lungs = np.zeros(volume.grid.shape, np.uint8)
    lungs[1:5, 2:7, 1:6] = 1
    lungs[6:9, 2:5, 3:8] = 2
    spots = np.zeros_like(lungs)
    spots[1, 2, 1] = 1
    spots[6:8, 3:5, 4] = 2
    return Mask(lungs, volume.grid, LUNG_LABELS), Mask(spots, volume.grid, INFILTRATE_LABELS)


def written(tmp_path: Path, slices, **options):
    folder = save(slices, tmp_path / "series")
    volume = read_volume(folder, intensity="hu")
    masks = marked(volume)
    files = write_dicom_results(
        volume, masks, tmp_path, measured=MEASURED, states=("lung_incomplete",), models="lungs", **options
    )
    return volume, masks, files


def points_of(seg: pydicom.Dataset) -> dict[str, set[tuple[float, ...]]]:
    """RAS mm of every marked voxel by segment, from the plain DICOM attributes only."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    size = seg.Rows * seg.Columns
    names = {s.SegmentNumber: s.SegmentLabel for s in seg.SegmentSequence}
    points: dict[str, set[tuple[float, ...]]] = {name: set() for name in names.values()}
    for n, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        name = names[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        plane = frames[n * size : (n + 1) * size].reshape(seg.Rows, seg.Columns)
        for r, c in np.argwhere(plane):
            lps = origin + c * columns_mm * row + r * rows_mm * column
            points[name].add(tuple(np.round((LPS_TO_RAS[:3, :3] @ lps), 2)))
    return points


def all_points(files) -> dict[str, set[tuple[float, ...]]]:
    """`points_of` both segmentations."""
    lungs, infiltrate, _ = files
    return points_of(pydicom.dcmread(lungs)) | points_of(pydicom.dcmread(infiltrate))


def points_in(mask: Mask, label: int) -> set[tuple[float, ...]]:
    return {tuple(np.round(p, 2) + 0.0) for p in mask.grid.world(np.argwhere(mask.labels == label).astype(float))}


def close(a: set[tuple[float, ...]], b: set[tuple[float, ...]]) -> bool:
    one, two = (np.array(sorted(s)) for s in (a, b))
    return one.shape == two.shape and bool(
        np.all(np.min(np.linalg.norm(one[:, None] - two[None], axis=2), axis=1) < 0.03)
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_voxel_lies_where_the_mask_has_it(tmp_path, orientation):
    _, (lungs, spots), files = written(tmp_path, make_series(orientation=orientation))
    found = all_points(files)
    assert set(found) == {"right lung", "left lung", "ground-glass", "consolidation"}
    assert close(found["right lung"], points_in(lungs, 1))
    assert close(found["left lung"], points_in(lungs, 2))
    assert close(found["ground-glass"], points_in(spots, 1))
    assert close(found["consolidation"], points_in(spots, 2))


def test_highdicom_reads_the_same_volume_back(tmp_path):
    import highdicom as hd

    _, masks, files = written(tmp_path, make_series())
    for mask, file in zip(masks, files, strict=False):
        combined = hd.seg.segread(file).get_volume(combine_segments=True)  # refuses segments that overlap
        affine = LPS_TO_RAS @ combined.affine
        for label in (1, 2):
            ijk = np.argwhere(combined.array == label)
            got = {tuple(np.round(p, 2) + 0.0) for p in ijk @ affine[:3, :3].T + affine[:3, 3]}
            assert close(got, points_in(mask, label))


def test_a_label_map_of_the_frames_has_one_segment_per_voxel(tmp_path):
    """What readers without an idea of overlap do (Slicer, dcmqi, OHIF): every frame is painted into one volume."""
    _, _, files = written(tmp_path, make_series())
    for file in files[:2]:
        points = points_of(pydicom.dcmread(file))
        assert len(set().union(*points.values())) == sum(map(len, points.values()))


@pytest.mark.parametrize(("kept", "names"), [(0, ["report.dcm", "seg.dcm"]), (1, ["report.dcm", "seg-infiltrate.dcm"])])
def test_a_mask_without_voxels_leaves_its_file_out(tmp_path, kept, names):
    folder = save(make_series(), tmp_path / "series")
    volume = read_volume(folder, intensity="hu")
    masks = [m if n == kept else Mask.empty(m.grid, m.names) for n, m in enumerate(marked(volume))]
    files = write_dicom_results(volume, masks, tmp_path, measured=MEASURED)
    assert sorted(p.name for p in tmp_path.glob("*.dcm")) == sorted(p.name for p in files) == names


@pytest.mark.skipif(which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: apt-get install dicom3tools)")
@pytest.mark.parametrize("deidentify", [False, True], ids=["as is", "deidentified"])
@pytest.mark.parametrize("kind", ["series", "oblique", "enhanced"])
def test_dciodvfy_finds_no_error(tmp_path, kind, deidentify):
    slices = [make_enhanced()] if kind == "enhanced" else make_series(orientation=ORIENTATIONS["oblique"])
    _, _, files = written(tmp_path, make_series() if kind == "series" else slices, deidentify=deidentify)
    assert len(files) == 3
    for file in files:
        checked = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
        errors = [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], file.name
        assert ("Segmentation" if file.name.startswith("seg") else "Comprehensive3DSR") in checked.stderr


@pytest.mark.skipif(which("dciodvfy") is None, reason="dciodvfy is not installed (Debian: apt-get install dicom3tools)")
def test_dciodvfy_would_find_one(tmp_path):
    _, _, (lungs, _, _) = written(tmp_path, make_series())
    seg = pydicom.dcmread(lungs)
    del seg.SegmentSequence[0].SegmentAlgorithmType
    seg.save_as(tmp_path / "bad.dcm")
    checked = subprocess.run(["dciodvfy", tmp_path / "bad.dcm"], capture_output=True, text=True, check=False)
    assert "Error" in checked.stdout + checked.stderr


def test_frames_refer_to_the_image_at_their_place(tmp_path):
    slices = make_series()
    where = {str(s.SOPInstanceUID): [float(x) for x in s.ImagePositionPatient] for s in slices}
    _, _, files = written(tmp_path, slices[::-1])
    for seg in map(pydicom.dcmread, files[:2]):
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES_UID
        for group in seg.PerFrameFunctionalGroupsSequence:
            source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            position = [float(x) for x in group.PlanePositionSequence[0].ImagePositionPatient]
            assert position == pytest.approx(where[str(source)], abs=1e-3)


def test_codes_sides_and_notice(tmp_path):
    _, _, files = written(tmp_path, make_series())
    segs = [pydicom.dcmread(file) for file in files[:2]]
    coded = {
        s.SegmentLabel: (t.CodeValue, [m.CodeMeaning for m in t.get("SegmentedPropertyTypeModifierCodeSequence", [])])
        for seg in segs
        for s in seg.SegmentSequence
        for t in s.SegmentedPropertyTypeCodeSequence
    }
    assert coded["right lung"] == ("39607008", ["Right"])
    assert coded["left lung"] == ("39607008", ["Left"])
    assert coded["consolidation"] == ("95436008", [])
    assert len({seg.SeriesInstanceUID for seg in segs}) == len({seg.SOPInstanceUID for seg in segs}) == 2
    for seg in segs:
        assert "not a medical device" in seg.ContentDescription
        assert seg.PatientName == "SECRET^NAME", "without --deidentify a SEG belongs to its patient"


def test_the_report_holds_the_numbers_and_points_to_the_segments(tmp_path):
    import highdicom as hd

    _, _, files = written(tmp_path, make_series())
    report = hd.sr.srread(files[2])
    groups = report.content.get_volumetric_roi_measurement_groups()
    by_name = {g.tracking_identifier: g for g in groups}
    assert len(by_name) == 4, "every segment is spoken of"
    assert not by_name["pneumoscope left lung"].get_measurements(), "nothing was measured of it"
    values = {m.name.meaning: (m.value, m.unit.value) for m in by_name["pneumoscope right lung"].get_measurements()}
    assert values == {
        "Volume": (1234.5, "ml"),
        "Share of lung volume": (7.25, "%"),
        "Attenuation Coefficient": (-801.5, "[hnsf'U]"),
    }
    said = by_name["pneumoscope right lung"].get_qualitative_evaluations()
    assert "lung incomplete" in [item.value.meaning for item in said]
    referred = {
        str(i.ReferencedSOPInstanceUID)
        for s in report.CurrentRequestedProcedureEvidenceSequence
        for r in s.ReferencedSeriesSequence
        for i in r.ReferencedSOPSequence
    }
    assert {str(pydicom.dcmread(file).SOPInstanceUID) for file in files[:2]} <= referred
    assert len(referred) == 2 + 10
    by_segment = {
        item.SegmentLabel: str(seg.SOPInstanceUID)
        for seg in map(pydicom.dcmread, files[:2])
        for item in seg.SegmentSequence
    }
    for name, group in by_name.items():
        assert by_segment[name.removeprefix("pneumoscope ")] == group.referenced_segment.referenced_sop_instance_uid


def test_an_enhanced_file_gets_the_same_points(tmp_path):
    folder = tmp_path / "enhanced"
    folder.mkdir()
    make_enhanced().save_as(folder / "one.dcm", enforce_file_format=True)
    volume = read_volume(folder, intensity="hu")
    lungs, spots = marked(volume)
    found = all_points(write_dicom_results(volume, (lungs, spots), tmp_path, measured=MEASURED))
    assert close(found["right lung"], points_in(lungs, 1))
    assert close(found["ground-glass"], points_in(spots, 1))


def canaries(slices):
    """Put a telltale into every text attribute a scanner may fill, private ones and nested ones too."""
    for n, s in enumerate(slices):
        for tag, entry in pydicom.datadict.DicomDictionary.items():
            vr, _, _, retired, keyword = entry
            group = tag >> 16
            if keyword in s or retired or group in (0x0002, 0x0000, 0xFFFE) or not keyword:
                continue
            if vr in ("LO", "SH", "PN", "ST", "LT", "UT", "UC"):
                setattr(s, keyword, "CANARY" if vr != "PN" else "CANARY^BIRD")
        s.StudyDate = s.SeriesDate = s.AcquisitionDate = s.ContentDate = "20190817"
        s.StudyTime = s.AcquisitionTime = "181716"
        s.PatientAge = "087Y"
        s.PatientName, s.PatientID = "CANARY^BIRD", "CANARY"
        s.InstitutionName = "CANARY"
        block = s.private_block(0x0029, "CANARY MAKER", create=True)
        block.add_new(0x01, "LO", "CANARY")
        item = pydicom.Dataset()
        item.CodeMeaning = "CANARY"
        item.PersonName = "CANARY^BIRD"
        s.RequestAttributesSequence = [item]
        s.StudyInstanceUID = "1.2.3.999.4711"
        s.SeriesInstanceUID = "1.2.3.999.4712"
        s.FrameOfReferenceUID = "1.2.3.999.4713"
        s.SOPInstanceUID = s.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.999.4714.{n + 1}"
    return slices


def test_deidentified_results_hold_no_trace_of_the_patient(tmp_path):
    _, _, files = written(tmp_path, canaries(make_series()), deidentify=True)
    for file in files:
        raw = file.read_bytes()
        for telltale in (b"CANARY", b"BIRD", b"20190817", b"181716", b"087Y", b"1.2.3.999", b"SECRET", b"19010203"):
            assert telltale not in raw, f"{telltale!r} in {file.name}"
        data = pydicom.dcmread(file)
        assert data.PatientIdentityRemoved == "YES"
        assert data.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert str(data.PatientID).startswith("ct-")


def test_without_deidentify_the_canaries_would_show(tmp_path):
    _, _, files = written(tmp_path, canaries(make_series()))
    assert all(b"CANARY" in file.read_bytes() and b"1.2.3.999" in file.read_bytes() for file in files)


def test_deidentified_objects_still_refer_to_each_other(tmp_path):
    _, _, files = written(tmp_path, make_series(), deidentify=True)
    report = pydicom.dcmread(files[2])
    for seg in map(pydicom.dcmread, files[:2]):
        assert seg.StudyInstanceUID == report.StudyInstanceUID
        assert str(seg.SOPInstanceUID).encode() in files[2].read_bytes()


def test_no_voxel_no_segmentation(tmp_path):
    folder = save(make_series(), tmp_path / "series")
    volume = read_volume(folder, intensity="hu")
    nothing = Mask.empty(volume.grid, LUNG_LABELS)
    assert write_dicom_results(volume, (nothing,), tmp_path, measured={}) == ()
    assert not list(tmp_path.glob("*.dcm"))


def test_what_became_of_the_files_after_reading_does_not_matter(tmp_path):
    """Headers are parsed once, with the voxels: what is written belongs to what was read."""
    folder = save(make_series(), tmp_path / "series")
    volume = read_volume(folder, intensity="hu")
    for path in folder.iterdir():
        path.unlink()
    _, spots = marked(volume)
    file, report = write_dicom_results(volume, (spots,), tmp_path, measured={})
    assert close(points_of(pydicom.dcmread(file))["ground-glass"], points_in(spots, 1))
    assert pydicom.dcmread(report).PatientName == "SECRET^NAME"
    assert "SECRET" not in repr(volume)


def test_a_name_in_another_alphabet_stays_readable(tmp_path):
    slices = make_series()
    for one in slices:
        one.SpecificCharacterSet = "ISO_IR 144"
        one.PatientName = "Люкceмбypг"
    _, _, files = written(tmp_path, slices)
    assert str(pydicom.dcmread(files[0]).PatientName) == "Люкceмбypг"


def test_other_formats_have_no_dicom_results(tmp_path):
    folder = save(make_series(), tmp_path / "series")
    volume = read_volume(folder, intensity="hu")
    plain = Volume(volume.hu, volume.grid, volume.native, source={"format": "NIfTI"})
    with pytest.raises(InputError, match="only a DICOM scan"):
        write_dicom_results(plain, marked(plain), tmp_path, measured={})
