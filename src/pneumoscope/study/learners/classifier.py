"""The networks of an X-ray study: built, carried, trained in the paper's steps, saved, and asked about every test.

Folder `stages/<stage>_seed<n>/`: as of any network (see `networks`), `head/` with the checkpoints of the dense layer
alone, and `predictions.csv`: what it says about every picture of every test, under a stamp of its own.

With the body frozen its features never change, so the dense layer is trained on features computed once: the same
optimisation, without computing them in every epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.xray.pictures import pictures_content
from pneumoscope.jobs.stamp import content_of_files, stamp
from pneumoscope.progress import Progress
from pneumoscope.study.analysis.mitigations import Mitigation
from pneumoscope.study.learners.classifier_steps import (
    FeatureSource,
    ask,
    head_of,
    resnet_frozen,
    time_pictures,
)
from pneumoscope.study.learners.networks import Network, NetworkTraining, card_of, train_config
from pneumoscope.study.scores.cells import kept_table
from pneumoscope.study.xray_data import ImageCache, licences
from pneumoscope.study.xray_repeat import Repeat, TrainingSet, table

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.training.config import TrainConfig
    from pneumoscope.training.loop import FitResult
    from pneumoscope.training.tasks import PictureSource

CNN, RESNET = "Model_1", "Model_3"
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Job:
    """One network to be trained.

    Attributes:
        model: ``Model_0`` to ``Model_3``; the remedies train the network of Model_1.
        arm: what it is shown, and who teaches.
        without: a source left out; "" for none.
        start: folder of the stage whose body it begins with, or None.
        weights: file of published weights, or None.
    """

    model: str
    arm: Mitigation
    without: str = ""
    start: Path | None = None
    weights: Path | None = None

    @property
    def name(self) -> str:
        """Of the stage, without the seed."""
        tail = "" if self.arm.name == "as paper" else f"_{self.arm.name}"
        return f"{self.model}{tail}{f'_without_{self.without}' if self.without else ''}"

    @property
    def two_steps(self) -> bool:
        """Whether the dense layer is trained alone first."""
        return self.start is not None or self.weights is not None


def stage_folder(folder: Path, job: Job, trial: Repeat) -> Path:
    """Where a job's stage lies."""
    return folder / "stages" / f"{job.name}_seed{trial.repeat}"


@dataclass(frozen=True, eq=False)
class ClassifierTraining(NetworkTraining):
    """All at once; or the dense layer alone, then the reused layers with it at the fine rate.

    Attributes:
        pictures: for training and for validation, as in `train` and `val`.
        two_steps: which of the two.
        results: of the steps made, for the card.
    """

    pictures: Sequence[PictureSource] = ()
    two_steps: bool = False
    results: list[FitResult] = field(default_factory=list)

    def fit(self, model: nn.Module, resume: bool, progress: Progress) -> FitResult:
        """See `NetworkTraining`."""
        from pneumoscope.training.loop import fit

        if self.two_steps:
            config, head = self.config(None), self.own / "head"
            ours, theirs = (FeatureSource.of(model, source, config.device) for source in self.pictures)
            first = fit(head_of(model), self.task(model), ours, theirs, config, head, resume=resume, progress=progress)
            self.results.append(first)
        self.results.append(super().fit(model, resume, progress))
        return self.results[-1]


def train_classifier(
    job: Job, trial: Repeat, supply: ImageCache, folder: Path, *, device: str, resume: bool, progress: Progress
) -> Network:
    """Train a network, or take it from the folder.

    Raises:
        RunError: the training failed; it can be resumed.
        ModelError: the file of published weights does not hold ResNet-50.
    """
    from pneumoscope.training.tasks import ClassificationTask

    lesson, classes = _lesson(job, trial)
    train, val = (_source(supply, job, trial, *rows) for rows in _parts(lesson))
    results: list[FitResult] = []

    def config(model: nn.Module | None) -> TrainConfig:
        plan = trial.experiment.training
        found = train_config(plan, schedule="plateau", seed=trial.seed, device=device)
        if model is None or not job.two_steps:
            return found
        frozen = resnet_frozen(model, plan.last_layers) if job.model == RESNET else ()
        return replace(found, learning_rate=plan.fine_rate, frozen=frozen)

    return ClassifierTraining(
        stage_folder(folder, job, trial),
        "xray stage",
        _shaping_parts(job, trial, [train.content, val.content]),
        lambda: _build(job, trial, len(classes)),
        None,
        lambda model: ClassificationTask(classes),
        train,
        val,
        config,
        lambda result, origin: _card(job, trial, origin, results, lesson, classes),
        (train, val),
        job.two_steps,
        results,
    ).run(resume=resume, progress=progress)


