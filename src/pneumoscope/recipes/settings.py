"""Settings: frozen groups of values, checked when built, every value with its source and unit.

A value that a paper states is given with its place, one that it leaves open with our reason: ``our_choice(0, "any")``.
Variants are made with `revise`, which asks for the reason again. Bounds and units stand in the fields. Every value is
reached by its dotted key, such as ``stages.retrain.max_epochs``, ``data.sites.1.dataset`` or
``stages.chain.Tr1_R_2.start``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

from pneumoscope.errors import InputError

OUR_CHOICE = "our choice: "
"""How the source of a value begins that no paper states."""

MAX_SEED = 2**32 - 1
"""Largest seed of all generators that are used."""

NO_DEFAULT: Any = object()

T = TypeVar("T")


@dataclass(frozen=True)
class _Sourced:
    value: Any
    source: str


def sourced(value: T, source: str) -> T:
    """The value of a setting with its source, to be handed to the class that has the setting."""
    return cast("T", _Sourced(value, source))


def our_choice(value: T, why: str) -> T:
    """`sourced` for a value that no paper states."""
    return sourced(value, OUR_CHOICE + why)


@dataclass(frozen=True)
class Paper:
    """`sourced` for the values that one paper states: ``paper(320, "section 3.1")``."""

    name: str

    def __call__(self, value: T, where: str) -> T:
        """The value with the paper's name and the place in it."""
        return sourced(value, f"{self.name}, {where}")


def setting(
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
    rules = {"unit": unit, "low": low, "high": high, "choices": choices, "why": why}
    return field(metadata=rules) if default is NO_DEFAULT else field(default=default, metadata=rules)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings.

    Raises:
        InputError: a value without a source, a source without a value, or a value out of bounds.
    """

    # for each setting the place its value comes from; those of `sourced` values are taken from there
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = {f.name: f.metadata for f in setting_fields(self)}
        sources = {**{name: rule["why"] for name, rule in rules.items() if rule["why"]}, **self.sources}
        for name in rules:
            value = getattr(self, name)
            if isinstance(value, _Sourced):
                object.__setattr__(self, name, value.value)
                sources[name] = value.source
        unsourced = [name for name in rules if not sources.get(name, "").strip()]
        unknown = [name for name in sources if name not in rules]
        if unsourced or unknown:
            raise InputError(
                f"{type(self).__name__}: every value needs a source; without one: {unsourced}, unknown: {unknown}"
            )
        object.__setattr__(self, "sources", {name: sources[name] for name in rules})
        for name, rule in rules.items():
            _check_bounds(f"{type(self).__name__}.{name}", getattr(self, name), rule)


SettingsT = TypeVar("SettingsT", bound=Settings)


def setting_fields(group: Settings | type[Settings]) -> list[Any]:
    """The dataclass fields that hold values (neither groups of settings nor `sources`)."""
    return [f for f in fields(group) if "unit" in f.metadata]


def _check_bounds(key: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Refuse a value outside the bounds or choices of its field; None is always allowed through."""
    if isinstance(value, tuple):
        for item in value:
            _check_bounds(key, item, rules)
        return
    if rules["choices"] and value is not None and value not in rules["choices"]:
        raise InputError(f"{key} = {value!r}; expected one of {', '.join(rules['choices'])}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = rules["low"], rules["high"]
    if value != value or (low is not None and value < low) or (high is not None and value > high):
        wanted = f"from {low}" if high is None else f"up to {high}" if low is None else f"from {low} to {high}"
        raise InputError(f"{key} = {value!r} is out of bounds; expected {wanted}")


def all_from(source: str, kind: type[SettingsT], /, **values: Any) -> SettingsT:
    """Settings of class `kind` with one source for every value that has none of its own."""
    names = {f.name for f in setting_fields(kind)}
    plain = {n: sourced(v, source) for n, v in values.items() if n in names and not isinstance(v, _Sourced)}
    return kind(**{**values, **plain})


def revise(group: SettingsT, why: str, /, **values: Any) -> SettingsT:
    """The same group with some values replaced; `why` becomes their source."""
    return replace(group, **{name: sourced(value, why) for name, value in values.items()})


class Value(NamedTuple):
    """One setting of an experiment: its dotted key, the group that holds it, and its field there."""

    key: str
    group: Settings
    field: Any

    @property
    def value(self) -> Any:
        """What it is set to."""
        return getattr(self.group, self.field.name)


def all_values(group: Settings, prefix: str = "") -> Iterator[Value]:
    """Every setting in `group` and the groups inside it, in their order."""
    for item in fields(group):
        value, key = getattr(group, item.name), prefix + item.name
        if "unit" in item.metadata:
            yield Value(key, group, item)
        for name, part in groups_in(value).items():
            yield from all_values(part, f"{key}.{name}." if name else f"{key}.")


def groups_in(value: Any) -> dict[str, Settings]:
    """The groups of settings that a field holds: one without a name, or those of a tuple by their number or name."""
    if isinstance(value, Settings):
        return {"": value}
    if isinstance(value, tuple) and value and all(is_dataclass(part) for part in value):
        return {str(getattr(part, "number", None) or getattr(part, "name", "")): part for part in value}
    return {}


@dataclass(frozen=True)
class Recipe:
    """An entry of `pneumoscope study list`."""

    name: str  # what the user types
    summary: str  # one line
    build: Callable[[], Any]  # makes the experiment
