"""The learners there are, by system, and the one place where a stage meets its learner and what it cost is noted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pneumoscope.errors import InputError
from pneumoscope.recipes.systems import NEIGHBOURS, SLICES, THRESHOLD, is_own_learner, split_external
from pneumoscope.study.folder import Meter, note_cost
from pneumoscope.study.learners.base import Learner, Predictor, StudyContext
from pneumoscope.study.learners.strategies import SliceLearner
from pneumoscope.study.learners.threshold import ThresholdLearner
from pneumoscope.study.learners.volumes import VolumeLearner

LEARNERS: Mapping[str, type[Learner]] = {SLICES: SliceLearner, NEIGHBOURS: SliceLearner, THRESHOLD: ThresholdLearner}
"""By system; all other systems are recipes on volumes, or ``MODULE:CLASS``, a learner of the user's own."""


def learner_class(system: str) -> type[Learner]:
    """The learner of a system.

    Raises:
        InputError: ``MODULE:CLASS`` names no learner that can be imported.
    """
    if split_external(system)[0]:
        from pneumoscope.study.learners.external import ExternalLearner

        return ExternalLearner
    if not is_own_learner(system):
        return LEARNERS.get(system, VolumeLearner)
    module, _, name = system.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise InputError(
            f"system {system}: cannot be imported ({problem}); expected MODULE:CLASS with the module on PYTHONPATH"
        ) from problem
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise InputError(f"system {system}: is no subclass of pneumoscope.study.learners.base.Learner")
    return found


@dataclass
class StageMaker(StudyContext):
    """Makes the stages of a study, each by the learner of its system; attributes as of `StudyContext`."""

    _learners: dict[str, Learner] = field(default_factory=dict)

    def make(self, name: str) -> Predictor:
        """One stage; the stages it starts from, and the one whose training it shares, must be made before it."""
        system, own = self.experiment.stage(name).system, self.stage_folder(name)
        stopped = own.is_dir() and self.resume
        if system not in self._learners:
            self._learners[system] = learner_class(system)(self, system)
        with Meter() as meter:
            made = self._learners[system].make(self.experiment.stage(name))
        if made.trained_now:
            note_cost(own, "training", {**meter.as_dict(), "resumed": stopped})
        self.models[name] = made
        return made
