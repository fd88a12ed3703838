"""Strategies in a study: what each keeps exactly, what they share, and that a study of them can be killed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from made_up_hospitals import SMALL, make_cases

from pneumoscope.errors import DatasetError, InputError
from pneumoscope.models.cards import read_card
from pneumoscope.models.weights import load_model
from pneumoscope.recipes.papers.transfer import transfer_slices
from pneumoscope.recipes.registry import build_any
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.study.eight_bit import shrink, square, stack_of_case
from pneumoscope.study.forecast import forecast, guard_steps
from pneumoscope.study.learners.strategies import SliceLearner, read_kept
from pneumoscope.study.lungs import lung_effect, mean_dice, open_sets
from pneumoscope.study.scores.predictions import predict_stage, read_predictions
from pneumoscope.study.transfer import StageMaker

TINY = [
    *(setting for setting in SMALL if not setting.startswith(("split", "stages"))),
    "data.phantom_size=tiny",
    *(f"data.sites.{n}.phantom_patients={patients}" for n, patients in ((1, 4), (2, 3), (3, 3))),
    "split.judged_pixels=0",
    "stages.first.epoch_slices=12",
    "stages.first.max_epochs=2",
    "stages.retrain.epoch_slices=12",
    "stages.retrain.max_epochs=1",
    "lung.budget.epoch_slices=12",
    "lung.budget.max_epochs=1",
    "strategy.ewc_slices=3",
    "strategy.store_slices=4",
    "strategy.adabn_slices=6",
]


def tiny():
    return with_overrides(transfer_slices(), TINY)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every stage of the recipe on tiny synthetic pictures, and how the trainings went by."""
    folder = tmp_path_factory.mktemp("strategies")
    plan = tiny()
    sets = open_sets(plan, folder, {}, device="cpu")
    seen = []
    trainer = StageMaker(plan, sets, folder, device="cpu", progress=lambda *args: seen.append(args))
    for stage in plan.stages.chain:
        trainer.make(stage.name)
    return trainer, seen


def state(folder):
    return load_model(folder)[0].state_dict()


def same(a, b, names=None):
    return all(torch.equal(a[name], b[name]) for name in (names or a))


def test_every_stage_is_there_and_took_the_same_steps(made):
    trainer, seen = made
    per_epoch = {args[2] for args in seen if " epoch " in args[0] and args[0].startswith("Tr1_R")}
    assert per_epoch == {3}  # 12 slices in batches of 4, whatever the strategy and the set
    for stage in trainer.experiment.stages.chain:
        card = read_card(trainer.folder / "stages" / stage.name)
        assert card["training"]["epochs_run"] == (2 if stage.start is None else 1)
        assert (trainer.folder / "stages" / stage.name / "history.csv").is_file()


def test_trainings_that_are_alike_are_done_once(made):
    _, seen = made
    trained = {args[0].rsplit(" epoch ", 1)[0] for args in seen if " epoch " in args[0]}
    assert "Tr1_R_2-plain" in trained
    for name in ("averaging", "selector", "selector+averaging", "adabn"):
        assert f"Tr1_R_2-{name}" not in trained
    assert "Tr1_R_2_R_3-selector" not in trained


def test_the_selector_loses_nothing_on_an_earlier_set(made):
    """A scan that is given to its site's network gets exactly the answer of the stage that learnt that site."""
    trainer, _ = made
    last = trainer.models["Tr1_R_2_R_3-selector"]
    assert sorted(last.experts) == [1, 2, 3]
    rows = trainer.sets[1].rows("test")[:2]
    images = trainer.sets[1].slices.images[rows]
    known = type(last)(**{**vars(last), "site_known": True})
    told, expert = known.predict_scan(images, site=1, device="cpu", precision="fp32")
    first, _ = trainer.models["Tr1"].predict_scan(images, site=1, device="cpu", precision="fp32")
    assert expert == 1
    assert np.array_equal(told, first)
    assert known.expert_for(images, 9) == last.selector.choose(images)  # a site it never saw


