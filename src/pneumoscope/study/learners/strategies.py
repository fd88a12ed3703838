"""How a stage of a study is trained by its strategy, and what is kept of it: the one place where strategies meet sets.

A stage is made in two steps. `guarded_job` says what the training is shown, asked and allowed to move. `keep` says what
becomes of the trained network: itself, a mix with the one before, or one network per site with a selector. Strategies
that differ in the second step only share the training: a training of the same stamp is never done twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumoscope.errors import InputError, ModelError
from pneumoscope.io.files import read_json, write_json
from pneumoscope.jobs.stamp import mark_done, mark_started, read_done, stamp
from pneumoscope.metrics.overlap import count, dice
from pneumoscope.models.cards import read_card
from pneumoscope.recipes.schema import Stage
from pneumoscope.study.learners.base import Learner, StudyContext
from pneumoscope.study.learners.slices import (
    Slices,
    StageJob,
    StrategyTerms,
    TrainedModel,
    neighbours_of,
    train_stage,
    two_channel_target,
)
from pneumoscope.study.lungs import evenly

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.models.unet import UNet
    from pneumoscope.training.strategies import Penalty

EXPERTS_FILE = "experts.json"  # In the folder of a stage that keeps a network per set: their folders, and the selector

KEPT = frozenset({"averaging", "adabn", "site_norm", "selector"})
"""Parts that make more of a trained network than itself."""


class SliceLearner(Learner):
    """The experiment's U-Net on slices, alone or with their neighbours; each stage by its strategy."""

    def __init__(self, study: StudyContext, system: str) -> None:
        super().__init__(study, system)
        # neighbouring slices that its networks see; None for single slices
        self.near = neighbours_of(study.experiment, system)
        self.trainings: dict[str, TrainedModel] = {}  # where each training lies, by its stamp

    def make(self, stage: Stage) -> TrainedModel:
        """One stage, trained and kept; the stages it starts from must be made before it."""
        study, parts = self.study, self.study.experiment.strategy_of(stage.name)
        own = study.stage_folder(stage.name)
        train, val = self.slices(stage.site, "train"), self.validation(stage, parts)
        job = guarded_job(self, stage, parts)
        apart = bool(parts & KEPT)
        trained = train_stage(study, job, train, val, own / "training" / stage.name if apart else own, self.trainings)
        made = self._kept(stage, parts, trained, own) if apart or trained.folder != own else trained
        return replace(made, near=self.near)

    def model(self, name: str) -> TrainedModel:
        """A stage made before."""
        found = self.study.models[name]
        assert isinstance(found, TrainedModel)  # stages start from their own system
        return found

    # -- what a training is shown ------------------------------------------------------------------------------

    def slices(self, number: int, part: str, most: int | None = None) -> Slices:
        """The slices of a part of a set; at most so many, evenly spaced."""
        rows = self.study.sets[number].rows(part)
        return self.picked(number, rows[evenly(len(rows), most)] if most is not None else rows)

    def picked(self, number: int, rows: np.ndarray) -> Slices:
        """Rows of a set as a training takes them."""
        slices = self.study.sets[number].slices
        table = slices.table.iloc[rows]
        names = [f"{case} slice {k}" for case, k in zip(table["case"], table["slice"], strict=True)]
        target = two_channel_target(slices.target[rows], self.study.experiment.network.out_channels)
        images = slices.images[rows] if self.near is None else self.near.images(self.study.sets[number], rows)
        return images, target, names

    def validation(self, stage: Stage, parts: frozenset[str]) -> Slices:
        """Validation slices: the set's own; with earlier slices available, as many of every set seen."""
        if not parts & {"joint", "rehearsal"}:
            return self.slices(stage.site, "val")
        most = self.study.experiment.strategy.validation_slices
        return joined([self.slices(n, "val", most) for n in (stage.site, *self.study.earlier(stage))])

    def store(self, number: int, parts: frozenset[str]) -> Slices:
        """What is kept of an earlier set's training slices: all, or the bounded store."""
        from pneumoscope.training.strategies import choose_store

        rows = self.study.sets[number].rows("train")
        if "joint" in parts:
            return self.picked(number, rows)
        table = self.study.sets[number].slices.table.iloc[rows]
        chosen = choose_store(
            table["patient"].astype(str).tolist(),
            table["has_infiltrate"].astype(bool).tolist(),
            self.study.experiment.strategy.store_slices,
        )
        return self.picked(number, rows[chosen])

    # -- what is kept of it ------------------------------------------------------------------------------------

    def _kept(self, stage: Stage, parts: frozenset[str], trained: TrainedModel, own: Path) -> TrainedModel:
        """The stage's folder from its training: taken as it is when it is there already."""
        strategy = self.study.experiment.strategy
        lineage = self.study.experiment.lineage(stage.name)
        wanted = stamp(
            "kept stage",
            revision=1,
            trained=trained.weights_sha256,
            parts=sorted(parts),
            lineage=[self.model(s.name).sha256 for s in lineage[:-1]],
            data=[self.study.sets[s.site].content for s in lineage],
            numbers=[strategy.averaging_weights, strategy.validation_slices, strategy.adabn_slices],
            scoring=[self.study.experiment.scoring.threshold, self.study.experiment.training.precision],
        )
        done = read_done(own)
        if done.get("stamp") == wanted:
            try:
                kept = replace(read_kept(own), site_known=strategy.site_known)
                if kept.weights_sha256 == done.get("sha256"):
                    return kept
            except ModelError:
                pass  # damaged: made again
        mark_started(own)
        network, said = trained.model, f"the training of {trained.name}" if trained.name != stage.name else ""
        if "averaging" in parts:
            network, said = self._averaged(stage, trained)
        write_stage(own, trained, network, stage.name, said)
        experts = self._experts(stage, parts, trained, own)
        if experts:
            self._write_experts(own, stage, experts)
        mark_done(own, wanted, sha256=read_card(own)["weights"]["sha256"])
        return replace(read_kept(own), site_known=strategy.site_known, trained_now=trained.trained_now)

    def _averaged(self, stage: Stage, trained: TrainedModel) -> tuple[UNet, str]:
        from pneumoscope.training.strategies import best_mix

        alone = "selector" in self.study.experiment.strategy_of(stage.name)  # earlier sets keep networks of their own
        numbers = [stage.site] if alone else [stage.site, *self.study.earlier(stage)]
        most = self.study.experiment.strategy.validation_slices
        parts = [self.slices(n, "val", most) for n in numbers]
        start = self._start(stage)
        network = copy_of(trained.model)
        share, tried = best_mix(
            network,
            start.model.state_dict(),
            trained.model.state_dict(),
            self.study.experiment.strategy.averaging_weights,
            lambda model: float(np.mean([self._dice(model, part) for part in parts])),
        )
        scores = ", ".join(f"{key:g}: {value:.3f}" for key, value in tried.items())
        self.study.progress(stage.name, 1, 1, f"{share:g} of the new weights")
        return network, (
            f"{share:g} of the new and {1 - share:g} of the weights of {start.name}; mean validation Dice over sets "
            f"{', '.join(map(str, numbers))} by share: {scores}"
        )

    def _dice(self, model: nn.Module, part: Slices) -> float:
        """Dice pooled over some slices."""
        from pneumoscope.inference.engines import predict_probability

        precision: Any = self.study.experiment.training.precision
        found = predict_probability(model, part[0], batch_size=16, device=self.study.device, precision=precision)[:, 0]
        hit, truth = found >= self.study.experiment.scoring.threshold, part[1][:, 0] > 0
        return dice(count(hit, truth))

    def _experts(self, stage: Stage, parts: frozenset[str], trained: TrainedModel, own: Path) -> dict[int, str]:
        """Folder of every set's network, relative to the stage's; empty where one network serves all."""
        lineage = self.study.experiment.lineage(stage.name)
        if parts & {"selector", "site_norm"}:
            folders = {s.site: f"../{s.name}" for s in lineage[:-1]}
            return {**folders, stage.site: "."}
        if "adabn" not in parts:
            return {}
        for number in (stage.site, *self.study.earlier(stage)):
            write_stage(
                own / f"set-{number}", trained, self._adapted(trained, number), f"{stage.name} for set {number}"
            )
        return {number: f"set-{number}" for number in (stage.site, *self.study.earlier(stage))}

    def _adapted(self, trained: TrainedModel, number: int) -> UNet:
        import torch

        from pneumoscope.training.data import ArraySource
        from pneumoscope.training.strategies import has_statistics, take_statistics

        network = copy_of(trained.model)
        if not has_statistics(network):
            raise InputError(
                "strategy adabn re-estimates batch statistics, and this network has none (network.norm="
                f"{self.study.experiment.network.norm}); use --set network.norm=batch or another strategy"
            )
        source = ArraySource(*self.slices(number, "train", self.study.experiment.strategy.adabn_slices))
        with torch.inference_mode():
            take_statistics(network, source.batch(np.arange(len(source)), None).x)
        return network

    def _write_experts(self, own: Path, stage: Stage, experts: Mapping[int, str]) -> None:
        from pneumoscope.training.strategies import Selector

        seen = {n: self.study.sets[n].slices.images[self.study.sets[n].rows("train")] for n in experts}
        selector = Selector.fit(seen)
        write_json(own / EXPERTS_FILE, {"experts": {str(n): p for n, p in experts.items()}, **selector.as_dict()})

    def _start(self, stage: Stage) -> TrainedModel:
        assert stage.start is not None  # only retrainings have a strategy
        return self.model(stage.start)


