"""What a learner is: it makes the stages of one system, and what it made predicts.

`Learner` is the one interface, for slices, volumes and radiographs; `tests/study/test_learner_contract.py` holds for
all of them. `FittedLearner` does all but the numbers for learners of scans without a network: stamp, resume, folder and
predictions. What a stage of a transfer study is from then on is a `Predictor`, of radiographs a `Classifier`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case
from pneumoscope.errors import InputError
from pneumoscope.io.files import read_json, write_json
from pneumoscope.jobs.stamp import STARTED_FILE, is_done, is_started, mark_done, mark_started, stamp, what_changed
from pneumoscope.preprocess.slices import resize_nearest, to_slices
from pneumoscope.progress import NOTE, Progress, silent
from pneumoscope.recipes.schema import Stage
from pneumoscope.volume import Volume

if TYPE_CHECKING:
    import pandas as pd

    from pneumoscope.study.data import StudyDataset


class Made(Protocol):
    """A finished stage."""

    @property
    def name(self) -> str:
        """Of the stage."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    @property
    def sha256(self) -> str:
        """Of all that predictions depend on beside the scan: kept predictions of another sum are made again."""

    @property
    def trained_now(self) -> bool:
        """False when it was taken from a study that is resumed."""


class Predictor(Made, Protocol):
    """A finished stage that predicts slices of scans."""

    @property
    def loads_scans(self) -> bool:
        """Whether its inputs are whole scans and not the slices of the set."""

    @property
    def sees_lungs(self) -> bool:
        """Whether the lung channel of the slices is part of what it is shown."""

    def inputs(self, study_set: StudyDataset, rows: NDArray[np.intp]) -> Any:
        """What it is shown of slices of one scan; loads the scan where it needs it."""

    def predict_scan(self, images: Any, *, site: int, device: str, precision: str) -> tuple[NDArray[np.float32], int]:
        """Probability of infiltrate (n, h, w) of such inputs, and the set whose network answered (0: the only one)."""


