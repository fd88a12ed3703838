"""One offline HTML file per report: packaged Jinja2 templates, everything inside, nothing fetched.

Every template extends ``base.html``, which forbids the browser to load anything (Content-Security-Policy), escapes all
text, follows the reader's light or dark setting, and begins with the notice that this is no medical device.
Text from outside (case names, findings, cards) passes the autoescape as it is; no template uses ``|safe``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope._version import __version__
from pneumoscope.errors import printable
from pneumoscope.io.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

NOTICE = "Research software, not a medical device. Do not use for diagnosis or treatment."  # Stands in every report
NOT_MEASURABLE = "not measurable"  # What a missing number is called


@cache
def environment() -> Environment:
    """The templates, with autoescape on, missing values an error, and filters for numbers with units."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    env = Environment(
        loader=PackageLoader("pneumoscope.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        number=number, percent=percent, ml=ml, hu=hu, seconds=seconds, signed=signed, by_error=by_error,
        clean=printable, words=words, flat=flat,
    )  # fmt: skip
    env.globals.update(version=__version__, notice=NOTICE)
    return env


def render(template: str, context: Mapping[str, Any]) -> str:
    """The page as text. ``title`` must be in `context`; a value that a template needs and does not get is an error."""
    return environment().get_template(template).render(**context)


def write_page(path: str | Path, template: str, context: Mapping[str, Any]) -> None:
    """Render and write a page, whole or not at all."""
    write_text(path, render(template, context))


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number with fixed digits and its unit; None and NaN are said to be not measurable, never 0."""
    if value is None or value != value:
        return NOT_MEASURABLE
    text = f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")
    if not any(c in text for c in "123456789"):
        text = text.replace("\N{MINUS SIGN}", "")
    return f"{text}\N{NO-BREAK SPACE}{unit}" if unit else text


def percent(value: float | None) -> str:
    """A share in percent with the digits that it carries: one below 10, none above; what is not zero never reads so.

    Readers and networks differ by tenths of a percent of the lung even where nothing is ill.
    """
    if value is not None and 0 < value < 0.05:
        return "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%"
    return number(value, 0 if value is None or value == 0 or value >= 9.95 else 1, "%")


def ml(value: float | None) -> str:
    """A volume in millilitres with the digits that it carries: a border 0.25 mm off moves a lung by tens of ml and a
    lesion of 1 ml by a tenth. Exact volumes stand in the JSON and CSV files.
    """
    if value is not None and 0 < value < 0.05:
        return "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}ml"
    rounded = value if value is None or value != value or abs(value) < 995 else round(value, -1)
    return number(rounded, 0 if value is None or value == 0 or abs(value) >= 9.95 else 1, "ml")


def by_error(value: float | None, error: float | None, unit: str = "") -> str:
    """A number with no more decimals than its error has: 0.0312 with an error of 0.46 reads 0.0."""
    digits = 2 if not error or error != error else min(2, max(0, -math.floor(math.log10(error))))
    return number(value, digits, unit)


def signed(value: float | None, error: float | None = None, unit: str = "") -> str:
    """A difference with its sign, see `by_error`."""
    text = by_error(value, error, unit)
    return f"+{text}" if value is not None and value > 0 and any(c in text for c in "123456789") else text


def hu(value: float | None) -> str:
    """A density in Hounsfield units."""
    return number(value, 0, "HU")


SEVERITY_ROWS = (
    ("Volume", "lung_ml", ml),
    ("Infiltrate", "infiltrate_ml", ml),
    ("Lung involvement", "share_percent", percent),
    ("Ground-glass, by density", "ground_glass_ml", ml),
    ("Consolidation, by density", "consolidation_ml", ml),
    ("Mean density of the lung", "lung_mean_hu", hu),
    ("Mean density of the infiltrate", "infiltrate_mean_hu", hu),
)
"""Rows of every table of a case: what they are called, the field of `LungPart`, and how it is written."""


def seconds(value: float | None) -> str:
    """A duration in seconds."""
    return number(value, 1 if value is None or value >= 1 else 2, "s")


def words(key: str) -> str:
    """An identifier as words: ``one_lung_only`` becomes ``one lung only``."""
    return printable(key).replace("_", " ")


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (name, text) lines for a table: cards come in any shape. What is empty has no line."""
    if value is None or value in ("", [], ()):
        return []
    if isinstance(value, Mapping):
        return [
            line for key, part in value.items() for line in flat(part, f"{prefix} / {words(str(key))}".lstrip(" /"))
        ]
    if isinstance(value, (list, tuple)):
        if all(not isinstance(part, (Mapping, list, tuple)) for part in value):
            return [(prefix, ", ".join(printable(str(part)) for part in value))]
        numbered = enumerate(value, start=1)
        return [line for n, part in numbered for line in flat(part, f"{prefix} {n}" if len(value) > 1 else prefix)]
    if isinstance(value, bool):
        return [(prefix, "yes" if value else "no")]
    return [(prefix, f"{value:.4g}" if isinstance(value, float) else printable(str(value)))]


CARD_FIRST = ("description", "task", "data", "licence", "warning", "limits")
"""Entries of a model card that a reader asks for first."""


def card_table(card: Mapping[str, Any]) -> dict[str, Any]:
    """A model card for the macro `card` of ``parts.html``: title, first rows (lists stay lists), the rest to unfold."""
    first = [(words(key), card[key]) for key in CARD_FIRST if card.get(key)]
    rows = [(key, [printable(str(v)) for v in value] if _plain_list(value) else value) for key, value in first]
    rest = {key: value for key, value in card.items() if key not in (*CARD_FIRST, "title", "name", "format")}
    return {
        "title": str(card.get("title") or card.get("name") or "model"),
        "rows": [row for key, value in rows for row in ([(key, value)] if _plain_list(value) else flat(value, key))],
        "more": flat(rest),
    }


def _plain_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(not isinstance(v, (Mapping, list, tuple)) for v in value)
