"""A sheet of settings: frozen, checked when built, every value with its source and unit.

A `Sheet` cannot be built with a value that has no source: the paper and its section, or ``our choice: why`` where the
paper is silent. Variants are made with `revise`, which asks for the reason again. Bounds and units stand in the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from pneumoscope.errors import InputError

OUR_CHOICE = "our choice: "
"""How the source of a value begins that no paper states."""


MAX_SEED = 2**32 - 1
"""Largest seed of all generators that are used."""

NO_DEFAULT: Any = object()


def leaf(
    unit: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    default: Any = NO_DEFAULT,
    why: str = "",
) -> Any:
    """A field that holds a value with a source; `low` and `high` are inclusive bounds (of each element of a tuple).

    A field with a `default` carries the reason of it in `why`: recipes that have nothing to say about it need not.
    """
    rules = {"leaf": True, "unit": unit, "low": low, "high": high, "choices": choices, "why": why}
    return field(metadata=rules) if default is NO_DEFAULT else field(default=default, metadata=rules)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A group of settings.

    Attributes:
        sources: for each leaf field of the sheet the place its value comes from.

    Raises:
        InputError: a leaf without a source, a source without a leaf, or a value out of bounds.
    """

    sources: Mapping[str, str]

    def __post_init__(self) -> None:
        leaves = {f.name: f for f in leaf_fields(self)}
        untouched = {name: f.metadata["why"] for name, f in leaves.items() if f.metadata["why"]}
        object.__setattr__(self, "sources", {**untouched, **self.sources})
        unsourced = [name for name in leaves if not self.sources.get(name, "").strip()]
        strangers = [name for name in self.sources if name not in leaves]
        if unsourced or strangers:
            raise InputError(
                f"{type(self).__name__}: every value needs a source; without one: {unsourced}, unknown: {strangers}"
            )
        for name, item in leaves.items():
            check_bounds(f"{type(self).__name__}.{name}", getattr(self, name), item.metadata)


SheetT = TypeVar("SheetT", bound=Sheet)


def leaf_fields(sheet: Sheet | type[Sheet]) -> list[Any]:
    """The dataclass fields of a sheet that hold values (not sub-sheets, not `sources`)."""
    return [f for f in fields(sheet) if f.metadata.get("leaf")]


def check_bounds(key: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Refuse a value outside the bounds or choices of its field; None is always allowed through."""
    if isinstance(value, tuple):
        for item in value:
            check_bounds(key, item, rules)
        return
    if rules["choices"] and value is not None and value not in rules["choices"]:
        raise InputError(f"{key} = {value!r}; expected one of {', '.join(rules['choices'])}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = rules["low"], rules["high"]
    if value != value or (low is not None and value < low) or (high is not None and value > high):
        wanted = f"from {low}" if high is None else f"up to {high}" if low is None else f"from {low} to {high}"
        raise InputError(f"{key} = {value!r} is out of bounds; expected {wanted}")


def revise(sheet: SheetT, why: str, /, **values: Any) -> SheetT:
    """The same sheet with some values replaced; `why` becomes their source."""
    return replace(sheet, sources={**sheet.sources, **dict.fromkeys(values, why)}, **values)


Kind = Literal["sheet", "table", "leaf", "plain"]


def children(sheet: Sheet) -> Iterator[tuple[str, Kind, Any, Mapping[str, Any]]]:
    """The parts of a sheet in order: (key, kind, value, field rules). Items of a table are keyed by number or name."""
    for item in fields(sheet):
        value = getattr(sheet, item.name)
        if item.name == "sources":
            continue
        if item.metadata.get("leaf"):
            yield item.name, "leaf", value, item.metadata
        elif isinstance(value, Sheet):
            yield item.name, "sheet", value, {}
        elif isinstance(value, tuple) and value and all(is_dataclass(part) for part in value):
            yield item.name, "table", {table_key(part): part for part in value}, {}
        else:
            yield item.name, "plain", value, {}


def table_key(sheet: Sheet) -> str:
    """How a sheet in a table is addressed: its number, or its name."""
    return str(getattr(sheet, "number", None) or getattr(sheet, "name", ""))


@dataclass(frozen=True)
class Recipe:
    """An entry of `pneumoscope study list`.

    Attributes:
        name: what the user types.
        summary: one line.
        build: makes the experiment.
    """

    name: str
    summary: str
    build: Callable[[], Any]
