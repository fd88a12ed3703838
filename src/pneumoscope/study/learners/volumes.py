"""A recipe on volumes as a stage: trained on the scans of a set's training part, asked about single slices.

What it says of a scan is the probability of infection on the scan's own grid, carried back linearly; of that the
study's slices are cut and made smaller as the targets are. Where the recipe's own study lets the largest of several
classes win, a transfer study cuts this probability at `scoring.threshold`, as that of every other stage.

The trainings of the phases, each started from the one before, lie in ``stages/<stage>/training``, the network that came
of them in the stage's folder.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.cache import open_cache
from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.tensors import CLASS_NAMES, LungFinder, VolumeRecipe, prepare
from pneumoscope.errors import ModelError
from pneumoscope.io.files import write_frame
from pneumoscope.jobs.stamp import content_of_files, is_done, mark_done, mark_started, read_done, stamp
from pneumoscope.models.cards import read_card, verify
from pneumoscope.recipes.schema import Stage
from pneumoscope.recipes.volumes import Phase, VolumeExperiment
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.learners.base import Learner, ScanPredictor, StudyContext
from pneumoscope.study.learners.networks import NetworkTraining, card_of, train_config
from pneumoscope.study.scores.volumes import infection_probability, predictor, windows_of
from pneumoscope.study.volumes_data import ModelJob, volume_recipe
from pneumoscope.volume import Volume

if TYPE_CHECKING:
    from torch import nn

    from pneumoscope.datasets.cache import ArrayCache
    from pneumoscope.training.config import TrainConfig
    from pneumoscope.training.data import PatchSource


@dataclass(frozen=True, eq=False)
class VolumeStage(ScanPredictor):
    """A finished stage on volumes."""

    experiment: VolumeExperiment  # the recipe as this study has it
    trained: VolumeModel  # its last phase, with the network

    def probability(self, volume: Volume, device: str) -> NDArray[np.float32]:
        """Probability of infection (i, j, k)."""
        recipe, phase = self.experiment, self.trained.phase
        members = [predictor(self.trained.model, device, recipe.training.precision)]
        return infection_probability(volume, members, volume_recipe(recipe, phase), windows_of(recipe, phase))


class VolumeLearner(Learner):
    """A recipe on volumes, as it stands in the experiment's `systems`."""

    def make(self, stage: Stage) -> VolumeStage:
        """Train all phases of a stage, or take from its folder what is there already.

        Raises:
            NonFiniteLossError: see `training.loop.fit`; the study can be resumed.
        """
        study = self.study
        recipe = next(s for s in study.experiment.systems if s.name == self.system).experiment()
        start = study.models[stage.start] if stage.start else None
        assert start is None or isinstance(start, VolumeStage)  # stages start from their own system
        scans = {part: study.scans(stage, part) for part in ("train", "val")}
        train, val = (tuple(_case(study.sets[n], case, recipe) for n, case in found) for found in scans.values())
        own = study.stage_folder(stage.name)
        trained = train_model(
            replace(study, experiment=recipe),
            ModelJob(stage.name, 1, 1, "full", train, val),
            own / "training",
            None if start is None else start.trained,
        )
        weights = read_card(trained.folder)["weights"]["sha256"]
        made = stamp("volume stage", revision=1, weights=weights, **_answering(recipe, trained))
        if not (is_done(own, made) and _holds(own, weights)):
            mark_started(own)
            slices = sum(len(study.sets[n].rows("train")) for n in {n for n, _ in scans["train"]})
            _keep(own, stage, recipe, trained, start, slices)
            mark_done(own, made, sha256=weights)
        return VolumeStage(stage.name, own, made, trained.trained_now, recipe, trained)


def _holds(own: Path, weights: str) -> bool:
    """Whether the stage's own copy of the weights is whole and the one its training gave."""
    try:
        check = verify(own)
    except ModelError:
        return False
    return check.ok and check.expected_sha256 == weights


def _case(study_set: StudyDataset, name: str, recipe: VolumeExperiment) -> Case:
    """A scan as the recipe learns it; lungs are supplied where its classes need them and the set has none."""
    case, finder = study_set.scans[name], study_set.lungs_for
    drawn = case.files is not None and case.files.lungs is not None
    if recipe.preparation.classes != "lungs_infiltrate" or drawn or finder is None:
        return case
    return replace(case, load=partial(_with_lungs, case, finder), files=None)  # lungs found here are never cached


def _with_lungs(case: Case, finder: LungFinder) -> LabelledScan:
    scan = case.load()
    return scan if scan.lungs is not None else replace(scan, lungs=finder(scan.volume))


def _answering(recipe: VolumeExperiment, trained: VolumeModel) -> dict[str, Any]:
    """What answers depend on beside the weights."""
    preparation = {**asdict(recipe.preparation), "sources": None}
    return {"preparation": preparation, "size": trained.phase.size, "whole": trained.phase.whole,
            "overlap": recipe.scoring.overlap, "precision": recipe.training.precision}  # fmt: skip


