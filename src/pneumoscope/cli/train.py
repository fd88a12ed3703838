"""`pneumoscope train`, `finetune` and `crossval`: own scans in, a model for `segment` out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.options import WHERE, Common, common_options
from pneumoscope.cli.output import number, progress_for, remark, say, say_json, say_table

if TYPE_CHECKING:
    from pneumoscope.datasets.case import Case
    from pneumoscope.plans.plan import OwnPlan
    from pneumoscope.plans.plan3d import VolumePlan


class Dims(StrEnum):
    """What the network looks at."""

    AUTO = "auto"
    SLICES = "2d"
    VOLUMES = "3d"


def _box(value: str | None) -> tuple[int, int, int] | None:
    """``SLICESxROWSxCOLUMNS`` as three numbers."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)[x,](\d+)[x,](\d+)", value.strip().lower())
    if found is None:
        raise typer.BadParameter(f"{value!r} is no box; expected SLICESxROWSxCOLUMNS, e.g. 48x64x64")
    slices, rows, columns = (int(number) for number in found.groups())
    return slices, rows, columns


Data = Annotated[
    list[str],
    typer.Option("--data", metavar="CSV|NAME=ROOT", help="A manifest (case,image,lungs,infiltrate,patient), or a data "
                 "set's name and folder. May be repeated."),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="A plan to follow; without one that of the folder, or a new one."),
]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Print and write the plan, train nothing.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, metavar="N", help="At most so many epochs.")]
Patience = Annotated[int | None, typer.Option("--patience", min=1, metavar="N", help="Stop after N without gain.")]
Minutes = Annotated[float | None, typer.Option("--max-minutes", min=0, metavar="M", help="Stop after about so long.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, metavar="N", help="Slices, or boxes, a step.")]
Size = Annotated[
    int | None, typer.Option("--size", min=8, metavar="PX", help="2d: edge of the slices the network sees.")
]
Patch = Annotated[
    str | None,
    typer.Option("--patch", metavar="SLICESxROWSxCOLUMNS", help="3d: voxels of the box it sees."),
]  # fmt: skip
DimsOption = Annotated[
    Dims,
    typer.Option("--dims", metavar="auto|2d|3d", help="A network on slices or on volumes. auto: slices, unless there "
                 "is a graphics card and the scans are thin and deep; the plan says why."),
]  # fmt: skip
TestShare = Annotated[
    float | None,
    typer.Option("--test-share", min=0, max=0.5, metavar="SHARE", help="Keep this share of the patients apart, score "
                 "them once at the end, and choose nothing on them."),
]  # fmt: skip
Resume = Annotated[bool, typer.Option("--resume", help="Resume a training that was stopped, with its own plan.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("train")(train)
    app.command("finetune")(finetune)
    app.command("crossval")(crossval)


@common_options("device", "devices", "precision", "seed", "overwrite")
def train(
    data: Data, out: Out, common: Common, dims: DimsOption = Dims.AUTO, plan: PlanFile = None,
    plan_only: PlanOnly = False, epochs: Epochs = None, patience: Patience = None, max_minutes: Minutes = None,
    batch_size: BatchSize = None, size: Size = None, patch: Patch = None, test_share: TestShare = None,
    resume: Resume = False,
) -> None:  # fmt: skip
    """Train a model on your own scans.

    Makes a plan from the scans' sizes and this machine, says how long it will take, trains on most patients, and scores
    the model on the others. The folder is one that segment --model takes. Without --device it uses what is there.
    """
    wanted = {"epochs": epochs, "patience": patience, "batch_size": batch_size, "size": size, "patch": _box(patch),
              "test_share": test_share}  # fmt: skip
    _train(data, out, common, plan, plan_only, max_minutes, resume, {"dims": dims.value}, wanted)


@common_options("device", "devices", "precision", "seed", "overwrite")
def finetune(
    data: Data,
    out: Out,
    common: Common,
    start: Annotated[
        str, typer.Option("--from", metavar="MODEL", help="A shipped model's name or a model folder to start from.")
    ] = "infiltrate",
    plan: PlanFile = None,
    plan_only: PlanOnly = False,
    epochs: Epochs = None,
    patience: Patience = None,
    max_minutes: Minutes = None,
    batch_size: BatchSize = None,
    patch: Patch = None,
    test_share: TestShare = None,
    resume: Resume = False,
) -> None:
    """Fine-tune a model on your own scans.

    Its preprocessing is kept; the learning rate is a tenth of that of a new training. A model on volumes is one that
    train --dims 3d made.
    """
    wanted = {"epochs": epochs, "patience": patience, "batch_size": batch_size, "patch": _box(patch),
              "test_share": test_share}  # fmt: skip
    _train(data, out, common, plan, plan_only, max_minutes, resume, {"start": start}, wanted)


@common_options("device", "devices", "precision", "seed", *WHERE, "overwrite")
def crossval(
    data: Data, out: Out, common: Common,
    folds: Annotated[int, typer.Option("--folds", min=2, metavar="K", help="Parts the patients are dealt into.")] = 5,
    dims: DimsOption = Dims.AUTO, plan: PlanFile = None, plan_only: PlanOnly = False, epochs: Epochs = None,
    patience: Patience = None, max_minutes: Minutes = None, batch_size: BatchSize = None, size: Size = None,
    patch: Patch = None, resume: Resume = False,
) -> None:  # fmt: skip
    """Train in folds and score every scan once.

    Each training leaves other patients out.

    --max-minutes is per fold. The folder holds a model per fold, per_case.csv and summary.json.
    """
    wanted = {"epochs": epochs, "patience": patience, "batch_size": batch_size, "size": size, "patch": _box(patch)}
    cases, made = _plan(data, out, common, plan, {"dims": dims.value}, wanted)
    if _only_the_plan(made, out, common, plan_only, resume):
        return
    from pneumoscope.plans.train import ON_FOLDS, crossval_own

    with progress_for(common) as bars:
        table = crossval_own(
            cases, made, out, folds=folds, device=common.device, max_minutes=max_minutes, resume=resume,
            overwrite=common.overwrite, progress=bars,
        )  # fmt: skip
    if common.json:
        say_json({"folder": out, "per_case": table.to_dict(orient="records"), "mean_dice": float(table["dice"].mean()),
                  "chosen_on": ON_FOLDS})  # fmt: skip
        return
    _say_scores(table.to_dict(orient="records"), ("fold", "case", "dice"))
    say(f"mean Dice over {len(table)} scans: {number(float(table['dice'].mean()))} ({ON_FOLDS})")


def _train(
    data: Sequence[str], out: Path, common: Common, plan: Path | None, plan_only: bool, max_minutes: float | None,
    resume: bool, kind: dict[str, Any], wanted: dict[str, Any],
) -> None:  # fmt: skip
    cases, made = _plan(data, out, common, plan, kind, wanted)
    if _only_the_plan(made, out, common, plan_only, resume):
        return
    from pneumoscope.plans.data import split_by_plan
    from pneumoscope.plans.train import train_own

    parts = split_by_plan(cases, made)
    with progress_for(common) as bars:
        result = train_own(
            parts.train, parts.val, made, out, test=parts.test, device=common.device, max_minutes=max_minutes,
            resume=resume, overwrite=common.overwrite, progress=bars,
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
    say(f"model: {result.folder} ({result.epochs} epochs, stopped by {result.stopped_by})")
    say(f"use it: pneumoscope segment -i SCAN -o OUT --model {result.folder}")


def _plan(
    data: Sequence[str], out: Path, common: Common, plan: Path | None, kind: dict[str, Any], wanted: dict[str, Any]
) -> tuple[list[Case], OwnPlan | VolumePlan]:
    from pneumoscope.plans.data import plan_for

    wanted = {**wanted, "seed": common.seed, "precision": None if common.precision == "auto" else common.precision}
    return plan_for(data, out, plan=plan, device=common.device, overwrite=common.overwrite, **kind, **wanted)


def _only_the_plan(plan: OwnPlan | VolumePlan, out: Path, common: Common, only: bool, resume: bool) -> bool:
    """Show the plan with its reasons; with `only` also write it where no training lies, and train nothing."""
    lines = [f"{name} {_plain(value)}" + (f" ({plan.reasons[name]})" if name in plan.reasons else "")
             for name, value in plan.as_dict().items() if name != "reasons" and value is not None]  # fmt: skip
    if not only:
        if not common.quiet:
            remark("plan:\n  " + "\n  ".join(lines))
        return False
    if not resume:
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
    from pneumoscope.plans.train import holds_training

    if holds_training(out):
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
