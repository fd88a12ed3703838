"""The options that mean the same in every verb, declared once.

A verb asks for the ones it honours, and gets them as one `Common`::

    @app.command("segment")
    @common_options("device", "precision", "overwrite")
    def segment(out: Path, common: Common) -> None: ...

``--json``, ``--quiet`` and ``--debug`` come with every verb.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from pneumoscope.experiments.sheet import MAX_SEED

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

    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int | None = None
    jobs: int = 1
    overwrite: bool = False
    resume: bool = False
    json: bool = False
    quiet: bool = False
    debug: bool = False


Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", metavar="T", help="Cut masks of probabilities at T (0.5; 127 for masks made from 0/255)."
    ),
]

_ANNOTATIONS: dict[str, Any] = {
    "device": Annotated[
        str,
        typer.Option(
            "--device", metavar="DEVICE", callback=_device, help="Where to compute: auto, cpu, cuda, cuda:N or mps."
        ),
    ],
    "precision": Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            callback=_precision,
            help="auto (bf16 where the hardware has it), fp32 or bf16.",
        ),
    ],
    "seed": Annotated[
        int | None, typer.Option("--seed", min=0, max=MAX_SEED, metavar="N", help="Seed of everything drawn at random.")
    ],
    "jobs": Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Cases worked on side by side.")],
    "overwrite": Annotated[
        bool, typer.Option("--overwrite", help="Write into an output folder that already holds a run.")
    ],
    "resume": Annotated[
        bool, typer.Option("--resume", help="Continue a run that was stopped; what is done and unchanged is kept.")
    ],
    "json": Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and library warnings.")],
}
ALWAYS = ("json", "quiet", "debug")


def new_group(help_text: str) -> typer.Typer:
    """A typer application without colours, completion and its own error printing."""
    return typer.Typer(help=help_text, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def common_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options `names` (and `ALWAYS`), gathered into its parameter ``common``."""
    wanted = [name for name in _ANNOTATIONS if name in names or name in ALWAYS]
    assert set(names) <= set(_ANNOTATIONS), names

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        def call(**values: Any) -> None:
            common = Common(**{name: values.pop(name) for name in wanted})
            verb(**values, common=common)

        signature = inspect.signature(verb, eval_str=True)
        own = [p.replace(kind=p.KEYWORD_ONLY) for name, p in signature.parameters.items() if name != "common"]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=getattr(Common, name), annotation=_ANNOTATIONS[name]
            )
            for name in wanted
        ]
        call.__name__, call.__doc__, call.__module__ = verb.__name__, verb.__doc__, verb.__module__
        call.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
        return call

    return decorate


def pairs(values: list[str], option: str) -> dict[str, str]:
    """``["a=1", "b=x=y"]`` as ``{"a": "1", "b": "x=y"}``; anything without a name and ``=`` is a usage error."""
    result: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise typer.BadParameter(f"{value!r} is not NAME=VALUE", param_hint=option)
        if name in result:
            raise typer.BadParameter(f"{name} is given twice", param_hint=option)
        result[name] = rest
    return result
