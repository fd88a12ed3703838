import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict

import nibabel as nib
import numpy as np
import pytest
import torch

from pneumoscope.cases import segment as segment_module
from pneumoscope.cases.options import SAVABLE, SegmentOptions
from pneumoscope.cases.segment import segment_cases
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.errors import InputError
from pneumoscope.io import read as read_module
from pneumoscope.io.scans import find_scans
from pneumoscope.io.write import write_volume
from pneumoscope.models.unet import UNet, UNetConfig
from pneumoscope.models.weights import save_model
from pneumoscope.preprocess.slices import Appearance

SMALL = asdict(Appearance(size=64, tiles=4))


def make_model(folder, task, channels, preprocessing):
    torch.manual_seed(0)
    save_model(folder, UNet(UNetConfig(channels, 1, (4, 8))), {"task": task, "preprocessing": preprocessing})
    return folder


def make_other_model(folder):
    """Other weights, the same settings and name."""
    torch.manual_seed(1)
    card = json.loads((folder / "card.json").read_text())
    save_model(folder, UNet(UNetConfig(2, 1, (4, 8))), {name: card[name] for name in ("task", "preprocessing")})


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two tiny synthetic scans, one broken file, and models that know nothing but are quick."""
    root = tmp_path_factory.mktemp("segment")
    for patient in range(2):
        write_volume(scan_patient("B", patient, size="tiny").scan.volume, root / "scans" / f"p{patient}.nii.gz")
    make_model(root / "infiltrate", "infiltrate", 2, {"kind": "lung_frame", "frame": [24, 32], "appearance": SMALL})
    return root


def run(work, out, scans=None, *, jobs=1, overwrite=False, resume=False, **changes):
    options = SegmentOptions(**{"model": work / "infiltrate", "lungs_model": "lungs", **changes})
    scans = find_scans(scans or work / "scans")
    return segment_cases(scans, out, options, jobs=jobs, overwrite=overwrite, resume=resume)


def contents(folder, without=("run.json",)):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }


def test_a_case_folder_holds_what_was_found_on_the_scans_grid(work, tmp_path):
    batch = run(work, tmp_path / "out", probability=True, save=("points",))
    assert [case.status for case in batch.cases] == ["done", "done"]
    names = {"lungs.nii.gz", "infiltrate.nii.gz", "probability.nii.gz", "report.json", "report.html"}
    for case in ("p0", "p1"):
        folder = tmp_path / "out" / case
        assert names <= {path.name for path in folder.iterdir()}
        assert {path.name for path in (folder / "points").iterdir()} == {"lungs.csv", "infiltrate.csv"}
        scan = nib.load(work / "scans" / f"{case}.nii.gz")
        for mask in ("lungs", "infiltrate", "probability"):
            image = nib.load(folder / f"{mask}.nii.gz")
            assert image.shape == scan.shape
            assert np.array_equal(image.affine, scan.affine)
    rows = (tmp_path / "out" / "cases.csv").read_text().splitlines()
    assert rows[0].startswith(
        "case,status,lung_ml,infiltrate_ml,share_percent,states,findings,error,right_share_percent,"
    )
    assert "right_upper_percent" in rows[0]
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["peak_memory_mib"] > 0
    assert str(tmp_path) not in json.dumps(facts), "no paths of the machine"


def test_the_same_scan_gives_the_same_bytes(work, tmp_path):
    for name in ("a", "b"):
        run(work, tmp_path / name, save=SAVABLE)
    assert {"view.html", "render.png", "surfaces.vtp", "volume.vti"} <= {
        p.name for p in (tmp_path / "a" / "p0").iterdir()
    }
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("resume", [False, True])
def test_every_scan_is_read_once(work, tmp_path, monkeypatch, resume):
    """The first is read while the models are loaded."""
    read, honest = [], read_module.read_volume
    monkeypatch.setattr(read_module, "read_volume", lambda path, **more: read.append(path) or honest(path, **more))
    scans = find_scans(work / "scans")
    options = SegmentOptions(model=work / "infiltrate", lungs_model="lungs", fast=True)
    segment_cases(scans, tmp_path / "out", options, resume=resume)
    assert read == [scan.path for scan in scans]


def test_models_are_loaded_once_and_by_no_process_that_only_keeps_the_books(work, tmp_path, monkeypatch):
    loaded, honest = [], segment_module.segmenter_of
    monkeypatch.setattr(segment_module, "segmenter_of", lambda options: loaded.append(options) or honest(options))
    options = SegmentOptions(model=work / "infiltrate", lungs_model="lungs", fast=True)
    segment_module._open(options, {}, 0)
    assert not loaded
    segment_cases(find_scans(work / "scans"), tmp_path / "out", options)
    assert len(loaded) == 1


def test_a_broken_scan_does_not_stop_the_others(work, tmp_path):
    broken = tmp_path / "scans"
    broken.mkdir()
    whole = (work / "scans" / "p0.nii.gz").read_bytes()
    (broken / "good.nii.gz").write_bytes(whole)
    (broken / "bad.nii.gz").write_bytes(whole[: len(whole) // 2])
    batch = run(work, tmp_path / "out", broken)
    status = {case.case: case.status for case in batch.cases}
    assert status == {"bad": "failed", "good": "done"}
    assert "bad.nii.gz" in next(case.error for case in batch.cases if case.case == "bad")
    assert not (tmp_path / "out" / "bad" / "lungs.nii.gz").exists()


def test_calls_that_cannot_be_meant_are_refused(work, tmp_path):
    with pytest.raises(InputError, match="no scan"):
        segment_cases([], tmp_path / "out")
    with pytest.raises(InputError, match="--lungs is one mask, but there are 2 scans; give a folder"):
        run(work, tmp_path / "out", lungs=work / "scans" / "p0.nii.gz")
    twice = [*find_scans(work / "scans"), *find_scans(work / "scans")]
    with pytest.raises(InputError, match="'p0'"):
        segment_cases(twice, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_cases_until_the_model_or_an_option_changes(work, tmp_path):
    shutil.copytree(work / "infiltrate", tmp_path / "model")
    first = run(work, tmp_path / "out", model=tmp_path / "model", fast=True)
    before = contents(tmp_path / "out")
    again = run(work, tmp_path / "out", model=tmp_path / "model", fast=True, resume=True)
    assert [case.kept for case in again.cases] == [True, True]
    assert [case.summary for case in again.cases] == [case.summary for case in first.cases]
    assert [case.seconds for case in again.cases] == [case.seconds for case in first.cases]
    assert contents(tmp_path / "out") == before
    other = run(work, tmp_path / "out", model=tmp_path / "model", fast=True, probability=True, resume=True)
    assert not any(case.kept for case in other.cases)
    make_other_model(tmp_path / "model")
    changed = run(work, tmp_path / "out", model=tmp_path / "model", fast=True, probability=True, resume=True)
    assert not any(case.kept for case in changed.cases)


@pytest.mark.slow
def test_two_at_a_time_give_what_one_at_a_time_gives(work, tmp_path, monkeypatch):
    """And only the processes that work load the models."""
    run(work, tmp_path / "one")
    monkeypatch.setattr(
        "pneumoscope.cases.segment.segmenter_of", lambda options: pytest.fail("the parent loads models")
    )
    run(work, tmp_path / "two", jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_killed_twenty_times_ends_with_the_same_files(work, tmp_path, start):
    """SIGKILL at random moments of `segment`: no half file at any time, and the same bytes after one whole run."""
    models = ["--model", str(work / "infiltrate"), "--lungs-model", "lungs"]
    call = [sys.executable, "-m", "pneumoscope", "segment", "-i", str(work / "scans"), *models, "--quiet", "--resume"]
    call.append("-o")
    begun = time.perf_counter()
    subprocess.run([*call, str(tmp_path / "a")], check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - begun
    expected = contents(tmp_path / "a")
    rng = np.random.default_rng(1)
    kills = 0
    while kills < 20:
        process = start([*call, tmp_path / "b"], stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=float(rng.uniform(0.35, 0.98)) * whole)
            shutil.rmtree(tmp_path / "b")  # it was done already: kill it again
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        if (tmp_path / "b").exists():
            for name, data in contents(tmp_path / "b").items():
                grows = name in ("cases.csv", ".lock") or ".tmp-" in name
                assert grows or data == expected[name], f"half a file: {name}"
    subprocess.run([*call, str(tmp_path / "b")], check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "b") == expected
