"""What every learner must do: reproducible, resumable to the bit, retrained when data change, probabilities out."""

import contextlib
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_radiographs import small_xray, write_sets
from made_up_systems import VOLUMES, only, three_sites, tiny
from PIL import Image

from pneumoscope.datasets.phantom.folder import write_phantom
from pneumoscope.errors import InputError
from pneumoscope.inference.segmenter import Segmenter
from pneumoscope.jobs.machines import machines
from pneumoscope.models.options import ModelOptions
from pneumoscope.plans.data import Parts, read_own_cases, split_patients
from pneumoscope.plans.plan import OwnPlan
from pneumoscope.plans.plan3d import VolumePlan
from pneumoscope.plans.train import MODEL, OwnData, OwnExperiment
from pneumoscope.progress import Noted, silent
from pneumoscope.recipes.settings import with_overrides
from pneumoscope.recipes.stages import NEIGHBOURS, SLICES, THRESHOLD
from pneumoscope.study.data import build_set
from pneumoscope.study.engine import run_study
from pneumoscope.study.learners.base import StudyContext
from pneumoscope.study.learners.classifier import NetworkStage
from pneumoscope.study.learners.logistic import BaselineStage
from pneumoscope.study.options import StudyOptions
from pneumoscope.study.transfer import StageMaker, learner_class
from pneumoscope.study.xray import LEARNERS
from pneumoscope.study.xray_data import ImageCache, list_cases, read_pool
from pneumoscope.study.xray_repeat import AS_PAPER, all_mitigations, make_repeat, plain_recipe

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
    patterns = ("*.safetensors", "fitted.json", "threshold.json", "regressions.npz")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for n in patterns for p in folder.rglob(n)}


class OfScans:
    """Both stages of a system of a transfer study."""

    refuses = False

    def __init__(self, system):
        self.plan = plan_of(system)

    def data(self, folder, change=None):
        return sets_of(self.plan, change)

    def make(self, sets, folder, **options):
        maker = StageMaker(self.plan, sets, folder, device="cpu", **options)
        return [maker.make(stage.name) for stage in self.plan.stages.chain]

    def check_predictions(self, sets, stage):
        """Probabilities of the slices in their order."""
        rows, table = sets[2].rows("test"), sets[2].slices.table
        rows = rows[(table["case"].iloc[rows] == table["case"].iloc[rows[0]]).to_numpy()]
        p, expert = stage.predict_scan(stage.inputs(sets[2], rows), site=2, device="cpu", precision="fp32")
        assert (p.shape, p.dtype, expert) == (sets[2].slices.target[rows].shape, np.float32, 0)
        assert p.min() >= 0
        assert p.max() <= 1
        turned, _ = stage.predict_scan(stage.inputs(sets[2], rows[::-1]), site=2, device="cpu", precision="fp32")
        assert np.allclose(turned[::-1], p, atol=1e-6)


class OfRadiographs:
    """The baselines of a study of radiographs, or a network and the one that starts from it."""

    refuses = False

    def __init__(self, wanted):
        self.wanted = wanted

    def data(self, folder, change=None):
        experiment = small_xray("data.per_class_1=8,8,8")
        cases = list_cases(write_sets(folder / "sets", children=6, covid=5, adults=6))
        repeat = make_repeat(experiment, read_pool(experiment, cases, folder), 0)
        if change:
            path = repeat.pool.cases[int(repeat.zero.part("train")[0][0])].path
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
            repeat = make_repeat(experiment, read_pool(experiment, cases, folder), 0)
        return repeat, ImageCache(repeat.pool, folder, np.arange(len(repeat.pool.cases)), plain_recipe(experiment))

    def make(self, data, folder, progress=silent, **options):
        repeat, supply = data
        context = StudyContext(repeat.experiment, {}, folder, "cpu", progress=progress, supply=supply, **options)
        zero = NetworkStage(repeat, "Model_0", all_mitigations(repeat.experiment)[AS_PAPER])
        stages = [zero, replace(zero, model="Model_2", start=zero.name), BaselineStage(repeat)]
        return [LEARNERS[type(stage)](context).make(stage) for stage in stages if type(stage) is self.wanted]

    def check_predictions(self, data, stage):
        """Probabilities of the classes of every picture of every test."""
        table, _ = stage.predict("cpu")
        p = table[[name for name in table if re.fullmatch(r"p\d", name)]].to_numpy()
        assert np.allclose(np.nansum(p, axis=1), 1, atol=1e-5)
        assert np.nanmin(p) >= 0
        assert (table["confidence"] == np.nanmax(p, axis=1)).all()
        assert not table.duplicated(["model", "arm", "without", "test", "case"]).any()


