"""An option exists once: a dataclass field with its help, from which command line, Python and `run.json` follow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from reprlib import repr as shortened
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pneumoscope.errors import InputError, InputTypeError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Rules:
    """What is known of an option beside its type and default."""

    help: str  # one or two sentences, for the command line and the reference
    metavar: str = ""  # what stands for the value in the help; made from the type where empty
    flags: tuple[str, ...] = ()  # names on the command line; made from the field's name where empty
    file: bool = False  # the value is a path of the user's machine; records hold its last part only
    # inclusive bounds of a number
    low: float | None = None
    high: float | None = None
    commas: bool = False  # a list may also be given as one value with commas
    # makes the value of a text of the command line, or of all texts of an option that is repeatable; raises InputError
    # or ValueError. None where the type says how.
    parse: Callable[[Any], Any] | None = None
    many: bool = False  # the option is repeatable, and `parse` gets a list
    ask: str = ""  # what is asked for on a terminal where a required value is not given


REQUIRED: Any = MISSING  # The default of an option that must be given


def option(default: Any, help_text: str, **rules: Any) -> Any:
    """A dataclass field that is an option; `rules` are fields of `Rules`. A class as default is called for it."""
    metadata = {"option": Rules(help_text, **rules)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def require_choices(options: Any, values: Mapping[str, Any] | None = None) -> None:
    """Refuse values that the `Literal` of a field does not name; of a class, those of `values`.

    Raises:
        InputError: the field, its value and the choices.
    """
    kind, given = (type(options), vars(options)) if values is None else (options, values)
    for name, hint in get_type_hints(kind).items():
        value = given.get(name)
        if name in given and get_origin(hint) is Literal and value not in get_args(hint):
            raise InputError(f"{name} is {value!r}, expected one of {', '.join(map(str, get_args(hint)))}")


def named(values: Sequence[str]) -> dict[str, str]:
    """``["a=1", "b=x=y"]`` as ``{"a": "1", "b": "x=y"}``.

    Raises:
        InputError: a value without a name or ``=``, or a name given twice.
    """
    result: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise InputError(f"{value!r} is not NAME=VALUE")
        if name in result:
            raise InputError(f"{name} is given twice")
        result[name] = rest
    return result


def sides(text: str) -> tuple[int, ...]:
    """``48x128x128`` or ``48,128,128`` as numbers.

    Raises:
        InputError: other than two or three positive whole numbers.
    """
    parts = text.strip().lower().replace(",", "x").split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{text!r} is no size; expected e.g. 320x320 or 80x160x160")
    return tuple(int(part) for part in parts)


def options_of(kind: Any) -> dict[str, tuple[Field[Any], Rules]]:
    """The options of a dataclass, or of an instance, by name in their order; other fields are left out."""
    return {f.name: (f, f.metadata["option"]) for f in fields(kind) if "option" in f.metadata}


def made_of(kind: type[Made], values: Mapping[str, Any]) -> Made:
    """An options dataclass from keyword arguments of the Python interface.

    Raises:
        InputTypeError: a name that is no field, or a value of a type that its field does not take.
    """
    shown = {item.name: item.type for item in fields(kind)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in shown]
    if unknown:
        raise InputTypeError(f"no option {', '.join(unknown)}; there are {', '.join(shown)}")
    types = get_type_hints(kind)
    for name, value in values.items():
        if not _takes(types[name], value):
            raise InputTypeError(f"{name} is {shortened(value)} of type {type(value).__name__}, expected {shown[name]}")
    return kind(**values)


def _takes(hint: Any, value: Any) -> bool:
    """Whether a value is of an option's type; what a path, a number or a list can be made of is taken as one."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_takes(one, value) for one in inner)
    if hint in _ALIKE:
        return isinstance(value, _ALIKE[hint])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        of = inner[0] if inner else Any
        listed = isinstance(value, Collection) and not isinstance(value, (str, bytes))
        return listed and all(_takes(of, one) for one in value)
    # a `Progress` is called; choices are looked at by the options themselves
    return callable(value) or "__call__" not in vars(hint)


_ALIKE: dict[Any, Any] = {str: str, Path: (str, PathLike), float: Real, int: Integral, NoneType: NoneType}


def recorded(options: Any) -> dict[str, Any]:
    """All fields as plain values for `run.json`; of paths the last part only: a record tells nothing of the machine."""
    files = {name for name, (_, rules) in options_of(options).items() if rules.file}
    values = {item.name: getattr(options, item.name) for item in fields(options)}
    return {name: _last_part(v) if name in files else v for name, v in values.items() if not callable(v)}


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
    if isinstance(path, Mapping):
        return {name: _last_part(one) for name, one in path.items()}
    if isinstance(path, Sequence) and not isinstance(path, str):
        names = [Path(one).name for one in path]
        return names[0] if len(names) == 1 else names
    return Path(path).name if path else path
