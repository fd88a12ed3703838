"""The options that mean the same in every verb, declared once.

A verb asks for the ones it honours, and gets them as one `Common`::

    @app.command("segment")
    @common_options("device", "precision", "overwrite")
    def segment(out: Path, common: Common) -> None: ...

``--json``, ``--quiet`` and ``--debug`` come with every verb. The options of one verb are fields of a dataclass
(`pneumoscope.options`); ``options=SegmentOptions`` gives them to the verb and passes one object of that class on.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from pneumoscope.errors import InputError
from pneumoscope.options import Rules, option, options_of
from pneumoscope.recipes.settings import MAX_SEED

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_PRECISIONS = ("auto", "fp32", "bf16")


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise typer.BadParameter(f"{value!r} is no device; expected auto, cpu, cuda, cuda:N or mps")
    return value


def _precision(value: str) -> str:
    if value not in _PRECISIONS:
        raise typer.BadParameter(f"{value!r} is no precision; expected {', '.join(_PRECISIONS)}")
    return value


@dataclass(frozen=True)
class Common:
    """Values of the common options; those that a verb did not ask for keep these defaults."""

    device: str = option("auto", "Where to compute: auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")
    devices: int = option(1, "Train one network on so many GPUs, or processes with --device cpu.", metavar="N", low=1)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "auto (bf16 where the hardware has it), fp32 or bf16.", metavar="PRECISION"
    )
    seed: int | None = option(None, "Seed of all random numbers.", metavar="N", low=0, high=MAX_SEED)
    jobs: int | None = option(None, "Cases or stages worked on side by side; with --on, workers.", metavar="N", low=1)
    on: str = option(
        "local",
        "Where to work: here, on a Dask cluster of this machine or one that runs, or on SLURM.",
        metavar="local|dask|dask://HOST:PORT|slurm",
    )
    cluster: Sequence[str] | None = option(
        None,
        "With --on slurm: settings (partition, memory, ...), from a TOML file or one by one; repeatable. "
        "Default: ~/.config/pneumoscope/cluster.toml.",
        metavar="FILE|NAME=VALUE",
    )
    part: str | None = option(None, "Every N-th case from the K-th; merge makes one run of all parts.", metavar="K/N")
    overwrite: bool = option(False, "Write into an output folder that already holds a run.")
    resume: bool = option(False, "Continue a run that was stopped; what is done and unchanged is kept.")
    json: bool = option(False, "Print the result as one JSON document.")
    quiet: bool = option(False, "No progress on stderr.", flags=("--quiet", "-q"))
    debug: bool = option(False, "Show the traceback of an error, and library warnings.")


_CHECKS = {"device": _device, "precision": _precision}  # Common options whose values are checked in our words
ALWAYS = ("json", "quiet", "debug")
WHERE = ("jobs", "on", "cluster", "part")  # Of verbs whose jobs can be done by other machines


def dataset_names() -> list[str]:
    """For completion: the names of `data list`."""
    from pneumoscope.datasets.registry import DATASETS

    return list(DATASETS)


def model_names() -> list[str]:
    """For completion: the names of `model list`."""
    from pneumoscope.models.cards import shipped_models

    return shipped_models()


DatasetName = Annotated[
    str, typer.Argument(metavar="NAME", help="A name of `pneumoscope data list`.", autocompletion=dataset_names)
]


def common_options(*names: str, options: type | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options `names` (and `ALWAYS`), gathered into its parameter ``common``.

    With `options`, a dataclass, its options too, gathered into the parameter ``options``; fields of it that are common
    options (a device, say) take their values from those.
    """
    shared = [p for p in _parameters_of(Common) if p.name in (*names, *ALWAYS)]
    wanted = [p.name for p in shared]
    assert set(names) <= set(wanted), names
    shared_fields = {f.name for f in fields(options)} & set(wanted) if options else set()
    parameters = [] if options is None else _parameters_of(options)

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        def call(**values: Any) -> None:
            common = Common(**{name: values.pop(name) for name in wanted})
            if common.devices > 1:
                common = replace(common, device=f"{common.device}*{common.devices}")
            if options is not None:
                own = {p.name: _passed_on(options, p.name, values.pop(p.name), common) for p in parameters}
                taken = {name: getattr(common, name) for name in shared_fields}
                values["options"] = options(**_given(own), **_given(taken))
            verb(**values, common=common)

        signature = inspect.signature(verb, eval_str=True)
        gathered = ("common", "options") if options else ("common",)
        own = [p.replace(kind=p.KEYWORD_ONLY) for name, p in signature.parameters.items() if name not in gathered]
        together = [*own, *parameters, *shared]
        call.__name__, call.__doc__, call.__module__ = verb.__name__, verb.__doc__, verb.__module__
        call.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in together}
        return call

    return decorate


