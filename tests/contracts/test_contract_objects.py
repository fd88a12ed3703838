"""Every object and result can be shown, drawn, saved and handed on; every call takes what other libraries hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

import pneumoscope as ps
from pneumoscope.cases.audit import AuditResult
from pneumoscope.cases.compare import Comparison
from pneumoscope.cases.followup import time_course
from pneumoscope.datasets.audit.rules import AuditFinding
from pneumoscope.errors import InputError, InputTypeError
from pneumoscope.inference.radiographs import Answer
from pneumoscope.inference.segmenter import Segmentation
from pneumoscope.plans.train import OwnResult
from pneumoscope.severity.change import read_change
from pneumoscope.study.base import StudyResult

mpl.use("Agg")

AFFINE = np.array([[0, -0.8, 0, 20], [-1.5, 0, 0.0, 10], [0, 0, -2.5, 30], [0, 0, 0, 1.0]])
"""Axes exchanged and flipped."""
SHAPE = (30, 40, 12)


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    hu, lungs, spots = np.full(SHAPE, 40.0), np.zeros(SHAPE), np.zeros(SHAPE)
    hu[:3] = -1000
    lungs[6:24, 5:15, 2:10], lungs[6:24, 22:36, 2:10] = 2, 1
    spots[6:12, 5:9, 3:6] = 1
    hu[lungs > 0], hu[spots > 0] = -820, -450
    hu = np.rint(hu + np.random.default_rng(0).normal(0, 12, SHAPE)).clip(-1024)
    return {"scan": hu.astype(np.int16), "lungs": lungs.astype(np.uint8), "infiltrate": spots.astype(np.uint8)}


def as_path(array: np.ndarray[Any, Any], folder: Path) -> Any:
    path = folder / f"{array.dtype}{array.max()}.nii.gz"
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def as_sitk(array: np.ndarray[Any, Any], folder: Path) -> Any:
    return sitk.ReadImage(str(as_path(array, folder)))


def as_monai(array: np.ndarray[Any, Any], folder: Path) -> Any:
    data = pytest.importorskip("monai.data")
    return data.MetaTensor(array[None].astype(np.float32), affine=AFFINE)


def as_torchio(array: np.ndarray[Any, Any], folder: Path) -> Any:
    import torch

    return pytest.importorskip("torchio").ScalarImage(tensor=torch.from_numpy(array[None]), affine=AFFINE)


def as_tensor(array: np.ndarray[Any, Any], folder: Path) -> Any:
    """As a network gives it: with a gradient, where the labels of a mask fit in bfloat16."""
    import torch

    kind = torch.bfloat16 if array.dtype == np.uint8 else torch.float32
    return torch.from_numpy(array).to(kind).requires_grad_(), torch.from_numpy(AFFINE)


WAYS = {
    "path": as_path, "text": lambda array, folder: str(as_path(array, folder)),
    "nibabel": lambda array, folder: nib.Nifti1Image(array, AFFINE), "sitk": as_sitk,
    "array": lambda array, folder: (array, AFFINE), "tensor": as_tensor, "monai": as_monai, "torchio": as_torchio,
}  # fmt: skip


@pytest.fixture(params=WAYS)
def given(request, tmp_path):
    """Scan, lungs and infiltrate in one way that users hold them."""
    return {name: WAYS[request.param](array, tmp_path) for name, array in arrays().items()}


def test_every_way_gives_the_same_volume_and_masks(given):
    scan, lungs = ps.read_scan(given["scan"]), ps.read_mask(given["lungs"])
    truth = ps.Volume.from_array(arrays()["scan"], AFFINE)
    assert np.array_equal(np.asarray(scan), np.asarray(truth))
    assert scan.native.is_same_space(truth.native)
    assert lungs.volume_ml() == pytest.approx(np.count_nonzero(arrays()["lungs"]) * 3e-3)
    assert ps.read_scan(scan) is scan
    assert ps.read_mask(lungs) is lungs


def test_the_calls_take_every_way(given):
    severity = ps.quantify(given["scan"], given["lungs"], given["infiltrate"])
    assert severity.left.share_percent == pytest.approx(100 * 72 / 1440)
    assert ps.evaluate(given["infiltrate"], given["infiltrate"]).rows[0]["dice"] == 1.0


@pytest.mark.parametrize(
    "wrong",
    [3, None, np.zeros((3, 4, 5)), object(), [1, 2], (np.zeros((3, 4, 5)), np.eye(3))],
    ids=lambda value: type(value).__name__,
)
def test_another_type_is_a_type_error_that_says_what_is_accepted(wrong):
    good = (arrays()["lungs"], AFFINE)
    calls = [
        lambda: ps.read_scan(wrong), lambda: ps.read_mask(wrong), lambda: ps.segment(wrong),
        lambda: ps.quantify((arrays()["scan"], AFFINE), good, wrong), lambda: ps.evaluate(wrong, good),
        lambda: ps.compare("a", wrong),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match="nibabel") as caught:
            call()
        assert isinstance(caught.value, InputTypeError)
        assert f"of type {type(wrong).__name__}" in str(caught.value)
    with pytest.raises(TypeError, match="Radiograph"):
        ps.classify(3)


def test_images_of_other_libraries_are_checked_as_files_are():
    with pytest.raises(InputError, match="Hounsfield"):
        ps.read_scan((arrays()["scan"] * 0 + np.arange(12, dtype=np.uint8) * 20, AFFINE))
    with pytest.raises(InputError, match="single slice"):
        ps.read_scan((arrays()["scan"][:, :, :1], AFFINE))
    with pytest.raises(InputError, match="one number a voxel"):
        ps.read_scan(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), AFFINE))
    with pytest.raises(InputError, match="fractions"):
        ps.read_mask((arrays()["lungs"] / 3, AFFINE))
    assert ps.read_mask((arrays()["lungs"] / 3, AFFINE), threshold=0.5).volume_ml() > 0
    with pytest.raises(InputError, match="no array"):
        ps.read_scan(([[1, 2], [3]], AFFINE))


def test_what_is_wrong_is_said_and_nothing_else(scan):
    with pytest.raises(TypeError, match=r"affine has shape \(3, 4\), expected \(4, 4\)"):
        ps.read_scan((arrays()["scan"], AFFINE[:3]))
    with pytest.raises(TypeError, match="an array alone"):
        ps.read_scan(arrays()["scan"])
    with pytest.raises(TypeError, match="of type Volume, expected Mask") as caught:
        ps.read_mask(scan)
    assert "alone" not in str(caught.value)


@pytest.fixture(scope="module")
def scan():
    return ps.Volume.from_array(arrays()["scan"], AFFINE, case="chest")


@pytest.fixture(scope="module")
def mask():
    return ps.Mask.from_array(arrays()["lungs"], AFFINE, names={1: "right lung", 2: "left lung"})


@pytest.mark.parametrize("kind", ["scan", "mask"])
def test_voxels_go_out_as_they_lie_in_the_file(kind, request, tmp_path):
    image, array = request.getfixturevalue(kind), arrays()["scan" if kind == "scan" else "lungs"]
    there = image.to_nibabel()
    assert np.array_equal(np.asarray(there.dataobj), array)
    assert np.allclose(there.affine, AFFINE)
    itk = image.to_sitk()
    assert np.array_equal(sitk.GetArrayFromImage(itk).transpose(2, 1, 0), array)
    world = np.array(itk.TransformIndexToPhysicalPoint((3, 4, 5))) * (-1, -1, 1)
    assert np.allclose(world, AFFINE[:3] @ (3, 4, 5, 1))
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        read = ps.read_scan if kind == "scan" else ps.read_mask
        back = read(image.save(tmp_path / f"x{suffix}"))
        assert np.array_equal(back.to_nibabel().dataobj, array)
    assert type(image).from_nibabel(there).grid.is_same_space(image.grid)
    assert type(image).from_sitk(itk).grid.is_same_space(image.grid)


@pytest.mark.parametrize("kind", ["scan", "mask"])
def test_voxels_as_arrays_and_tensors_are_ras(kind, request):
    image = request.getfixturevalue(kind)
    assert np.asarray(image).shape == image.grid.shape
    assert np.asarray(image, dtype=np.float64).dtype == np.float64
    tensor = image.to_torch()
    assert tuple(tensor.shape) == (1, *image.grid.shape)
    assert np.array_equal(tensor.numpy()[0], np.asarray(image))
    tensor += 1
    assert not np.array_equal(tensor.numpy()[0], np.asarray(image)), "a tensor is a copy"
    pytest.importorskip("monai")
    meta = image.to_monai()
    assert np.allclose(meta.affine, image.grid.affine)
    assert ps.read_mask(meta).volume_ml() > 0 if kind == "mask" else ps.read_scan(meta).grid.is_same_space(image.grid)


def test_a_sheared_grid_is_nothing_for_itk(scan):
    sheared = np.array(AFFINE)
    sheared[0, 2] = 1.0
    with pytest.raises(InputError, match="not perpendicular"):
        ps.Volume.from_array(arrays()["scan"], sheared).to_sitk()


def test_a_library_that_is_not_there_is_named(scan, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchio", None)
    with pytest.raises(InputError, match="pip install torchio"):
        scan.to_torchio()


def made(name: str) -> Any:
    """One of each result."""
    things = {key: (array, AFFINE) for key, array in arrays().items()}
    scan = ps.read_scan(things["scan"], case="chest")
    if name == "Volume":
        return scan
    lungs, spots = (
        ps.read_mask(things["lungs"], names={1: "right lung", 2: "left lung"}),
        ps.read_mask(things["infiltrate"]),
    )
    if name == "Mask":
        return lungs
    if name == "Segmentation":
        return Segmentation(lungs, spots, spots.labels * 255, (), {"infiltrate": {}}, {}, scan=scan)
    if name == "Severity":
        return ps.quantify(scan, lungs, spots)
    if name == "Evaluation":
        return ps.evaluate(spots, spots)
    if name == "Answer":
        return Answer("COVID-19", "", {"normal": 0.25, "COVID-19": 0.75}, True, {})
    if name == "AuditResult":
        finding = AuditFinding("p1", "island", "warning", "one island of 2 voxels", slice=3, voxels=2)
        return AuditResult([finding], {"cases": 1, "severities": {"error": 0, "warning": 1, "note": 0}})
    if name == "Comparison":
        part = {"baseline_ml": 10.0, "followup_ml": 5.0, "baseline_percent": 4.0, "followup_percent": 2.0}
        return comparison(part)
    if name == "OwnResult":
        rows = {"case": ["a", "b"], "patient": ["p", "q"], "dice": [0.5, 0.7], "reference_ml": 1.0, "predicted_ml": 2.0}
        return OwnResult(Path("model"), pd.DataFrame(rows), pd.DataFrame(rows)[:1], "validation", 3, "epochs", 1.0)
    matrix = pd.DataFrame({"stage": ["a", "a", "b", "b"], "test": [1, 2, 1, 2], "dice": [0.8, 0.4, 0.7, 0.6]})
    recipe = SimpleNamespace(recipe="transfer")
    return StudyResult(Path("run"), recipe, {"matrix": matrix}, ((), ()), Path("run/report.html"), {"reading": 1.0})


def comparison(part: dict[str, float]) -> Comparison:
    from dataclasses import fields

    from pneumoscope.severity.change import FateVolume, RegionChange

    region = {f.name: part.get(f.name, 1.0) for f in fields(RegionChange)} | {"verdict": "decrease"}
    fate = {f.name: 1.0 for f in fields(FateVolume)}
    change = read_change({
        "baseline": "march", "followup": "april", "lung_ml": (4000.0, 4100.0), "lung_change_percent": 2.5,
        "regions": {name: dict(region) for name in ("total", "right", "left")},
        "fates": dict.fromkeys(("new", "resolved", "persistent", "denser", "thinner"), fate),
        "density_change_hu": None, "healthy_change_hu": None, "registration": {"lung_dice": 0.98}, "repeat_mm": 0.4,
    })  # fmt: skip
    return Comparison((change,), tuple(time_course([change])))


IMAGES = ("Volume", "Mask", "Segmentation")
TABLES = ("Severity", "Evaluation", "Answer", "AuditResult", "Comparison", "OwnResult", "StudyResult")


@pytest.mark.parametrize("name", [*IMAGES, *TABLES])
def test_every_object_shows_itself_shortly_and_with_a_picture(name):
    thing = made(name)
    assert type(thing).__name__ == name
    assert repr(thing).startswith(name)
    assert len(repr(thing)) < 300
    assert "array(" not in repr(thing)
    page = thing._repr_html_()
    assert f"<b>{name}</b>" in page
    assert "data:image/png;base64," in page
    assert "<td" in page
    axes = thing.plot()
    assert all(one.has_data() or one.images for one in np.ravel(axes))
    own = np.ravel(axes)[0].figure.subplots(1, thing.panels)
    assert thing.plot(axes=own) is own
    mpl.pyplot.close("all")


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_a_frame_and_is_saved(name, tmp_path):
    thing = made(name)
    frame = thing.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) > 0
    assert len(pd.read_csv(thing.save(tmp_path / "t.csv"))) == len(frame)
    assert json.loads(thing.save(tmp_path / "t.json").read_text())
    with pytest.raises(InputError, match=r"expected \.csv or \.json"):
        thing.save(tmp_path / "t.xlsx")


def test_a_segmentation_is_saved_as_a_case_folder_and_compared(tmp_path):
    found = made("Segmentation")
    assert found.severity.left.infiltrate_ml > 0
    assert set(found.to_nibabel()) == set(found.to_sitk()) == set(found.to_torch()) == {"lungs", "infiltrate"}
    assert np.array_equal(found.to_torch()["infiltrate"][0], found.infiltrate.voxels)
    lobed = replace(found, lobes=found.lungs).to_sitk()
    assert np.array_equal(sitk.GetArrayFromImage(lobed["lobes"]), sitk.GetArrayFromImage(lobed["lungs"]))
    folder = found.save(tmp_path / "chest")
    assert {"lungs.nii.gz", "infiltrate.nii.gz", "report.json", "report.html"} <= {p.name for p in folder.iterdir()}
    assert np.allclose(nib.load(folder / "lungs.nii.gz").affine, AFFINE)
    with pytest.raises(InputError, match="no scan"):
        Segmentation(found.lungs, found.infiltrate, found.probability, (), {}, {}).save(tmp_path / "other")
