"""`quantify`: case folders from masks made elsewhere, without torch."""

import csv
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from pneumoscope.cases.quantify import QuantifyOptions, quantify_cases
from pneumoscope.datasets.phantom import scan_patient
from pneumoscope.errors import InputError
from pneumoscope.io import find_scans, write_mask, write_volume


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
    with (tmp_path / "out" / "cases.csv").open() as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
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
    with pytest.raises(InputError, match="--lungs is for one scan"):
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
