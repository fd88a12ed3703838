"""Own data in 3D: the plan from the scans, the same preparation in training and in `segment`, training to the bit."""

import json

import numpy as np
import pandas as pd
import pytest

from grids import build_grid
from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.datasets.tensors import prepare_image
from pneumoscope.errors import InputError, ModelError
from pneumoscope.inference.volumes import VolumeInput
from pneumoscope.models.options import ModelOptions
from pneumoscope.plans.data import read_own_cases, split_patients
from pneumoscope.plans.plan import OwnPlan, _dims, make_plan, read_plan, write_plan
from pneumoscope.plans.plan3d import VolumePlan, plan_volumes, whole_box, widths
from pneumoscope.plans.setup import preprocessing_card, recipe_of, set_up_volumes, start_of_volumes
from pneumoscope.plans.survey import Survey
from pneumoscope.plans.train import crossval_own, train_own
from pneumoscope.study import forecast
from pneumoscope.volume import Volume

THIN = Survey(8, (512, 512, 300), (0.7, 0.7, 1.0), 0.8, 358.0, 512)
THICK = Survey(8, (512, 512, 42), (0.7, 0.7, 8.0), 7.0, 358.0, 512)
TINY = VolumePlan(
    spacing_mm=(8.0, 8.0, 25.0), patch=(8, 16, 16), features=(2, 4), boxes=4, validation_boxes=2, epochs=2,
    precision="fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own3d")
    write_phantom(folder, "A", 3, size="tiny")
    (folder / "phantom.json").unlink()
    return read_own_cases({"manifest": folder / "manifest.csv"})


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "own-cache"))


@pytest.fixture
def roomy(monkeypatch):
    monkeypatch.setattr(forecast, "available_gigabytes", lambda: 60.0)


def test_thin_scans_keep_their_shape_and_thick_ones_their_slices(roomy):
    thin = plan_volumes(THIN, 20, device="cpu")
    assert thin.spacing_mm == (2.0, 2.0, 2.0)
    assert whole_box(THIN, thin.spacing_mm) == (150, 179, 179)
    assert np.ptp(thin.patch) <= 8, "as long as wide: the longest side was shortened each time"
    assert np.prod(thin.patch) <= 48 * 64 * 64
    thick = plan_volumes(THICK, 20, device="cpu")
    assert thick.spacing_mm == (2.0, 2.0, 7.0), "a tenth of the scans are finer than the median"
    assert thick.patch[0] < thick.patch[1]
    thicker = plan_volumes(Survey(8, (512, 512, 20), (0.7, 0.7, 12.0), 12.0, 358.0, 512), 20, device="cpu")
    assert thicker.spacing_mm == (3.0, 3.0, 12.0), "no pixel finer than a quarter of the slice distance"
    assert "quarter" in thicker.reasons["spacing_mm"]


def test_levels_follow_the_shortest_side():
    assert [len(widths((side, 64, 64), "other")) for side in (8, 15, 16, 32, 64, 128)] == [2, 2, 3, 4, 5, 5]
    assert widths((128, 128, 128), "other") == (32, 64, 128, 256, 320)
    assert widths((128, 128, 128), "cpu") == (8, 16, 32, 64)


@pytest.mark.parametrize("free", [1.0, 8.0, 64.0])
def test_the_box_grows_with_the_memory(monkeypatch, free):
    monkeypatch.setattr(forecast, "available_gigabytes", lambda: free)
    plan = plan_volumes(THIN, 20, device="mps")
    assert plan.step_gigabytes() <= free / 3
    larger = VolumePlan(patch=tuple(n + 8 for n in plan.patch), features=widths(plan.patch, "other"))
    assert larger.step_gigabytes() > 0.8 * free / 3 or np.prod(larger.patch) > 192 * 160 * 160


def test_slices_unless_the_data_and_the_machine_speak_for_volumes():
    assert _dims("auto", THIN, "cuda", None, {})[0] == "3d"
    for seen, device, why in ((THIN, "cpu", "processor"), (THICK, "cuda", "volumes pay from")):
        dims, said = _dims("auto", seen, device, None, {})
        assert dims == "2d"
        assert why in said
    assert _dims("3d", THICK, "cpu", None, {})[0] == "3d"
    assert _dims("auto", THIN, "cuda", {"preprocessing": {"kind": "lung_frame"}}, {})[0] == "2d"
    assert _dims("auto", THICK, "cpu", {"preprocessing": {"kind": "hu_volume"}}, {})[0] == "3d"


