"""The scans of an experiment on volumes, and which of them each model trains on and is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.splits.folds import Fold, group_folds, group_members, members_of, share_fold
from pneumoscope.datasets.tensors import VolumeRecipe
from pneumoscope.errors import InputError
from pneumoscope.progress import Progress, silent
from pneumoscope.recipes.volumes import SETTINGS, Phase, VolumeExperiment
from pneumoscope.study.data import has_mask, keep_split, make_phantoms

SPLIT_COLUMNS = ("k", "fold", "case", "patient", "part")
VALIDATION = "val"  # The name of the scans held out of the training set, where a test set has its dataset's name


@dataclass(frozen=True, eq=False)
class ModelJob:
    """One model of the study."""

    name: str  # of its stage folder, e.g. ``k5-f1`` or ``k5-f1-plain``.
    k: int  # number of folds; 1 for a single split
    fold: int  # from 1
    setting: str  # see `recipes.volumes.SETTINGS`
    # train, val: its scans
    train: tuple[Case, ...]
    val: tuple[Case, ...]

    @property
    def augmented(self) -> bool:
        """Whether boxes are varied."""
        return self.setting in ("full", "no-preprocessing")

    @property
    def preprocessed(self) -> bool:
        """Whether scans are clipped, standardised and resampled."""
        return self.setting in ("full", "no-augmentation")


def volume_recipe(experiment: VolumeExperiment, phase: Phase, *, preprocessed: bool = True) -> VolumeRecipe:
    """How scans are prepared for a phase; without preprocessing they stay as they are."""
    preparation = experiment.preparation
    if not preprocessed:
        return VolumeRecipe(None, "none", None, phase.size if phase.whole else None, preparation.classes)  # type: ignore[arg-type]
    return VolumeRecipe(
        preparation.clip_hu,
        preparation.scale,  # type: ignore[arg-type]
        preparation.spacing_mm,
        phase.size if phase.whole else None,
        preparation.classes,  # type: ignore[arg-type]
    )


def find_volume_cases(
    experiment: VolumeExperiment, data: Mapping[str, Path], out: Path, progress: Progress = silent
) -> dict[str, list[Case]]:
    """The scans by set name, from the folders (or CSV lists) given or from synthetic scans made below `out`.

    Test sets that are not given are left out of the study; the training set must be.

    Raises:
        InputError: a name that is no set of the experiment, no training set, or a set without a fitting scan.
    """
    from pneumoscope.datasets.registry import read_dataset

    known = [s.name for s in experiment.data.sets]
    for name, root in data.items():
        if name not in known:
            raise InputError(f"--data {name}: {experiment.recipe} has the sets {', '.join(known)}")
        if not root.exists():
            raise InputError(f"--data {name}: there is no such folder", path=root)
    if data and experiment.train_set.name not in data:
        raise InputError(f"--data is missing for {experiment.train_set.name}, the set that {experiment.recipe} learns")
    found = {}
    for number, part in enumerate(experiment.data.sets, start=1):
        if data and part.name not in data:
            continue
        if data:  # a dataset, or a CSV list of own scans in its place
            root = data[part.name]
            cases = read_dataset("manifest" if root.suffix.lower() == ".csv" else part.name, root)
        else:
            cases = make_phantoms(experiment.data, part, out / "data" / part.name, progress)
        named, classes = part.cases if data else "*", experiment.preparation.classes
        fitting = [case for case in cases if fnmatch(case.case, named) and has_mask(case, classes)]
        if not fitting:
            raise InputError(f"{part.name} has no scan with a mask named {part.cases!r}", path=data.get(part.name))
        found[part.name] = sorted(fitting, key=lambda case: case.case)
        progress("data", number, len(experiment.data.sets), f"{part.name}: {len(fitting)} scans")
    return found


def model_jobs(experiment: VolumeExperiment, cases: Sequence[Case]) -> list[ModelJob]:
    """Every model of the study, in the order they are trained.

    Raises:
        DatasetError: fewer scans (or patients) than folds.
    """
    split = experiment.folds
    if split.k is None:
        return [ModelJob("split", 1, 1, "full", *_parts(folds_of(experiment, cases, None)[0], cases))]
    jobs = []
    for k in split.k:
        settings = SETTINGS if split.ablation and k == split.k[-1] else SETTINGS[:1]
        for setting in settings:
            for number, fold in enumerate(folds_of(experiment, cases, k), start=1):
                name = f"k{k}-f{number}" + ("" if setting == "full" else f"-{setting}")
                jobs.append(ModelJob(name, k, number, setting, *_parts(fold, cases)))
    return jobs


def folds_of(experiment: VolumeExperiment, cases: Sequence[Case], k: int | None) -> list[Fold]:
    """k folds, by scan as the papers or with patients kept whole; without k one, with about the share held out."""
    members, split = members_of(cases), experiment.folds
    groups = group_members(members) if split.by == "patient" else {member: member.ref for member in members}
    if k is None:
        return [share_fold(groups, split.validation_share, split.seed)]
    return group_folds(groups, k, split.seed, validation=False)


def _parts(fold: Fold, cases: Sequence[Case]) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    by_name = {case.case: case for case in cases}
    return tuple(by_name[m.case] for m in fold.train), tuple(by_name[m.case] for m in fold.test)


def patients_on_both_sides(job: ModelJob) -> list[str]:
    """Patients with scans in training and in validation; empty for folds by patient."""
    return sorted({case.patient for case in job.train} & {case.patient for case in job.val})


def write_splits(jobs: Sequence[ModelJob], dataset: str, folder: Path) -> None:
    """Keep ``splits/<dataset>.csv``, see `data.keep_split`: one row per k, fold and scan."""
    rows = [
        (job.k, job.fold, case.case, case.patient, part)
        for job in jobs
        if job.setting == "full"
        for part, cases in (("train", job.train), ("val", job.val))
        for case in cases
    ]
    keep_split(pd.DataFrame(rows, columns=list(SPLIT_COLUMNS)), folder / "splits" / f"{dataset}.csv")
