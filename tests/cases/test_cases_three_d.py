from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pneumoscope.cases.options import SAVABLE, CaseOptions
from pneumoscope.cases.outputs import write_case
from pneumoscope.datasets.phantom.folder import scan_patient
from pneumoscope.errors import InputError
from pneumoscope.reports.case import CaseContent
from pneumoscope.severity.measure import measure
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask


@pytest.fixture(scope="module")
def phantom():
    made = scan_patient("B", 0, size="tiny")
    return made.scan.volume, made.lungs, made.scan.truth


def content_of(volume, lungs, infiltrate, truth=None):
    severity = measure(volume, lungs, infiltrate)
    return CaseContent(volume=volume, lungs=lungs, infiltrate=infiltrate, severity=severity, truth=truth)


EVERYTHING = CaseOptions(save=SAVABLE)


@pytest.fixture(scope="module")
def whole(phantom, tmp_path_factory):
    """A case with every file; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.surfaces.still._by_vtk", lambda *_: (None, "left out in tests"))
        write_case(folder, content_of(*phantom, truth=phantom[2]), EVERYTHING)
    return folder


ALWAYS = {"lungs.nii.gz", "infiltrate.nii.gz", "report.json"}
DEFAULT = ALWAYS | {"registration.nii.gz", "report.html", "view.html"}


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_case_gets_every_file_and_they_enclose_their_masks(tmp_path, phantom):
    _, lungs, infiltrate = phantom
    spent = {}
    report = write_case(tmp_path, content_of(*phantom, truth=infiltrate), EVERYTHING, spent=spent)
    wanted = {f"mesh/{n}.{s}" for n in ("right_lung", "left_lung", "infiltrate", "truth") for s in ("stl", "glb")}
    wanted |= {"mesh/case.glb", "surfaces.vtp", "volume.vti", "render.png", "view.html"}
    assert names(tmp_path) == wanted | DEFAULT | {f"points/{n}.csv" for n in ("lungs", "infiltrate", "truth")}
    assert set(report["surfaces"]["files"]) == wanted - {"volume.vti"}
    assert report["surfaces"]["missing"] == {}
    enclosed = report["surfaces"]["enclosed_ml"]
    assert enclosed["right_lung"] == pytest.approx(lungs.volume_ml("right lung"), rel=0.02)
    assert enclosed["infiltrate"] == pytest.approx(infiltrate.volume_ml(), rel=0.02)
    assert set(spent) == {"DICOM", "surfaces", "picture", "copy", "vti", "points", "masks"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "In 3D" in page
    assert 'href="view.html"' in page
    assert json.loads((tmp_path / "report.json").read_text())["surfaces"] == report["surfaces"]


def test_empty_masks_leave_no_file_but_a_reason_and_nothing_of_an_earlier_run(tmp_path, phantom, whole):
    volume, lungs, _ = phantom
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    none = Mask.empty(volume.grid, INFILTRATE_LABEL)
    report = write_case(tmp_path, content_of(volume, lungs, none), EVERYTHING)
    assert report["surfaces"]["missing"] == {"mesh/infiltrate": "the mask is empty"}
    assert not {"mesh/infiltrate.stl", "mesh/infiltrate.glb", "mesh/truth.stl", "mesh/truth.glb"} & names(tmp_path)
    assert "No surface of mesh/infiltrate: the mask is empty." in (tmp_path / "view.html").read_text(encoding="utf-8")
    report = write_case(tmp_path, content_of(volume, Mask.empty(volume.grid, LUNG_LABELS), none), EVERYTHING)
    assert set(report["surfaces"]["files"]) == {"view.html"}
    assert set(report["surfaces"]["missing"]) == {"mesh/right_lung", "mesh/left_lung", "mesh/infiltrate", "render.png"}
    assert "In 3D" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CaseOptions(), DEFAULT),
        (CaseOptions(save=("points",)), DEFAULT | {"points/lungs.csv", "points/infiltrate.csv"}),
        (CaseOptions(save=("vti",)), DEFAULT | {"volume.vti"}),
        (CaseOptions(fast=True), ALWAYS),
    ],
)
def test_only_what_was_asked_for_is_there_after_a_run_with_everything(tmp_path, phantom, whole, options, expected):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    report = write_case(tmp_path, content_of(*phantom), options)
    assert names(tmp_path) == expected
    assert (report["surfaces"] is None) == options.fast
    if not options.fast:
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert ("volume.vti" in page) == ("vti" in options.save)
        assert 'href="view.html"' in page


def test_unusable_wishes_are_refused():
    with pytest.raises(InputError, match="save got 'stl', expected names of points, vti, mesh"):
        CaseOptions(save=("points", "stl"))
    with pytest.raises(InputError, match="fast writes masks and numbers only, but save asks for vti"):
        CaseOptions(fast=True, save=("vti",))


def test_lungs_without_sides_are_one_surface(tmp_path, phantom):
    volume, lungs, infiltrate = phantom
    whole = Mask((lungs.labels > 0).astype(np.uint8), volume.grid, {1: "lung"})
    report = write_case(tmp_path, content_of(volume, whole, infiltrate))
    assert set(report["surfaces"]["enclosed_ml"]) == {"lungs", "infiltrate"}
