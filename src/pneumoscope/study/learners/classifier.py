"""The networks of an X-ray study: built, carried, trained in the paper's steps, saved, and applied to every test.

Folder `stages/<stage>_seed<n>/`: as of any network (see `networks`), and `head/`: the checkpoints of the dense layer
alone.

With the body frozen its features never change, so the dense layer is trained on features computed once: the same
optimisation, without computing them in every epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.radiographs import pictures_content
from pneumoscope.jobs.stamp import content_of_arrays, content_of_files, stamp
from pneumoscope.progress import Progress
from pneumoscope.study.learners.base import Learner
from pneumoscope.study.learners.networks import NetworkTraining, card_of, train_config
from pneumoscope.study.xray_data import ImageCache, licences
from pneumoscope.study.xray_repeat import AS_PAPER, Mitigation, Repeat, TrainingSet, table

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.training.config import TrainConfig
    from pneumoscope.training.loop import FitResult
    from pneumoscope.training.tasks import PictureSource


_ASK = 32  # Pictures asked about at a time


def head_of(model: nn.Module) -> nn.Module:
    """The dense layer of a network, its dropout before it, as a network of pooled features (n, f, 1, 1).

    The layer is the network's own: training it here trains it there.
    """
    from torch import nn

    dense = model.head if hasattr(model, "head") else model.fc
    dropout = model.dropout if hasattr(model, "dropout") else nn.Identity()
    return nn.Sequential(nn.Flatten(), cast("nn.Module", dropout), cast("nn.Module", dense))


class FeatureSource:
    """Pooled features of a picture source, for the frozen body's dense layer."""

    def __init__(self, features: NDArray[np.float32], source: PictureSource) -> None:
        self.features, self.source = features, source

    @classmethod
    def of(cls, model: nn.Module, source: PictureSource, device: str) -> FeatureSource:
        """Compute them once, in eval mode."""
        import torch

        from pneumoscope.training.devices import pick_device

        place = pick_device(device)
        model.to(place).eval()
        found = []
        with torch.inference_mode():
            for start in range(0, len(source), _ASK):
                rows = np.arange(start, min(start + _ASK, len(source)))
                maps = cast(Callable[..., Any], model.features)(source.batch(rows, None).x.to(place))
                found.append(maps.mean(dim=(2, 3)).float().cpu().numpy())
        return cls(np.concatenate(found), source)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Any:
        """As of the pictures, with x (n, f, 1, 1)."""
        import torch

        from pneumoscope.training.data import Batch

        x = torch.from_numpy(self.features[indices][:, :, None, None])
        y = torch.from_numpy(self.source.labels[indices].astype(np.float32))
        return Batch(x, y, tuple(self.source.names[int(i)] for i in indices))

    @cached_property
    def content(self) -> str:
        """See `BatchSource.content`: of the pictures, and of what the body makes of them."""
        return stamp("features", revision=1, pictures=self.source.content, values=content_of_arrays(self.features))


def resnet_frozen(model: Any, last_layers: int) -> tuple[str, ...]:
    """Modules of a ResNet-50 that stay as they are when its last layers are trained.

    A layer is a convolution or the dense one, see `ResNet50.weighted_layers`; its normalisation goes with it, and the
    shortcut of a block with the block's first convolution.
    """
    layers = model.weighted_layers()
    trained = set(layers[-last_layers:])
    frozen = []
    for name in layers:
        if name in trained:
            continue
        frozen += [name, name.replace("conv", "bn")]
        if name.endswith(".conv1"):
            frozen.append(f"{name.removesuffix('conv1')}downsample")
    present = {name for name, _ in model.named_modules()}
    return tuple(name for name in frozen if name in present)


def ask(model: nn.Module, made: Any, where: NDArray[np.int64], *, device: str = "auto") -> NDArray[np.float64]:
    """Probabilities (n, classes) of pictures, in fp32."""
    import torch

    from pneumoscope.training.devices import pick_device

    place = pick_device(device)
    model.to(place).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(where), _ASK):
            pixels = np.asarray(made.pixels[where[start : start + _ASK]], np.float32)[:, None] / np.float32(255)
            logits = model(torch.from_numpy(pixels).to(place)).double()
            found.append(torch.softmax(logits, dim=1).cpu().numpy())
    return np.concatenate(found)