class OfOwnData:
    """A training on own scans, on slices or on volumes."""

    refuses = True

    def __init__(self, plan):
        self.plan = plan

    def data(self, folder, change=None):
        write_phantom(folder, "A", 3, size="tiny")
        train, val = split_patients(read_own_cases({"phantom": folder}), 0.3, 0)
        return [change(train[0]) if change else train[0], *train[1:]], val

    def make(self, data, folder, **options):
        own = OwnData(OwnExperiment(self.plan, {MODEL: Parts(*data, [])}), StudyOptions(device="cpu", **options))
        own.check()
        own.folder = folder
        own.train(MODEL)
        return [SimpleNamespace(folder=folder, **vars(own.trained[MODEL]))]

    def check_predictions(self, data, stage):
        """A mask on the grid of the scan."""
        scan = data[1][0].load()
        found = (
            Segmenter(ModelOptions(model=stage.folder, device="cpu", precision="fp32"))
            .run(scan.volume, scan.lungs)
            .infiltrate
        )
        assert found.grid == scan.volume.grid
        assert set(np.unique(found.labels)) <= {0, 1}


SUBJECTS = {
    **{system: partial(OfScans, system) for system in (SLICES, NEIGHBOURS, THRESHOLD, *VOLUMES, OWN)},
    "networks on radiographs": partial(OfRadiographs, NetworkStage),
    "regressions": partial(OfRadiographs, BaselineStage),
    "own slices": partial(OfOwnData, OwnPlan(
        size=32, features=(4, 8), epochs=2, precision="fp32", validation_share=0.33)),
    "own volumes": partial(OfOwnData, VolumePlan(
        spacing_mm=(8.0, 8.0, 25.0), patch=(8, 16, 16), features=(2, 4), boxes=4, validation_boxes=2, epochs=2,
        precision="fp32", validation_share=0.33)),
}  # fmt: skip


@pytest.fixture(scope="module", params=SUBJECTS)
def learner(request):
    return SUBJECTS[request.param]()


@pytest.fixture(scope="module")
def whole(learner, tmp_path_factory):
    """Trained in one go: data, stages and their folder; copied before it is changed."""
    folder, data = tmp_path_factory.mktemp("whole"), learner.data(tmp_path_factory.mktemp("data"))
    return data, learner.make(data, folder), folder


class TestLearnerContract:
    def test_stopped_and_resumed_gives_the_bytes_of_one_go(self, learner, whole, tmp_path):
        data, first, folder = whole
        for number in (2, 5):
            with contextlib.suppress(Stopped):  # a learner without epochs has fewer calls
                learner.make(data, tmp_path, resume=True, progress=stop_at(number))
        made = learner.make(data, tmp_path, resume=True)
        assert results(tmp_path) == results(folder) != {}
        assert [stage.sha256 for stage in made] == [stage.sha256 for stage in first]

    def test_a_finished_stage_is_kept_and_a_damaged_one_is_made_again(self, learner, whole, tmp_path):
        data, first, folder = whole
        copy, noted = shutil.copytree(folder, tmp_path / "copy"), Noted()
        again = learner.make(data, copy, resume=True, progress=noted)
        kept = len(first)
        assert [stage.trained_now for stage in (*first, *again)] == [True] * kept + [False] * kept
        assert noted.notes == []
        for name in results(copy):
            (copy / name).write_bytes((copy / name).read_bytes()[:-2])
        learner.make(data, copy, resume=True)
        assert results(copy) == results(folder)

    def test_changed_training_data_are_noticed(self, learner, whole, tmp_path):
        """A study trains again and says so; a training on own data is refused."""
        copy, noted = shutil.copytree(whole[2], tmp_path / "copy"), Noted()
        changed = learner.data(tmp_path / "data", brighter)
        if learner.refuses:
            with pytest.raises(InputError, match="training data changed since this training was started"):
                learner.make(changed, copy, resume=True, progress=noted)
            assert results(copy) == results(whole[2])
            return
        made = learner.make(changed, copy, resume=True, progress=noted)
        assert made[0].trained_now
        assert any("training data changed" in note for note in noted.notes)
        assert results(copy) != results(whole[2])

    def test_predictions_have_shape_and_range(self, learner, whole):
        for stage in whole[1]:
            learner.check_predictions(whole[0], stage)


@pytest.mark.parametrize("on", ["local", pytest.param("dask", marks=[pytest.mark.slow, pytest.mark.enable_socket])])
def test_the_documented_learner_runs_in_a_transfer_study(tmp_path, monkeypatch, no_figures, on):
    """With the settings of the page, in two processes: matrix and forgetting; a resumed study fits nothing again.

    Two Dask workers make the same.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
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
