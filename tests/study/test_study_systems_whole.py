"""A whole study of all systems: the same slices for all, killed and resumed, judged, compared."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from made_up_hospitals import make_cases
from made_up_systems import VOLUMES, only, three_sites, tiny

from pneumoscope.models.cards import read_card
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.engine import run_study
from pneumoscope.study.learners import threshold as volumes_baseline
from pneumoscope.study.lungs import open_sets
from pneumoscope.study.scores.predictions import read_predictions
from pneumoscope.study.scores.systems import COLUMNS
from pneumoscope.study.scores.table import read_table
from pneumoscope.study.transfer import StageMaker

pytestmark = pytest.mark.timeout(1200)  # whole studies, which take long on a busy machine


def quiet(patch, cases=None):
    """No cache, no pictures, and the made-up hospitals where given."""
    patch.delenv("PNEUMOSCOPE_CACHE", raising=False)
    patch.setattr("pneumoscope.study.figures.redraw", lambda *args: None)
    patch.setattr("pneumoscope.study.figures.write_examples", lambda *args: None)
    if cases:
        patch.setattr("pneumoscope.study.lungs.find_cases", lambda *args, **kwargs: cases)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All five systems on tiny made-up hospitals, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        quiet(patch, three_sites())
        return run_study(tiny(), tmp_path_factory.mktemp("systems") / "study", device="cpu", synthetic=True)


def test_all_systems_are_scored_on_the_same_slices(study):
    rows = read_table(study.folder / "per_case.csv")
    chain = study.experiment.stages.chain
    assert len(study.matrix) == 3 * len(chain) == 45
    for _, part in rows.groupby("test"):
        each = [frozenset(zip(p["case"], p["slice"], strict=True)) for _, p in part.groupby("stage")]
        assert len(each) == len(chain)
        assert len(set(each)) == 1
    for stage in chain:
        kept = [read_predictions(study.folder / "stages" / stage.name, n) for n in (1, 2, 3)]
        assert all(set(k.part) == {"val", "test"} for k in kept)


def test_the_folder_holds_the_numbers_of_every_system(study):
    table = pd.read_csv(study.folder / "systems.csv", dtype={"test": str})
    assert tuple(table.columns) == (*COLUMNS, "data")
    assert list(dict.fromkeys(table["system"])) == ["slices", "slices-2.5d", *VOLUMES, "threshold"]
    assert table["test"].tolist() == ["1", "2", "3", "mean"] * 5
    assert (table["training_seconds"] > 0).all()
    assert (table["training_peak_gb"] > 0.05).all()
    assert (table["training_extra_gb"] >= 0).all()
    assert table["seconds_per_scan"].notna().all()
    assert not table["resumed"].any()
    fitted = table.drop_duplicates("system").set_index("system")["parameters"]
    assert fitted["threshold"] == 2
    assert fitted["slices-2.5d"] > fitted["slices"]  # the first layer is wider
    cells = study.matrix.set_index(["stage", "test"])["dice"]
    for row in table[table["test"] != "mean"].itertuples():
        assert row.dice == pytest.approx(cells[row.stage, int(row.test)], abs=1e-6)
    page = (study.folder / "report.html").read_text()
    assert "Systems side by side" in page
    assert "slices-2.5d" in page
    assert (study.folder / "figures" / "systems.png").is_file()


def test_a_retraining_begins_from_the_stage_before(study):
    for short in ("mueller", "bressem"):
        card = read_card(study.folder / "stages" / f"Tr1_R_2-{short}")
        assert card["started_from"].startswith(f"weights of Tr1-{short}")
        assert read_card(study.folder / "stages" / f"Tr1-{short}")["started_from"].startswith("new weights")
    training = study.folder / "stages" / "Tr1_R_2-bressem" / "training"
    assert {p.name for p in training.iterdir()} == {f"Tr1_R_2-bressem-{p}" for p in ("decoder", "low", "high")}
    first = read_card(training / "Tr1_R_2-bressem-decoder")["started_from"]
    assert first.startswith("weights of Tr1-bressem-high")
    history = pd.read_csv(study.folder / "stages" / "Tr1_R_2-bressem" / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["phase"].tolist() == ["decoder", "low", "high"]


def test_cards_of_other_systems_are_not_taken_for_networks_on_single_slices(study):
    from pneumoscope.errors import ModelError
    from pneumoscope.inference.inputs import input_from_card

    near = read_card(study.folder / "stages" / "Tr1-2.5d")
    assert near["preprocessing"]["neighbours"] == 1
    with pytest.raises(ModelError, match="with its neighbours"):
        input_from_card(near)
    assert "neighbours" not in read_card(study.folder / "stages" / "Tr1-2d")["preprocessing"]


def test_the_threshold_is_the_one_of_its_training_scans(study):
    own = study.folder / "stages" / "Tr1-threshold"
    kept = json.loads((own / "threshold.json").read_text())
    split = pd.read_csv(study.folder / "splits" / "phantom-A.csv")
    assert kept["scans"] == sorted(split.loc[split["part"] == "train", "case"].unique())
    bounds = volumes_baseline.fit_threshold([c for c in make_cases(1, 4) if c.case in kept["scans"]])
    assert (kept["low_hu"], kept["high_hu"]) == bounds
    found = read_predictions(own, 1)
    assert set(np.unique(found.probability)) == {0, 255}
    assert study.matrix.set_index(["stage", "test"]).loc[("Tr1-threshold", 1), "dice"] > 0.5


def test_other_numbers_of_a_system_are_another_study(study):
    from pneumoscope.errors import InputError

    other = with_overrides(study.experiment, ["systems.mueller-2021-small.phases.fit.learning_rate=0.1"])
    with pytest.raises(InputError, match=r"systems\.mueller-2021-small\.phases\.fit\.learning_rate: 0.003 -> 0.1"):
        run_study(other, study.folder, resume=True, synthetic=True)


def test_forgetting_and_transfer_are_told_within_a_system(study):
    told = {row["stage"]: row for row in json.loads((study.folder / "matrix.json").read_text())["transfer"]}
    assert set(told) == {f"{road}-{s}" for road in ("Tr1_R_2", "Tr1_R_2_R_3")
                         for s in ("2d", "2.5d", "mueller", "bressem", "threshold")}  # fmt: skip
    assert np.isfinite(told["Tr1_R_2-2d"]["forward_transfer"])
    assert told["Tr1_R_2-mueller"]["forward_transfer"] is None


def test_a_gate_judges_every_system(study, tmp_path):
    import shutil

    from pneumoscope.study.analysis.acceptance import guard_study

    copy = tmp_path / "study"
    shutil.copytree(study.folder, copy)
    verdict = guard_study(copy, study.experiment, 0.05)
    assert len(verdict["stages"]) == 10
    assert "guard" in read_card(copy / "stages" / "Tr1_R_2-bressem")
    assert not (copy / "stages" / "Tr1_R_2-threshold" / "card.json").exists()


def test_systems_are_compared_as_ways_of_their_own(study):
    from pneumoscope.study.analysis.comparison import compare, read_runs

    rows = compare(read_runs([study.folder]))
    longest = [row["strategy"] for row in rows if row["sets"] == "1-2-3"]
    assert longest[0] == "plain"
    assert set(longest[1:]) == {f"{s}: plain" for s in ("slices-2.5d", *VOLUMES, "threshold")}


def test_a_threshold_alone_is_a_study(tmp_path, monkeypatch):
    """No network at all but that of the lungs: nothing else may ask for one."""
    quiet(monkeypatch, {n: make_cases(n, 4) for n in (1, 2, 3)})
    result = run_study(only(tiny(), "threshold"), tmp_path, device="cpu", synthetic=True)
    assert len(result.matrix) == 9
    assert not (tmp_path / "systems.csv").exists()
    assert not list(tmp_path.glob("stages/**/*.safetensors"))


@pytest.mark.slow
def test_stages_train_in_processes_of_their_own(tmp_path, monkeypatch):
    """Volume stages made by workers are the ones that one process makes; on synthetic scans, which workers can read."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    patients = [f"data.sites.{n}.phantom_patients=3" for n in (1, 2, 3)]
    plan = only(tiny("data.phantom_size=tiny", *patients), "mueller-2021-small", "threshold", stages=2)
    quiet(monkeypatch)
    result = run_study(plan, tmp_path / "two", device="cpu", jobs=2, synthetic=True)
    alone = StageMaker(plan, open_sets(plan, tmp_path / "two", {}, device="cpu"), tmp_path / "two", "cpu", True)
    for stage in plan.stages.chain:
        assert not alone.make(stage.name).trained_now
    assert len(result.matrix) == 12
