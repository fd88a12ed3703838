"""SEG and SR of a case: there for DICOM scans only, never at the cost of the case, removed when they no longer hold."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import shutil
import zlib

import numpy as np
import pydicom
import pytest

from pneumoscope.cases.options import QuantifyOptions
from pneumoscope.cases.outputs import measured
from pneumoscope.cases.quantify import quantify_case, quantify_cases
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.io.read import read_volume
from pneumoscope.io.scans import list_scans
from pneumoscope.io.write import write_dicom_series, write_mask
from pneumoscope.severity.measure import assess


@pytest.fixture(autouse=True)
def _in_process(request):
    """All but the first test read and write DICOM in this process."""
    if request.node.name != "test_a_dicom_case_has_both_and_they_agree_with_the_report":
        request.getfixturevalue("in_process")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A phantom as DICOM series with its masks on the series' grid."""
    from pneumoscope.io.masks import fit_mask

    root = tmp_path_factory.mktemp("dicom-case")
    made = scan_patient("A", 0, seed=3, size="tiny")
    write_dicom_series(made.scan.volume, root / "series")
    volume = read_volume(root / "series")
    lungs, infiltrate = (fit_mask(mask, volume.grid) for mask in (made.lungs, made.scan.truth))
    write_mask(lungs, root / "lungs.nii.gz", volume.native)
    write_mask(infiltrate, root / "infiltrate.nii.gz", volume.native)
    return root, volume, lungs, infiltrate


def quantify(root, out, **options):
    (scan,) = list_scans([root / "series"]).scans
    chosen = QuantifyOptions(lungs=root / "lungs.nii.gz", infiltrate=root / "infiltrate.nii.gz", **options)
    quantify_case(scan, out, chosen)
    return json.loads((out / "report.json").read_text())


def test_a_dicom_case_has_both_and_they_agree_with_the_report(phantom, tmp_path):
    import highdicom as hd

    root = phantom[0]
    out = tmp_path / "case"
    out.mkdir()
    report = quantify(root, out)
    seg = hd.seg.segread(out / "seg.dcm")
    names = {s.SegmentLabel: s.SegmentNumber for s in seg.SegmentSequence}
    right = seg.get_volume(segment_numbers=[names["right lung"]], combine_segments=False)
    ml = float(right.array.sum() * np.prod(right.spacing) / 1000)
    assert ml == pytest.approx(report["severity"]["right"]["lung_ml"], rel=1e-4)
    structured = hd.sr.srread(out / "report.dcm")
    groups = structured.content.get_volumetric_roi_measurement_groups()
    (lung,) = [g for g in groups if g.tracking_identifier == "pneumoscope right lung"]
    values = {m.name.meaning: m.value for m in lung.get_measurements()}
    assert values["Volume"] == pytest.approx(report["severity"]["right"]["lung_ml"], rel=1e-4)
    assert values["Share of lung volume"] == pytest.approx(report["severity"]["right"]["share_percent"], rel=1e-4)
    again = tmp_path / "again"
    again.mkdir()
    quantify(root, again, deidentify=True)
    assert pydicom.dcmread(again / "seg.dcm").PatientIdentityRemoved == "YES"


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_headers_are_parsed_once_and_a_zip_is_unpacked_once(phantom, tmp_path, monkeypatch, packed):
    """The headers travel with the volume: SEG and SR are made of them, and no file is opened again."""
    from pneumoscope.io import archive
    from pneumoscope.io.dicom import read as reading

    asked, unpacked = [], []
    exchange, unpack = reading.exchange, archive._unpack_all
    monkeypatch.setattr(
        reading, "exchange", lambda given, *more: asked.append(given["action"]) or exchange(given, *more)
    )
    monkeypatch.setattr(archive, "_unpack_all", lambda *given: unpacked.append(given[-1]) or unpack(*given))
    root = tmp_path / "data"
    shutil.copytree(phantom[0], root)
    if packed:
        shutil.make_archive(str(tmp_path / "series"), "zip", root / "series")
        shutil.rmtree(root / "series")
        shutil.move(tmp_path / "series.zip", root / "series")
    (tmp_path / "case").mkdir()
    quantify(root, tmp_path / "case")
    assert {"seg.dcm", "report.dcm"} <= {path.name for path in (tmp_path / "case").iterdir()}
    assert asked == ["read", "derive"]
    assert len(unpacked) == packed


