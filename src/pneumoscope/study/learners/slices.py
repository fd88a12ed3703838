"""One training of a study: built, started from the stage before it, trained, saved, and marked as done.

`done.json` holds the stamp of everything that shaped the weights: settings, slices with their masks, and the weights it
started from. A resumed study takes a stage of this stamp as it is and continues one that was killed; a stage of another
stamp (its data, settings or starting weights have changed) is trained again, and the run says so.

What a stage says about the validation and test slices of every set is kept as well, in `stages/<stage>/predictions/`
(see `study.scores.predictions`), so that every later number is made without the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pneumoscope.jobs.stamp import stamp
from pneumoscope.recipes.schema import Budget, Experiment
from pneumoscope.recipes.stages import NEIGHBOURS
from pneumoscope.study.learners.base import StudyContext
from pneumoscope.study.learners.networks import NetworkTraining, card_of, train_config

if TYPE_CHECKING:
    from pneumoscope.models.unet import UNet
    from pneumoscope.study.data import StudyDataset
    from pneumoscope.training.augment import SliceAugment
    from pneumoscope.training.data import BatchSource
    from pneumoscope.training.strategies import Penalty, Selector
    from pneumoscope.training.tasks import Task


@dataclass(frozen=True)
class Neighbours:
    """How far a network sees along the scan."""

    windows: int  # channels of a slice beside its lung mask
    reach: int  # slices on each side

    @property
    def image_channels(self) -> int:
        """Channels that hold grey values: the slice's own first, then those below and above, the nearest first."""
        return self.windows * (2 * self.reach + 1)

    def rows(self, study_set: StudyDataset, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """(n, 1 + 2 reach) rows of the set: the slice itself, one below, one above, two below ...

        Only slices of the set's split count, which all show lung. Where the next one is absent, the last one that is
        there is repeated; a scan never lends its slices to another.
        """
        table = study_set.slices.table
        known = study_set.rows()
        names = zip(table["case"].to_numpy()[known], table["slice"].to_numpy(int)[known], strict=True)
        place = {(case, int(k)): int(row) for (case, k), row in zip(names, known, strict=True)}
        found = np.empty((len(rows), 1 + 2 * self.reach), np.intp)
        for n, row in enumerate(rows):
            case, k = table["case"].iloc[row], int(table["slice"].iloc[row])
            below = above = found[n, 0] = int(row)
            for step in range(1, self.reach + 1):
                below, above = place.get((case, k - step), below), place.get((case, k + step), above)
                found[n, 2 * step - 1], found[n, 2 * step] = below, above
        return found

    def images(self, study_set: StudyDataset, rows: NDArray[np.intp]) -> NDArray[Any]:
        """(n, image channels + lung channel, h, w): the grey values of all, the lung mask of the slice itself."""
        stored = study_set.slices.images
        seen = self.rows(study_set, rows)
        grey = [stored[seen[:, place], : self.windows] for place in range(seen.shape[1])]
        return np.concatenate([*grey, stored[rows, self.windows :]], axis=1)


def neighbours_of(experiment: Experiment, system: str) -> Neighbours | None:
    """What a system sees beside a slice; None for single slices."""
    if system != NEIGHBOURS:
        return None
    return Neighbours(len(experiment.preprocessing.windows_hu), experiment.preprocessing.neighbours)


STRONG: Mapping[str, Any] = {
    "rotate_deg": 20.0,
    "scale": (0.7, 1.6),
    "shift": 0.12,
    "gamma": (0.5, 2.0),
    "contrast": (0.5, 1.6),
    "brightness": 0.15,
    "noise": 0.06,
    "blur": 0.3,
}
"""What `training.augment=strong` asks of `training.augment.SliceAugment`: other sizes and other looks."""


def sources_of(experiment: Experiment, job: StageJob, train: Slices, val: Slices) -> tuple[BatchSource, BatchSource]:
    """What the loop draws training and validation batches from."""
    from pneumoscope.training.data import ArraySource, MixedSource
    from pneumoscope.training.strategies import equal_shares

    augment = make_augment(experiment, job)
    parts = [ArraySource(*part, augment) for part in (train, *job.guard.earlier)]
    length = job.budget.epoch_slices or len(parts[0])
    if len(parts) == 1 and job.budget.epoch_slices is None:
        return parts[0], ArraySource(*val)
    shares = equal_shares(len(parts) - 1, job.guard.earlier_share)
    return MixedSource(parts, shares, max(length, len(parts))), ArraySource(*val)


def make_augment(experiment: Experiment, job: StageJob) -> SliceAugment | None:
    """How training slices are varied; None when they are shown as they are."""
    from pneumoscope.training.augment import SliceAugment

    training = experiment.training
    if training.augment == "none":
        return None
    grey = job.image_channels(experiment)
    values = dict(STRONG) if training.augment == "strong" else {}
    hides = (grey, training.hide_lung) if job.in_channels > grey and training.hide_lung else None
    return SliceAugment(**values, image_channels=grey, drop_channel=hides)


BUDGET = ("max_epochs", "patience", "learning_rate", "epoch_slices")
Slices = tuple[NDArray[np.generic], NDArray[np.uint8], Sequence[str]]
"""Images (n, c, h, w), targets (n, o, h, w) and a name for each slice."""


@dataclass(frozen=True, eq=False)
class StrategyTerms:
    """What a strategy adds to a training so that earlier sets are not lost; nothing, as it stands."""

    earlier: tuple[Slices, ...] = ()  # slices of earlier sets that are mixed in, one entry per set
    # of an epoch's slices, of all earlier sets together; None: every set has the same share
    earlier_share: float | None = None
    # makes extra terms of the loss for the network that is trained
    penalties: Callable[[UNet], tuple[Penalty, ...]] | None = None
    frozen: tuple[str, ...] = ()  # modules that stay as they are
    note: str = ""  # names and numbers of all this; a stage made with another note is not taken for this one
    data: tuple[str, ...] = ()  # sums over what `penalties` compute from


@dataclass(frozen=True)
class StageJob:
    """What one training is."""

    name: str  # of its folder below `stages/`
    in_channels: int  # channels it is given
    out_channels: int  # channels it is asked for
    features: tuple[int, ...]  # filters per level
    budget: Budget  # epochs, patience, learning rate
    start: TrainedModel | None  # the stage whose weights it begins with, or None for new ones
    task: str  # ``infiltrate`` or ``lungs``; what the first output channel means
    guard: StrategyTerms = StrategyTerms()  # what the strategy adds
    near: Neighbours | None = None  # neighbouring slices among the channels; None for single slices

    @classmethod
    def first(cls, experiment: Experiment, name: str) -> StageJob:
        """A first training of the experiment's network on single slices."""
        network = experiment.network
        return cls(
            name, experiment.preprocessing.channels, network.out_channels, network.features, experiment.stages.first,
            None, "infiltrate",
        )  # fmt: skip

    def image_channels(self, experiment: Experiment) -> int:
        """Channels that hold grey values and no lung mask."""
        return self.near.image_channels if self.near else len(experiment.preprocessing.windows_hu)


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A finished stage on slices; see `learners.base.Predictor`."""

    name: str  # of the stage
    folder: Path  # with `model.safetensors` and `card.json`
    model: UNet  # the network, best weights, eval mode
    weights_sha256: str  # of the file of its weights
    trained_now: bool  # False when it was taken from a study that is resumed
    # network per set number, where the stage keeps one for each; else empty
    experts: Mapping[int, UNet] = field(default_factory=dict)
    experts_sha256: Mapping[int, str] = field(default_factory=dict)  # of their weights
    selector: Selector | None = None  # says which of them a scan is for
    site_known: bool = False  # ask for the set instead, where there is a network for it
    near: Neighbours | None = None  # neighbouring slices that it is shown; None for single slices

    @property
    def sha256(self) -> str:
        """Of all networks, and of what decides which of them is asked and what it is shown."""
        return stamp(
            "stage",
            revision=1,
            weights=self.weights_sha256,
            experts=self.experts_sha256,
            selector=self.selector.as_dict() if self.selector else None,
            site_known=self.site_known,
            near=asdict(self.near) if self.near else None,
        )

    @property
    def loads_scans(self) -> bool:
        """Never: it is shown the slices of the set."""
        return False

    @property
    def sees_lungs(self) -> bool:
        """The lung channel is part of what it is shown, where the slices have one."""
        return True

    def inputs(self, study_set: StudyDataset, rows: NDArray[np.intp]) -> NDArray[np.generic]:
        """Images (n, c, h, w) of slices of one scan as the network takes them."""
        return study_set.slices.images[rows] if self.near is None else self.near.images(study_set, rows)

    def predict(
        self, images: NDArray[np.generic], *, device: str, precision: str, batch_size: int = 16
    ) -> NDArray[np.float32]:
        """Probabilities (n, o, h, w) of images (n, c, h, w)."""
        from pneumoscope.inference.engines import predict_probability

        kind = cast(Literal["auto", "fp32", "bf16"], precision)
        return predict_probability(self.model, images, batch_size=batch_size, precision=kind, device=device)

    def predict_scan(
        self, images: NDArray[np.generic], *, site: int, device: str, precision: str
    ) -> tuple[NDArray[np.float32], int]:
        """Probability of infiltrate (n, h, w) for the slices of one scan, and the set whose network answered.

        Args:
            images: (n, c, h, w), all slices of one scan that are predicted.
            site: number of the set the scan is of; used only by strategies that know the site.
        """
        from pneumoscope.inference.engines import predict_probability

        kind = cast(Literal["auto", "fp32", "bf16"], precision)
        expert = self.expert_for(images, site)
        network = self.experts.get(expert, self.model)
        found = predict_probability(network, images, batch_size=16, precision=kind, device=device)
        return found[:, 0], expert

    def expert_for(self, images: NDArray[np.generic], site: int) -> int:
        """Number of the set whose network a scan is given to; 0 where there is only one network."""
        if not self.experts or self.selector is None:
            return 0
        return site if self.site_known and site in self.experts else self.selector.choose(images)


def train_stage(
    study: StudyContext, job: StageJob, train: Slices, val: Slices, own: Path | None = None,
    shared: dict[str, TrainedModel] | None = None,
) -> TrainedModel:  # fmt: skip
    """Train one stage into its folder of the study (or `own`), or take it from there when it is done and resumed.

    Trainings that are alike in everything that shapes the weights are done once: `shared` knows them by stamp,
    gives the one that is there (with its own name and folder), and is called with a new one.

    Raises:
        NonFiniteLossError: see `training.loop.fit`; the study can be resumed.
    """
    from pneumoscope.training.strategies import PenalisedTask
    from pneumoscope.training.tasks import SegmentationTask

    experiment = study.experiment
    sources = sources_of(experiment, job, train, val)

    def task(model: UNet) -> Task:
        plain = SegmentationTask(experiment.training.loss, threshold=experiment.scoring.threshold)
        penalties = job.guard.penalties
        return plain if penalties is None else PenalisedTask(plain, penalties(model), job.guard.note)

    training = NetworkTraining(
        own or study.stage_folder(job.name),
        "slices stage",
        shaping_parts(experiment, job, [source.content for source in sources]),
        lambda: (new_model(experiment, job), "new weights"),
        job.start,
        task,
        *sources,
        lambda model: train_config(experiment.training, job.budget, frozen=job.guard.frozen, device=study.device),
        lambda result, origin: model_card(experiment, job, result, origin, len(train[0])),
    )
    known = shared if shared is not None else {}
    wanted = training.stamp
    if wanted not in known:
        made = training.run(resume=study.resume, progress=study.progress)
        known[wanted] = TrainedModel(training.own.name, training.own, made.model, made.sha256, made.trained_now)
    return known[wanted]


def new_model(experiment: Experiment, job: StageJob) -> UNet:
    """A network with fresh weights, the same for the same seed."""
    import torch

    from pneumoscope.models.unet import UNet, UNetConfig

    torch.manual_seed(experiment.training.seed)
    network = experiment.network
    config = UNetConfig(job.in_channels, job.out_channels, job.features, network.norm, network.dropout)  # type: ignore[arg-type]
    return UNet(config)


def shaping_parts(experiment: Experiment, job: StageJob, slices: list[str]) -> dict[str, Any]:
    """All that shapes the weights of the stage; where a number comes from does not."""
    plain = asdict(experiment)
    plain["preprocessing"].pop("neighbours")  # it shows in the slices
    return {
        "settings": {
            **{key: {**plain[key], "sources": None} for key in ("preprocessing", "network", "training")},
            "threshold": experiment.scoring.threshold,
            "budget": [getattr(job.budget, name) for name in BUDGET],
            "guard": [job.guard.note, list(job.guard.frozen)],
            "channels": [job.in_channels, job.out_channels, *job.features],
        },
        "training_data": [slices[0], *job.guard.data],
        "validation_data": slices[1],
        "starting_weights": job.start.weights_sha256 if job.start else None,
    }


def preprocessing_card(experiment: Experiment, *, lung_channel: bool, near: Neighbours | None = None) -> dict[str, Any]:
    """The preprocessing of a stage's network as a model card words it, see `inference.inputs.input_from_card`.

    Networks that see neighbours have a kind of their own, which `segment` does not take.
    """
    kind = "hu_windows" if experiment.preprocessing.intensity == "hu" else "grey8"
    return {
        **({"kind": kind} if near is None else {"kind": f"{kind}_2.5d", "neighbours": near.reach}),
        "size": experiment.preprocessing.size,
        "windows_hu": [list(window) for window in experiment.preprocessing.windows_hu],
        "lung_channel": lung_channel,
    }


def model_card(experiment: Experiment, job: StageJob, result: Any, loaded: str, n_train: int) -> dict[str, Any]:
    """What `card.json` of a stage says beside the architecture and the checksum."""
    lung_channel = job.in_channels > job.image_channels(experiment)
    training = {
        "slices": n_train,
        "guard": job.guard.note or "none",
        experiment.training.monitor: result.best_value,
        "seconds": round(result.seconds, 1),
        "notes": list(result.notes),
    }
    return card_of(
        job.name,
        f"{job.name} of {experiment.recipe}",
        result,
        loaded,
        training,
        task=job.task,
        threshold=experiment.scoring.threshold,
        preprocessing=preprocessing_card(experiment, lung_channel=lung_channel, near=job.near),
        limits="Made by a study of transfer between datasets. Research use only; not a medical device.",
    )


def two_channel_target(labels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """(n, h, w) labels to (n, o, h, w): infiltrate, and with two channels its complement (2022b, section 3.1)."""
    infiltrate = (labels > 0).astype(np.uint8)
    return np.stack([infiltrate, 1 - infiltrate][:channels], axis=1)
