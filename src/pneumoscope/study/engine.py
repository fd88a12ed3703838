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


def score_study(
    out: str | Path,
    *,
    data: Mapping[str, str | Path],
    models: Mapping[str, str | Path] | None = None,
    predictions: Mapping[str, str | Path] | None = None,
    **options: Any,
) -> StudyResult:
    """A transfer matrix of models as they are, without training: `matrix.csv` and the report of a study.

    Args:
        out: the study folder.
        data: name of a set -> folder; see `learners.external.score_experiment`.
        models: name of a row -> what `segment` takes as model.
        predictions: name of a row -> folder with a mask per case.
        options: other fields of `StudyOptions`.

    Raises:
        InputError: nothing to score, a set or a mask is not there, or a model is refused.
    """
    from pneumoscope.study.learners.external import score_experiment

    named = [{name: str(value) for name, value in (given or {}).items()} for given in (data, models, predictions)]
    roots = {str(number): root for number, root in enumerate(data.values(), start=1)}
    return run_study(score_experiment(*named), out, data=roots, **options)


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