def test_frozen_parts_stay_bit_for_bit(made):
    trainer, _ = made
    stages = trainer.folder / "stages"
    first, frozen, norm = (state(stages / name) for name in ("Tr1", "Tr1_R_2_R_3-frozen", "Tr1_R_2_R_3-site_norm"))
    assert same(first, frozen, [name for name in first if name.startswith("down.")])
    assert not same(first, frozen, [name for name in first if name.startswith("up.")])
    convolutions = [name for name, value in first.items() if value.ndim == 4]
    assert same(first, norm, convolutions)
    assert not same(first, norm)


def test_adapted_statistics_are_all_that_differs_between_sites(made):
    trainer, _ = made
    folder = trainer.folder / "stages" / "Tr1_R_2_R_3-adabn"
    one, three = state(folder / "set-1"), state(folder / "set-3")
    differ = {name for name in one if not torch.equal(one[name], three[name])}
    assert differ
    assert all("running" in name for name in differ)


def test_mixed_weights_say_what_was_tried(made):
    trainer, _ = made
    said = read_card(trainer.folder / "stages" / "Tr1_R_2_R_3-averaging")["made_from"]
    assert "mean validation Dice over sets 3, 1, 2" in said
    alone = read_card(trainer.folder / "stages" / "Tr1_R_2_R_3-selector+averaging")["made_from"]
    assert "over sets 3 by share" in alone


def test_a_store_is_bounded_and_joint_training_is_not(made):
    trainer, _ = made
    learner = SliceLearner(trainer, "slices")
    assert len(learner.store(1, frozenset({"rehearsal"}))[2]) == 4
    assert len(learner.store(1, frozenset({"joint"}))[2]) == len(trainer.sets[1].rows("train"))
    stage = trainer.experiment.stage("Tr1_R_2_R_3-rehearsal")
    names = {name.split(" ")[0] for name in learner.validation(stage, frozenset({"rehearsal"}))[2]}
    parts = {n: set(s.slices.table["case"].iloc[s.rows("val")]) for n, s in trainer.sets.items()}
    assert all(names & cases for cases in parts.values())
    tested = {case for s in trainer.sets.values() for case in s.slices.table["case"].iloc[s.rows("test")]}
    assert not names & tested


def test_a_resumed_trainer_takes_everything_from_the_folder(made):
    trainer, _ = made
    seen = []
    again = StageMaker(
        trainer.experiment, trainer.sets, trainer.folder, device="cpu", resume=True,
        progress=lambda *args: seen.append(args[0]),
    )  # fmt: skip
    for stage in trainer.experiment.stages.chain:
        assert again.make(stage.name).sha256 == trainer.models[stage.name].sha256
    assert not [what for what in seen if " epoch " in what]


@pytest.mark.parametrize("strategy", ["rehearsal", "lwf", "ewc"])
def test_a_stage_that_fails_in_the_middle_goes_on_to_the_same_weights(made, tmp_path, strategy):
    trainer, _ = made
    name = f"Tr1_R_2-{strategy}"

    def fail(what, done, total, note=""):
        if what == f"{name} epoch 1" and done == 2:
            raise RuntimeError("the disk is full")

    broken = StageMaker(trainer.experiment, trainer.sets, tmp_path, device="cpu", progress=fail)
    broken.make("Tr1")
    with pytest.raises(RuntimeError, match="disk"):
        broken.make(name)
    again = StageMaker(trainer.experiment, trainer.sets, tmp_path, device="cpu", resume=True)
    assert not again.make("Tr1").trained_now
    assert again.make(name).sha256 == trainer.models[name].sha256


