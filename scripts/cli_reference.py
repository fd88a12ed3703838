"""The command line's reference page, made from the commands themselves: ``python scripts/cli_reference.py FILE``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import typer

from pneumoscope.cli.app import app
from pneumoscope.cli.options import EXAMPLES, usage_of
from pneumoscope.io.files import write_text

HEAD = """# The command line

Made by `make docs` from the commands themselves; do not edit.

Exit codes: 0 done; 1 something failed while running (in a batch: any case, the others are still written); 2 the call
or the input is unusable; 130 interrupted. Errors are one line on stderr that begins with `error: `; `--debug` adds the
traceback. Results go to stdout, with `--json` as one JSON document. Progress goes to stderr: a bar on a
terminal, else a line a minute; `--quiet` leaves it out. Nothing is fetched from or sent to anywhere.
"""


def commands() -> list[tuple[str, Any]]:
    """Every verb with its full name, e.g. ``data list``, in the order of the help."""
    return list(_below(typer.main.get_command(app), ""))


def _below(command: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from _below(child, f"{prefix}{name} ")
        else:
            yield prefix + name, child


def cli_reference() -> str:
    """The page as Markdown; the same commands give the same text on every machine."""
    return "\n".join([HEAD, *(_section(name, command) for name, command in commands())])


def _section(name: str, command: Any) -> str:
    parameters = [p for p in command.params if p.name != "help"]
    usage = " ".join(["pneumoscope", name, *usage_of(command)])
    example = f"Example: `pneumoscope {EXAMPLES[name]}`"
    lines = [f"## pneumoscope {name}", "", f"`{usage}`", "", inspect.cleandoc(command.help or ""), "", example, ""]
    lines += ["| argument or option | meaning |", "|---|---|"]
    lines += [f"| {_names(p)} | {' '.join(_meaning(p))} |" for p in parameters]
    return "\n".join([*lines, ""])


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or "")


def _names(parameter: Any) -> str:
    """The words of a call as code; a bar in it is an entity, as Markdown dialects differ on one within a table."""
    options = "" if _is_argument(parameter) else ", ".join(parameter.opts)
    return f"<code>{f'{options} {_metavar(parameter)}'.strip().replace('|', '&#124;')}</code>"


def _meaning(parameter: Any) -> Iterator[str]:
    if parameter.required:
        yield "Required."
    yield " ".join((parameter.help or "").split()).replace("|", "\\|")
    value = parameter.default
    if not parameter.required and value not in (None, False, "", [], ()):
        yield f"Default: `{', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}`."


if __name__ == "__main__":
    write_text(sys.argv[1], cli_reference())