def time_pictures(
    model: nn.Module, made: Any, where: NDArray[np.int64], n: int, *, device: str = "auto"
) -> dict[str, Any]:
    """Median and quartiles of the time to classify one picture alone, in ms, after three to warm up."""
    import time

    spent = []
    for i in [*where[:3], *np.resize(where, n)]:
        began = time.perf_counter()
        ask(model, made, np.array([i]), device=device)
        spent.append(1000 * (time.perf_counter() - began))
    low, middle, high = np.percentile(spent[3:] if len(spent) > 3 else spent, (25, 50, 75))
    return {"ms_per_image": float(middle), "ms_low": float(low), "ms_high": float(high), "pictures": n}


RESNET = "Model_3"


@dataclass(frozen=True)
class NetworkStage:
    """One network to be trained."""

    repeat: Repeat  # the draw and split
    model: str  # ``Model_0`` to ``Model_3``; the mitigations train the network of Model_1
    arm: Mitigation  # what it is shown, and who is trained on
    without: str = ""  # a source left out; "" for none
    start: str = ""  # the stage whose body it starts with; "" for none
    weights: Path | None = None  # file of published weights, or None

    @property
    def title(self) -> str:
        """Its name without the repeat."""
        tail = "" if self.arm.name == AS_PAPER else f"_{self.arm.name}"
        return f"{self.model}{tail}{f'_without_{self.without}' if self.without else ''}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.title}_seed{self.repeat.number}"

    @property
    def two_steps(self) -> bool:
        """Whether the dense layer is trained alone first."""
        return bool(self.start) or self.weights is not None

    @property
    def training_set(self) -> TrainingSet:
        """Who is trained on, and who stops and chooses."""
        if self.model != "Model_0":
            return self.repeat.training_set(self.arm, self.without)
        assert self.repeat.zero is not None
        return TrainingSet(*self.repeat.zero.part("train"), *self.repeat.zero.part("val"))

    @property
    def classes(self) -> tuple[str, ...]:
        """That it is trained to tell apart."""
        one = self.repeat.zero if self.model == "Model_0" else self.repeat.one
        assert one is not None
        return one.classes


@dataclass(frozen=True, eq=False)
class ClassifierTraining(NetworkTraining):
    """All at once; or the dense layer alone, then the reused layers with it at the fine rate."""

    two_steps: bool = False  # which of the two
    results: list[FitResult] = field(default_factory=list)  # of the steps made, for the card

    def fit(self, model: nn.Module, resume: bool, progress: Progress) -> FitResult:
        """See `NetworkTraining`."""
        from pneumoscope.training.loop import fit

        if self.two_steps:
            config, head, both = self.config(None), self.own / "head", cast("tuple[Any, Any]", (self.train, self.val))
            ours, theirs = (FeatureSource.of(model, source, config.device) for source in both)
            first = fit(head_of(model), self.task(model), ours, theirs, config, head, resume=resume, progress=progress)
            self.results.append(first)
        self.results.append(super().fit(model, resume, progress))
        return self.results[-1]


class ClassifierLearner(Learner):
    """Trains the networks of a study of radiographs."""

    def make(self, stage: NetworkStage) -> TrainedClassifier:
        """See `Learner`.

        Raises:
            RunError: the training failed; it can be resumed.
            ModelError: the file of published weights does not hold ResNet-50.
        """
        from pneumoscope.training.tasks import ClassificationTask

        study, taught, classes = self.study, stage.training_set, stage.classes
        train = _source(study.supply, stage, taught.train, taught.train_labels)
        val = _source(study.supply, stage, taught.val, taught.val_labels)
        start = study.stage_folder(stage.start) if stage.start else None
        results: list[FitResult] = []

        def config(model: nn.Module | None) -> TrainConfig:
            plan = study.experiment.training
            found = train_config(plan, schedule="plateau", seed=stage.repeat.seed, device=study.device)
            if model is None or not stage.two_steps:
                return found
            frozen = resnet_frozen(model, plan.last_layers) if stage.model == RESNET else ()
            return replace(found, learning_rate=plan.fine_rate, frozen=frozen)

        made = ClassifierTraining(
            study.stage_folder(stage.name),
            "xray stage",
            _shaping_parts(stage, start, [train.content, val.content]),
            lambda: _build(stage, start),
            None,
            lambda model: ClassificationTask(classes),
            train,
            val,
            config,
            lambda result, origin: _card(stage, origin, results, taught),
            stage.two_steps,
            results,
        ).run(resume=study.resume, progress=study.progress)
        own = study.stage_folder(stage.name)
        return TrainedClassifier(stage.name, own, made.sha256, made.trained_now, stage, study.supply, made.model)