def test_a_nifti_case_has_neither_and_old_ones_go(phantom, tmp_path):
    from pneumoscope.io.write import write_volume

    root, volume, _, _ = phantom
    out = tmp_path / "case"
    out.mkdir()
    for name in ("seg.dcm", "seg-infiltrate.dcm", "report.dcm"):
        (out / name).write_bytes(b"of an earlier run")
    write_volume(volume, tmp_path / "scan.nii.gz")
    (scan,) = list_scans([tmp_path / "scan.nii.gz"]).scans
    quantify_case(scan, out, QuantifyOptions(lungs=root / "lungs.nii.gz", infiltrate=root / "infiltrate.nii.gz"))
    assert not list(out.glob("*.dcm"))


@pytest.mark.parametrize(
    ("lung_values", "names"),
    [
        ((1, 2), {"seg.dcm": ["right lung", "left lung"], "seg-infiltrate.dcm": ["infiltrate"]}),
        ((1, 1), {"seg.dcm": ["lung"], "seg-infiltrate.dcm": ["infiltrate"]}),
        ((0, 2), {"seg.dcm": ["lung"], "seg-infiltrate.dcm": ["infiltrate"]}),
        ((1, 0), {"seg.dcm": ["lung"]}),
    ],
    ids=["both sides", "no sides", "label 2 only", "no infiltrate"],
)
def test_masks_without_names_are_segments_too(phantom, tmp_path, lung_values, names):
    """Masks of other programs, whose files name no label, in the house order."""
    import nibabel

    root, volume, lungs, infiltrate = phantom
    paths = {}
    for what, mask in (("lungs", np.array([0, *lung_values], np.uint8)[lungs.labels]), ("infiltrate", infiltrate.any)):
        spots = mask if what == "lungs" else (mask & ("seg-infiltrate.dcm" in names)).astype(np.uint8)
        paths[what] = tmp_path / f"{what}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(spots, volume.grid.affine), paths[what])
    (scan,) = list_scans([root / "series"]).scans
    quantify_case(scan, tmp_path, QuantifyOptions(**paths))
    found = {
        path.name: [s.SegmentLabel for s in pydicom.dcmread(path).SegmentSequence] for path in tmp_path.glob("seg*.dcm")
    }
    assert found == names


def test_what_goes_wrong_is_a_finding_not_a_lost_case(phantom, tmp_path, monkeypatch):
    from pneumoscope.errors import ReadError

    def fails(*args, **options):
        raise ReadError("the series has gone", code="IN-DCM-100")

    monkeypatch.setattr("pneumoscope.cases.outputs.write_dicom_results", fails)
    out = tmp_path / "case"
    out.mkdir()
    report = quantify(phantom[0], out)
    assert [f["message"] for f in report["findings"] if f["code"] == "OUT-DCM-001"] == [
        "the DICOM files were not written: the series has gone"
    ]
    assert not list(out.glob("*.dcm"))


def test_numbers_by_label_name(phantom):
    _, volume, lungs, infiltrate = phantom
    found = measured(assess(volume, lungs, infiltrate))
    assert {"right lung", "left lung"} <= set(found)
    assert found["right lung"]["volume_ml"] == pytest.approx(lungs.volume_ml("right lung"))
    for name in infiltrate.names.values():
        assert found[name]["volume_ml"] == pytest.approx(infiltrate.volume_ml(name))


TELLTALES = (b"CANARY", b"BIRD", b"20190817", b"181716", b"087Y", b"1.2.3.999", b"SECRETID")


