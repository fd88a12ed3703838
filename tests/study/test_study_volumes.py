import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.errors import InputError
from pneumoscope.geometry import Grid
from pneumoscope.inference.windows3d import WindowPlan
from pneumoscope.recipes.settings import describe, with_overrides
from pneumoscope.recipes.stages import VOLUME_RECIPES, build_volume_recipe
from pneumoscope.study.engine import run_study
from pneumoscope.study.learners.threshold import air_spaces, fit_threshold, threshold_labels
from pneumoscope.study.report import write_report
from pneumoscope.study.scores.volumes import (
    fold_medians,
    kept_epochs,
    paper_table,
    predict_labels,
    score_pair,
    volume_matrix,
)
from pneumoscope.study.volumes_data import find_volume_cases, model_jobs, patients_on_both_sides, volume_recipe
from pneumoscope.volume import Mask, Volume

QUICK = ["training.precision=fp32", "training.validation_boxes=1", "data.sets.covid19ctseg.phantom_patients=3"]
MUELLER = [*QUICK, "data.sets.an2020.phantom_patients=1", "network.features=2,4", "phases.fit.steps=2",
           "phases.fit.max_epochs=2", "phases.fit.size=16,16,8", "folds.k=2", "folds.ablation=false"]  # fmt: skip
BRESSEM = ["training.precision=fp32", "data.sets.ricord.phantom_patients=3", "network.features=2,4,4,2,2",
           "data.sets.covid19ctseg.phantom_patients=1", "data.sets.mosmed.phantom_patients=1",
           *(f"phases.{p}.max_epochs=1" for p in ("decoder", "low", "high")),
           *(f"phases.{p}.size=16,16,8" for p in ("decoder", "low", "high"))]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "volumes-cache"))


def scan_case(name: str, patient: str) -> Case:
    return Case("toy", name, patient, "", "", "", lambda: pytest.fail("not to be loaded"))


# -- recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VOLUME_RECIPES)
def test_every_number_of_a_recipe_has_a_source_and_can_be_set(name):
    experiment = build_volume_recipe(name)
    rows = describe(experiment)
    assert all(row["source"].strip() for row in rows)
    assert {"Mueller", "Bressem"} & {word for row in rows for word in row["source"].split()} or "small" in name
    changed = with_overrides(experiment, ["training.seed=7", "folds.by=patient"])
    assert (changed.training.seed, changed.folds.by) == (7, "patient")


def test_table_two_averages_are_means_of_the_folds_medians():
    """What the paper prints as AVG is found again from its own folds, to its rounding."""
    cells: dict[tuple[str, str], dict[int, float]] = {}
    for row in build_volume_recipe("mueller-2021").paper:
        if row.table == "2":
            cells.setdefault((row.setting, row.structure), {})[row.fold] = row.value
    assert len(cells) == 8
    for values in cells.values():
        assert np.mean([values[f] for f in range(1, 6)]) == pytest.approx(values[0], abs=0.0011)


def test_papers_models_and_phases():
    mueller, bressem = build_volume_recipe("mueller-2021"), build_volume_recipe("bressem-2021")
    cases = [scan_case(f"c{n:02d}", f"p{max(n, 1):02d}") for n in range(20)]  # c00 and c01 are one patient
    jobs = model_jobs(mueller, cases)
    assert len([job for job in jobs if job.setting == "full"]) == 14
    assert len(jobs) == 14 + 15
    assert {case.case for job in jobs if (job.k, job.setting) == (5, "plain") for case in job.val} == {
        case.case for case in cases
    }
    honest = model_jobs(with_overrides(mueller, ["folds.by=patient"]), cases)
    assert not any(patients_on_both_sides(job) for job in honest)
    leaking = [model_jobs(with_overrides(mueller, [f"folds.seed={s}"]), cases) for s in range(3)]
    assert any(patients_on_both_sides(job) for jobs in leaking for job in jobs)
    assert [(p.name, p.max_epochs, p.learning_rate, p.size, p.batch_size) for p in bressem.phases] == [
        ("decoder", 10, 0.01, (112, 112, 18), 6),
        ("low", 200, 0.001, (112, 112, 18), 6),
        ("high", 200, 1e-4, (256, 256, 20), 1),
    ]
    split = model_jobs(bressem, [scan_case(f"c{n:03d}", f"p{n}") for n in range(117)])
    assert [(len(job.train), len(job.val)) for job in split] == [(100, 17)]  # the paper's numbers


def test_settings_switch_preprocessing_and_augmentation():
    mueller = build_volume_recipe("mueller-2021")
    jobs = {job.setting: job for job in model_jobs(mueller, [scan_case(f"c{n}", f"p{n}") for n in range(5)]
                                                   ) if job.k == 5 and job.fold == 1}  # fmt: skip
    assert [(s, j.augmented, j.preprocessed) for s, j in jobs.items()] == [
        ("full", True, True), ("no-augmentation", False, True), ("no-preprocessing", True, False),
        ("plain", False, False)]  # fmt: skip
    assert volume_recipe(mueller, mueller.phases[0], preprocessed=False).clip_hu is None