def _keep(
    own: Path, stage: Stage, recipe: VolumeExperiment, trained: VolumeModel, start: VolumeStage | None, slices: int
) -> None:
    """Weights, card and history of the stage from those of its phases."""
    from pneumoscope.models.weights import save_model

    phases = [own / "training" / stage_name(recipe, trained.job, phase) for phase in recipe.phases]
    histories, ran = [], 0
    for phase, folder in zip(recipe.phases, phases, strict=True):
        history = pd.read_csv(folder / "history.csv")
        histories.append(history.assign(epoch=history["epoch"] + ran, phase=phase.name))
        ran += len(history)
    last, first = read_card(phases[-1]), read_card(phases[0])
    if last["architecture"] != first["architecture"]:
        raise ModelError("the phases of a model have networks of different shapes", path=own)
    said = f"; then {len(phases)} phases, each from the one before" if len(phases) > 1 else ""
    before = f"weights of {start.name}" if start else first["started_from"]
    training = {
        **last["training"],
        "slices": slices,
        "epochs_run": ran,
        "best_epoch": ran - len(histories[-1]) + int(last["training"]["best_epoch"]),
        "seconds": round(sum(float(read_done(folder).get("seconds", math.nan)) for folder in phases), 1),
    }
    card = {key: value for key, value in last.items() if key not in ("format", "architecture", "parameters", "weights")}
    card |= {"name": stage.name, "title": f"{stage.name}: {stage.system}", "system": stage.system,
             "started_from": before + said, "training": training}  # fmt: skip
    save_model(own, trained.model, card)
    table = pd.concat(histories, ignore_index=True)
    write_frame(own / "history.csv", table, None)


@dataclass(frozen=True, eq=False)
class VolumeModel:
    """A trained model."""

    job: ModelJob  # what it was trained on
    phase: Phase  # its last one; says how scans are prepared and cut for it
    model: nn.Module  # the network, best weights, eval mode
    folder: Path  # with `model.safetensors` and `card.json`
    stamp: str  # of everything that shaped the weights
    trained_now: bool  # False when it was taken from a study that is resumed
    seconds: float  # of training, over all processes that took part in its last phase only when it was trained now


def stage_name(experiment: VolumeExperiment, job: ModelJob, phase: Phase) -> str:
    """The folder of a phase below ``stages``."""
    return job.name if len(experiment.phases) == 1 else f"{job.name}-{phase.name}"


def train_model(
    study: StudyContext, job: ModelJob, stages: Path | None = None, start: VolumeModel | None = None
) -> VolumeModel:
    """Train all phases of a model, or take what is finished from the folder; volumes go through the cache.

    Args:
        study: its experiment is the recipe.
        job: the model's scans.
        stages: where the folders of the phases lie; ``stages`` of the study folder by default.
        start: a model whose weights the first phase begins from.

    Raises:
        NonFiniteLossError: see `training.loop.fit`; the study can be resumed.
    """
    cache = open_cache()
    for phase in study.experiment.phases:
        own = (stages or study.folder / "stages") / stage_name(study.experiment, job, phase)
        start = _train_phase(study, job, phase, start, own, cache)
    assert start is not None  # an experiment has phases
    return start


def _train_phase(
    study: StudyContext, job: ModelJob, phase: Phase, start: VolumeModel | None, own: Path, cache: ArrayCache | None
) -> VolumeModel:
    from pneumoscope.training.multiclass import MulticlassTask

    experiment = study.experiment
    train, val = sources(experiment, job, phase, cache)
    training = NetworkTraining(
        own,
        "volume training",
        shaping_parts(experiment, job, phase, train, val, start),
        lambda: new_network(experiment),
        start,
        lambda model: MulticlassTask(CLASS_NAMES[experiment.preparation.classes], experiment.training.loss),
        train,
        val,
        lambda model: phase_config(experiment, phase, model, study.device),
        lambda result, origin: _card(experiment, job, phase, result, origin),
    )
    made = training.run(resume=study.resume, progress=study.progress)
    return VolumeModel(job, phase, made.model, own, training.stamp, made.trained_now, made.seconds)


def sources(
    experiment: VolumeExperiment, job: ModelJob, phase: Phase, cache: ArrayCache | None
) -> tuple[PatchSource, PatchSource]:
    """What the loop draws training and validation boxes from."""
    from pneumoscope.training.data import PatchSource

    recipe = volume_recipe(experiment, phase, preprocessed=job.preprocessed)
    train, val = ([prepare(case, recipe, cache) for case in cases] for cases in (job.train, job.val))
    i, j, k = phase.size
    patch, training = (k, j, i), experiment.training
    boxes = len(train) if phase.steps is None else phase.steps * phase.batch_size
    augment = volume_augment(experiment) if job.augmented else None
    length = len(val) if phase.whole else max(training.validation_boxes, len(val))
    return (
        PatchSource(train, patch, boxes, training.foreground, augment),
        PatchSource(val, patch, length, training.foreground),
    )