class Classifier(Made, Protocol):
    """A finished stage that predicts the classes of radiographs."""

    @property
    def tests(self) -> Any:
        """What predictions depend on beside `sha256`: the pictures of all tests, as JSON values."""

    def predict(self, device: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        """A row per picture and test, see `xray_repeat.table`, and what was measured beside."""


@dataclass
class StudyContext:
    """What a learner works with."""

    experiment: Any  # the study
    sets: Mapping[int, StudyDataset]  # the datasets by number; none in a study of radiographs
    folder: Path  # the study folder
    device: str = "auto"  # to train on
    resume: bool = False  # take finished stages, and resume the one that was stopped
    progress: Progress = silent  # called about every training
    models: dict[str, Predictor] = field(default_factory=dict)  # the stages of scans made so far, by name
    supply: Any = None  # the pictures of a study of radiographs
    trust: bool = False  # read models of other programs whose format can run code
    labels: tuple[str, ...] = ()  # as in `StudyOptions`

    def stage_folder(self, name: str) -> Path:
        """Where a stage lies."""
        return self.folder / "stages" / name

    def earlier(self, stage: Stage) -> list[int]:
        """Numbers of the sets that the lineage of a stage was trained on before, without its own."""
        return [int(site) for site in self.experiment.learnt_before(stage.name)]

    def scans(self, stage: Stage, part: str) -> list[tuple[int, str]]:
        """(set, case) of the scans of a part that a stage sees: of its own set; by ``joint`` of those before as well.

        Patients are whole in one part, and so are scans. In the order of the sets and of the cases' names.
        """
        joint = "joint" in self.experiment.strategy_of(stage.name)
        found = []
        for number in (stage.site, *(self.earlier(stage) if joint else ())):
            split = self.sets[number].split
            found += [(number, case) for case in sorted(split.loc[split["part"] == part, "case"].astype(str).unique())]
        return found


class Learner(ABC):
    """Makes the stages of one system in one study.

    Attributes:
        study: sets, folder, and the stages made so far.
        system: as the stages name it.
    """

    def __init__(self, study: StudyContext, system: str = "") -> None:
        self.study, self.system = study, system

    @abstractmethod
    def make(self, stage: Any) -> Any:
        """Train a stage into its folder, or take it from there when the study is resumed and nothing has changed.

        The same data and seed give the same bytes, also after a stop. Stages that it starts from are in
        `study.models`. Returns a `Made`.
        """


WRITTEN = (
    *(f"{place}{name}" for place in ("", "head/") for name in ("last.ckpt", "previous.ckpt")), "card.json", "cost.json",
    "experts.json", "history.csv", "predictions.json", "scored.json",
)  # fmt: skip
"""What a training and its scores leave in the folder of a stage beside weights and tables."""


def start_stage(
    own: Path, wanted: str, parts: Mapping[str, Any], *, resume: bool, progress: Progress, refuse: bool = False
) -> bool:
    """Make the folder of a stage ready for a training; whether one of the same stamp that was stopped is resumed.

    What another training left there is removed, by name; a resumed run says why it is trained again.

    Raises:
        InputError: `refuse`, and a resumed stage was started with something else.
    """
    go_on = resume and is_started(own, wanted)
    if go_on and is_done(own, wanted):
        progress(NOTE, 1, 1, f"{own.name}: the kept weights are damaged or were replaced; restored from the checkpoint")
    if not go_on:
        changed = ", ".join(what_changed(own, **parts)) if resume else ""
        if changed and refuse:
            raise InputError(
                f"{changed} changed since this training was started; restore what it was started with, or use "
                "--overwrite to start again",
                path=own,
            )
        if changed:
            progress(NOTE, 1, 1, f"{own.name}: {changed} changed since it was trained; it is trained again")
        for name in WRITTEN if (own / STARTED_FILE).exists() else ():
            (own / name).unlink(missing_ok=True)
    mark_started(own, wanted, **parts)
    return go_on


@dataclass(frozen=True, eq=False)
class ScanSlices:
    """A scan, and the slices of it that are predicted."""

    volume: Volume  # the scan
    slices: NDArray[np.int64]  # (n) indices k from the feet up
    size: tuple[int, int]  # (h, w) of the predictions

    def cut(self, probability: NDArray[Any]) -> NDArray[np.float32]:
        """(n, h, w) of a probability (i, j, k) on the scan's grid, made smaller just as the study's targets are."""
        assert probability.shape == self.volume.grid.shape  # a system answers on the grid it was given
        return np.asarray(resize_nearest(to_slices(probability)[self.slices], self.size), dtype=np.float32)


def scan_of(study_set: StudyDataset, rows: NDArray[np.intp]) -> ScanSlices:
    """The scan that rows of a set are slices of, loaded."""
    table = study_set.slices.table.iloc[rows]
    names = table["case"].unique()
    assert len(names) == 1  # predictions are made scan by scan
    height, width = study_set.slices.target.shape[1:]
    scan = study_set.scans[str(names[0])].load()
    return ScanSlices(scan.volume, table["slice"].to_numpy(np.int64), (height, width))


@dataclass(frozen=True, eq=False)
class ScanPredictor(ABC):
    """A finished stage that sees whole scans in Hounsfield units; attributes as of `Predictor`."""

    name: str
    folder: Path
    sha256: str
    trained_now: bool
    loads_scans: ClassVar[bool] = True
    sees_lungs: ClassVar[bool] = False

    @abstractmethod
    def probability(self, volume: Volume, device: str) -> NDArray[Any]:
        """Probability of infiltrate (i, j, k), 0 to 1, on the scan's grid."""

    def inputs(self, study_set: StudyDataset, rows: NDArray[np.intp]) -> ScanSlices:
        """The scan that these slices are of."""
        return scan_of(study_set, rows)

    def predict_scan(
        self, images: ScanSlices, *, site: int, device: str, precision: str
    ) -> tuple[NDArray[np.float32], int]:
        """See `Predictor`; a network computes in the precision of its recipe, whatever that of the study."""
        return images.cut(self.probability(images.volume, device)), 0


class FittedLearner(Learner):
    """A learner whose stages are a few numbers fitted on scans: give `identity`, `fit` and `predict`."""

    file: ClassVar[str] = "fitted.json"
    """Name of the file in the stage's folder that holds the numbers."""

    @abstractmethod
    def identity(self) -> Any:
        """JSON values of everything that shapes fit and predictions beside the scans; change them with the code."""

    @abstractmethod
    def fit(self, scans: Sequence[Case], start: Mapping[str, Any] | None) -> dict[str, Any]:
        """What is learned from training scans with infiltrate masks, as JSON values.

        `start` is what the stage before has learned; None for a first training.
        """

    @abstractmethod
    def predict(self, fitted: Mapping[str, Any], volume: Volume) -> NDArray[Any]:
        """Probability of infiltrate (i, j, k), 0 to 1, on the scan's grid."""

    def make(self, stage: Stage) -> FittedStage:
        """Fit a stage, or take it from its folder."""
        study, own = self.study, self.study.stage_folder(stage.name)
        scans = study.scans(stage, "train")
        start: Any = study.models.get(stage.start or "")
        parts = {
            "training_data": [[number, case, study.sets[number].scan_content(case)] for number, case in scans],
            "settings": self.identity(),
            "starting_weights": start.sha256 if start else None,
        }
        wanted = stamp(f"{self.system} stage", revision=1, **parts)
        fitted = self._kept(own) if study.resume and is_done(own, wanted) else None
        if fitted is not None:
            study.progress(stage.name, 1, 1, "taken from the folder")
            return self._stage(stage, fitted, trained_now=False)
        start_stage(own, wanted, parts, resume=study.resume, progress=study.progress)
        since = time.perf_counter()
        fitted = self.fit([study.sets[number].scans[case] for number, case in scans], start.fitted if start else None)
        seconds = round(time.perf_counter() - since, 1)
        write_json(own / self.file, {**fitted, "scans": [case for _, case in scans]})
        mark_done(own, wanted, seconds=seconds)
        study.progress(stage.name, 1, 1, "fitted")
        return self._stage(stage, self._kept(own) or fitted, trained_now=True)

    def _kept(self, own: Path) -> dict[str, Any] | None:
        """The numbers in the folder; None where they cannot be read."""
        try:
            return {key: value for key, value in read_json(own / self.file).items() if key != "scans"}
        except InputError:
            return None

    def _stage(self, stage: Stage, fitted: dict[str, Any], *, trained_now: bool) -> FittedStage:
        sha256 = stamp(self.system, revision=1, fitted=fitted, settings=self.identity())
        own = self.study.stage_folder(stage.name)
        return FittedStage(stage.name, own, sha256, trained_now, self, fitted)


@dataclass(frozen=True, eq=False)
class FittedStage(ScanPredictor):
    """A stage of a `FittedLearner`."""

    learner: FittedLearner  # that made it
    fitted: Mapping[str, Any]  # its numbers

    def probability(self, volume: Volume, device: str) -> NDArray[Any]:
        """See `FittedLearner.predict`."""
        return self.learner.predict(self.fitted, volume)