def test_a_damaged_expert_is_made_again(made, tmp_path):
    trainer, _ = made
    own = trainer.folder / "stages" / "Tr1_R_2-adabn"
    (own / "set-1" / "model.safetensors").write_bytes(b"x")
    again = StageMaker(trainer.experiment, trainer.sets, trainer.folder, device="cpu", resume=True)
    for name in ("Tr1", "Tr1_R_2-plain", "Tr1_R_2-adabn"):
        again.make(name)
    assert sorted(read_kept(own).experts) == [1, 2]


def test_supplied_lungs_are_measured_on_the_sets_that_got_them(made):
    trainer, _ = made
    models = {"Tr1": trainer.models["Tr1"]}
    predict_stage(trainer.experiment, trainer.models["Tr1"], trainer.sets, device="cpu")
    table = lung_effect(trainer.experiment, models, trainer.sets, device="cpu")
    assert table[["stage", "test"]].to_numpy().tolist() == [["Tr1", 3]]
    kept = read_predictions(trainer.models["Tr1"].folder, 3).of("test")
    truth = trainer.sets[3].slices.target[trainer.sets[3].rows("test")] > 0
    assert table["dice_with"][0] == pytest.approx(mean_dice(kept.found(0.5), truth, kept.patient), nan_ok=True)
    blind = with_overrides(trainer.experiment, ["preprocessing.lung_channel=false"])
    assert lung_effect(blind, models, trainer.sets).empty


def test_the_forecast_counts_on_measured_steps(made):
    trainer, _ = made
    expected = forecast(trainer.experiment, trainer.sets, device="cpu")
    trainings = 2 * 12 - 7
    assert expected.steps == 2 * 3 + trainings * 3
    assert 0 < expected.seconds_per_step * expected.steps / 60 <= expected.minutes + 0.1
    assert 0.05 < expected.gigabytes < 20
    assert "minute" in expected.sentence()
    assert "GB" in expected.sentence()


def test_teachers_and_fisher_information_are_counted_beside_the_steps():
    plan = with_overrides(transfer_slices(), ["strategy.ewc_slices=40"])
    slices = {1: 400, 2: 24, 3: 30}
    teachers = 2 * (12 * 400 / 8) / 3  # two lwf trainings of 12 epochs of 400 slices in batches of 8
    fisher = (40 + (40 + 24)) / 8  # the second ewc stage has two before it, the smaller set gives all it has
    assert guard_steps(plan, slices) == pytest.approx(teachers + fisher)
    assert guard_steps(build_any("maganaris-2022b"), slices) == 0


def test_statistics_are_asked_of_a_network_that_has_some(made, tmp_path):
    trainer, _ = made
    plan = with_overrides(trainer.experiment, ["network.norm=instance"])
    other = StageMaker(plan, trainer.sets, tmp_path, device="cpu")
    other.make("Tr1")
    with pytest.raises(InputError, match=r"network\.norm=batch"):
        other.make("Tr1_R_2-adabn")


# -- sets that are not as they should be -----------------------------------------------------------------------


def test_scans_in_another_intensity_world_are_named(tmp_path, hospitals):
    real = [type(case)(**{**vars(case), "dataset": "manifest"}) for case in make_cases(1)]
    with pytest.raises(InputError, match="holds Hounsfield units, this recipe takes 8-bit slices"):
        stack_of_case(real[0])


def test_pictures_given_to_a_recipe_for_scans_are_named(small, hospitals, tmp_path):
    def picture(case):
        scan = case.load()
        volume = type(scan.volume)(
            ((scan.volume.hu + 1100) / 10).clip(0, 255), scan.volume.grid, scan.volume.grid, case=case.case
        )
        return type(scan)(volume, scan.lungs, scan.infiltrate)

    hospitals[2] = [type(c)(**{**vars(c), "load": lambda c=c: picture(c)}) for c in make_cases(2)]
    with pytest.raises(InputError, match=r"no Hounsfield units .* transfer-slices"):
        open_sets(small, tmp_path, {}, device="cpu")