@dataclass(frozen=True, eq=False)
class TrainedClassifier:
    """A trained network; attributes as of `base.Made`."""

    name: str
    folder: Path
    sha256: str
    trained_now: bool
    stage: NetworkStage
    supply: ImageCache
    model: nn.Module

    @property
    def tests(self) -> Any:
        """See `base.Classifier`."""
        stage, pool = self.stage, self.stage.repeat.pool
        asked = {
            name: [pool.names(rows), labels.tolist(), pictures_content(pool.at(rows), stage.arm.recipe)]
            for name, (rows, labels) in stage.repeat.tests_of(stage.model, stage.without).items()
        }
        return [asked, stage.repeat.experiment.scoring.timed_pictures]

    def predict(self, device: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        """See `base.Classifier`; the time per picture is measured beside."""
        stage, recipe = self.stage, self.stage.arm.recipe
        tests = stage.repeat.tests_of(stage.model, stage.without)
        found = {n: ask(self.model, *self.supply.get(recipe, rows), device=device) for n, (rows, _) in tests.items()}
        pictures, where = self.supply.get(recipe, stage.training_set.val)
        timing = time_pictures(
            self.model, pictures, where, stage.repeat.experiment.scoring.timed_pictures, device=device
        )
        rows = table(stage.repeat, stage.model, stage.arm.name, stage.without, found, stage.classes)
        return rows, {"timing": timing}


def _source(
    supply: ImageCache, stage: NetworkStage, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> PictureSource:
    from pneumoscope.training.tasks import PictureSource

    made, where = supply.get(stage.arm.recipe, rows)
    # of these pictures alone: the file they lie in may grow when a study is resumed for more seeds
    content = pictures_content(stage.repeat.pool.at(rows), stage.arm.recipe)
    return PictureSource(made.pixels, where, labels, stage.repeat.pool.names(rows), content)


def _shaping_parts(stage: NetworkStage, start: Path | None, sources: list[str]) -> dict[str, Any]:
    """All that shapes the weights."""
    settings = asdict(stage.repeat.experiment)
    file = start / "model.safetensors" if start else stage.weights
    shaped = {name: settings[name] for name in ("training", "network", "pictures", "split", "data", "scoring")}
    shaped["training"] = {k: v for k, v in shaped["training"].items() if k not in ("repeats", "sources", "stages")}
    return {
        "settings": {**shaped, "job": stage.title, "repeat": stage.repeat.number},
        "training_data": sources,
        "starting_weights": content_of_files([file]) if file else None,
    }


def _build(stage: NetworkStage, start: Path | None) -> tuple[nn.Module, str]:
    """The network with its starting weights, and where they come from."""
    import torch

    from pneumoscope.models.classifiers import ChestCNN, ChestCNNConfig, ResNet50, ResNetConfig

    torch.manual_seed(int(hashlib.sha256(f"{stage.repeat.seed}/{stage.model}".encode()).hexdigest()[:8], 16))
    network, n_classes = stage.repeat.experiment.network, len(stage.classes)
    if stage.model == RESNET:
        from pneumoscope.models.weights import carry_published

        assert stage.weights is not None  # without the file the stage is left out
        resnet = ResNet50(ResNetConfig(classes=n_classes, width=network.resnet_width))
        return resnet, carry_published(resnet, "resnet50", stage.weights).sentence()
    cnn = ChestCNN(ChestCNNConfig(classes=n_classes, features=network.features, dropout=network.dropout))
    if start is None:
        return cnn, "random weights"
    from pneumoscope.models.weights import load_into, load_model

    before, _ = load_model(start)
    body = {name: t for name, t in before.state_dict().items() if name.startswith("body.")}
    report = load_into(cnn, body)
    return cnn, f"the body of {start.name}: {report.sentence()}"


def _card(stage: NetworkStage, origin: str, results: list[FitResult], taught: TrainingSet) -> dict[str, Any]:
    """What `card.json` says beside the architecture and the checksum."""
    steps = [
        {"step": name, "best_epoch": r.best_epoch, "best_val_loss": r.best_value, "epochs": r.epochs_run,
         "stopped_by": r.stopped_by, "notes": list(r.notes)}
        for name, r in zip(("head", "whole") if stage.two_steps else ("whole",), results, strict=True)
    ]  # fmt: skip
    training = {"seed": stage.repeat.seed, "pictures": len(np.unique(taught.train)), "steps": steps}
    return card_of(
        stage.name,
        f"{stage.title}, {stage.repeat.experiment.recipe}, draw {stage.repeat.number}",
        results[-1],
        origin,
        training,
        classes=list(stage.classes),
        input={"recipe": vars(stage.arm.recipe), "range": [0, 1]},
        data=licences(stage.repeat.pool, np.unique(np.concatenate([taught.train, taught.val]))),
        warning="Made to study shortcuts: it tells hospitals apart better than diseases. Not for use on patients.",
    )
