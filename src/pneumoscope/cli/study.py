"""`pneumoscope study` (the papers' experiments), `demo`, and `train`, `finetune` and `crossval` on own scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.options import WHERE, Common, common_options, new_group
from pneumoscope.cli.output import interval, number, progress_for, remark, say, say_json, say_result, say_table
from pneumoscope.recipes.registry import ALL_RECIPES, build_any
from pneumoscope.recipes.settings import describe
from pneumoscope.study.options import (
    CrossvalOptions,
    FinetuneOptions,
    PlanOptions,
    RecipeOptions,
    ScoreOptions,
    StudyOptions,
    TrainOptions,
)

if TYPE_CHECKING:
    from pneumoscope.datasets.case import Case
    from pneumoscope.plans.plan import OwnPlan
    from pneumoscope.plans.plan3d import VolumePlan
    from pneumoscope.study.base import StudyResult

group = new_group("Transfer studies: the papers' experiments.")

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A name of `pneumoscope study list`.", autocompletion=lambda: list(ALL_RECIPES)
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.add_typer(group, name="study")
    for verb in (demo, train, finetune, crossval):
        app.command(verb.__name__)(verb)


@group.command("list")
@common_options()
def list_recipes(common: Common) -> None:
    """List the recipes."""
    rows = [{"name": recipe.name, "summary": recipe.summary} for recipe in ALL_RECIPES.values()]
    if common.json:
        say_json(rows)
    else:
        say_table(("recipe", "summary"), [list(row.values()) for row in rows])


@group.command("show")
@common_options("precision", "seed", options=RecipeOptions)
def show(recipe: RecipeName, common: Common, options: RecipeOptions) -> None:
    """Show every number of a recipe with its source.

    Each line is a key that `study run --set KEY=VALUE` takes, its value and unit, and where it comes from: the paper's
    section or table, or our choice where the paper is silent. Misprints of the paper, and how each is read, follow.
    """
    experiment = build_any(recipe, options.settings, seed=options.seed, precision=options.precision)
    rows, about = describe(experiment), {"citation": experiment.citation, "notes": list(experiment.notes)}
    if common.json:
        say_json({"recipe": recipe, "summary": ALL_RECIPES[recipe].summary, **about, "values": rows})
    else:
        say(f"{recipe}: {ALL_RECIPES[recipe].summary}")
        say(experiment.citation)
        say_table(
            ("key", "value", "unit", "source"), [(r["key"], _shown(r["value"]), r["unit"], r["source"]) for r in rows]
        )
        for note in experiment.notes:
            say(f"note: {note}")


@group.command("run")
@common_options(
    "device", "devices", "precision", "seed", "jobs", "on", "cluster", "overwrite", "resume", options=StudyOptions
)
def run(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The study folder to write.")],
    common: Common,
    options: StudyOptions,
) -> None:
    """Run a recipe and report on it.

    Trains the stages one after the other and scores each on every test set. A killed run continues where it was with
    --resume. The study folder holds matrix.csv (one row per stage and test set, with the paper's values),
    forgetting.csv, per_case.csv, the models, the curves and report.html.
    """
    from pneumoscope.study.engine import run_study

    with progress_for(common) as progress:
        result = run_study(recipe, out, **{**vars(options), "progress": progress})
    print_study(result, common)
    result.require_accepted()


@group.command("report")
@common_options()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="A study folder.")], common: Common) -> None:
    """Render a study's report again from what is on disk."""
    from pneumoscope.study.report import write_report

    page = write_report(folder)
    say_result(common, {"report": page}, f"report: {page}")


def print_study(result: StudyResult, common: Common) -> None:
    """The table that matters most, what was left out, and the page to open."""
    if common.json:
        say_json(result.as_dict())
        return
    columns, rows = result.shown
    say_table(columns, [[number(value) if isinstance(value, float) else value for value in row] for row in rows])
    for line in result.left_out:
        say(f"left out: {line}")
    if result.case_folder:
        say(f"case: {result.case_folder / 'report.html'}")
    say(f"report: {result.report}")


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    return "none" if value is None else str(value)


@group.command("score")
@common_options("device", "overwrite", "resume", options=ScoreOptions)
def score(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The study folder to write.")],
    common: Common,
    options: ScoreOptions,
) -> None:
    """Score models and masks as they are on many test sets.

    A transfer matrix without training: matrix.csv with a row per model and set, per_case.csv, calibration where there
    are probabilities, and report.html.
    """
    from pneumoscope.study.engine import score_study

    with progress_for(common) as progress:
        result = score_study(out, **{**vars(options), "progress": progress})
    print_study(result, common)
    result.require_accepted()


@group.command("compare")
@common_options("overwrite")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Study folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.")],
    common: Common,
) -> None:
    """Compare study runs of one kind.

    Transfer studies by gain on the new set and loss on the old: runs of one strategy with other seeds are one line, and
    intervals draw patients and seeds. Studies on volumes and radiographs cell by cell, with the difference to the first
    run on the cases that both have. Writes comparison.csv, comparison.json and report.html.
    """
    from pneumoscope.study.report import compare_studies

    result = compare_studies(runs, out, overwrite=common.overwrite)
    if common.json:
        say_json({**result, "report": out / "report.html"})
        return
    columns, line = (RETRAINING, _retraining) if "sets" in result else (CELLS, _cell)
    say_table(columns, [line(row) for row in result["rows"]])
    say(result["sentence"])
    say(f"report: {out / 'report.html'}")


RETRAINING = ("strategy", "sets", "runs", "gain", "loss", "mean f1", "95 % interval")
CELLS = ("run", "stage", "test", "structure", "measure", "mean", "95 % interval", "less the first", "95 % interval")


def _retraining(row: dict[str, Any]) -> tuple[Any, ...]:
    ends = interval(row["mean_f1_low"], row["mean_f1_high"])
    return row["strategy"], row["sets"], row["runs"], *(number(row[n]) for n in ("gain", "loss", "mean_f1")), ends


def _cell(row: dict[str, Any]) -> tuple[Any, ...]:
    means = number(row["mean"]), interval(row["mean_low"], row["mean_high"])
    gap = number(row["difference"]), interval(row["difference_low"], row["difference_high"])
    return *(row[name] for name in ("run", "stage", "test", "structure", "metric")), *means, *gap


@common_options("device", "precision", "seed", "overwrite", "resume")
def demo(
    common: Common,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")] = Path("demo"),
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            metavar="N",
            help="Stages trained side by side. By default two on a CPU of two cores or more, one on a GPU.",
        ),
    ] = None,
) -> None:
    """Run the transfer study on synthetic data: nothing needed.

    Makes three synthetic sites, trains and retrains across them as the lead paper does, segments one case, and ends by
    naming the report to open.
    """
    from pneumoscope.study.engine import run_demo

    with progress_for(common) as progress:
        result = run_demo(
            out, device=common.device, precision=common.precision, seed=common.seed, jobs=jobs,
            overwrite=common.overwrite, resume=common.resume, progress=progress,
        )  # fmt: skip
    print_study(result, common)


Data = Annotated[
    list[str],
    typer.Option("--data", metavar="CSV|NAME=ROOT", help="A manifest (case,image,lungs,infiltrate,patient), or a "
                 "dataset's name and folder. May be repeated."),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")]

ENDED = {"max_epochs": "all that were planned", "patience": "stopped without further gain",
         "max_minutes": "stopped by --max-minutes; continue with --resume"}  # fmt: skip


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
