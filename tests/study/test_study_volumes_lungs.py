"""Lungs as the only class, and lists of own scans in the place of a dataset."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from pneumoscope.datasets.case import Case, CaseFiles, LabelledScan
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.datasets.tensors import CLASS_NAMES, VolumeRecipe, class_labels
from pneumoscope.errors import DatasetError
from pneumoscope.geometry import Grid
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.recipes.stages import build_volume_recipe
from pneumoscope.study.data import has_mask
from pneumoscope.study.engine import run_study
from pneumoscope.study.learners.threshold import LUNG_AIR_HU, fit_air, fitted
from pneumoscope.study.scores.volumes import structures
from pneumoscope.study.volumes_data import find_volume_cases
from pneumoscope.volume import Mask, Volume

LUNGS = VolumeRecipe(classes="lungs")
TINY = ["preparation.classes=lungs", "folds.k=3", "folds.by=patient", "folds.ablation=false", "network.features=2,4",
        "phases.fit.size=16,16,8", "phases.fit.steps=2", "phases.fit.max_epochs=1",
        "training.validation_boxes=1"]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "lungs-cache"))


def chest(inside_hu: float = -850.0) -> LabelledScan:
    """A body with two lungs; nobody drew infiltrate."""
    hu = np.full((40, 40, 20), -1000, np.float32)
    hu[4:36, 4:36] = 40
    lungs = np.zeros(hu.shape, np.uint8)
    lungs[8:18, 10:30, 3:17], lungs[22:32, 10:30, 3:17] = 2, 1
    hu[lungs > 0] = inside_hu
    grid = Grid.from_spacing(hu.shape, (5, 5, 5))
    return LabelledScan(Volume(hu, grid, grid, "a"), Mask(lungs, grid, {1: "right lung", 2: "left lung"}), None)


def case(scan: LabelledScan, files: CaseFiles | None = None) -> Case:
    return Case("toy", "a", "a", "", "", "", lambda: scan, files=files)


def test_both_lungs_are_one_class_and_no_infiltrate_is_needed():
    scan = chest()
    labels = class_labels(scan, LUNGS)
    assert CLASS_NAMES["lungs"] == ("background", "lungs")
    assert np.array_equal(labels, scan.lungs.any)
    found, real = structures(scan, labels, "lungs")["lungs"]
    assert np.array_equal(found, real)
    assert not structures(scan, None, "lungs")["lungs"][0].any()
    with pytest.raises(DatasetError, match="no lung mask"):
        class_labels(dataclasses.replace(scan, lungs=None), LUNGS)
    with pytest.raises(DatasetError, match="no reference infiltrate"):
        class_labels(scan, VolumeRecipe(classes="infiltrate"))


def test_the_air_threshold_is_the_one_that_fits():
    scan = chest(-450.0)
    air = fit_air([case(scan)])
    assert air == -400.0  # the lowest of the candidates above what is in these lungs
    assert air in LUNG_AIR_HU
    labels_of, values = fitted("lungs", [case(scan)])
    assert values == {"below_hu": -400.0}
    assert np.array_equal(labels_of(scan.volume), scan.lungs.any)
    assert set(fitted("infiltrate", [case(dataclasses.replace(scan, infiltrate=scan.lungs))])[1]) == {
        "low_hu", "high_hu"}  # fmt: skip


def test_scans_are_taken_for_what_was_drawn_on_them(tmp_path):
    lungs_only = case(chest(), CaseFiles(tmp_path, lungs=tmp_path))
    assert has_mask(lungs_only, "lungs")
    assert not has_mask(lungs_only, "infiltrate")
    assert has_mask(case(chest()), "lungs_infiltrate")


@pytest.fixture(scope="module")
def own_list(tmp_path_factory):
    """A list of three scans with lungs and no infiltrate; one of them has no lungs either."""
    folder = tmp_path_factory.mktemp("own")
    write_phantom(folder, "A", 3, size="tiny")
    table = pd.read_csv(folder / "manifest.csv").drop(columns="infiltrate")
    more = table.iloc[:1].assign(case="bare", patient="bare", lungs="")
    pd.concat([table, more]).to_csv(folder / "own.csv", index=False)
    return folder / "own.csv"


def test_a_list_of_own_scans_stands_in_for_a_set(own_list, tmp_path):
    plan = with_overrides(build_volume_recipe("mueller-2021-small"), TINY)
    found = find_volume_cases(plan, {"covid19ctseg": own_list}, tmp_path)
    assert [c.case for c in found["covid19ctseg"]] == ["A-000", "A-001", "A-002"]


@pytest.mark.slow
def test_a_study_of_lungs_holds_every_scan_out_once(own_list, tmp_path):
    plan = with_overrides(build_volume_recipe("mueller-2021-small"), TINY)
    result = run_study(plan, tmp_path / "run", data={"covid19ctseg": own_list}, device="cpu")
    per_case = pd.read_csv(result.folder / "per_case.csv")
    assert set(per_case["structure"]) == {"lungs"}
    assert sorted(per_case.loc[per_case["setting"] == "full", "case"]) == ["A-000", "A-001", "A-002"]
    threshold = per_case[per_case["setting"] == "threshold"]
    assert (threshold["dice"] > 0.8).all()
    assert set(result.matrix["structure"]) == {"lungs"}
    assert "Dice" in result.report.read_text()
