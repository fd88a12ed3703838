"""Train, fine-tune and cross-validate on a user's own scans: from cases to a model folder that `segment` takes.

Patients are kept whole in every split. What is reported of a model is what `segment` gives on the held-out scans, on
their own grids.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.splits.folds import group_folds, group_members, members_of
from pneumoscope.errors import InputError
from pneumoscope.io.files import prepare_folder, require_no_other_run, write_frame, write_json
from pneumoscope.jobs.local import processors
from pneumoscope.jobs.lock import locks
from pneumoscope.jobs.machines import current, part_of
from pneumoscope.jobs.run import Job, Outcome, Step, run_jobs
from pneumoscope.jobs.stamp import STARTED_FILE, is_started, mark_started, stamp, what_changed
from pneumoscope.models.cards import CARD_FILE, find_model, read_card
from pneumoscope.plans.data import Parts, own_lungs
from pneumoscope.plans.plan import PLAN_FILE, OwnPlan, write_plan
from pneumoscope.plans.plan3d import VolumePlan
from pneumoscope.plans.score import (
    RUN_FILE,
    TEST_FILE,
    VALIDATION_FILE,
    forecast_own,
    out_of_memory_advice,
    save_own,
    score_own,
    write_scores,
)
from pneumoscope.plans.setup import Setup, set_up
from pneumoscope.plans.survey import TrainingPlan
from pneumoscope.progress import NOTE, Noted, Progress, silent
from pneumoscope.study.learners.networks import train_config


@dataclass(frozen=True, eq=False)
class OwnResult:
    """A trained model.

    Attributes:
        folder: with model, card, history and plan; what ``segment --model`` takes.
        scores: ``case,patient,dice,reference_ml,predicted_ml`` of the validation scans.
        test: likewise of the test scans; None where none were kept apart.
        chosen_on: which scans the epoch was chosen on, in words.
        epochs: epochs trained.
        stopped_by: see `training.loop.FitResult`.
        seconds: of training in this process.
    """

    folder: Path
    scores: pd.DataFrame
    test: pd.DataFrame | None
    chosen_on: str
    epochs: int
    stopped_by: str
    seconds: float


@locks("out")
def train_own(
    train: Sequence[Case],
    val: Sequence[Case],
    plan: OwnPlan | VolumePlan,
    out: str | Path,
    *,
    test: Sequence[Case] = (),
    device: str = "auto",
    max_minutes: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> OwnResult:
    """Train one model by a plan.

    Args:
        train, val: cases with infiltrate masks; for a network on slices lungs are found where a case has none.
        plan: see `OwnPlan` and `VolumePlan`.
        out: the model folder.
        test: cases that are scored once, when the model is finished, and chose nothing.
        device: to train on.
        max_minutes: stop after the epoch in which this much time is spent; the best model so far is kept.
        resume: continue the training in `out`; plan and data must be those it was started with.
        overwrite: remove the training in `out` and start again.
        progress: told about every part; ``forecast`` once before training.

    Raises:
        InputError: data that teach nothing, or a folder that holds another model.
        RunError: memory ran out; the message says what to change.
    """
    from pneumoscope.training.loop import fit

    folder = _prepare(out, overwrite=overwrite, resume=resume)
    progress = Noted(progress)
    precision = plan.precision if plan.dims == "2d" else "auto"  # what `segment` takes, however it was trained
    lungs_for = own_lungs(device, precision)
    with out_of_memory_advice(plan):
        setup = set_up(plan, train, val, lungs_for, progress)
        go_on = _start(folder, plan, setup, resume)
        parts = Parts(list(train), list(val), list(test))
        parts.write(folder / "split.csv")
        if remark := parts.remark(plan):
            progress(NOTE, 1, 1, remark)
        config = train_config(
            plan,
            max_epochs=plan.epochs,
            schedule="cosine",
            monitor="val_dice",
            device=device,
            max_minutes=max_minutes,
        )
        progress("forecast", 1, 1, forecast_own(plan, setup, config, max_minutes))
        result = fit(setup.model, setup.task, setup.train, setup.val, config, folder, resume=go_on, progress=progress)
        card = save_own(folder, setup.model, setup.card, plan, result, setup.said, train)
        scores = score_own(folder, val, device, precision, lungs_for, progress)
        tested = score_own(folder, test, device, precision, lungs_for, progress, "test") if test else None
    chosen_on = write_scores(folder, card, scores, tested, result, progress.notes)
    return OwnResult(folder, scores, tested, chosen_on, result.epochs_run, result.stopped_by, result.seconds)


def _prepare(out: str | Path, *, overwrite: bool, resume: bool) -> Path:
    """Make the folder of a training; with `overwrite` what an earlier one left there is removed.

    Raises:
        InputError: it holds a training, and neither flag is given, or both.
    """
    if resume and overwrite:
        raise InputError("--resume keeps what is there and --overwrite removes it; give one of them", path=out)
    folder = Path(out)
    require_no_other_run(out, STARTED_FILE, "summary.json")
    for marker in (STARTED_FILE, CARD_FILE):
        folder = prepare_folder(out, marker=marker, overwrite=overwrite, resume=resume)
    if overwrite and holds_training(folder):
        for path in (*folder.glob("*.ckpt"), *(folder / name for name in OWN_FILES)):
            path.unlink(missing_ok=True)
        for fold in folder.glob("fold-*"):
            if (fold / STARTED_FILE).is_file() and not fold.is_symlink():
                shutil.rmtree(fold)
    return folder


def holds_training(folder: str | Path) -> bool:
    """Whether a folder holds more than a plan: a training that was started, a model, or folds."""
    return any((Path(folder) / name).exists() for name in (STARTED_FILE, CARD_FILE, "summary.json"))


def _start(folder: Path, plan: TrainingPlan, setup: Setup, resume: bool) -> bool:
    """Mark the folder as started with this plan and these data; whether a training in it continues.

    Raises:
        InputError: it was started with others; a training on data that changed is refused, never mixed.
    """
    start = read_card(find_model(plan.start))["weights"]["sha256"] if plan.start else None
    parts = {
        "plan": plan.shaping(),
        "training_data": setup.train.content,
        "validation_data": setup.val.content,
        "starting_weights": start,
    }
    return start_here(folder, "own training", parts, plan, resume)


def start_here(folder: Path, kind: str, parts: dict[str, Any], plan: TrainingPlan, resume: bool) -> bool:
    """Write plan and mark of a training; whether one of the same stamp continues.

    Raises:
        InputError: a resumed one was started with something else.
    """
    wanted = stamp(kind, revision=1, **parts)
    go_on = resume and is_started(folder, wanted)
    if resume and not go_on and (folder / STARTED_FILE).is_file():
        changed = ", ".join(what_changed(folder, **parts))
        raise InputError(
            f"{changed} changed since this training was started; restore what it was started with, or use --overwrite "
            "to start again",
            path=folder,
        )
    mark_started(folder, wanted, **parts)
    write_plan(plan, folder / PLAN_FILE)
    return go_on


@locks("out")
def crossval_own(
    cases: Sequence[Case], plan: OwnPlan | VolumePlan, out: str | Path, *, folds: int = 5, overwrite: bool = False,
    resume: bool = False, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """k trainings, each judged on the patients it has not seen; every scan is scored once.

    Folds are trained where `pneumoscope.jobs.machines` says; of a part of them no tables are written.

    The weights of a fold are chosen on the same scans it is judged by: with few epochs to choose from this flatters a
    little, and is said in `summary.json`.

    Returns:
        ``fold,case,patient,dice,reference_ml,predicted_ml``, as written to `per_case.csv`.

    Raises:
        DatasetError: fewer patients than folds.
    """
    folder = _prepare(out, overwrite=overwrite, resume=resume)
    dealt = group_folds(group_members(members_of(cases)), folds, plan.seed, validation=False)
    scans = [[case.dataset, case.case, case.patient] for case in cases]
    start_here(folder, "crossval", {"plan": plan.shaping(), "folds": folds, "scans": scans}, plan, resume)
    progress = options.pop("progress", silent)
    jobs = [
        Job(f"fold-{number}", {member.case for member in fold.test}, folder / f"fold-{number}", marked=False)
        for number, fold in part_of(list(enumerate(dealt, start=1)))
    ]
    opener = partial(_open_folds, list(cases), plan, options)
    outcomes = run_jobs(
        jobs, opener(1), lambda *_: None, opener=opener, side_by_side=current().jobs or 1, strict=True, what="folds",
        progress=progress,
    )  # fmt: skip
    rows = [{"fold": int(o.name.removeprefix("fold-")), **row} for o in outcomes for row in o.facts["scores"]]
    table = pd.DataFrame(rows)
    if current().part != (1, 1):
        return table
    write_frame(folder / "per_case.csv", table)
    write_json(
        folder / "summary.json",
        {
            "folds": folds,
            "scans": len(table),
            "mean_dice": float(table["dice"].mean()),
            "sd_dice": float(table["dice"].std(ddof=0)),
            "mean_dice_by_fold": table.groupby("fold")["dice"].mean().tolist(),
            "chosen_on": ON_FOLDS,
        },
    )
    return table


def _open_folds(cases: list[Case], plan: OwnPlan | VolumePlan, options: dict[str, Any], side_by_side: int) -> Step:
    """Trainings with the cases of a job's name held out; one that was killed continues."""
    if side_by_side > 1:
        import torch

        torch.set_num_threads(max(1, processors() // side_by_side))

    def fold(job: Job, progress: Progress) -> Outcome:
        train, val = [c for c in cases if c.case not in job.item], [c for c in cases if c.case in job.item]
        free = unwrap(train_own)  # the run holds the lock of the whole; one of another host could outlive its worker
        result = free(train, val, plan, job.folder, resume=True, progress=progress, **options)
        return Outcome(job.name, facts={"scores": result.scores.to_dict(orient="records")})

    return Step("fold", 1, work=fold)


OWN_FILES = (
    "model.safetensors", CARD_FILE, RUN_FILE, PLAN_FILE, STARTED_FILE, VALIDATION_FILE, TEST_FILE, "history.csv",
    "split.csv", "per_case.csv", "summary.json",
)  # fmt: skip
"""What a training or cross-validation writes beside checkpoints and folds."""

ON_FOLDS = "the epoch of each fold was chosen on the scans it is scored on, which flatters a little"
