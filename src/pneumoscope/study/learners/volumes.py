"""A recipe on volumes as a stage: trained on the scans of a set's training part, asked about single slices.

What it says of a scan is the probability of infection on the scan's own grid, carried back linearly; of that the
study's slices are cut and made smaller as the targets are. Where the recipe's own study lets the largest of several
classes win, a transfer study cuts this probability at `scoring.threshold`, as that of every other stage.

The trainings of the phases lie in ``stages/<stage>/training``, the network that came of them in the stage's folder.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pneumoscope.datasets.case import Case, LabelledScan
from pneumoscope.datasets.tensors import LungFinder
from pneumoscope.errors import ModelError
from pneumoscope.io.files import write_frame
from pneumoscope.jobs.stamp import is_done, mark_done, mark_started, read_done, stamp
from pneumoscope.models.cards import read_card, verify
from pneumoscope.recipes.schema import Stage
from pneumoscope.recipes.volumes import VolumeExperiment
from pneumoscope.study.data import StudyDataset
from pneumoscope.study.learners.base import Learner, ScanPredictor
from pneumoscope.study.learners.volume_training import VolumeModel, stage_name, train_model
from pneumoscope.study.scores.volumes import infection_probability, predictor, windows_of
from pneumoscope.study.volumes_data import ModelJob, volume_recipe
from pneumoscope.volume import Volume


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