def test_a_plan_comes_back_from_its_file(tmp_path):
    write_plan(TINY, tmp_path / "p.json")
    assert read_plan(tmp_path / "p.json") == TINY
    (tmp_path / "p.json").write_text('{"dims": "3d", "size": 64}')
    with pytest.raises(InputError, match="no 3d plan: size is unknown"):
        read_plan(tmp_path / "p.json")
    for wrong in ({"patch": (2, 8, 8)}, {"spacing_mm": (0, 1, 1)}, {"scale": "x"}, {"boxes": 0}, {"test_share": 0.9}):
        with pytest.raises(InputError):
            VolumePlan(**wrong)
    with pytest.raises(InputError, match="too small for 4 levels"):
        VolumePlan(patch=(4, 8, 8))
    assert OwnPlan().shaping().keys() & {"dims", "test_share"} == set(), "2D trainings of before can be resumed"


@pytest.mark.parametrize("scale", ["unit", "grey_zscore"])
def test_training_and_segment_prepare_a_scan_alike(scale):
    grid = build_grid(("P", "L", "S"), shape=(22, 18, 14), tilt_degrees=(4, -3, 2))
    hu = np.random.default_rng(0).normal(-400, 500, grid.shape).astype(np.float32)
    volume = Volume.from_native(hu, grid, case="awkward")
    plan = VolumePlan(spacing_mm=(1.1, 1.1, 1.7), scale=scale, patch=(8, 8, 8), features=(2, 4))
    trained, on = prepare_image(volume, recipe_of(plan))
    seen = VolumeInput.from_card({"preprocessing": preprocessing_card(plan)})
    assert seen.grid(volume.grid) == on
    assert np.abs(seen.image(volume)[0] - trained).max() < (1e-6 if scale == "unit" else 0.02)


def test_scans_without_infiltrate_are_refused(cases):
    train, val = split_patients(cases, 0.3, 0)
    far = VolumePlan(spacing_mm=(200.0, 200.0, 200.0), patch=(8, 8, 8), features=(2, 4))
    with pytest.raises(InputError, match="shows infiltrate"):
        set_up_volumes(far, train, val, None, lambda *_: None)


@pytest.mark.slow
def test_the_score_of_a_model_is_that_of_what_segment_gives_with_it(cases, tmp_path):
    from pneumoscope.inference.segmenter import Segmenter

    said = []
    train, val = split_patients(cases, 0.3, 0)
    whole = train_own(
        train, val, TINY, tmp_path / "a", device="cpu",
        progress=lambda what, done, total, note="": said.append(note if what == "forecast" else ""),
    )  # fmt: skip
    assert any("boxes, at most 2 epochs of 2 steps" in note and "GB free" in note for note in said)
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["architecture"]["name"] == "unet3d"
    assert card["preprocessing"]["patch"] == [8, 16, 16]
    assert "flatters" in card["numbers"]["chosen_on"]
    scan = val[0].load()
    found = Segmenter(ModelOptions(model=tmp_path / "a", device="cpu")).run(scan.volume, scan.lungs)
    both = (found.infiltrate.any & scan.infiltrate.any).sum()
    dice = 2 * both / max(1, found.infiltrate.any.sum() + scan.infiltrate.any.sum())
    assert whole.scores["dice"].iloc[0] == pytest.approx(dice, abs=1e-6)
    assert pd.read_csv(tmp_path / "a" / "validation.csv")["dice"].tolist() == whole.scores["dice"].tolist()


@pytest.mark.slow
def test_finetuning_begins_with_the_models_weights_and_preparation(cases, tmp_path):
    train, val = split_patients(cases, 0.3, 0)
    first = train_own(train, val, TINY, tmp_path / "first", device="cpu").folder
    plan = make_plan(cases, device="cpu", start=first, epochs=1, boxes=4)
    assert isinstance(plan, VolumePlan)
    assert (plan.spacing_mm, plan.patch, plan.features) == (TINY.spacing_mm, TINY.patch, TINY.features)
    assert plan.learning_rate == pytest.approx(TINY.learning_rate / 10)
    said = start_of_volumes(plan)[2]
    assert said.startswith("weights of first")
    tuned = train_own(train, val, plan, tmp_path / "tuned", device="cpu")
    assert json.loads((tuned.folder / "card.json").read_text())["started_from"] == said
    with pytest.raises(ModelError, match="another model"):
        start_of_volumes(VolumePlan(start="infiltrate"))


@pytest.mark.slow
def test_crossval_scores_every_scan_once_and_its_folds_make_an_ensemble(cases, tmp_path):
    from pneumoscope.inference.segmenter import Segmenter

    table = crossval_own(cases, TINY, tmp_path / "cv", folds=2, device="cpu")
    assert sorted(table["case"]) == sorted(case.case for case in cases)
    scan = cases[0].load()
    both = Segmenter(
        ModelOptions(model=[tmp_path / "cv" / f"fold-{n}" for n in (1, 2)], device="cpu", mirror=True), uncertainty=True
    )
    found = both.run(scan.volume, scan.lungs)
    assert len(found.cards["infiltrate"]["members"]) == 2
    assert found.variance.shape == scan.volume.grid.shape
