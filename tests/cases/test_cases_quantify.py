"""`quantify`: case folders from masks made elsewhere, without torch."""

import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from pneumoscope.cases.options import QuantifyOptions
from pneumoscope.cases.quantify import quantify_cases
from pneumoscope.cases.xray import classify_radiographs
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.errors import InputError
from pneumoscope.io.files import RUNS
from pneumoscope.io.scans import ScanRef, find_scans
from pneumoscope.io.write import write_mask, write_volume
from pneumoscope.plans.train import MARKERS
from pneumoscope.study.folder import open_folder
from tables import rows_of


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two synthetic scans with their exact masks, and a manifest."""
    root = tmp_path_factory.mktemp("quantify")
    lines = ["case,image,lungs,infiltrate"]
    for patient in range(2):
        made = scan_patient("B", patient, size="tiny")
        volume = made.scan.volume
        write_volume(volume, root / f"p{patient}.nii.gz")
        write_mask(made.lungs, root / f"p{patient}-l.nii.gz", volume.native)
        write_mask(made.scan.truth, root / f"p{patient}-i.nii.gz", volume.native)
        lines.append(f"p{patient},p{patient}.nii.gz,p{patient}-l.nii.gz,p{patient}-i.nii.gz")
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_manifest_gives_the_files_of_segment_with_the_true_shares(work, tmp_path):
    batch = quantify_cases(find_scans(work / "cases.csv"), tmp_path / "out")
    assert [case.status for case in batch.cases] == ["done", "done"]
    rows = {row["case"]: row for row in rows_of(tmp_path / "out" / "cases.csv")}
    for patient in range(2):
        made = scan_patient("B", patient, size="tiny")
        folder = tmp_path / "out" / f"p{patient}"
        assert {"lungs.nii.gz", "infiltrate.nii.gz", "report.json", "report.html"} <= {p.name for p in folder.iterdir()}
        inside = made.lungs.any
        share = 100 * made.scan.truth.any[inside].mean()
        assert float(rows[f"p{patient}"]["share_percent"]) == pytest.approx(share, abs=0.5)
        report = json.loads((folder / "report.json").read_text())
        assert report["severity"]["zones"]["left_lower"]["lung_ml"] > 0
        assert report["severity"]["interval"] is None
        assert report["models"] == []
        stored = nib.load(folder / "infiltrate.nii.gz")
        assert np.array_equal(stored.get_fdata(), nib.load(work / f"p{patient}-i.nii.gz").get_fdata())
        page = (folder / "report.html").read_text()
        assert "made elsewhere" in page


def test_quantify_never_loads_torch(work, tmp_path):
    code = (
        "import sys; from pneumoscope.cli.app import run;"
        "code = run(sys.argv[1:]);"
        "sys.exit(code or ('torch' in sys.modules) * 7)"
    )
    argv = ["quantify", "-i", str(work / "cases.csv"), "-o", str(tmp_path / "out")]
    assert subprocess.run([sys.executable, "-c", code, *argv], capture_output=True).returncode == 0
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "torch" not in facts
    assert str(work) not in json.dumps(facts)


def test_masks_that_are_missing_or_lie_elsewhere_are_refused(work, tmp_path):
    scans = find_scans(work / "p0.nii.gz")
    with pytest.raises(InputError, match="comes without a mask of infiltrate"):
        quantify_cases(scans, tmp_path / "a", QuantifyOptions(lungs=work / "p0-l.nii.gz"))
    with pytest.raises(InputError, match="--lungs is one mask, but there are"):
        quantify_cases(find_scans(work / "cases.csv"), tmp_path / "a", QuantifyOptions(lungs=work / "p0-l.nii.gz"))
    assert not (tmp_path / "a").exists()
    moved = nib.load(work / "p0-i.nii.gz")
    affine = moved.affine.copy()
    affine[0, 3] += 5
    nib.save(nib.Nifti1Image(moved.get_fdata().astype(np.uint8), affine), tmp_path / "moved.nii.gz")
    options = QuantifyOptions(lungs=work / "p0-l.nii.gz", infiltrate=tmp_path / "moved.nii.gz")
    (case,) = quantify_cases(scans, tmp_path / "b", options).cases
    assert case.exit_code == 2
    assert "the infiltrate mask does not lie on its scan" in case.error


def test_lobes_add_the_score(work, tmp_path):
    lungs = nib.load(work / "p0-l.nii.gz")
    labels = lungs.get_fdata().astype(np.uint8)
    levels = np.indices(labels.shape)[2] * 3 // labels.shape[2]
    lobes = np.select([labels == 1, labels == 2], [3 + levels, 1 + (levels > 1)], 0)
    nib.save(nib.Nifti1Image(lobes.astype(np.uint8), lungs.affine), tmp_path / "lobes.nii.gz")
    masks = {"lungs": work / "p0-l.nii.gz", "infiltrate": work / "p0-i.nii.gz", "lobes": tmp_path / "lobes.nii.gz"}
    (case,) = quantify_cases(find_scans(work / "p0.nii.gz"), tmp_path / "out", QuantifyOptions(**masks)).cases
    report = json.loads((tmp_path / "out" / "p0" / "report.json").read_text())
    assert case.summary["ct_score"] == report["severity"]["lobes"]["total"] > 0
    assert "CT severity score" in (tmp_path / "out" / "p0" / "report.html").read_text()


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(work, tmp_path):
    """The scans, masks and table in a folder of their own, to be changed."""
    return shutil.copytree(work, tmp_path / "work")


def resumed(folder, out, **options):
    batch = quantify_cases(find_scans(folder / "cases.csv"), out, QuantifyOptions(fast=True, **options), resume=True)
    assert [case.status for case in batch.cases] == ["done", "done"]
    return {case.case for case in batch.cases if case.kept}


def other_image(path):
    """Another image of the same size, type and name, at the same time on the clock."""
    at = path.stat()
    image = nib.load(path)
    values = np.asanyarray(image.dataobj).copy()
    values[0, 0, 0] += 1
    nib.save(nib.Nifti1Image(values, image.affine, image.header), path)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))


@pytest.mark.parametrize("what", ["", "-l", "-i"])
def test_a_changed_scan_or_mask_is_measured_again_and_said(copied, tmp_path, caplog, what):
    out = tmp_path / "out"
    assert resumed(copied, out) == set()
    assert resumed(copied, out) == {"p0", "p1"}
    before = (out / "p1" / "done.json").read_bytes(), (out / "cases.csv").read_bytes()
    other_image(copied / f"p0{what}.nii.gz")
    caplog.clear()
    assert resumed(copied, out) == {"p1"}
    assert f"p0 ({'masks' if what else 'scan'} changed)" in caplog.text
    assert (out / "p1" / "done.json").read_bytes() == before[0]
    assert (out / "cases.csv").read_text().count("\n") == 3
    assert resumed(copied, out, intensity="hu") == set()


def test_voxels_in_a_second_file_count(copied, tmp_path):
    import SimpleITK as sitk

    image = sitk.ReadImage(copied / "p0.nii.gz")
    sitk.WriteImage(image, copied / "p0.mhd")
    table = copied / "cases.csv"
    table.write_text(table.read_text().replace("p0.nii.gz", "p0.mhd"))
    assert resumed(copied, tmp_path / "out") == set()
    assert resumed(copied, tmp_path / "out") == {"p0", "p1"}
    raw = bytearray((copied / "p0.raw").read_bytes())
    raw[0] ^= 1
    (copied / "p0.raw").write_bytes(raw)
    assert resumed(copied, tmp_path / "out") == {"p1"}


def test_a_failed_case_is_tried_again_and_a_run_without_results_blocks_nothing(copied, tmp_path):
    out = tmp_path / "out"
    whole = (copied / "p0.nii.gz").read_bytes()
    scans, quick = find_scans(copied / "cases.csv"), QuantifyOptions(fast=True)
    for name in ("p0", "p1"):
        (copied / f"{name}.nii.gz").write_bytes(whole[:1000])
    assert {case.status for case in quantify_cases(scans, out, quick).cases} == {"failed"}
    (copied / "p0.nii.gz").write_bytes(whole)
    batch = quantify_cases(scans, out, quick)
    assert [case.status for case in batch.cases] == ["done", "failed"]
    with pytest.raises(InputError, match=r"already holds a run \(run.json\); use --resume, --overwrite or another"):
        quantify_cases(scans, out, quick)
    (copied / "p1.nii.gz").write_bytes(whole)
    masks = {"p1-l.nii.gz": "p0-l.nii.gz", "p1-i.nii.gz": "p0-i.nii.gz"}
    for name, source in masks.items():
        shutil.copyfile(copied / source, copied / name)
    assert resumed(copied, out) == {"p0"}


def test_tables_grow_and_an_interrupted_run_resumes(copied, tmp_path, monkeypatch):
    from pneumoscope.cases import quantify

    measure, scans, out = quantify.quantify_case, find_scans(copied / "cases.csv"), tmp_path / "out"

    def interrupted(scan, folder, options, **more):
        if scan.case == "p1":
            assert [row["case"] for row in rows_of(out / "cases.csv")] == ["p0"]
            raise KeyboardInterrupt
        return measure(scan, folder, options, **more)

    monkeypatch.setattr(quantify, "quantify_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantify_cases(scans, out, QuantifyOptions(fast=True))
    facts = json.loads((out / "run.json").read_text())
    assert (facts["finished"], facts["scans"], facts["results"]) == (False, 2, 1)
    with pytest.raises(InputError, match="an unfinished run"):
        quantify_cases(scans, out)
    monkeypatch.setattr(quantify, "quantify_case", measure)
    assert resumed(copied, out) == {"p0"}
    assert json.loads((out / "run.json").read_text())["finished"]


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("held", RUNS)
def test_no_run_is_mixed_with_the_run_of_another_verb(tmp_path, held, flags):
    """Each verb in a folder with the run of each other one, whatever the flags."""
    out = tmp_path / "out"
    out.mkdir()
    (out / held).write_text("{}")
    image, mask = tmp_path / "a.nii.gz", tmp_path / "a_mask.nii.gz"
    verbs = {
        "cases.csv": lambda: quantify_cases(
            [ScanRef("a", image, lungs=mask, infiltrate=mask)], out, QuantifyOptions(), **flags
        ),
        "predictions.csv": lambda: classify_radiographs([image], out, **flags),
        "experiment.json": lambda: open_folder(out, **{"resume": False, "overwrite": False, **flags}),
        "started.json": lambda: open_folder(out, markers=MARKERS, **{"resume": False, "overwrite": False, **flags}),
    }
    for own, verb in verbs.items():
        if own != held and (own, held) != ("started.json", "summary.json"):
            with pytest.raises(InputError, match=rf"holds .* \({held}\); choose another folder"):
                verb()
    assert [p.name for p in out.iterdir()] == [held]


def test_one_bar_moves_over_cases_and_steps(work, tmp_path):
    calls = []
    quantify_cases(find_scans(work / "cases.csv"), tmp_path / "out", progress=lambda *call: calls.append(call))
    assert {call[0] for call in calls} == {"cases"}
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert (done[0], done[-1], calls[-1][2]) == (0, 2, 2)
    assert len(set(done)) > 8
    notes = [call[3] for call in calls]
    assert notes[0] == "loading"
    for case in ("p0", "p1"):
        steps = list(dict.fromkeys(note for note in notes if note.startswith(f"{case}: ")))
        assert steps == [f"{case}: {step}" for step in ("reading", "measuring", "writing", "page")]
