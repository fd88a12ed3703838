"""Run any experiment: the one way into a study, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pneumoscope.jobs.lock import locks
from pneumoscope.recipes.registry import build_any
from pneumoscope.study.base import Study, StudyOptions, StudyResult
from pneumoscope.study.transfer import SliceStudy
from pneumoscope.study.volumes import VolumeStudy
from pneumoscope.study.xray import XrayStudy

STUDIES: Mapping[str, type[Study]] = {"slices": SliceStudy, "volumes": VolumeStudy, "xray": XrayStudy}
"""What runs an experiment, by its `kind`."""


@locks("out")
def run_study(experiment: Any, out: str | Path, **options: Any) -> StudyResult:
    """Run an experiment or a recipe into a study folder.

    A study killed at any moment is continued by ``resume=True`` and ends with the same tables (CPU, same number of
    threads).

    Args:
        experiment: a recipe's name or an experiment of your own making.
        out: the study folder.
        options: fields of `StudyOptions`.

    Raises:
        InputError: the folder holds another study, data are missing, or an option is of another kind of study.
        RunError: a training failed; the study can be resumed.
    """
    plan = build_any(experiment) if isinstance(experiment, str) else experiment
    return STUDIES[plan.kind](plan, StudyOptions(**options)).run(out)
