"""`pneumoscope train`, `finetune` and `crossval`: own scans in, a model for `segment` out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.options import WHERE, Common, common_options
from pneumoscope.cli.output import number, progress_for, remark, say, say_json, say_table
from pneumoscope.plans.options import CrossvalOptions, FinetuneOptions, PlanOptions, TrainOptions

if TYPE_CHECKING:
    from pneumoscope.datasets.case import Case
    from pneumoscope.plans.plan import OwnPlan
    from pneumoscope.plans.plan3d import VolumePlan

Data = Annotated[
    list[str],
    typer.Option("--data", metavar="CSV|NAME=ROOT", help="A manifest (case,image,lungs,infiltrate,patient), or a "
                 "dataset's name and folder. May be repeated."),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")]

ENDED = {"max_epochs": "all that were planned", "patience": "stopped without further gain",
         "max_minutes": "stopped by --max-minutes; continue with --resume"}  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("train")(train)
    app.command("finetune")(finetune)
    app.command("crossval")(crossval)


@common_options("device", "devices", "precision", "seed", "overwrite", "resume", options=TrainOptions)
def train(data: Data, out: Out, common: Common, options: TrainOptions) -> None:
    """Train a model on your own scans.

    Makes a plan from the scans' sizes and this machine, says how long it will take, trains on most patients, and scores
    the model on the others. The folder is one that segment --model takes. Without --device it uses what is there.
    """
    _train(data, out, common, options)


@common_options("device", "devices", "precision", "seed", "overwrite", "resume", options=FinetuneOptions)
def finetune(data: Data, out: Out, common: Common, options: FinetuneOptions) -> None:
    """Fine-tune a model on your own scans.

    Its preprocessing is kept; the learning rate is a tenth of that of a new training. A model on volumes is one that
    train --dims 3d made.
    """
    _train(data, out, common, options)


@common_options("device", "devices", "precision", "seed", *WHERE, "overwrite", "resume", options=CrossvalOptions)
def crossval(data: Data, out: Out, common: Common, options: CrossvalOptions) -> None:
    """Train in folds and score every scan once.

    Each training leaves other patients out.

    --max-minutes is per fold. The folder holds a model per fold, per_case.csv and summary.json.
    """
    cases, made = _plan(data, out, common, options)
    if _only_the_plan(made, out, common, options.plan_only):
        return
    from pneumoscope.plans.train import ON_FOLDS, crossval_own

    with progress_for(common) as bars:
        table = crossval_own(
            cases, made, out, folds=options.folds, device=common.device, max_minutes=options.max_minutes,
            resume=common.resume, overwrite=common.overwrite, progress=bars,
        )  # fmt: skip
    rows, mean = table.to_dict(orient="records"), float(table["dice"].mean())
    if common.json:
        say_json({"folder": out, "per_case": rows, "mean_dice": mean, "chosen_on": ON_FOLDS})
        return
    _say_scores(rows, ("fold", "case", "dice"))
    say(f"mean Dice over {len(table)} scans: {number(mean)} ({ON_FOLDS})")


def _train(data: Sequence[str], out: Path, common: Common, options: PlanOptions) -> None:
    cases, made = _plan(data, out, common, options)
    if _only_the_plan(made, out, common, options.plan_only):
        return
    from pneumoscope.plans.data import split_by_plan
    from pneumoscope.plans.train import train_own

    parts = split_by_plan(cases, made)
    with progress_for(common) as bars:
        result = train_own(
            parts.train, parts.val, made, out, test=parts.test, device=common.device, max_minutes=options.max_minutes,
            resume=common.resume, overwrite=common.overwrite, progress=bars,
        )  # fmt: skip
    rows = result.scores.to_dict(orient="records")
    tested = None if result.test is None else result.test.to_dict(orient="records")
    if common.json:
        say_json({"folder": result.folder, "epochs": result.epochs, "stopped_by": result.stopped_by,
                  "plan": made.as_dict(), "validation": rows, "test": tested,
                  "chosen_on": result.chosen_on})  # fmt: skip
        return
    _say_scores(tested or rows, ("case", "dice", "reference_ml", "predicted_ml"))
    say(f"{'test' if tested else 'validation'}: {result.chosen_on}")
    epochs = f"{result.epochs} epoch{'s' * (result.epochs != 1)}"
    say(f"model: {result.folder} ({epochs}, {ENDED.get(result.stopped_by, result.stopped_by)})")
    say(f"use it: pneumoscope segment -i SCAN -o OUT --model {result.folder}")


def _plan(
    data: Sequence[str], out: Path, common: Common, options: PlanOptions
) -> tuple[list[Case], OwnPlan | VolumePlan]:
    from pneumoscope.plans.data import plan_for

    shared: dict[str, Any] = {
        "seed": common.seed,
        "precision": None if common.precision == "auto" else common.precision,
    }
    return plan_for(data, out, device=common.device, overwrite=common.overwrite, **options.values(), **shared)


def _only_the_plan(plan: OwnPlan | VolumePlan, out: Path, common: Common, only: bool) -> bool:
    """Show the plan with its reasons; with `only` also write it where no training lies, and train nothing."""
    lines = [f"{name} {_plain(value)}" + (f" ({plan.reasons[name]})" if name in plan.reasons else "")
             for name, value in plan.as_dict().items() if name != "reasons" and value is not None]  # fmt: skip
    if not only:
        if not common.quiet:
            remark("plan:\n  " + "\n  ".join(lines))
        return False
    if not common.resume:
        _write_plan_alone(plan, out, common)
    if common.json:
        say_json(plan.as_dict())
    else:
        for line in lines:
            say(line)
        say(f"plan: {out / 'plan.json'}")
    return True


def _write_plan_alone(plan: OwnPlan | VolumePlan, out: Path, common: Common) -> None:
    from pneumoscope.errors import InputError
    from pneumoscope.io.files import prepare_folder
    from pneumoscope.jobs.lock import locked
    from pneumoscope.plans.plan import PLAN_FILE, write_plan
    from pneumoscope.plans.train import MARKERS

    if any((out / name).exists() for name in MARKERS):
        raise InputError("holds a training, whose plan stays as it is; give --plan-only another folder", path=out)
    with locked(out):
        write_plan(plan, prepare_folder(out, marker=PLAN_FILE, overwrite=common.overwrite) / PLAN_FILE)


def _plain(value: Any) -> str:
    """A value of a plan in one word: ``48x64x64``, ``2.0, 2.0, 3.5``."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(part) for part in value) if value else "none"
    return str(value)


def _say_scores(rows: Sequence[dict[Any, Any]], columns: Sequence[str]) -> None:
    def cell(value: Any) -> str:
        return number(value) if isinstance(value, float) else str(value)

    say_table([name.replace("_", " ") for name in columns], [[cell(row[name]) for name in columns] for row in rows])
