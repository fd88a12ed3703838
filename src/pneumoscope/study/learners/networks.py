"""How a network is trained into the folder of a stage: taken when it is there, resumed when it was stopped, else new.

`done.json` holds the stamp of everything that shaped the weights, and their checksum. A stage of another stamp (its
data, settings or starting weights have changed) is trained again, and the run says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pneumoscope.errors import ModelError
from pneumoscope.jobs.stamp import mark_done, read_done, stamp
from pneumoscope.progress import Progress
from pneumoscope.study.learners.base import start_stage

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.training.config import TrainConfig
    from pneumoscope.training.data import BatchSource
    from pneumoscope.training.loop import FitResult
    from pneumoscope.training.tasks import Task


class Start(Protocol):
    """What a training starts from."""

    @property
    def model(self) -> nn.Module:
        """Its network."""

    @property
    def folder(self) -> Path:
        """Where it lies."""


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network."""

    model: Any  # best weights, eval mode
    sha256: str  # of the file of its weights
    trained_now: bool  # False when it was taken from the folder
    seconds: float = 0.0  # of training in this process


@dataclass(frozen=True, eq=False)
class NetworkTraining:
    """One training."""

    own: Path  # folder of the stage
    kind: str  # of its stamp
    parts: Mapping[str, Any]  # all that shapes the weights, in pieces that a message can name
    # makes it with fresh weights (the same for the same seed), and says in words what these are
    network: Callable[[], tuple[nn.Module, str]]
    start: Start | None  # what its weights are taken from instead
    task: Callable[[Any], Task]  # makes loss and scores for the network
    # train, val: examples
    train: BatchSource
    val: BatchSource
    config: Callable[[Any], TrainConfig]  # makes the settings of the loop for the network
    # makes `card.json` from the result and the words about the weights
    card: Callable[[FitResult, str], dict[str, Any]]
    refuse: ClassVar[bool] = False
    """Whether a resumed training of another stamp is refused; else it is trained again."""

    @property
    def stamp(self) -> str:
        """Equal for trainings that give the same weights."""
        return stamp(self.kind, revision=1, **self.parts)

    def run(self, *, resume: bool, progress: Progress) -> Network:
        """Train, or take what is there.

        Raises:
            ModelError: the weights to start from do not fit.
            InputError: the data or settings of a resumed training changed, where that is refused.
            NonFiniteLossError: see `training.loop.fit`; the study can be resumed.
        """
        from pneumoscope.models.weights import load_model, save_model

        wanted = self.stamp
        kept = kept_network(self.own, wanted) if resume else None
        if kept is not None:
            progress(self.own.name, 1, 1, "taken from the folder")
            return kept
        go_on = start_stage(self.own, wanted, self.parts, resume=resume, progress=progress, refuse=self.refuse)
        model, origin = self.network()
        if self.start is not None:
            origin = _load(model, self.start)
        result = self.fit(model, go_on, progress)
        sha256 = save_model(self.own, model, self.card(result, origin))["weights"]["sha256"]
        seconds = round(result.seconds, 2)
        if result.stopped_by != "max_minutes":  # with more time it continues
            mark_done(self.own, wanted, sha256=sha256, seconds=seconds)
        read, _ = load_model(self.own)  # as a resumed study reads it: memory layout moves the last digit
        return Network(read, sha256, True, seconds)

    def fit(self, model: nn.Module, resume: bool, progress: Progress) -> FitResult:
        """Run the loop; trainings of several steps override this."""
        from pneumoscope.training.loop import fit

        config = self.config(model)
        return fit(model, self.task(model), self.train, self.val, config, self.own, resume=resume, progress=progress)


def _load(model: nn.Module, start: Start) -> str:
    from pneumoscope.models.weights import load_into

    report = load_into(model, start.model.state_dict())
    if not report.complete:
        raise ModelError(f"{start.folder.name} does not fit the next stage: {report.sentence()}", path=start.folder)
    return f"weights of {start.folder.name}: {report.sentence()}"


def kept_network(own: Path, wanted: str) -> Network | None:
    """The network in that folder if it is whole, of this stamp, and holds the weights of then; else None."""
    from pneumoscope.models.weights import load_model

    done = read_done(own)
    if done.get("stamp") != wanted:
        return None
    try:
        model, card = load_model(own)
    except ModelError:
        return None  # damaged: it is taken from its last checkpoint, or trained again
    sha256 = card["weights"]["sha256"]
    return Network(model, sha256, False) if sha256 == done.get("sha256") else None


def card_of(
    name: str, title: str, result: FitResult, origin: str, training: Mapping[str, Any], **about: Any
) -> dict[str, Any]:
    """What `card.json` of a stage's network says beside its architecture and the checksum.

    Args:
        origin: what its weights were taken from, in words.
        training: what else is known of the training.
        about: task or classes, preprocessing, data, limits.
    """
    ran = {"epochs_run": result.epochs_run, "best_epoch": result.best_epoch, "stopped_by": result.stopped_by}
    return {"name": name, "title": title, **about, "started_from": origin, "training": {**training, **ran}}


def train_config(*parts: Any, **values: Any) -> TrainConfig:
    """The settings of the loop, by name from `values`, else from the last of the parts that has them."""
    from pneumoscope.training.config import TrainConfig

    names = {field.name for field in fields(TrainConfig)}
    found = {name: value for part in parts for name, value in vars(part).items() if name in names}
    return TrainConfig(**{**found, **values})