# -- a whole study ------------------------------------------------------------------------------------------------


def phantoms(folder):
    from pneumoscope.datasets.phantom.folder import read_phantom

    return read_phantom(folder / "data" / "covid19ctseg")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.getbasetemp() / "volumes-cache"))
    experiment = with_overrides(build_volume_recipe("mueller-2021-small"), MUELLER)
    result = run_study(experiment, tmp_path_factory.mktemp("study") / "run", device="cpu", synthetic=True)
    monkeypatch.undo()
    return result


@pytest.mark.slow
def test_study_folder_is_whole(finished):
    folder = finished.folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wanted = {"experiment.json", "environment.json", "splits/covid19ctseg.csv", "per_case.csv", "matrix.csv",
              "folds.csv", "matrix.json", "paper.csv", "report.html",
              "figures/dice.png", "figures/curves.png"}  # fmt: skip
    wanted |= {f"stages/k2-f{n}/{f}" for n in (1, 2) for f in
               ("history.csv", "model.safetensors", "last.ckpt", "card.json")}  # fmt: skip
    assert wanted <= names
    per_case = pd.read_csv(folder / "per_case.csv")
    val = per_case[(per_case["test"] == "val") & (per_case["setting"] == "full")]
    assert sorted(val["case"].unique()) == sorted(pd.read_csv(folder / "splits/covid19ctseg.csv")["case"].unique())
    assert set(val["structure"]) == {"infection", "left lung", "right lung"}
    assert set(per_case["setting"]) == {"full", "threshold", "ensemble"}
    assert set(per_case.loc[per_case["setting"] == "ensemble", "test"]) == {"an2020"}
    kept = kept_epochs(folder / "stages", model_jobs(finished.experiment, phantoms(folder)))
    for row in kept.itertuples():
        history = pd.read_csv(folder / f"stages/k2-f{row.fold}/history.csv")
        best = history.loc[history["train_loss"].idxmin()]
        assert row.loss == best["val_loss"]
        classes = ("background", "left_lung", "right_lung", "infection")
        assert row.dice == pytest.approx(np.mean([best[f"val_dice_{name}"] for name in classes]))
    assert len(kept) == 2
    assert "http" not in (folder / "report.html").read_text().replace("http-equiv", "")


