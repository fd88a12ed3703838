"""`pneumoscope study`: the papers' experiments, shown with their sources, run, reported, compared; and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pneumoscope.cli.help import new_group
from pneumoscope.cli.options import Common, common_options
from pneumoscope.cli.output import interval, number, progress_for, say, say_json, say_table
from pneumoscope.recipes.registry import ALL_RECIPES, build_any
from pneumoscope.recipes.settings import describe
from pneumoscope.study.options import RecipeOptions, ScoreOptions, StudyOptions

if TYPE_CHECKING:
    from pneumoscope.study.base import StudyResult

group = new_group("Transfer studies: the papers' experiments.")

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A name of `pneumoscope study list`.", autocompletion=lambda: list(ALL_RECIPES)
    ),
]


def add_to(app: typer.Typer) -> None:
    """Register the command group."""
    app.add_typer(group, name="study")
    app.command("demo")(demo)


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
    if common.json:
        say_json({"report": page})
    else:
        say(f"report: {page}")


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
            help="Stages trained side by side; two on processors, one on a GPU.",
        ),
    ] = None,
) -> None:
    """Run the transfer study on synthetic data: nothing needed.

    Makes three synthetic sites, trains and retrains across them as the lead paper does, segments one case, and ends by
    naming the report to open.
    """
    from pneumoscope.study.demo import run_demo

    with progress_for(common) as progress:
        result = run_demo(
            out, device=common.device, precision=common.precision, seed=common.seed, jobs=jobs,
            overwrite=common.overwrite, resume=common.resume, progress=progress,
        )  # fmt: skip
    print_study(result, common)
