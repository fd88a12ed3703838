"""Reach every value of an experiment by its dotted key: list it with its source, change it, write and read it as JSON.

Keys follow the sheets: ``stages.retrain.max_epochs``, ``preprocessing.windows_hu``, ``data.sites.1.dataset``,
``stages.chain.Tr1_R_2.start``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pneumoscope.errors import InputError
from pneumoscope.recipes.schema import Experiment
from pneumoscope.recipes.settings import Sheet, SheetT, children, leaf_fields

USER_CHOICE = "set by the user"
"""The source of a value changed with `--set`."""

_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def describe(experiment: Sheet) -> list[dict[str, Any]]:
    """Every value of the experiment: ``key, value, unit, source``, in the order of the sheets."""
    return [
        {"key": key, "value": getattr(sheet, name), "unit": rules["unit"], "source": sheet.sources[name]}
        for key, sheet, name, rules in _leaves(experiment)
    ]


def with_overrides(experiment: SheetT, overrides: Iterable[str]) -> SheetT:
    """The experiment with values replaced, e.g. ``["stages.retrain.max_epochs=10", "network.features=8,16,32"]``.

    Values are read by the field's type: whole numbers, numbers, true/false, text, none where a field may be empty,
    lists as ``8,16,32`` or JSON. The result is checked like any other experiment once all are in place.

    Raises:
        InputError: not ``key=value``, no such key (with the nearest ones), or a value of another type or out of bounds.
    """
    values: dict[str, Any] = {}
    later: list[str] = []
    known = {key: (sheet, name) for key, sheet, name, _ in _leaves(experiment)}
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
        sheet, name = known[key]
        values[key] = parse_value(raw.strip(), get_type_hints(type(sheet))[name], key)
    changed: SheetT = _rebuild(experiment, values, "") if values else experiment
    return with_overrides(changed, later) if later else changed


def configured(
    experiment: SheetT, settings: Iterable[str] = (), *, seed: int | None = None, precision: str = "auto"
) -> SheetT:
    """The experiment with one seed for everything random and a precision for its trainings, then `settings` on top.

    Raises:
        InputError: as `with_overrides`.
    """
    keys = [row["key"] for row in describe(experiment)] if seed is not None else []
    seeds = [f"{key}={seed}" for key in keys if key.rsplit(".", 1)[-1].endswith("seed")]
    precisions = [] if precision == "auto" else [f"training.precision={precision}"]
    return with_overrides(experiment, [*seeds, *precisions, *settings])


def to_json(experiment: Sheet) -> dict[str, Any]:
    """The experiment as plain JSON values; `from_json` gives an equal one back."""
    plain: dict[str, Any] = _plain(experiment)
    return plain


def from_json(data: dict[str, Any]) -> Experiment:
    """Read what `to_json` wrote.

    Raises:
        InputError: entries are missing, unknown or of another type.
    """
    return sheet_from_json(Experiment, data)


def sheet_from_json(kind: type[SheetT], data: dict[str, Any]) -> SheetT:
    """`from_json` for an experiment of another kind."""
    found: SheetT = _sheet_from(kind, data, "experiment")
    return found


def differences(old: Sheet, new: Sheet) -> list[str]:
    """What differs between two experiments, as ``key: old -> new`` lines; sources are not compared."""
    a, b = ({row["key"]: row["value"] for row in describe(e)} for e in (old, new))
    return [
        f"{key}: {_shown(a.get(key, 'absent'))} -> {_shown(b.get(key, 'absent'))}"
        for key in dict.fromkeys([*a, *b])
        if a.get(key, "absent") != b.get(key, "absent")
    ]


def parse_value(raw: str, kind: Any, key: str) -> Any:
    """Text to a value of the annotated type `kind`; InputError names what was expected."""
    try:
        return _parse(raw, kind)
    except (ValueError, TypeError, KeyError) as problem:
        raise InputError(f"--set {key}={raw}: expected {_kind_name(kind)}") from problem


def _parse(raw: Any, kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if raw is None or (isinstance(raw, str) and raw.lower() in ("none", "null", "")):
            return None
        return _parse(raw, next(a for a in arguments if a is not NoneType))
    if origin is tuple:
        return _parse_tuple(raw, arguments)
    if kind is str:
        return _parse_text(raw)
    if kind is bool:
        return _TRUTH[str(raw).lower()]
    if isinstance(raw, bool):
        raise ValueError
    if kind is int:
        return raw if isinstance(raw, int) else int(str(raw))
    return float(raw)


def _parse_text(raw: Any) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError
    return raw


def _parse_tuple(raw: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(raw, str):
        text = raw.strip()
        raw = json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",")]
        if raw and isinstance(raw[0], (int, float)) and get_origin(arguments[0]) is tuple:
            raw = [raw]  # one window without the outer brackets
    if not isinstance(raw, list) or not raw:
        raise ValueError
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_parse(part, arguments[0]) for part in raw)
    return tuple(_parse(part, kind) for part, kind in zip(raw, arguments, strict=True))


def _kind_name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("none" if a is NoneType else _kind_name(a) for a in arguments)
    if origin is tuple:
        inner = "[low, high] pairs" if get_origin(arguments[0]) is tuple else _kind_name(arguments[0])[2:] + "s"
        return f"a list of {inner}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, str(kind))


def _leaves(sheet: Sheet, prefix: str = "") -> Iterator[tuple[str, Sheet, str, Any]]:
    """Every leaf below `sheet`: (dotted key, the sheet that holds it, field name, field rules)."""
    for name, kind, value, rules in children(sheet):
        if kind == "leaf":
            yield prefix + name, sheet, name, rules
        elif kind == "sheet":
            yield from _leaves(value, f"{prefix}{name}.")
        elif kind == "table":
            for key, part in value.items():
                yield from _leaves(part, f"{prefix}{name}.{key}.")


def _rebuild(sheet: Any, values: dict[str, Any], prefix: str) -> Any:
    """`sheet` with the values whose dotted keys begin with `prefix`; each sheet is built once, whole."""
    changed: dict[str, Any] = {}
    new_leaves: dict[str, Any] = {}
    for name, kind, value, _ in children(sheet):
        key = prefix + name
        if kind == "leaf" and key in values:
            new_leaves[name] = values[key]
        elif kind == "sheet" and any(k.startswith(key + ".") for k in values):
            changed[name] = _rebuild(value, values, key + ".")
        elif kind == "table" and any(k.startswith(key + ".") for k in values):
            changed[name] = tuple(_rebuild(part, values, f"{key}.{k}.") for k, part in value.items())
    if new_leaves:
        sources = {**sheet.sources, **{n: f"{USER_CHOICE}; before: {sheet.sources[n]}" for n in new_leaves}}
        return replace(sheet, sources=sources, **new_leaves, **changed)
    return replace(sheet, **changed) if changed else sheet


def _near(key: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(key, names, n=3, cutoff=0.6)
    last = key.rsplit(".", 1)[-1]
    near += [name for name in names if name.rsplit(".", 1)[-1] == last and name not in near][: 3 - len(near)]
    return f"; did you mean {', '.join(near)}?" if near else "; `pneumoscope study show RECIPE` lists all"


def _shown(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Sheet):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return dict(value) if isinstance(value, dict) else value


def _sheet_from(kind: Any, data: Any, where: str) -> Any:
    """A sheet of class `kind` from a JSON object."""
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    newer = {f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING}
    if not isinstance(data, dict) or not names - newer <= set(data) <= names:
        got = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{where}: expected the entries {sorted(names)}, got {got}; made by another version?")
    names &= set(data)  # an experiment written before a value existed has its default
    leaves = {f.name for f in leaf_fields(kind)}
    values = {name: _value_from(hints[name], data[name], f"{where}.{name}", name in leaves) for name in names}
    return kind(**values)


def _value_from(kind: Any, value: Any, where: str, is_leaf: bool) -> Any:
    if is_leaf:
        try:
            return _parse(value, kind)
        except (ValueError, TypeError, KeyError) as problem:
            raise InputError(f"{where} = {value!r}: expected {_kind_name(kind)}") from problem
    arguments = [a for a in get_args(kind) if a is not NoneType] or [kind]
    part = arguments[0]
    if isinstance(part, type) and issubclass(part, Sheet):
        if get_origin(kind) is tuple:
            return tuple(_sheet_from(part, item, f"{where}.{n}") for n, item in enumerate(value))
        return None if value is None else _sheet_from(part, value, where)
    return tuple(value) if get_origin(kind) is tuple else value
