"""How help looks: options in groups, an example for each verb, the user's words for values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

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
