"""The networks of an X-ray study: built, carried, trained in the paper's steps, saved, and asked about every test.

Folder `stages/<stage>_seed<n>/`: `history.csv`, `last.ckpt` of the last step (`head/` holds those of the dense layer
alone), `model.safetensors`, `card.json`, `predictions.csv`, `done.json`. The marker holds the stamp of settings,
pictures (those it learns from and those of every test) and starting weights; a resumed study takes a stage of this
stamp as it is, and trains any other anew, or on from where it was killed.

With the body frozen its features never change, so the dense layer is trained on features computed once: the same
optimisation, without computing them in every epoch.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.xray.pictures import pictures_content
from pneumoscope.errors import ModelError
from pneumoscope.io.files import write_frame, write_json
from pneumoscope.jobs.stamp import content_of_files, mark_done, read_done, stamp
from pneumoscope.models.cards import read_card, verify
from pneumoscope.progress import NOTE, Progress, silent
from pneumoscope.study.analysis.mitigations import Mitigation
from pneumoscope.study.learners.base import start_stage
from pneumoscope.study.learners.classifier_steps import (
    FeatureSource,
    ask,
    head_of,
    resnet_frozen,
    time_pictures,
)
from pneumoscope.study.learners.networks import train_config
from pneumoscope.study.xray_data import ImageCache, licences
from pneumoscope.study.xray_repeat import Repeat, TrainingSet, table

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.training.loop import FitResult
    from pneumoscope.training.tasks import PictureSource

CNN, RESNET = "Model_1", "Model_3"
PREDICTIONS, TIMING = "predictions.csv", "timing.json"


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


def train_job(
    job: Job,
    trial: Repeat,
    supply: ImageCache,
    folder: Path,
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> pd.DataFrame:
    """Train a network, or take it from the folder, and give what it says about every test.

    Raises:
        RunError: the training failed; it can be resumed.
        ModelError: the file of published weights does not hold ResNet-50.
    """
    here = stage_folder(folder, job, trial)
    lesson, classes = _lesson(job, trial)
    sources = [_source(supply, job, trial, *rows) for rows in _parts(lesson)]
    tests = trial.tests_of(job.model, job.without)
    parts = _shaping_parts(job, trial, [source.content for source in sources], tests)
    wanted = stamp("xray stage", revision=1, **parts)
    if _is_done(here, wanted):
        return pd.read_csv(here / PREDICTIONS, keep_default_na=False)
    before = read_done(here).get("stamp")
    shaping = {name: part for name, part in parts.items() if name != "test_data"}
    go_on = start_stage(here, stamp("xray training", revision=1, **shaping), shaping, resume=True, progress=progress)
    if not go_on:
        shutil.rmtree(here / "head", ignore_errors=True)
    elif before is not None:
        why = "its weights are damaged or were replaced" if before == wanted else "its test pictures changed"
        progress(NOTE, 1, 1, f"{here.name}: {why}; its predictions are made anew")
    here.mkdir(parents=True, exist_ok=True)
    model, origin = _build(job, trial, len(classes))
    results = _fit(job, trial, model, sources, classes, here, device, progress)
    _save(job, trial, model, origin, results, lesson, classes, here)
    said = {name: ask(model, *supply.get(job.arm.recipe, rows), device=device) for name, (rows, _) in tests.items()}
    found = table(trial, job.model, job.arm.name, job.without, said, classes)
    write_frame(here / PREDICTIONS, found, None)
    made, where = supply.get(job.arm.recipe, lesson.val)
    write_json(here / TIMING, time_pictures(model, made, where, trial.experiment.scoring.timed_pictures, device=device))
    mark_done(here, wanted, sha256=read_card(here)["weights"]["sha256"])
    return pd.read_csv(here / PREDICTIONS, keep_default_na=False)


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


def _shaping_parts(
    job: Job, trial: Repeat, sources: list[str], tests: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> dict[str, Any]:
    """All that shapes the weights, and what is predicted."""
    settings = asdict(trial.experiment)
    start = job.start / "model.safetensors" if job.start else job.weights
    shaped = {name: settings[name] for name in ("training", "network", "pictures", "split", "data", "scoring")}
    shaped["training"] = {k: v for k, v in shaped["training"].items() if k not in ("repeats", "sources", "stages")}
    cases = trial.pool.cases
    return {
        "settings": {**shaped, "job": job.name, "repeat": trial.repeat},
        "training_data": sources,
        "starting_weights": content_of_files([start]) if start else None,
        "test_data": {
            name: [
                [f"{cases[int(i)].dataset}/{cases[int(i)].case}" for i in rows],
                labels.tolist(),
                pictures_content([cases[int(i)] for i in rows], job.arm.recipe),
            ]
            for name, (rows, labels) in tests.items()
        },
    }


def _is_done(here: Path, wanted: str) -> bool:
    """Whether the stage is of this stamp, and its weights are whole and those of then."""
    done = read_done(here)
    if done.get("stamp") != wanted or not (here / PREDICTIONS).is_file():
        return False
    try:
        check = verify(here)
    except ModelError:
        return False
    return check.ok and check.expected_sha256 == done.get("sha256")


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


def _fit(
    job: Job,
    trial: Repeat,
    model: nn.Module,
    sources: list[PictureSource],
    classes: tuple[str, ...],
    here: Path,
    device: str,
    progress: Progress,
) -> list[FitResult]:
    """The paper's steps: all at once; or the dense layer, then the reused layers with it at the fine rate."""
    from pneumoscope.training.loop import fit
    from pneumoscope.training.tasks import ClassificationTask

    task, plan = ClassificationTask(classes), trial.experiment.training
    train, val = sources
    config = train_config(plan, schedule="plateau", seed=trial.seed, device=device)
    if not job.two_steps:
        return [fit(model, task, train, val, config, here, resume=True, progress=progress)]
    ours, theirs = (FeatureSource.of(model, source, device) for source in sources)
    first = fit(head_of(model), task, ours, theirs, config, here / "head", resume=True, progress=progress)
    frozen = resnet_frozen(model, plan.last_layers) if job.model == RESNET else ()
    config = replace(config, learning_rate=plan.fine_rate, frozen=frozen)
    return [first, fit(model, task, train, val, config, here, resume=True, progress=progress)]


def _save(
    job: Job,
    trial: Repeat,
    model: nn.Module,
    origin: str,
    results: list[FitResult],
    lesson: TrainingSet,
    classes: tuple[str, ...],
    here: Path,
) -> None:
    from pneumoscope.models.weights import save_model

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
    card = {
        "title": f"{job.name}, {trial.experiment.recipe}, draw {trial.repeat}",
        "classes": list(classes),
        "begun_from": origin,
        "input": {"recipe": vars(job.arm.recipe), "range": [0, 1]},
        "data": licences(trial.pool, np.unique(np.concatenate([lesson.train, lesson.val]))),
        "training": {
            "seed": trial.seed,
            "pictures": len(np.unique(lesson.train)),
            "best_epoch": results[-1].best_epoch,
            "steps": steps,
        },
        "warning": "Made to study shortcuts: it tells hospitals apart better than diseases. Not for use on patients.",
    }
    save_model(here, model, card)
