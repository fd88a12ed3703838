"""Experiments as text: list every value with its source, change some of them, write and read them as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from pneumoscope.errors import InputError
from pneumoscope.recipes.settings import Settings, SettingsT, all_values, groups_in, sourced

USER_CHOICE = "set by the user"
"""The source of a value changed with `--set`."""


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