def volume_augment(experiment: VolumeExperiment) -> Any:
    """The experiment's variation as the boxes' source takes it."""
    from pneumoscope.training.augment import VolumeAugment

    v = experiment.augment
    kinds = ("scale", "rotate", "elastic", "mirror", "brightness", "contrast", "gamma", "noise")
    chance = {f"{kind}_p": v.probability for kind in kinds}
    if v.elastic_alpha[1] == 0:
        chance["elastic_p"] = 0.0
    if v.gamma == (1.0, 1.0):
        chance["gamma_p"] = 0.0
    return VolumeAugment(
        scale=v.scale, rotate_deg=v.rotate_deg, elastic_alpha=v.elastic_alpha, elastic_sigma=v.elastic_sigma,
        mirror_axes=v.mirror_axes, brightness=v.brightness, contrast=v.contrast, gamma=v.gamma, noise=v.noise,
        **chance,
    )  # fmt: skip


def new_network(experiment: VolumeExperiment) -> tuple[Any, str]:
    """The network with fresh weights, the same for the same seed, and what it begins with in words."""
    import torch

    torch.manual_seed(experiment.training.seed)
    wanted, classes = experiment.network, len(CLASS_NAMES[experiment.preparation.classes])
    if wanted.kind == "unet3d":
        from pneumoscope.models.unet import UNet3D, UNet3DConfig

        return UNet3D(UNet3DConfig(1, classes, wanted.features)), "new weights"
    from pneumoscope.models.r3d18_unet import R3D18UNet, R3D18UNetConfig

    width, *decoder = wanted.features
    network = R3D18UNet(R3D18UNetConfig(classes, width, tuple(decoder)))  # type: ignore[arg-type]
    if wanted.encoder_weights is None:
        return network, "new weights; the paper's encoder begins with those of Kinetics-400"
    from pneumoscope.models.weights import carry_published

    report = carry_published(network.encoder, "r3d_18", Path(wanted.encoder_weights))
    return network, f"encoder: {report.sentence()}"


def phase_config(experiment: VolumeExperiment, phase: Phase, network: Any, device: str) -> TrainConfig:
    """A phase as the loop takes it."""
    frozen = network.frozen_parts() if phase.frozen == "encoder" else ()
    return train_config(experiment.training, phase, plateau_of="train_loss", frozen=frozen, device=device)


def shaping_parts(
    experiment: VolumeExperiment, job: ModelJob, phase: Phase, train: PatchSource, val: PatchSource,
    start: VolumeModel | None,
) -> dict[str, Any]:  # fmt: skip
    """All that shapes the weights of a phase."""
    plain = asdict(experiment)
    shaping = {key: plain[key] for key in ("preparation", "network", "augment", "training")}
    encoder = experiment.network.encoder_weights
    return {
        "settings": {**shaping, "phase": plain["phases"][experiment.phases.index(phase)], "setting": job.setting},
        "training_data": train.content,
        "validation_data": val.content,
        "starting_weights": [
            read_card(start.folder)["weights"]["sha256"] if start else None,
            content_of_files([encoder]) if encoder and start is None else None,
        ],
    }


def _card(experiment: VolumeExperiment, job: ModelJob, phase: Phase, result: Any, said: str) -> dict[str, Any]:
    """What `card.json` says beside the architecture and the checksum."""
    preparation = experiment.preparation
    recipe = volume_recipe(experiment, phase, preprocessed=job.preprocessed)
    training = {"scans": [case.case for case in job.train], "setting": job.setting, phase.monitor: result.best_value}
    return card_of(
        stage_name(experiment, job, phase),
        f"{job.name} of {experiment.recipe}",
        result,
        said,
        training,
        task="lungs" if preparation.classes == "lungs" else "infiltrate",
        labels={str(n): name for n, name in enumerate(CLASS_NAMES[preparation.classes])},
        preprocessing=_preprocessing_card(recipe, phase, experiment.scoring.overlap),
        data=sorted({case.dataset for case in job.train}),
        licence=sorted({case.licence for case in job.train}),
        notice="Research software, not a medical device.",
    )


def _preprocessing_card(recipe: VolumeRecipe, phase: Phase, overlap: tuple[float, float, float]) -> dict[str, Any]:
    """As `inference.volumes.VolumeInput.from_card` reads it; scans resized as a whole have a kind of their own."""
    i, j, k = phase.size
    if recipe.clip_hu is None or phase.whole:
        return {"kind": "whole_volume" if phase.whole else "raw_volume", "window_hu": recipe.clip_hu,
                "scale": recipe.scale, "shape": recipe.shape, "patch": [k, j, i]}  # fmt: skip
    return box_card(recipe, (k, j, i), (overlap[2], overlap[1], overlap[0]), "mean")


def box_card(
    recipe: VolumeRecipe, patch: tuple[int, int, int], overlap: tuple[float, float, float], blend: str
) -> dict[str, Any]:
    """Preprocessing of a network on boxes as `inference.volumes.VolumeInput.from_card` reads it."""
    assert recipe.clip_hu is not None
    grey = recipe.scale == "grey_zscore"
    return {
        "kind": "hu_volume",
        "window_hu": list(recipe.clip_hu),
        "spacing_mm": recipe.spacing_mm and list(recipe.spacing_mm),
        "normalise": "zscore" if grey else "unit",
        "grey_levels": 256 if grey else None,
        "patch": list(patch),
        "overlap": list(overlap),
        "blend": blend,
    }
