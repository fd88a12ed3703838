"""What every learner must do: reproducible, resumable to the bit, retrained when data change, probabilities out."""

import contextlib
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_systems import VOLUMES, only, three_sites, tiny

from pneumoscope.errors import InputError
from pneumoscope.jobs.machines import machines
from pneumoscope.progress import Noted
from pneumoscope.recipes.access import with_overrides
from pneumoscope.recipes.systems import NEIGHBOURS, SLICES, THRESHOLD
from pneumoscope.study.data import build_set
from pneumoscope.study.engine import run_study
from pneumoscope.study.learners.registry import StageMaker, learner_class

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-learner.md"
OWN = "nearest_density:NearestDensity"


@pytest.fixture(scope="module", autouse=True)
def documented_learner(tmp_path_factory):
    """The learner of the how-to, saved as it says."""
    code = re.search(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) < 80
    folder = tmp_path_factory.mktemp("own")
    (folder / "nearest_density.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    sys.modules.pop("nearest_density", None)


def plan_of(system):
    """Two stages of a system, the second retrained from the first, of two epochs each where it has epochs."""
    epochs = ["stages.first.max_epochs=2", "stages.retrain.max_epochs=2",
              "systems.mueller-2021-small.phases.fit.max_epochs=2"]  # fmt: skip
    if system != OWN:
        return only(tiny(*epochs), system, stages=2)
    plan = only(tiny(), THRESHOLD, stages=2)
    return replace(plan, stages=replace(plan.stages, chain=tuple(replace(s, system=OWN) for s in plan.stages.chain)))


class Stopped(BaseException):
    """Ends a training as a killed process would."""


def stop_at(number):
    """Progress that stops at its n-th call."""
    calls = []

    def progress(*args):
        calls.append(args)
        if len(calls) == number:
            raise Stopped

    return progress


def brighter(case):
    """The case with denser lungs, which masks and names do not show."""
    scan = case.load()
    hu = scan.volume.hu.copy()
    hu[scan.lungs.labels > 0] += 40
    return replace(case, load=lambda: replace(scan, volume=replace(scan.volume, hu=hu)))


def sets_of(plan, change=None):
    """The first two hospitals; a scan that is trained on is changed."""
    cases = three_sites()
    if change:
        trained_on = sorted(case for case in sets_of(plan)[1].split.query("part == 'train'")["case"].unique())[0]
        cases[1] = [change(case) if case.case == trained_on else case for case in cases[1]]
    with tempfile.TemporaryDirectory() as folder:  # splits are written there
        return {n: build_set(plan, plan.site(n), cases[n], Path(folder), lungs_for=None) for n in (1, 2)}


def results(folder):
    """What was learned: every network and every fitted number, by its place."""
    patterns = ("*.safetensors", "fitted.json", "threshold.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for n in patterns for p in folder.rglob(n)}


def make(plan, folder, *, sets, **options):
    """Both stages of the plan."""
    maker = StageMaker(plan, sets, folder, device="cpu", **options)
    return [maker.make(stage.name) for stage in plan.stages.chain]


@pytest.fixture(scope="module", params=[SLICES, NEIGHBOURS, THRESHOLD, *VOLUMES, OWN])
def plan(request):
    """Two stages of a learner."""
    return plan_of(request.param)


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory):
    """Trained in one go: sets, stages and their folder; copied before it is changed."""
    folder, sets = tmp_path_factory.mktemp("whole"), sets_of(plan)
    return sets, make(plan, folder, sets=sets), folder


class TestLearnerContract:
    def test_stopped_and_resumed_gives_the_bytes_of_one_go(self, plan, whole, tmp_path):
        sets, _, folder = whole
        for number in (2, 5):
            with contextlib.suppress(Stopped):  # a learner without epochs has fewer calls
                make(plan, tmp_path, sets=sets, resume=True, progress=stop_at(number))
        made = make(plan, tmp_path, sets=sets, resume=True)
        assert results(tmp_path) == results(folder) != {}
        assert [stage.sha256 for stage in made] == [stage.sha256 for stage in whole[1]]

    def test_a_finished_stage_is_kept_and_a_damaged_one_is_made_again(self, plan, whole, tmp_path):
        sets, first, folder = whole
        copy, noted = shutil.copytree(folder, tmp_path / "copy"), Noted()
        again = make(plan, copy, sets=sets, resume=True, progress=noted)
        assert [stage.trained_now for stage in (*first, *again)] == [True, True, False, False]
        assert noted.notes == []
        for name in results(copy):
            (copy / name).write_bytes((copy / name).read_bytes()[:-2])
        make(plan, copy, sets=sets, resume=True)
        assert results(copy) == results(folder)

    def test_changed_training_data_are_trained_on_again_and_said(self, plan, whole, tmp_path):
        copy, noted = shutil.copytree(whole[2], tmp_path / "copy"), Noted()
        made = make(plan, copy, sets=sets_of(plan, brighter), resume=True, progress=noted)
        assert made[0].trained_now
        assert any("training data changed" in note for note in noted.notes)
        assert results(copy) != results(whole[2])

    def test_predictions_are_probabilities_of_the_slices_in_their_order(self, whole):
        sets, made, _ = whole
        rows, table = sets[2].rows("test"), sets[2].slices.table
        rows = rows[(table["case"].iloc[rows] == table["case"].iloc[rows[0]]).to_numpy()]
        for stage in made:
            p, expert = stage.predict_scan(stage.inputs(sets[2], rows), site=2, device="cpu", precision="fp32")
            assert (p.shape, p.dtype, expert) == (sets[2].slices.target[rows].shape, np.float32, 0)
            assert p.min() >= 0
            assert p.max() <= 1
            turned, _ = stage.predict_scan(stage.inputs(sets[2], rows[::-1]), site=2, device="cpu", precision="fp32")
            assert np.allclose(turned[::-1], p, atol=1e-6)


@pytest.mark.parametrize("on", ["local", pytest.param("dask", marks=[pytest.mark.slow, pytest.mark.enable_socket])])
def test_the_documented_learner_runs_in_a_transfer_study(tmp_path, monkeypatch, on):
    """With the settings of the page, in two processes: matrix and forgetting; a resumed study fits nothing again.

    Two Dask workers make the same.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("redraw", "write_examples"):
        monkeypatch.setattr(f"pneumoscope.study.figures.{name}", lambda *args: None)
    patients = [f"data.sites.{n}.phantom_patients=3" for n in (1, 2, 3)]
    plan = with_overrides(
        only(tiny("data.phantom_size=tiny", *patients), THRESHOLD), re.findall(r"--set (\S+)", HOW_TO.read_text())
    )
    assert {stage.system for stage in plan.stages.chain} == {OWN}
    result = run_study(plan, tmp_path, device="cpu", synthetic=True, jobs=2)
    assert len(result.matrix) == 9
    assert len(result.tables["forgetting"]) == 3
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/fitted.json")}
    assert len(made) == 3
    run_study(plan, tmp_path, device="cpu", synthetic=True, resume=True)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    if on == "local":
        return
    with machines(on, jobs=2):
        run_study(plan, tmp_path / "dask", device="cpu", synthetic=True)
    for name in ("matrix.csv", "per_case.csv", *(path.relative_to(tmp_path) for path in made)):
        assert (tmp_path / "dask" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(("name", "said"), [("nowhere:X", "cannot be imported"), ("json:loads", "no subclass")])
def test_a_learner_that_is_none_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        learner_class(name)