def every_byte(folder):
    """(name, bytes) of every file below a folder; packed ones also unpacked, as far down as they are packed."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        yield str(path.relative_to(folder)), raw
        if raw.startswith(b"\x1f\x8b"):
            yield f"{path.name} unpacked", gzip.decompress(raw)
        for packed in re.findall(rb"[A-Za-z0-9+/]{400,}={0,2}", raw):
            with contextlib.suppress(ValueError):
                data = base64.b64decode(packed[: len(packed) // 4 * 4])
                yield f"{path.name} from base64", data
                with contextlib.suppress(OSError, EOFError, zlib.error):
                    yield f"{path.name} from base64, unpacked", gzip.decompress(data)


@pytest.mark.parametrize("deidentify", [False, True], ids=["as is", "deidentified"])
def test_no_output_holds_a_trace_of_the_patient(phantom, tmp_path, deidentify):
    """Telltales in the scan's own headers: no file of a case shows one, but the two DICOM files without the option."""
    source = phantom[0]
    series = tmp_path / "CANARY^BIRD"  # a folder named after the patient, as exports do
    series.mkdir()
    for n, file in enumerate(sorted((source / "series").glob("*.dcm"))):
        data = pydicom.dcmread(file)
        for tag, (vr, _, _, retired, keyword) in pydicom.datadict.DicomDictionary.items():
            if (
                tag >> 16 > 7
                and keyword
                and not retired
                and keyword not in data
                and vr in ("LO", "SH", "PN", "ST", "LT", "UT", "UC")
            ):
                setattr(data, keyword, "CANARY^BIRD" if vr == "PN" else "CANARY")
        data.PatientName, data.PatientID, data.PatientAge = "CANARY^BIRD", "SECRETID", "087Y"
        data.StudyDate = data.SeriesDate = data.ContentDate = data.PatientBirthDate = "20190817"
        data.StudyTime = "181716"
        data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.999.1", "1.2.3.999.2"
        data.FrameOfReferenceUID = "1.2.3.999.3"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.999.4.{n + 1}"
        block = data.private_block(0x0029, "CANARY MAKER", create=True)
        block.add_new(0x01, "LO", "CANARY")
        data.save_as(series / file.name)
    out = tmp_path / "out"
    options = QuantifyOptions(
        lungs=source / "lungs.nii.gz", infiltrate=source / "infiltrate.nii.gz", save=("vti",), deidentify=deidentify
    )
    result = quantify_cases(list_scans([series]).scans, out, options)
    assert [case.status for case in result.cases] == ["done"], result.cases
    found = {name for name, raw in every_byte(out) if any(t in raw or t in name.encode() for t in TELLTALES)}
    theirs = {name for name in found if name.endswith(".dcm")}
    assert found - theirs == {"private/key.csv"}
    assert len(theirs) == (0 if deidentify else 3), "without the option they belong to their patient"
    assert {p.name for p in out.rglob("*.*")} >= {"view.html", "report.html", "volume.vti", "seg.dcm", "run.json"}


@pytest.mark.parametrize("absent", ["FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_series_without_a_uid_gets_its_objects(phantom, tmp_path, absent):
    """COVID-CT-MD has no frame of reference: each image got one of its own, and highdicom refused the series."""
    import highdicom as hd

    for path in (phantom[0] / "series").iterdir():
        data = pydicom.dcmread(path)
        delattr(data, absent)
        (tmp_path / "series").mkdir(exist_ok=True)
        data.save_as(tmp_path / "series" / path.name)
    for name in ("lungs.nii.gz", "infiltrate.nii.gz"):
        (tmp_path / name).write_bytes((phantom[0] / name).read_bytes())
    out = tmp_path / "case"
    out.mkdir()
    assert [f["code"] for f in quantify(tmp_path, out)["findings"] if f["code"].startswith("OUT-DCM")] == []
    assert hd.seg.segread(out / "seg.dcm").get(absent)
    assert (out / "report.dcm").is_file()