def guarded_job(learner: SliceLearner, stage: Stage, parts: frozenset[str]) -> StageJob:
    """The training of a stage with what its strategy adds."""
    experiment, strategy = learner.study.experiment, learner.study.experiment.strategy
    start = learner.model(stage.start) if stage.start else None
    notes: list[str] = []
    frozen: tuple[str, ...] = ()
    earlier: tuple[Slices, ...] = ()
    if parts & {"joint", "rehearsal"}:
        earlier = tuple(learner.store(number, parts) for number in learner.study.earlier(stage))
        notes.append(f"earlier slices {[len(part[2]) for part in earlier]}, their share {strategy.earlier_share}")
    if "frozen" in parts:
        frozen = strategy.frozen
    if "site_norm" in parts and start is not None:
        from pneumoscope.training.strategies import all_but_normalisation

        frozen = all_but_normalisation(start.model)
    if "ewc" in parts:
        notes.append(f"ewc weight {strategy.ewc_weight}, {strategy.ewc_slices} slices per set")
    if "lwf" in parts:
        notes.append(f"lwf weight {strategy.lwf_weight}, temperature {strategy.lwf_temperature}")
    before = [s.site for s in experiment.lineage(stage.name)[:-1]] if "ewc" in parts else []
    penalties = penalties_of(learner, stage, parts) if parts & {"ewc", "lwf"} else None
    lung = int(experiment.preprocessing.lung_channel)
    return StageJob(
        stage.name,
        learner.near.image_channels + lung if learner.near else experiment.preprocessing.channels,
        experiment.network.out_channels,
        experiment.network.features,
        experiment.budget(stage),
        start,
        "infiltrate",
        StrategyTerms(
            earlier,
            strategy.earlier_share,
            penalties,
            frozen,
            "; ".join(notes),
            tuple(learner.study.sets[number].content for number in before),
        ),
        learner.near,
    )


