from __future__ import annotations

import json

import numpy as np
import pytest

from pneumoscope.cases.outputs import CaseContent, OutputOptions, write_case
from pneumoscope.cases.three_d import write_three_d
from pneumoscope.datasets.phantom import scan_patient
from pneumoscope.severity.measure import measure
from pneumoscope.volume import INFILTRATE_LABEL, LUNG_LABELS, Mask


@pytest.fixture(scope="module")
def phantom():
    made = scan_patient("B", 0, size="tiny")
    return made.scan.volume, made.lungs, made.scan.truth


def content_of(volume, lungs, infiltrate, truth=None):
    severity = measure(volume, lungs, infiltrate)
    return CaseContent(volume=volume, lungs=lungs, infiltrate=infiltrate, severity=severity, truth=truth)


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_case_gets_every_file_and_they_enclose_their_masks(tmp_path, phantom):
    _, lungs, infiltrate = phantom
    spent = {}
    report = write_case(tmp_path, content_of(*phantom, truth=infiltrate), spent=spent)
    wanted = {f"mesh/{n}.{s}" for n in ("right_lung", "left_lung", "infiltrate", "truth") for s in ("stl", "glb")}
    wanted |= {"mesh/case.glb", "surfaces.vtp", "volume.vti", "render.png", "view.html"}
    assert wanted <= names(tmp_path)
    assert set(report["surfaces"]["files"]) == wanted
    assert report["surfaces"]["missing"] == {}
    enclosed = report["surfaces"]["enclosed_ml"]
    assert enclosed["right_lung"] == pytest.approx(lungs.volume_ml("right lung"), rel=0.02)
    assert enclosed["infiltrate"] == pytest.approx(infiltrate.volume_ml(), rel=0.02)
    assert list(spent) == ["volume.vti", "surfaces", "picture", "page"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "In 3D" in page
    assert 'href="view.html"' in page
    assert json.loads((tmp_path / "report.json").read_text())["surfaces"] == report["surfaces"]


def test_empty_masks_leave_no_file_but_a_reason_and_nothing_of_an_earlier_run(tmp_path, phantom):
    volume, lungs, infiltrate = phantom
    write_case(tmp_path, content_of(*phantom, truth=infiltrate))
    none = Mask.empty(volume.grid, INFILTRATE_LABEL)
    report = write_case(tmp_path, content_of(volume, lungs, none))
    assert report["surfaces"]["missing"] == {"mesh/infiltrate": "the mask is empty"}
    assert not {"mesh/infiltrate.stl", "mesh/infiltrate.glb", "mesh/truth.stl", "mesh/truth.glb"} & names(tmp_path)
    assert "No surface of mesh/infiltrate: the mask is empty." in (tmp_path / "view.html").read_text(encoding="utf-8")
    report = write_case(tmp_path, content_of(volume, Mask.empty(volume.grid, LUNG_LABELS), none))
    assert set(report["surfaces"]["files"]) == {"volume.vti", "view.html"}
    assert set(report["surfaces"]["missing"]) == {"mesh/right_lung", "mesh/left_lung", "mesh/infiltrate", "render.png"}
    assert "In 3D" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_3d_nothing_of_it_stays(tmp_path, phantom):
    write_case(tmp_path, content_of(*phantom))
    report = write_case(tmp_path, content_of(*phantom), OutputOptions(three_d=False))
    assert report["surfaces"] is None
    assert not {"view.html", "volume.vti", "surfaces.vtp", "render.png", "mesh/case.glb"} & names(tmp_path)
    assert "view.html" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_same_case_gives_the_same_bytes(tmp_path, phantom):
    volume, lungs, infiltrate = phantom
    severity = measure(volume, lungs, infiltrate)
    for name in ("a", "b"):
        write_three_d(tmp_path / name, volume, lungs, infiltrate, severity)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    for name in sorted(names(tmp_path / "a")):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_lungs_without_sides_are_one_surface(tmp_path, phantom):
    volume, lungs, infiltrate = phantom
    whole = Mask((lungs.labels > 0).astype(np.uint8), volume.grid, {1: "lung"})
    report = write_case(tmp_path, content_of(volume, whole, infiltrate))
    assert set(report["surfaces"]["enclosed_ml"]) == {"lungs", "infiltrate"}
