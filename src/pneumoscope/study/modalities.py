"""The modalities there are, by the class of their experiment: the one place where an experiment meets its code."""

from __future__ import annotations

from collections.abc import Mapping

from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.settings import Settings
from pneumoscope.recipes.volumes import VolumeExperiment
from pneumoscope.recipes.xray import XrayExperiment
from pneumoscope.study.base import Modality
from pneumoscope.study.transfer import Transfer
from pneumoscope.study.volumes import Volumes
from pneumoscope.study.xray import Xray

MODALITIES: Mapping[type[Settings], type[Modality]] = {
    Experiment: Transfer,
    VolumeExperiment: Volumes,
    XrayExperiment: Xray,
}


def modality_of(experiment: Settings) -> type[Modality]:
    """What reads, makes and scores an experiment."""
    return MODALITIES[type(experiment)]