def test_too_few_patients_to_keep_whole_is_one_line(small, hospitals, tmp_path):
    hospitals[2] = make_cases(2, patients=1)
    by_patient = with_overrides(small, ["split.by=patient"])
    with pytest.raises(DatasetError, match=r"at least 3 patients to judge by, there are 1.*split\.by=slice"):
        open_sets(by_patient, tmp_path, {}, device="cpu")


def test_a_training_part_without_infiltrate_is_one_line(small, hospitals, tmp_path):
    from pneumoscope.volume import Mask

    def healthy(case):
        scan = case.load()
        return type(scan)(scan.volume, scan.lungs, Mask.empty(scan.volume.grid, scan.infiltrate.names))

    hospitals[1] = [type(c)(**{**vars(c), "load": lambda c=c: healthy(c)}) for c in make_cases(1)]
    by_patient = with_overrides(small, ["split.by=patient"])
    with pytest.raises(InputError, match=r"set 1 .* has no infiltrate in its \d+ training slices"):
        open_sets(by_patient, tmp_path, {}, device="cpu")


def test_pictures_are_padded_and_shrunk_without_stretching():
    stack = np.zeros((1, 4, 8), np.uint8)
    stack[0, :, 2:6] = 200  # a square of 4 x 4
    wide = square(stack)
    assert wide.shape == (1, 8, 8)
    assert (wide[0, 2:6, 2:6] == 200).all()
    assert wide.sum() == stack.sum()
    assert shrink(wide, 4)[0].tolist() == [[0, 0, 0, 0], [0, 200, 200, 0], [0, 200, 200, 0], [0, 0, 0, 0]]
    assert shrink(np.zeros((0, 8, 8), np.uint8), 4).shape == (0, 4, 4)


# -- processes -------------------------------------------------------------------------------------------------

RUN = """
import sys
from dataclasses import replace
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.recipes.papers.transfer import transfer_slices
from pneumoscope.study.engine import run_study
from pneumoscope.study import figures

figures.redraw = figures.write_examples = lambda *args: None
if __name__ == "__main__":
    plan = with_overrides(transfer_slices(), {settings})
    kept = ("Tr1", "plain", "selector", "rehearsal")
    chain = tuple(s for s in plan.stages.chain if s.name.rsplit("-", 1)[-1] in kept)
    plan = replace(plan, stages=replace(plan.stages, chain=chain))
    run_study(plan, sys.argv[1], resume=True, device="cpu", jobs=int(sys.argv[2]), synthetic=True)
"""


@pytest.fixture
def run(start, script):
    def begin(folder, jobs=1):
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return start([sys.executable, script, folder, jobs], env=env, stderr=subprocess.PIPE)

    return begin


def complete(process):
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said.decode()[-2000:]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "study.py"
    path.write_text(RUN.replace("{settings}", repr(TINY)))
    return path


def finished(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("stages/*/done.json")}


@pytest.mark.slow
def test_a_study_killed_by_the_system_goes_on_and_redoes_nothing(run, tmp_path):
    """SIGKILL to a process of its own, three times in the middle of it; the end is that of an undisturbed study."""
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    for wanted in (2, 4, 5):
        process = run(folder)
        deadline = time.monotonic() + 240
        while len(finished(folder)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        before = finished(folder)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(before) >= wanted
    complete(run(folder))
    after = finished(folder)
    assert {name: after[name] for name in before} == before  # not one finished stage was made again
    complete(run(whole))
    for name in ("matrix.csv", "forgetting.csv", "per_case.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert not list(folder.rglob(".tmp-*"))


@pytest.mark.slow
def test_two_processes_make_what_one_makes(run, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, jobs in ((one, 1), (two, 2)):
        complete(run(folder, jobs))
    assert sorted(finished(one)) == sorted(finished(two))
    for name in finished(one):
        marks = [json.loads((f / "stages" / name / "done.json").read_text())["sha256"] for f in (one, two)]
        assert marks[0] == marks[1], name
    assert (one / "matrix.csv").read_bytes() == (two / "matrix.csv").read_bytes()
