"""An option exists once: a dataclass field with its help, from which command line, Python and `run.json` follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pneumoscope.errors import InputTypeError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Rules:
    """What is known of an option beside its type and default.

    Attributes:
        help: one or two sentences, for the command line and the reference.
        metavar: what stands for the value in the help; made from the type where empty.
        flags: names on the command line; made from the field's name where empty.
        file: the value is a path of the user's machine; records hold its last part only.
        low, high: inclusive bounds of a number.
        commas: a list may also be given as one value with commas.
    """

    help: str
    metavar: str = ""
    flags: tuple[str, ...] = ()
    file: bool = False
    low: float | None = None
    high: float | None = None
    commas: bool = False


def option(default: Any, help_text: str, **rules: Any) -> Any:
    """A dataclass field that is an option; `rules` are fields of `Rules`."""
    return field(default=default, metadata={"option": Rules(help_text, **rules)})


def options_of(kind: Any) -> dict[str, tuple[Field[Any], Rules]]:
    """The options of a dataclass, or of an instance, by name in their order; other fields are left out."""
    return {f.name: (f, f.metadata["option"]) for f in fields(kind) if "option" in f.metadata}


def made_of(kind: type[Made], values: Mapping[str, Any]) -> Made:
    """An options dataclass from keyword arguments of the Python interface.

    Raises:
        InputTypeError: a name that is no field.
    """
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in values if name not in names]
    if unknown:
        raise InputTypeError(f"no option {', '.join(unknown)}; there are {', '.join(names)}")
    return kind(**values)


def recorded(options: Any) -> dict[str, Any]:
    """All fields as plain values for `run.json`; of paths the last part only: a record tells nothing of the machine."""
    files = {name for name, (_, rules) in options_of(options).items() if rules.file}
    values = {item.name: getattr(options, item.name) for item in fields(options)}
    return {name: _last_part(value) if name in files else value for name, value in values.items()}


def without_files(options: Any) -> dict[str, Any]:
    """All fields but those that name files: what shapes a result beside the content of these."""
    known = options_of(options)
    return {
        item.name: getattr(options, item.name)
        for item in fields(options)
        if item.name not in known or not known[item.name][1].file
    }


def _last_part(path: Any) -> Any:
    """The name of a file or of each of several; a list of one is that one."""
    if isinstance(path, Sequence) and not isinstance(path, str):
        names = [Path(one).name for one in path]
        return names[0] if len(names) == 1 else names
    return Path(path).name if path else path
