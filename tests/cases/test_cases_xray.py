"""Many radiographs into one folder: every input gets its line, the files agree, names tell nobody's name."""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "inference"))

from xray_models import chest, make_model

from pneumoscope.cases.options import XrayOptions
from pneumoscope.cases.xray import classify_radiographs
from pneumoscope.errors import InputError, ModelError
from pneumoscope.jobs.machines import machines
from tables import rows_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("xray") / "model")


@pytest.fixture
def pictures(tmp_path, rng):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        save(folder / f"p{number}.png", chest(rng, 100, spot=number % 2 == 1, columns=140 + number))
    return folder


def save(path, grey, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(grey * 255).astype(np.uint8)).save(path, **more)
    return path


def table(out):
    return {row["image"]: row for row in rows_of(out / "predictions.csv")}


def huge_png():
    """The header of a PNG of 30 000 x 30 000 and too little data."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_every_file_of_a_run_agrees(model, pictures, tmp_path):
    out = tmp_path / "out"
    batch = classify_radiographs([pictures], out, XrayOptions(model=model, device="cpu"))
    rows = table(out)
    assert list(rows) == ["p0", "p1", "p2", "p3"]
    assert [r["prediction"] for r in rows.values()] == ["normal", "bacterial", "normal", "bacterial"]
    for number, row in enumerate(rows.values()):
        assert float(row["p_normal"]) + float(row["p_bacterial"]) == pytest.approx(1, abs=1e-5)
        assert float(row["probability"]) == max(float(row["p_normal"]), float(row["p_bacterial"]))
        with Image.open(out / row["heatmap"]) as drawn:
            assert (drawn.size, drawn.mode) == ((140 + number, 100), "RGB")
        assert 0 <= float(row["heat_in_lung_box"]) <= 1
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 8
    assert "Grad-CAM" in page
    run = json.loads((out / "run.json").read_text())
    assert run["counts"] == {"answered": 4, "abstained": 0, "failed": 0} == batch.counts()
    assert run["options"]["model"] == "model"
    assert str(tmp_path) not in page + (out / "run.json").read_text() + (out / "predictions.csv").read_text()
    assert not list(out.glob(".tmp*"))


def test_bad_inputs_are_listed_and_the_rest_is_done(model, pictures, tmp_path, rng):
    whole = save(tmp_path / "whole.jpg", chest(rng, 300)).read_bytes()
    (pictures / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    save(pictures / "dot.png", np.ones((1, 1)))
    (pictures / "huge.png").write_bytes(huge_png())
    (pictures / "text.png").write_text("not a picture\n")
    (pictures / "empty.jpg").write_bytes(b"")
    batch = classify_radiographs(
        [pictures, tmp_path / "absent.png"], tmp_path / "out", XrayOptions(model=model, device="cpu", heatmaps=False)
    )
    rows = table(tmp_path / "out")
    assert batch.counts() == {"answered": 4, "abstained": 0, "failed": 6}
    for name, words in {
        "cut": "cut off", "dot": "1 x 1", "huge": "more pixels", "text": "cannot be read as an image",
        "empty": "0 bytes",
        "absent": "no such file",
    }.items():  # fmt: skip
        assert rows[name]["status"] == "failed"
        assert words in rows[name]["error"]
        assert "\n" not in rows[name]["error"]
        assert rows[name]["prediction"] == rows[name]["p_normal"] == ""
    assert not list((tmp_path / "out").glob("*.png"))
    assert "cannot be read as an image" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_no_chest_is_abstained_from_without_a_heat_map(model, tmp_path, rng):
    r, c = np.mgrid[0:128, 0:128] / 128
    body = np.hypot((r - 0.5) / 0.35, (c - 0.5) / 0.45) < 1
    lungs = sum(np.hypot((r - 0.5) / 0.22, (c - m) / 0.13) < 1 for m in (0.32, 0.68)) > 0
    save(tmp_path / "in" / "ct.png", 0.6 * body * ~lungs + 0.1)
    save(tmp_path / "in" / "noise.png", rng.random((128, 128)))
    save(tmp_path / "in" / "turned.png", np.rot90(chest(rng, 128)))
    save(tmp_path / "in" / "negative.png", 1 - chest(rng, 128))
    out = tmp_path / "out"
    batch = classify_radiographs([tmp_path / "in"], out, XrayOptions(model=model, device="cpu"))
    assert [row.answer.prediction for row in batch.rows] == ["none of these"] * 4
    assert {row["status"] for row in table(out).values()} == {"abstained"}
    assert not list(out.glob("*_heatmap.png"))
    page = (out / "report.html").read_text()
    assert 'class="bar"' not in page
    assert "No class is given" in page


def test_names_are_told_apart_and_a_picture_is_asked_once(model, tmp_path, rng):
    for place in ("a/x.png", "b/X.png", "b/x.jpg"):
        save(tmp_path / place, chest(rng, 80))
    inputs = [tmp_path / "a", tmp_path / "b", tmp_path / "a" / "x.png"]
    batch = classify_radiographs(inputs, tmp_path / "out", XrayOptions(model=model, device="cpu"))
    names = [row.image for row in batch.rows]
    assert len(names) == 3
    assert len({n.casefold() for n in names}) == 3
    heat = {row.heatmap for row in batch.rows if row.heatmap}
    assert heat == {p.name for p in (tmp_path / "out").glob("*_heatmap.png")}


def test_dicom_is_named_by_a_hash_and_one_without_pixels_is_a_line(model, tmp_path, rng, monkeypatch):
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def dicom(name, modality="DX", pixels=True, view="PA"):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.SeriesInstanceUID, data.StudyInstanceUID = generate_uid(), generate_uid()
        data.Modality, data.PatientName, data.ViewPosition = modality, "Doe^Jane", view
        if pixels:
            grey = np.rint(chest(rng, 120, columns=90) * 4000).astype("<u2")
            data.Rows, data.Columns, data.SamplesPerPixel = 120, 90, 1
            data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
            data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
            data.WindowCenter, data.WindowWidth = 2000, 4000
            data.PixelData = grey.tobytes()
        path = tmp_path / "in" / f"{name}.dcm"
        path.parent.mkdir(exist_ok=True)
        data.save_as(path, enforce_file_format=True)

    dicom("doe_jane_frontal")
    dicom("doe_jane_lateral", view="LL")
    dicom("doe_jane_report", pixels=False)
    dicom("doe_jane_ct", modality="CT")
    out = tmp_path / "out"
    batch = classify_radiographs([tmp_path / "in"], out, XrayOptions(model=model, device="cpu"))
    assert sorted(row.status for row in batch.rows) == ["abstained", "answered", "failed", "failed"]
    errors = " ".join(row.error for row in batch.rows)
    assert "modality CT" in errors
    assert "without a picture" in errors
    lateral = next(row for row in batch.rows if row.status == "abstained")
    assert lateral.answer.reason == "is a lateral view by its header"
    assert not any("doe" in row.image.lower() for row in batch.rows)
    assert all(row.image.startswith("xr-") for row in batch.rows)
    with Image.open(next(out.glob("*_heatmap.png"))) as drawn:
        assert drawn.size == (90, 120)


def test_a_run_is_not_written_over_unless_asked_and_stale_maps_go(model, pictures, tmp_path):
    out = tmp_path / "out"
    options = XrayOptions(model=model, device="cpu")
    classify_radiographs([pictures], out, options)
    (out / "mine.txt").write_text("stays")
    with pytest.raises(InputError, match="--overwrite"):
        classify_radiographs([pictures], out, options)
    classify_radiographs([pictures / "p0.png"], out, options, overwrite=True)
    assert [p.name for p in out.glob("*.png")] == ["p0_heatmap.png"]
    assert (out / "mine.txt").exists()


def test_a_failure_inside_stays_with_its_picture(model, pictures, tmp_path, monkeypatch):
    from pneumoscope.cases import xray

    real = xray.read_radiograph

    def faulty(path, **more):
        if path.name == "p2.png":
            raise ZeroDivisionError("odd")
        if path.name == "p1.png":
            raise MemoryError
        return real(path, **more)

    monkeypatch.setattr(xray, "read_radiograph", faulty)
    batch = classify_radiographs([pictures], tmp_path / "out", XrayOptions(model=model, device="cpu", heatmaps=False))
    assert [row.status for row in batch.rows] == ["answered", "failed", "failed", "answered"]
    assert "ZeroDivisionError" in batch.rows[2].error
    assert "memory" in batch.rows[1].error


def test_calls_that_cannot_work_write_nothing(model, pictures, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no image to classify"):
        classify_radiographs([], out, XrayOptions(model=model))
    with pytest.raises(ModelError, match="there is no model"):
        classify_radiographs([pictures], out, XrayOptions(model="absent"))
    with pytest.raises(InputError, match="occlusion"):
        classify_radiographs([pictures], out, XrayOptions(model=model, method="lime"))  # type: ignore[arg-type]
    assert not out.exists()


# -- resume ------------------------------------------------------------------------------------------------------------


def kept(model, pictures, out, *, resume=True, **options):
    options = XrayOptions(model=model, device="cpu", **options)
    return [row.image for row in classify_radiographs([pictures], out, options, resume=resume).rows if row.kept]


def test_a_resumed_run_keeps_pictures_until_they_or_the_options_change(model, pictures, tmp_path, rng, caplog):
    out, names = tmp_path / "out", ["p0", "p1", "p2", "p3"]
    assert kept(model, pictures, out) == []
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "run.json"}
    assert kept(model, pictures, out) == names
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "run.json"}
    assert after == before
    save(pictures / "p1.png", chest(rng, 100, spot=False, columns=141))
    save(pictures / "p4.png", chest(rng, 100, spot=False))
    (out / "p2_heatmap.png").unlink()
    caplog.clear()
    assert kept(model, pictures, out) == ["p0", "p3"]
    assert "p1 (picture changed)" in caplog.text
    assert "p2_heatmap.png is missing" in caplog.text
    assert table(out)["p1"]["prediction"] == "normal"
    assert list(table(out)) == [*names, "p4"]
    assert len(list(out.glob("*_heatmap.png"))) == 5
    assert kept(model, pictures, out, heatmaps=False) == []
    assert not list(out.glob("*_heatmap.png"))


def test_an_interrupted_run_leaves_its_tables_and_resumes(model, pictures, tmp_path, monkeypatch):
    from pneumoscope.cases import xray

    out, read = tmp_path / "out", xray._read

    def interrupted(item, **more):
        if item.name == "p3":
            raise KeyboardInterrupt
        return read(item, **more)

    with monkeypatch.context() as patch:
        patch.setattr(xray, "BATCH", 1)
        patch.setattr(xray, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept(model, pictures, out, resume=False)
    assert list(table(out)) == ["p0", "p1"]
    assert (out / "report.html").exists()
    run = json.loads((out / "run.json").read_text())
    assert (run["finished"], run["results"]) == (False, 2)
    with pytest.raises(InputError, match="an unfinished run"):
        kept(model, pictures, out, resume=False)
    assert kept(model, pictures, out) == ["p0", "p1"]
    assert list(table(out)) == ["p0", "p1", "p2", "p3"]


@pytest.mark.enable_socket
def test_the_process_that_hands_out_the_work_loads_no_model(pictures, model, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    options = XrayOptions(model=model, heatmaps=False)
    classify_radiographs([pictures], tmp_path / "alone", options)
    monkeypatch.setattr("pneumoscope.cases.xray.RadiographClassifier", lambda *_, **__: pytest.fail("loads a model"))
    with machines("dask", jobs=1):
        classify_radiographs([pictures], tmp_path / "dask", options)
    for name, row in table(tmp_path / "alone").items():
        again = table(tmp_path / "dask")[name]
        assert {k for k in row if row[k] != again[k]} <= {"features"}  # a mean over another batch
    with pytest.raises(ModelError, match="is not a radiograph model"), machines("dask", jobs=1):
        classify_radiographs([pictures], tmp_path / "other", XrayOptions(model="lungs"))
    assert not (tmp_path / "other").exists()
