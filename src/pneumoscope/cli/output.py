"""What verbs print: results on stdout, progress on stderr when a person watches."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from pneumoscope.cli.options import Common
from pneumoscope.errors import printable
from pneumoscope.io.files import jsonable
from pneumoscope.jobs.machines import machines
from pneumoscope.progress import FORECAST, NOTE, Progress, silent

LINE_SECONDS = 60.0  # Between two lines about how far the work is, where no person watches
MAX_BARS = 2  # Bars at a time: the whole and its part. Work that ended early, without reaching its total, makes room.
SHORT = 24  # Characters of a cell that is never wrapped: a name or a number
LONG_SECONDS = 600.0  # The time left is estimated from the pace of so many seconds; a case of a batch takes minutes


def say(text: str = "") -> None:
    """One result line on stdout. A reader that has gone (``| head``) does not stop the work."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        mute()


def remark(text: str) -> None:
    """A line beside the results, on stderr. A reader that has gone does not stop the work."""
    with suppress(OSError):
        print(wrapped(text, sys.stderr), file=sys.stderr, flush=True)


def wrapped(text: str, stream: TextIO | None = None) -> str:
    """A line for people, broken between words where a terminal is narrower; in a pipe it stays one line."""
    if not (stream or sys.stdout).isatty():
        return text
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def mute() -> None:
    """Send what stdout still holds to nowhere, because its reader has closed it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # a stdout without a file behind it has nothing to send
        pass
    finally:
        os.close(nowhere)


def say_json(value: Any) -> None:
    """One JSON document on stdout; ASCII, so that every terminal and pipe takes it."""
    say(json.dumps(jsonable(value), indent=2, allow_nan=False))


def say_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under column names, aligned; a terminal wraps long cells between words, in a pipe a row is a line.

    Names and numbers stay whole: a table of many columns is wider than a narrow terminal.
    """
    from rich.console import Console
    from rich.table import Table

    cells = [[str(cell) if cell is not None else "" for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    least = []
    for index, name in enumerate(columns):
        column = [name, *(row[index] for row in cells)]
        short = all(len(cell) <= SHORT for cell in column)
        least.append(max(len(cell) for cell in column) if short or index == 0 else 0)
        table.add_column(name.upper(), no_wrap=bool(least[-1]), overflow="fold", min_width=least[-1] or None)
    for row in cells:
        table.add_row(*row)
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    width = max(shutil.get_terminal_size().columns, sum(n or SHORT for n in least) + 2 * len(least)) if fits else 10**5
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, emoji=False, highlight=False, color_system=None).print(table)
    for line in stream.getvalue().splitlines():
        say(line.rstrip())


def say_fields(fields: Mapping[str, Any], indent: str = "") -> None:
    """``name: value`` lines; nested mappings are indented, lists are joined or listed, empty values left out."""
    for name, value in fields.items():
        label = f"{indent}{str(name).replace('_', ' ')}:"
        if value is None or value == "" or value == [] or value == {}:
            continue
        if isinstance(value, Mapping):
            say(label)
            say_fields(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
            say(label)
            for item in value:
                say(f"{indent}  - {json.dumps(jsonable(item), ensure_ascii=False)}")
        elif isinstance(value, (list, tuple)):
            say(f"{label} {', '.join(str(item) for item in value)}")
        else:
            say(f"{label} {value}")


def say_result(common: Common, document: Any, shown: str | Mapping[str, Any] | Callable[[], None]) -> None:
    """With ``--json`` the document, else a line, fields, or what `shown` prints."""
    if common.json:
        say_json(document)
    elif callable(shown):
        shown()
    elif isinstance(shown, str):
        say(shown)
    else:
        say_fields(shown)


def number(value: float | None, digits: int = 3) -> str:
    """A score for people; ``-`` where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def interval(low: float | None, high: float | None) -> str:
    """An interval for people; empty where there is none (of a single case, say)."""
    return "" if "-" in (number(low), number(high)) else f"{number(low)} to {number(high)}"


@contextmanager
def progress_for(common: Common) -> Iterator[Progress]:
    """A bar on stderr when it is a terminal, else a line a minute; nothing with ``--quiet``. NO_COLOR is honoured.

    Forecasts and notes (what was made again, and why) are lines on stderr, terminal or not, but for ``--quiet``. The
    block runs where ``--on`` says, and does the part of ``--part``.
    """
    where = machines(common.on, jobs=common.jobs, cluster=common.cluster or (), part=common.part)
    with where, _bars(common) as bars:

        def advance(what: str, done: float, total: int, note: str = "") -> None:
            if what not in (FORECAST, NOTE):
                bars(what, done, total, note)
            elif not common.quiet:
                remark(f"{what}: {printable(note)}")

        yield advance


def _line_a_minute() -> Progress:
    """For log files: how far the work is, with the time of day."""
    due = time.monotonic() + LINE_SECONDS

    def advance(what: str, done: float, total: int, note: str = "") -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + LINE_SECONDS
            remark(f"{time.strftime('%H:%M:%S')} {what}: {int(done)} of {total} {printable(note)}".rstrip())

    return advance


@contextmanager
def _bars(common: Common) -> Iterator[Progress]:
    if common.quiet or not sys.stderr.isatty():
        yield silent if common.quiet else _line_a_minute()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True),
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
    )
    with Bars(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, expand=True,
        speed_estimate_period=LONG_SECONDS,
    ) as bars:  # fmt: skip
        tasks: dict[str, TaskID] = {}  # the work that moved last stands last

        def advance(what: str, done: float, total: int, note: str = "") -> None:
            fields: dict[str, Any] = {"note": printable(note), "count": f"{int(done)}/{total}"}
            if what not in tasks:
                ended = {task.id for task in bars.tasks if task.finished}
                stale = [name for name, task in tasks.items() if task in ended]
                running = [name for name in tasks if name not in stale]
                for name in [*stale, *running[: max(0, len(running) - MAX_BARS + 1)]]:
                    bars.remove_task(tasks.pop(name))
                tasks[what] = bars.add_task(what, total=total, **fields)
                bars.refresh()  # at once, because what follows may keep the interpreter busy
            tasks[what] = tasks.pop(what)
            bars.update(tasks[what], completed=done, total=total, **fields)

        yield advance