def predict_tests(
    job: Job, trial: Repeat, made: Network, supply: ImageCache, folder: Path, *, device: str, resume: bool,
    progress: Progress,
) -> pd.DataFrame:  # fmt: skip
    """What a network says about every picture of every test; kept in its folder."""
    tests, cases = trial.tests_of(job.model, job.without), trial.pool.cases
    lesson, classes = _lesson(job, trial)
    shown = {
        name: [
            [f"{cases[int(i)].dataset}/{cases[int(i)].case}" for i in rows],
            labels.tolist(),
            pictures_content([cases[int(i)] for i in rows], job.arm.recipe),
        ]
        for name, (rows, labels) in tests.items()
    }
    timed = trial.experiment.scoring.timed_pictures
    wanted = stamp("xray predictions", revision=1, weights=made.sha256, tests=shown, timed=timed)

    def predict() -> tuple[pd.DataFrame, dict[str, Any]]:
        found = {
            name: ask(made.model, *supply.get(job.arm.recipe, rows), device=device) for name, (rows, _) in tests.items()
        }
        pictures, where = supply.get(job.arm.recipe, lesson.val)
        timing = time_pictures(made.model, pictures, where, timed, device=device)
        return table(trial, job.model, job.arm.name, job.without, found, classes), {"timing": timing}

    own = stage_folder(folder, job, trial)
    return kept_table(own, PREDICTIONS, wanted, predict, resume=resume, progress=progress)


def _lesson(job: Job, trial: Repeat) -> tuple[TrainingSet, tuple[str, ...]]:
    if job.model == "Model_0":
        assert trial.zero is not None
        return TrainingSet(*trial.zero.part("train"), *trial.zero.part("val")), trial.zero.classes
    return trial.lesson(job.arm, job.without), trial.one.classes


def _parts(lesson: TrainingSet) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]:
    return (lesson.train, lesson.train_labels), (lesson.val, lesson.val_labels)


def _source(
    supply: ImageCache, job: Job, trial: Repeat, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> PictureSource:
    from pneumoscope.training.tasks import PictureSource

    made, where = supply.get(job.arm.recipe, rows)
    cases = [trial.pool.cases[int(i)] for i in rows]
    # of these pictures alone: the file they lie in may grow when a study is resumed for more seeds
    content = pictures_content(cases, job.arm.recipe)
    return PictureSource(made.pixels, where, labels, [f"{c.dataset}/{c.case}" for c in cases], content)


def _shaping_parts(job: Job, trial: Repeat, sources: list[str]) -> dict[str, Any]:
    """All that shapes the weights."""
    settings = asdict(trial.experiment)
    start = job.start / "model.safetensors" if job.start else job.weights
    shaped = {name: settings[name] for name in ("training", "network", "pictures", "split", "data", "scoring")}
    shaped["training"] = {k: v for k, v in shaped["training"].items() if k not in ("repeats", "sources", "stages")}
    return {
        "settings": {**shaped, "job": job.name, "repeat": trial.repeat},
        "training_data": sources,
        "starting_weights": content_of_files([start]) if start else None,
    }


def _build(job: Job, trial: Repeat, n_classes: int) -> tuple[nn.Module, str]:
    """The network with its starting weights, and where they come from."""
    import torch

    from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig, ResNet50, ResNetConfig

    torch.manual_seed(int(hashlib.sha256(f"{trial.seed}/{job.model}".encode()).hexdigest()[:8], 16))
    network = trial.experiment.network
    if job.model == RESNET:
        from pneumoscope.models.weights import carry_published

        assert job.weights is not None  # without the file the stage is left out
        resnet = ResNet50(ResNetConfig(classes=n_classes, width=network.resnet_width))
        return resnet, carry_published(resnet, "resnet50", job.weights).sentence()
    cnn = ChestCNN(ChestCNNConfig(classes=n_classes, features=network.features, dropout=network.dropout))
    if job.start is None:
        return cnn, "random weights"
    from pneumoscope.models.weights import load_into, load_model

    before, _ = load_model(job.start)
    body = {name: t for name, t in before.state_dict().items() if name.startswith("body.")}
    report = load_into(cnn, body)
    return cnn, f"the body of {job.start.name}: {report.sentence()}"


def _card(
    job: Job, trial: Repeat, origin: str, results: list[FitResult], lesson: TrainingSet, classes: tuple[str, ...]
) -> dict[str, Any]:
    """What `card.json` says beside the architecture and the checksum."""
    steps = [
        {
            "step": name,
            "best_epoch": r.best_epoch,
            "best_val_loss": r.best_value,
            "epochs": r.epochs_run,
            "stopped_by": r.stopped_by,
            "notes": list(r.notes),
        }
        for name, r in zip(("head", "whole") if job.two_steps else ("whole",), results, strict=True)
    ]
    training = {"seed": trial.seed, "pictures": len(np.unique(lesson.train)), "steps": steps}
    return card_of(
        f"{job.name}_seed{trial.repeat}",
        f"{job.name}, {trial.experiment.recipe}, draw {trial.repeat}",
        results[-1],
        origin,
        training,
        classes=list(classes),
        input={"recipe": vars(job.arm.recipe), "range": [0, 1]},
        data=licences(trial.pool, np.unique(np.concatenate([lesson.train, lesson.val]))),
        warning="Made to study shortcuts: it tells hospitals apart better than diseases. Not for use on patients.",
    )
