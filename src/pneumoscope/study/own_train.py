"""Train, fine-tune and cross-validate on a user's own scans: from cases to a model folder that `segment` takes.

Patients are kept whole in every split. What is reported of a model is what `segment` gives on the held-out scans, on
their own grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pneumoscope.datasets.case import Case
from pneumoscope.datasets.folds import group_folds
from pneumoscope.datasets.groups import group_members, members_of
from pneumoscope.errors import InputError
from pneumoscope.io.files import prepare_folder, write_json, write_text
from pneumoscope.jobs.lock import locks
from pneumoscope.progress import Progress, silent
from pneumoscope.study.folder import fingerprint
from pneumoscope.study.own_common import TrainingPlan
from pneumoscope.study.own_data import own_lungs
from pneumoscope.study.own_forecast import forecast_own, out_of_memory_advice
from pneumoscope.study.own_plan import OwnPlan, write_plan
from pneumoscope.study.own_plan3d import VolumePlan
from pneumoscope.study.own_score import save_own, score_own, write_scores
from pneumoscope.study.own_setup import Setup, set_up
from pneumoscope.study.own_split import Parts
from pneumoscope.study.stages import BEGUN_FILE, is_marked


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
        resume: go on with the training in `out`, which must be the same.
        overwrite: begin anew over the model in `out`.
        progress: told about every part; ``forecast`` once before training.

    Raises:
        InputError: data that teach nothing, or a folder that holds another model.
        RunError: memory ran out; the message says what to change.
    """
    from pneumoscope.training.loop import fit

    folder = prepare_folder(out, marker=BEGUN_FILE, overwrite=overwrite, resume=resume)
    precision = plan.precision if plan.dims == "2d" else "auto"  # what `segment` takes, however it was trained
    lungs_for = own_lungs(device, precision)
    with out_of_memory_advice(plan):
        setup = set_up(plan, train, val, lungs_for, progress)
        go_on = _begin(folder, plan, setup, resume)
        Parts(list(train), list(val), list(test)).write(folder / "split.csv")
        config = _train_config(plan, device, max_minutes)
        progress("forecast", 1, 1, forecast_own(plan, setup, config, max_minutes))
        result = fit(setup.model, setup.task, setup.train, setup.val, config, folder, resume=go_on, progress=progress)
        card = save_own(folder, setup.model, setup.card, plan, result, setup.said, train)
        scores = score_own(folder, val, device, precision, lungs_for, progress)
        tested = score_own(folder, test, device, precision, lungs_for, progress, "test") if test else None
    chosen_on = write_scores(folder, card, scores, tested, result)
    return OwnResult(folder, scores, tested, chosen_on, result.epochs_run, result.stopped_by, result.seconds)


def _begin(folder: Path, plan: TrainingPlan, setup: Setup, resume: bool) -> bool:
    """Mark the folder as begun with this plan and these data; whether a training in it goes on.

    Raises:
        InputError: it was begun with others.
    """
    sources = [setup.train.fingerprint(), setup.val.fingerprint()]
    identity = fingerprint({**plan.shaping(), "data": sources})
    go_on = resume and is_marked(folder / BEGUN_FILE, identity)
    if resume and not go_on and (folder / BEGUN_FILE).is_file():
        raise InputError("was begun with another plan or other data; use --overwrite to begin anew", path=folder)
    if not go_on:
        for path in (*folder.glob("*.ckpt"), folder / "history.csv"):
            path.unlink(missing_ok=True)
    write_json(folder / BEGUN_FILE, {"identity": identity})
    write_plan(plan, folder / "plan.json")
    return go_on


def _train_config(plan: TrainingPlan, device: str, max_minutes: float | None) -> Any:
    from pneumoscope.training.config import TrainConfig

    return TrainConfig(
        max_epochs=plan.epochs,
        batch_size=plan.batch_size,
        learning_rate=plan.learning_rate,
        schedule="cosine",
        patience=plan.patience,
        monitor="val_dice",
        seed=plan.seed,
        device=device,
        precision=plan.precision,  # type: ignore[arg-type]
        max_minutes=max_minutes,
    )


@locks("out")
def crossval_own(
    cases: Sequence[Case], plan: OwnPlan | VolumePlan, out: str | Path, *, folds: int = 5, overwrite: bool = False,
    resume: bool = False, **options: Any,
) -> pd.DataFrame:  # fmt: skip
    """k trainings, each judged on the patients it has not seen; every scan is scored once.

    The weights of a fold are chosen on the same scans it is judged by: with few epochs to choose from this flatters a
    little, and is said in `summary.json`.

    Returns:
        ``fold,case,patient,dice,reference_ml,predicted_ml``, as written to `per_case.csv`.

    Raises:
        DatasetError: fewer patients than folds.
    """
    folder = prepare_folder(out, marker="plan.json", overwrite=overwrite, resume=resume)
    dealt = group_folds(group_members(members_of(cases)), folds, plan.seed, validation=False)
    write_plan(plan, folder / "plan.json")
    parts = []
    for number, fold in enumerate(dealt, start=1):
        held = {member.case for member in fold.test}
        train, val = [c for c in cases if c.case not in held], [c for c in cases if c.case in held]
        result = train_own(train, val, plan, folder / f"fold-{number}", overwrite=overwrite, resume=resume, **options)
        parts.append(result.scores.assign(fold=number))
    table = pd.concat(parts, ignore_index=True)
    table = table[["fold", *[name for name in table.columns if name != "fold"]]]
    write_text(folder / "per_case.csv", table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
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


ON_FOLDS = "the epoch of each fold was chosen on the scans it is scored on, which flatters a little"