def penalties_of(learner: SliceLearner, stage: Stage, parts: frozenset[str]) -> Callable[[UNet], tuple[Penalty, ...]]:
    """Makes the extra terms of the loss once the network is there; what they need is computed only then."""

    def make(model: UNet) -> tuple[Penalty, ...]:
        from pneumoscope.training import strategies
        from pneumoscope.training.data import ArraySource

        strategy = learner.study.experiment.strategy
        terms: list[Penalty] = []
        if "lwf" in parts:
            teacher = copy_of(learner.model(stage.start or "").model)
            terms.append(strategies.Distillation(teacher, strategy.lwf_weight, strategy.lwf_temperature))
        if "ewc" in parts:
            for before in learner.study.experiment.lineage(stage.name)[:-1]:
                learnt = copy_of(learner.model(before.name).model)
                source = ArraySource(*learner.slices(before.site, "train", strategy.ewc_slices))
                fisher = strategies.fisher_diagonal(learnt, source, np.arange(len(source)))
                anchor = {name: p.detach().clone() for name, p in learnt.named_parameters()}
                terms.append(strategies.WeightConsolidation(model, fisher, anchor, strategy.ewc_weight))
        return tuple(terms)

    return make


def copy_of(model: UNet) -> UNet:
    """A copy on the CPU whose weights lie in memory alike, wherever the network comes from.

    Fresh from a training they lie otherwise than read from a file, and sums then differ in their last bits: an epoch of
    consolidation with a heavy weight makes other weights of that, and a resumed study would not be the same.
    """
    from copy import deepcopy

    import torch

    return deepcopy(model).cpu().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def joined(parts: list[Slices]) -> Slices:
    """Slices of several sets as one."""
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        [name for part in parts for name in part[2]],
    )


def write_stage(own: Path, trained: TrainedModel, network: UNet, name: str, said: str = "") -> None:
    """A stage folder made from a training that lies elsewhere: weights, card, history."""
    from pneumoscope.models.weights import save_model

    card = {k: v for k, v in read_card(trained.folder).items() if k not in ("format", "architecture", "weights")}
    extra = {"made_from": said} if said else {}
    own.mkdir(parents=True, exist_ok=True)
    save_model(own, network, {**card, "name": name, **extra})
    shutil.copyfile(trained.folder / "history.csv", own / "history.csv")


def read_kept(own: Path) -> TrainedModel:
    """A stage folder with all its networks.

    Raises:
        ModelError: weights are absent or damaged.
    """
    from pneumoscope.models.weights import load_model
    from pneumoscope.training.strategies import Selector

    model, card = load_model(own)
    base = TrainedModel(own.name, own, model, card["weights"]["sha256"], trained_now=False)
    if not (own / EXPERTS_FILE).is_file():
        return base
    kept = read_json(own / EXPERTS_FILE, error=ModelError)
    try:
        selector = Selector.from_dict(kept)
        folders = {int(number): own / place for number, place in kept["experts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as problem:
        raise ModelError(f"names no networks and selector ({problem!r})", path=own / EXPERTS_FILE) from problem
    found = {number: load_model(folder) for number, folder in folders.items()}
    return replace(
        base,
        experts={number: network for number, (network, _) in found.items()},
        experts_sha256={number: about["weights"]["sha256"] for number, (_, about) in found.items()},
        selector=selector,
    )