@pytest.mark.slow
def test_folds_trained_by_two_processes_are_those_of_one(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = []
    run_study(
        finished.experiment, tmp_path, device="cpu", jobs=2, synthetic=True, progress=lambda *a: seen.append(a[0])
    )
    assert not [what for what in seen if "epoch" in what]  # none was trained in this process
    for name in ("per_case.csv", "matrix.csv", "scores.csv", "calibration.csv"):
        assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes(), name


@pytest.mark.slow
def test_report_is_made_again_from_the_folder(finished):
    before = (finished.folder / "report.html").read_text()
    assert write_report(finished.folder).read_text() == before
    assert "Synthetic data" in before


@pytest.mark.slow
def test_phases_begin_where_the_one_before_ended(tmp_path):
    from safetensors.numpy import load_file

    experiment = with_overrides(build_volume_recipe("bressem-2021-small"), BRESSEM)
    result = run_study(experiment, tmp_path, device="cpu", synthetic=True)
    cards = {p.name: json.loads((p / "card.json").read_text()) for p in (tmp_path / "stages").glob("split-*")}
    assert set(cards) == {"split-decoder", "split-low", "split-high"}
    assert cards["split-low"]["started_from"].startswith("weights of split-decoder")
    decoder, low = (load_file(tmp_path / "stages" / n / "model.safetensors") for n in ("split-decoder", "split-low"))
    assert any(not np.array_equal(decoder[k], low[k]) for k in decoder if k.startswith("encoder."))
    assert set(result.matrix["test"]) == {"val", "covid19ctseg", "mosmed"}
    rows = result.matrix[result.matrix["structure"] == "infection"]
    assert (rows["lowest"].fillna(0) <= rows["highest"].fillna(0)).all()


def test_data_by_name(tmp_path):
    experiment = build_volume_recipe("bressem-2021")
    for data, words in (({"medseg": tmp_path}, "has the sets ricord"), ({"mosmed": tmp_path}, "missing for ricord"),
                        ({"ricord": tmp_path / "no"}, "no such folder")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            find_volume_cases(experiment, data, tmp_path)


# -- prediction and scores ----------------------------------------------------------------------------------------


def test_classes_come_back_on_a_tilted_grid(tilted_grid):
    """A network that says what it sees: bright voxels are class 1. The mask must lie where the bright corner is."""
    hu = np.full(tilted_grid.shape, -1000, np.float32)
    hu[:2, :2, :2] = 200
    mueller = build_volume_recipe("mueller-2021")
    recipe = volume_recipe(mueller, mueller.phases[0])
    recipe = dataclasses.replace(recipe, scale="unit", spacing_mm=(0.25, 0.4, 0.6))

    def sees(boxes):
        return np.concatenate([1 - boxes, boxes], axis=1)

    plan = WindowPlan((3, 4, 4), (0.5, 0.5, 0.5))
    found = predict_labels(Volume(hu, tilted_grid, tilted_grid, "a"), [sees], recipe, plan)[0]
    assert np.array_equal(found == 1, hu > 0)


def test_scores_by_hand():
    found, real = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    real[1:3, 1:3, 1:3], found[1:3, 1:3, 1:2] = True, True
    scores = score_pair(found, real, np.diag([1.0, 1.0, 2.0, 1.0]), 3.0)
    assert (scores["dice"], scores["iou"], scores["sensitivity"]) == (pytest.approx(2 / 3), 0.5, 0.5)
    assert (scores["specificity"], scores["nsd"]) == (1.0, 1.0)
    assert scores["reference_ml"] == pytest.approx(0.016)


def rows(values: dict[tuple[int, str, str], float]) -> pd.DataFrame:
    blank = dict.fromkeys(("iou", "sensitivity", "specificity", "accuracy", "precision", "nsd"), 0.5)
    return pd.DataFrame([
        {"stage": f"k2-f{f}", "k": 2, "fold": f, "setting": "full", "test": "val", "case": case, "patient": case,
         "structure": structure, "dice": dice, **blank} for (f, case, structure), dice in values.items()])  # fmt: skip


def test_medians_per_fold_then_lungs_as_the_mean_of_both():
    table = rows({(1, "a", "infection"): 0.2, (1, "b", "infection"): 0.4, (1, "c", "infection"): 0.9,
                  (2, "d", "infection"): 0.6, (1, "a", "left lung"): 0.9, (1, "a", "right lung"): 0.7})  # fmt: skip
    folds = fold_medians(table)
    by = folds.set_index(["fold", "structure"])["dice"]
    assert by[1, "infection"] == 0.4
    assert by[1, "lungs"] == pytest.approx(0.8)
    matrix = volume_matrix(table, folds).set_index(["structure", "metric"])
    cell = matrix.loc[("infection", "dice")]
    assert cell["fold_mean"] == pytest.approx(0.5)
    assert cell["median"] == pytest.approx(0.5)
    assert (cell["lowest"], cell["highest"], cell["n_cases"], cell["n_models"]) == (0.2, 0.9, 4, 2)
    kept = pd.DataFrame({"k": [5, 5, 2], "setting": "full", "fold": [1, 2, 1], "loss": [0.3, 0.5, 9.0], "dice": 0.5})
    paper = paper_table(build_volume_recipe("mueller-2021"), matrix.reset_index(), folds, kept)
    match = paper[(paper["table"] == "1") & (paper["k"] == 2) & (paper["test"] == "val") & (paper["metric"] == "dice")]
    assert match.set_index("structure")["ours"].to_dict() == {"lungs": pytest.approx(0.8), "infection": 0.5}
    figure = paper[paper["table"] == "Figure 5"].set_index("metric")
    assert figure["ours"].to_dict() == {"loss": pytest.approx(0.4), "dice": 0.5}
    assert figure["paper"].to_dict() == {"loss": 0.383, "dice": 0.919}
    assert paper[(paper["k"] == 5) & (paper["table"] != "Figure 5")]["ours"].isna().all()


# -- the threshold ------------------------------------------------------------------------------------------------


def chest() -> LabelledScan:
    hu = np.full((40, 40, 20), -1000, np.float32)
    hu[4:36, 4:36] = 40  # a body with two lungs, one with a denser patch
    hu[8:18, 10:30, 3:17] = -850
    hu[22:32, 10:30, 3:17] = -850
    infected = np.zeros(hu.shape, np.uint8)
    infected[24:30, 14:20, 6:12] = 1
    hu[infected > 0] = -550
    grid = Grid.from_spacing(hu.shape, (5, 5, 5))
    return LabelledScan(Volume(hu, grid, grid, "a"), None, Mask(infected, grid, {1: "infiltrate"}))


def test_threshold_finds_the_patch_inside_the_lungs():
    scan = chest()
    inside = air_spaces(scan.volume)
    assert inside[10, 20, 10]
    assert not inside[0, 0, 0]
    assert not inside[20, 20, 10]
    bounds = fit_threshold([Case("toy", "a", "a", "", "", "", lambda: scan)])
    found = threshold_labels(scan.volume, bounds, 3)
    assert set(np.unique(found)) == {0, 3}
    both = ((found == 3) & (scan.infiltrate.labels > 0)).sum()
    assert 2 * both / ((found == 3).sum() + (scan.infiltrate.labels > 0).sum()) > 0.9


def test_threshold_without_enclosed_air_finds_nothing():
    grid = Grid.from_spacing((6, 6, 6), (1, 1, 1))
    for value in (-1000, 40):
        volume = Volume(np.full((6, 6, 6), value, np.float32), grid, grid, "a")
        assert not threshold_labels(volume, (-800, 0), 1).any()