def _parameters_of(kind: type) -> list[inspect.Parameter]:
    """The options of a dataclass as parameters that typer reads."""
    hints = get_type_hints(kind)
    result = []
    for name, (item, rules) in options_of(kind).items():
        checked = _CHECKS.get(name) if kind is Common else None
        annotation: Any = str if checked else _plain_type(hints[name], rules)
        choices = [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []
        required = item.default is MISSING and item.default_factory is MISSING
        default = None if rules.parse or item.default is MISSING else item.default
        default = (
            ([default] if isinstance(default, str) else list(default))
            if annotation == list[str] and default is not None
            else default
        )
        flags = rules.flags or (_flag(name, hints[name], default),)
        declared = typer.Option(
            *flags,
            metavar=rules.metavar or ("|".join(choices) if choices else None),
            help=rules.help,
            min=rules.low,
            max=rules.high,
            callback=checked,
            autocompletion=model_names if rules.metavar.startswith("NAME|DIR") else None,
        )
        must = required and not rules.ask
        kept: Any = Annotated[annotation if must or default is not None else Optional[annotation], declared]  # noqa: UP045
        shown = inspect.Parameter.empty if must else default
        result.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=kept))
    return result


def _flag(name: str, hint: Any, default: Any) -> str:
    """``--name``; a switch that is on, or undecided, by default can be turned off."""
    flag = f"--{name.replace('_', '-')}"
    is_switch = hint is bool or (get_origin(hint) in (Union, UnionType) and bool in get_args(hint))
    return f"{flag}/--no-{flag[2:]}" if is_switch and default is not False else flag


def _plain_type(hint: Any, rules: Rules) -> Any:
    """A type that typer knows for the annotation of a field."""
    if rules.parse:
        return list[str] if rules.many else str
    parts = [hint]
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not NoneType]
    if any(get_origin(part) in (list, Sequence) or ... in get_args(part) for part in parts):
        return list[str]
    if Path in parts:
        return Path if rules.file and not rules.metavar.startswith("NAME") else str
    return parts[0]


def _passed_on(kind: type, name: str, value: Any, common: Common) -> Any:
    """A value from the command line as the field takes it: parsed, lists as tuples, or their one item if the default
    is one. None leaves the default."""
    item, rules = options_of(kind)[name]
    flag = (rules.flags or (_flag(name, None, item.default),))[0]
    if rules.ask and not value:
        value = _asked(rules, flag, common)
    if rules.parse:
        try:
            return rules.parse(value) if value else None
        except (InputError, ValueError) as problem:
            raise typer.BadParameter(str(problem), param_hint=flag) from None
    if not isinstance(value, list):
        return value
    parts = [part.strip() for one in value for part in one.split(",")] if rules.commas else value
    unique = tuple(dict.fromkeys(parts)) if rules.commas else tuple(parts)
    return unique[0] if isinstance(item.default, str) and len(unique) == 1 else unique


def _asked(rules: Rules, flag: str, common: Common) -> Any:
    """A required value that was not given, from a person at a terminal."""
    if common.json or common.quiet or not sys.stdin.isatty():
        raise typer.BadParameter(f"is needed: {rules.ask}", param_hint=flag)
    answer = str(typer.prompt(rules.ask))
    return answer.split() if rules.many else answer


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without what was not given, which keeps its default."""
    return {name: value for name, value in values.items() if value is not None}


GROUPS: Mapping[str, tuple[str, ...]] = {
    "Input": (
        "scans", "more_scans", "images", "more_images", "series", "lungs", "lobes", "infiltrate", "threshold",
        "intensity", "data", "synthetic", "prediction", "reference", "structure", "label", "labels", "links",
        "also", "others", "splits_file",
    ),
    "Output": (
        "out", "save", "fast", "deidentify", "probability", "uncertainty", "series_key", "heatmaps", "fix",
        "repair", "no_repair", "format", "to", "overwrite", "resume", "json", "quiet", "debug",
    ),
    "Models": (
        "model", "models", "predictions", "trained_on", "lungs_model", "trust", "mirror", "method", "start", "plan",
        "plan_only", "dims", "patch",
    ),
    "Settings": (),
    "Computing": (
        "device", "devices", "precision", "engine", "jobs", "on", "cluster", "part", "seed", "max_minutes",
        "batch_size",
    ),
    "Help": ("help", "version", "install_completion", "show_completion"),
}  # fmt: skip
"""Options by their parameters' names; arguments are input, and what is named nowhere is a setting."""

VERBS: Mapping[str, tuple[str, ...]] = {
    "Scans": ("segment", "quantify", "compare", "evaluate", "view"),
    "Datasets and studies": ("data", "study", "train", "finetune", "crossval", "demo"),
    "X-rays and models": ("xray", "model"),
    "This machine and others": ("doctor", "cache", "cluster", "merge", "version"),
}

