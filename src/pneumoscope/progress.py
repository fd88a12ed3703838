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
