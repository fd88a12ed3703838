"""`pneumoscope train`, `finetune` and `crossval`: own scans in, a model for `segment` out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import number, progress_for, say, say_fields, say_json, say_table
from pneumoscope.progress import Progress

if TYPE_CHECKING:
    from pneumoscope.datasets.case import Case
    from pneumoscope.study.own_plan import OwnPlan

Data = Annotated[
    list[str],
    typer.Option("--data", metavar="CSV|NAME=ROOT", help="A manifest (case,image,lungs,infiltrate,patient), or a data "
                 "set's name and folder. May be repeated."),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="A plan to follow; none makes one.")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Print and write the plan, train nothing.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, metavar="N", help="At most so many epochs.")]
Patience = Annotated[int | None, typer.Option("--patience", min=1, metavar="N", help="Stop after N without gain.")]
Minutes = Annotated[float | None, typer.Option("--max-minutes", min=0, metavar="M", help="Stop after about so long.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, metavar="N", help="Slices a step.")]
Size = Annotated[int | None, typer.Option("--size", min=8, metavar="PX", help="Edge of the slices the network sees.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")]


def add_to(app: typer.Typer) -> None:
    """Hang the verbs into the command."""
    app.command("train")(train)
    app.command("finetune")(finetune)
    app.command("crossval")(crossval)


@common_options("device", "precision", "seed", "overwrite")
def train(
    data: Data, out: Out, common: Common, plan: PlanFile = None, plan_only: PlanOnly = False, epochs: Epochs = None,
    patience: Patience = None, max_minutes: Minutes = None, batch_size: BatchSize = None, size: Size = None,
    resume: Resume = False,
) -> None:  # fmt: skip
    """Train a model on your own scans.

    Makes a plan from the scans' sizes and this machine, says how long it will take, trains on most patients, and scores
    the model on the others. The folder is one that segment --model takes. Without --device it uses what is there.
    """
    wanted = {"epochs": epochs, "patience": patience, "batch_size": batch_size, "size": size}
    _train(data, out, common, plan, plan_only, max_minutes, resume, None, wanted)


@common_options("device", "precision", "seed", "overwrite")
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
    resume: Resume = False,
) -> None:
    """Go on training a model on your own scans.

    Its preprocessing is kept; the learning rate is a tenth of that of a new training.
    """
    wanted = {"epochs": epochs, "patience": patience, "batch_size": batch_size}
    _train(data, out, common, plan, plan_only, max_minutes, resume, start, wanted)


@common_options("device", "precision", "seed", "overwrite")
def crossval(
    data: Data, out: Out, common: Common,
    folds: Annotated[int, typer.Option("--folds", min=2, metavar="K", help="Parts the patients are dealt into.")] = 5,
    plan: PlanFile = None, plan_only: PlanOnly = False, epochs: Epochs = None, patience: Patience = None,
    max_minutes: Minutes = None, batch_size: BatchSize = None, size: Size = None, resume: Resume = False,
) -> None:  # fmt: skip
    """Train in folds and score every scan once.

    Each training leaves other patients out.

    --max-minutes is per fold. The folder holds a model per fold, per_case.csv and summary.json.
    """
    wanted = {"epochs": epochs, "patience": patience, "batch_size": batch_size, "size": size}
    cases, made = _plan(data, common, plan, None, wanted)
    if _only_the_plan(made, out, common, plan_only):
        return
    from pneumoscope.study.own_train import crossval_own

    with progress_for(common) as bars:
        table = crossval_own(
            cases, made, out, folds=folds, device=common.device, max_minutes=max_minutes, resume=resume,
            overwrite=common.overwrite, progress=_telling(bars, common),
        )  # fmt: skip
    if common.json:
        say_json({"folder": out, "per_case": table.to_dict(orient="records"), "mean_dice": float(table["dice"].mean())})
        return
    _say_scores(table.to_dict(orient="records"), ("fold", "case", "dice"))
    say(f"mean Dice over {len(table)} scans: {number(float(table['dice'].mean()))}")


def _train(
    data: Sequence[str], out: Path, common: Common, plan: Path | None, plan_only: bool, max_minutes: float | None,
    resume: bool, start: str | None, wanted: dict[str, Any],
) -> None:  # fmt: skip
    cases, made = _plan(data, common, plan, start, wanted)
    if _only_the_plan(made, out, common, plan_only):
        return
    from pneumoscope.study.own_train import split_patients, train_own

    parts = split_patients(cases, made.validation_share, made.seed)
    with progress_for(common) as bars:
        result = train_own(
            *parts, made, out, device=common.device, max_minutes=max_minutes, resume=resume,
            overwrite=common.overwrite, progress=_telling(bars, common),
        )  # fmt: skip
    rows = result.scores.to_dict(orient="records")
    if common.json:
        say_json({"folder": result.folder, "epochs": result.epochs, "stopped_by": result.stopped_by,
                  "plan": made.as_dict(), "validation": rows})  # fmt: skip
        return
    _say_scores(rows, ("case", "dice", "reference_ml", "predicted_ml"))
    say(f"model: {result.folder} ({result.epochs} epochs, stopped by {result.stopped_by})")
    say(f"use it: pneumoscope segment -i SCAN -o OUT --model {result.folder}")


def _plan(
    data: Sequence[str], common: Common, plan: Path | None, start: str | None, wanted: dict[str, Any]
) -> tuple[list[Case], OwnPlan]:
    """The cases and the plan: from a file, or made; what was given on the command line goes last."""
    from pneumoscope.study.own_data import read_own_cases
    from pneumoscope.study.own_plan import make_plan, read_plan
    from pneumoscope.study.own_train import with_values

    wanted = {**wanted, "seed": common.seed, "precision": None if common.precision == "auto" else common.precision}
    cases = read_own_cases(_roots(data))
    if plan is not None:
        return cases, with_values(read_plan(plan), **wanted)
    from pneumoscope.training.devices import pick_device

    return cases, make_plan(cases, device=pick_device(common.device).type, start=start, **wanted)


def _roots(data: Sequence[str]) -> dict[str, Path]:
    """``NAME=ROOT`` or a path to a manifest."""
    roots: dict[str, Path] = {}
    for value in data:
        name, equals, root = value.partition("=")
        name, root = (name, root) if equals and not Path(value).exists() else ("manifest", value)
        if name in roots:
            raise typer.BadParameter(f"{name} is given twice", param_hint="--data")
        roots[name] = Path(root)
    return roots


def _only_the_plan(plan: OwnPlan, out: Path, common: Common, only: bool) -> bool:
    """Show the plan; with `only` also write it, and train nothing."""
    if not only:
        if not common.quiet:
            shown = ", ".join(f"{k} {v}" for k, v in plan.as_dict().items() if k != "reasons" and v is not None)
            typer.echo(f"plan: {shown}", err=True)
        return False
    from pneumoscope.io.files import prepare_folder
    from pneumoscope.study.own_plan import write_plan

    folder = prepare_folder(out, marker="model.safetensors", overwrite=common.overwrite)
    write_plan(plan, folder / "plan.json")
    if common.json:
        say_json(plan.as_dict())
    else:
        say_fields(plan.as_dict())
        say(f"plan: {folder / 'plan.json'}")
    return True


def _telling(progress: Progress, common: Common) -> Progress:
    """The same progress, but what is to be expected stays on stderr, bar or no bar."""

    def advance(what: str, done: int, total: int, note: str = "") -> None:
        progress(what, done, total, note)
        if what == "forecast" and not common.quiet:
            typer.echo(f"forecast: {note}", err=True)

    return advance


def _say_scores(rows: Sequence[dict[Any, Any]], columns: Sequence[str]) -> None:
    def cell(value: Any) -> str:
        return number(value) if isinstance(value, float) else str(value)

    say_table([name.replace("_", " ") for name in columns], [[cell(row[name]) for name in columns] for row in rows])
