"""How long work says how far it is; the CLI turns it into a bar, the library into nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work advances.

    Args:
        what: the work, e.g. ``"Tr1_R_2"`` or ``"segment case_03"``; a new name starts a new bar.
        done: units finished, 0..total.
        total: units in all, at least 1.
        note: a few words beside the bar, e.g. the validation loss.
    """

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Take note of the advance."""


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """The default: say nothing."""


NOTE, FORECAST = "note", "forecast"
"""Names of work whose notes a user must see, bar or no bar: what was made anew and why, and what is to be expected."""


class Noted:
    """A progress that also keeps every `NOTE`, for the files of a run.

    Args:
        progress: told about everything.
    """

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        self.notes: list[str] = []

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """See `Progress`."""
        if what == NOTE and note not in self.notes:
            self.notes.append(note)
        self.progress(what, done, total, note)
