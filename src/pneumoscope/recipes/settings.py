"""Settings: frozen groups of values, checked when built, every value with its source and unit; `--set` and JSON.

A value that a paper states is given with its place, one that it leaves open with our reason: ``our_choice(0, "any")``.
Variants are made with `revise`, which asks for the reason again. Bounds and units stand in the fields. Every value is
reached by its dotted key, such as ``stages.retrain.max_epochs``, ``data.sites.1.dataset`` or
``stages.chain.Tr1_R_2.start``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from pneumoscope.errors import InputError

OUR_CHOICE = "our choice: "  # How the source of a value begins that no paper states
MAX_SEED = 2**32 - 1  # Largest seed of all generators that are used

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


USER_CHOICE = "set by the user"  # The source of a value changed with `--set`


def describe(experiment: Settings) -> list[dict[str, Any]]:
    """Every value of the experiment: ``key, value, unit, source``, in the order of the settings."""
    return [
        {"key": v.key, "value": v.value, "unit": v.field.metadata["unit"], "source": v.group.sources[v.field.name]}
        for v in all_values(experiment)
    ]


def with_overrides(experiment: SettingsT, overrides: Iterable[str]) -> SettingsT:
    """The experiment with values replaced, e.g. ``["stages.retrain.max_epochs=10", "network.features=8,16,32"]``.

    Values are read by the field's type: whole numbers, numbers, true/false, text, none where a field may be empty,
    lists as ``8,16,32`` or JSON. The result is checked like any other experiment once all are in place.

    Raises:
        InputError: not ``key=value``, no such key (with the nearest ones), or a value of another type or out of bounds.
    """
    values: dict[str, Any] = {}
    later: list[str] = []
    known = {value.key: value for value in all_values(experiment)}
    overrides = list(overrides)
    changes_systems = any(text.partition("=")[0].strip().endswith(".system") for text in overrides)
    for text in overrides:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--set {text!r} is not key=value, e.g. stages.retrain.max_epochs=10")
        if key not in known and changes_systems and key.startswith("systems."):
            later.append(text)  # the values of a system are there once a stage names it
            continue
        if key not in known:
            raise InputError(f"--set {key}: no such value{_near(key, known)}")
        kind = get_type_hints(type(known[key].group))[known[key].field.name]
        values[key] = _parse(raw.strip(), kind, key)
    changed: SettingsT = _rebuild(experiment, values, "") if values else experiment
    return with_overrides(changed, later) if later else changed


def configured(
    experiment: SettingsT, settings: Iterable[str] = (), *, seed: int | None = None, precision: str = "auto"
) -> SettingsT:
    """The experiment with one seed for everything random and a precision for its trainings, then `settings` on top.

    Raises:
        InputError: as `with_overrides`.
    """
    keys = [value.key for value in all_values(experiment)] if seed is not None else []
    seeds = [f"{key}={seed}" for key in keys if key.rsplit(".", 1)[-1].endswith("seed")]
    precisions = [] if precision == "auto" else [f"training.precision={precision}"]
    return with_overrides(experiment, [*seeds, *precisions, *settings])


def from_json(kind: type[SettingsT], data: Any) -> SettingsT:
    """Read an experiment of class `kind` from what `dataclasses.asdict` gave; a value it lacks has its default.

    Raises:
        InputError: entries are missing, unknown or of another type.
    """
    try:
        experiment = msgspec.convert(data, kind)
    except msgspec.ValidationError as problem:
        expected, _, path = str(problem).rstrip("`").partition(" - at `$")
        value: Any = data
        for name, place in re.findall(r"\.(\w+)|\[(\d+)\]", path):
            value = value[name or int(place)]
        got = "" if isinstance(value, dict) else f" = {value!r}"
        problem_with = f"experiment{path}{got}: {expected.partition(', got')[0]}"
        raise InputError(f"{problem_with}; made by another version?") from problem
    unknown = next(_unknown(data, experiment, "experiment"), None)
    if unknown:
        raise InputError(f"{unknown}: no such entry in this version")
    return experiment


def _unknown(data: Any, read: Any, where: str) -> Iterator[str]:
    """The keys in `data` that the settings read from it do not have."""
    if isinstance(read, Settings):
        names = {f.name for f in fields(read)}
        for name, value in data.items():
            yield from _unknown(value, getattr(read, name), f"{where}.{name}") if name in names else [f"{where}.{name}"]
    elif isinstance(read, tuple):
        for place, (value, part) in enumerate(zip(data, read, strict=False)):
            yield from _unknown(value, part, f"{where}.{place}")


def differences(old: Settings, new: Settings) -> list[str]:
    """What differs between two experiments, as ``key: old -> new`` lines; sources are not compared."""
    a, b = ({v.key: v.value for v in all_values(e)} for e in (old, new))
    return [
        f"{key}: {_shown(a.get(key, 'absent'))} -> {_shown(b.get(key, 'absent'))}"
        for key in dict.fromkeys([*a, *b])
        if a.get(key, "absent") != b.get(key, "absent")
    ]


def _parse(raw: str, kind: Any, key: str) -> Any:
    """Text to a value of the annotated type `kind`."""
    kinds = [k for k in get_args(kind) if k is not NoneType] if get_origin(kind) in (Union, UnionType) else [kind]
    if kinds != [kind] and raw.lower() in ("none", "null", ""):
        return None
    value: Any = raw
    try:
        if get_origin(kinds[0]) is tuple:
            value = json.loads(raw) if raw.startswith("[") else [part.strip() for part in raw.split(",")]
            if get_origin(get_args(kinds[0])[0]) is tuple and not isinstance(value[0], list):
                value = [value]  # one pair without the outer brackets
        elif kinds[0] is bool:
            value = {"yes": "true", "no": "false"}.get(raw.lower(), raw)
        if value in ("", [], [""]):
            raise ValueError
        return msgspec.convert(value, kinds[0], strict=False)
    except (ValueError, LookupError) as problem:
        raise InputError(f"--set {key}={raw}: expected {_kind_name(kind)}") from problem


def _kind_name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("none" if a is NoneType else _kind_name(a) for a in arguments)
    if origin is tuple:
        inner = "[low, high] pairs" if get_origin(arguments[0]) is tuple else _kind_name(arguments[0])[2:] + "s"
        return f"a list of {inner}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def _rebuild(group: Any, values: dict[str, Any], prefix: str) -> Any:
    """`group` with the values whose dotted keys begin with `prefix`; each group is built once, whole."""
    changed: dict[str, Any] = {}
    for item in fields(group):
        value, key = getattr(group, item.name), prefix + item.name
        if key in values:
            changed[item.name] = sourced(values[key], f"{USER_CHOICE}; before: {group.sources[item.name]}")
        elif any(k.startswith(key + ".") for k in values):
            parts = {n: _rebuild(p, values, f"{key}.{n}." if n else f"{key}.") for n, p in groups_in(value).items()}
            changed[item.name] = parts[""] if "" in parts else tuple(parts.values())
    return replace(group, **changed) if changed else group


def _near(key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(key, names, n=3, cutoff=0.6)
    last = key.rsplit(".", 1)[-1]
    near += [name for name in names if name.rsplit(".", 1)[-1] == last and name not in near][: 3 - len(near)]
    return f"; did you mean {', '.join(near)}?" if near else "; `pneumoscope study show RECIPE` lists all"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
