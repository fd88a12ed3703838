"""The one place where a stage meets its system: it is made, and what it cost is noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.schema import Experiment, Stage
from pneumoscope.recipes.systems import ON_SLICES, THRESHOLD
from pneumoscope.study.data import StudySet
from pneumoscope.study.folder import Meter, note_cost
from pneumoscope.study.learners.base import StageModel
from pneumoscope.study.learners.examples import neighbours_of
from pneumoscope.study.learners.threshold import make_threshold_stage
from pneumoscope.study.learners.volumes import VolumeStage, make_volume_stage
from pneumoscope.study.strategies import Trainer


@dataclass
class StageMaker:
    """Makes the stages of a study, each by its system.

    Attributes:
        experiment: the study.
        sets: the sets by number.
        folder: the study folder.
        device: to train on.
        resume: take what is finished, and go on with what was begun.
        progress: told about every training.
        models: the stages made so far, by name.
    """

    experiment: Experiment
    sets: Mapping[int, StudySet]
    folder: Path
    device: str = "auto"
    resume: bool = False
    progress: Progress = silent
    models: dict[str, StageModel] = field(default_factory=dict)
    _trainers: dict[str, Trainer] = field(default_factory=dict)

    def make(self, name: str) -> StageModel:
        """One stage; the stages it starts from, and the one whose training it shares, must be made before it."""
        stage, own = self.experiment.stage(name), self.folder / "stages" / name
        begun = own.is_dir() and self.resume
        with Meter() as meter:
            made = self._made(stage)
        if made.trained_now:
            note_cost(own, "training", {**meter.as_dict(), "resumed": begun})
        self.models[name] = made
        return made

    def _made(self, stage: Stage) -> StageModel:
        if stage.system in ON_SLICES:
            return self._trainer(stage.system).make(stage.name)
        if stage.system == THRESHOLD:
            return make_threshold_stage(
                self.experiment, stage, self.sets, self.folder, resume=self.resume, progress=self.progress
            )
        start = self.models[stage.start] if stage.start else None
        assert start is None or isinstance(start, VolumeStage)  # stages start from their own system
        return make_volume_stage(
            self.experiment,
            stage,
            self.sets,
            start,
            self.folder,
            device=self.device,
            resume=self.resume,
            progress=self.progress,
        )

    def _trainer(self, system: str) -> Trainer:
        """The trainer of a system on slices, which knows the stages it has made."""
        if system not in self._trainers:
            near = neighbours_of(self.experiment, system)
            self._trainers[system] = Trainer(
                self.experiment, self.sets, self.folder, self.device, self.resume, self.progress, near
            )
        return self._trainers[system]