EXAMPLES: Mapping[str, str] = {
    "demo": "demo --out demo",
    "version": "version --json",
    "segment": "segment -i scans/ -o results --jobs 2 --resume",
    "quantify": "quantify -i scan.nii.gz --lungs lungs.nii.gz --infiltrate lesions.nii.gz -o results",
    "compare": "compare results/march results/april -o change",
    "evaluate": "evaluate -i results -r reference_masks/ -o scores",
    "view": "view results --browser",
    "doctor": "doctor",
    "train": "train --data cases.csv -o model --dims 2d --test-share 0.2",
    "finetune": "finetune --data cases.csv --from infiltrate -o model",
    "crossval": "crossval --data cases.csv --folds 5 -o folds",
    "data list": "data list",
    "data info": "data info mosmed",
    "data phantom": "data phantom -o site_a --site A --patients 4",
    "data check": "data check mosmed COVID19_1110/",
    "data audit": "data audit manifest cases.csv -o audit --fix cleaned",
    "data split": "data split covid19ctseg covid19/ -o folds --folds 5",
    "data convert": "data convert mosmed COVID19_1110/ -o Dataset001_Mosmed --to nnunet",
    "model describe": "model describe lesion.onnx --patch 48x128x128 --window -1000:400 --label 0=bg --label 1=lesion",
    "study list": "study list",
    "study show": "study show maganaris-2022b",
    "study run": "study run maganaris-2022b -o run --data medseg=medseg/ --data mosmed=COVID19_1110/",
    "study compare": "study compare run_1 run_2 -o comparison",
    "study report": "study report run",
    "study score": "study score out --data mosmed=COVID19_1110/ --model ours=infiltrate --predictions lab=masks/",
    "xray predict": "xray predict -i xrays/ -o predictions",
    "model list": "model list",
    "model info": "model info infiltrate",
    "model verify": "model verify",
    "model export": "model export infiltrate --to onnx -o infiltrate-onnx",
    "merge": "merge results results/part-*",
    "cluster check": "cluster check --cluster partition=gpu --cluster gpus=1",
    "cache show": "cache show",
    "cache clear": "cache clear",
}


class Verb(TyperCommand):
    """A command whose options stand in `GROUPS` and whose help ends with an example."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What must be given, then what may be."""
        return [*usage_of(self), "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the groups that have an entry."""
        for name, rows in grouped(self, ctx).items():
            with formatter.section(name):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example, unwrapped, to be copied."""
        words = EXAMPLES.get(ctx.command_path.removeprefix("pneumoscope "))
        if words:
            with formatter.section("Example"):
                formatter.write(f"  pneumoscope {words}\n")


class VerbGroup(TyperGroup):
    """A command of commands; those of the program itself stand in `VERBS`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        commands = {name: self.commands[name] for name in self.list_commands(ctx)}
        sections = VERBS if ctx.parent is None else {"Commands": tuple(commands)}
        for title, names in sections.items():
            with formatter.section(title):
                formatter.write_dl([(n, commands[n].get_short_help_str(200)) for n in names if n in commands])
        for name, rows in grouped(self, ctx).items():
            with formatter.section(name):
                formatter.write_dl(rows)


def usage_of(command: Any) -> list[str]:
    """Required options and all arguments of a command, as its usage line has them."""
    pieces = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            words = parameter.metavar + " ..." * (parameter.nargs != 1)
            pieces.append(words if parameter.required else f"[{words}]")
        elif parameter.required:
            pieces.append(f"{parameter.opts[-1]} {parameter.metavar}")
    return pieces


def grouped(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Names and help of a command's parameters by group, in the order of `GROUPS`."""
    rows: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        is_argument = parameter.param_type_name == "argument"
        words = f"{parameter.metavar}{' ...' * (parameter.nargs != 1)}" if is_argument else record[0]
        rest = "Input" if is_argument else "Settings"
        group = next((name for name, names in GROUPS.items() if parameter.name in names), rest)
        rows[group].append((words, _RANGE.sub(_in_words, record[1])))
    return {name: entries for name, entries in rows.items() if entries}


_RANGE = re.compile(r"(?:(?P<low>[\d.]+)<=)?x(?:>=(?P<least>[\d.]+)|<=(?P<high>[\d.]+))")


def _in_words(bounds: re.Match[str]) -> str:
    """``0<=x<=8`` as ``0 to 8``, ``x>=1`` as ``at least 1``."""
    low = bounds["low"] or bounds["least"]
    return f"{low} to {bounds['high']}" if bounds["high"] and low else f"at least {low}" if low else bounds[0]


class Verbs(typer.Typer):
    """A typer application whose commands are of the classes above."""

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """As typer's own."""
        return super().command(name, cls=Verb, **settings)


def new_group(help_text: str, *, completion: bool = False) -> Verbs:
    """An application, or a group of it, without colours and typer's own printing of errors."""
    return Verbs(
        cls=VerbGroup,
        help=help_text,
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
