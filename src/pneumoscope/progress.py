"""How long work says how far it is; the CLI turns it into a bar, the library into nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Called as work advances.

    Args:
        what: the work, e.g. ``"Tr1_R_2"`` or ``"segment case_03"``; a new name starts a new bar.
        done: units finished, 0..total; a fraction is of the unit at work.
        total: units in all, at least 1.
        note: a few words beside the bar, e.g. the validation loss.
    """

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        """Take note of the advance."""


def silent(what: str, done: float, total: int, note: str = "") -> None:
    """The default: say nothing."""


NOTE, FORECAST = "note", "forecast"
"""Names of work whose notes a user must see, bar or no bar: what was made again and why, and what is to be expected."""


class Noted:
    """A progress that also keeps every `NOTE`, for the files of a run.

    Args:
        progress: called for everything.
    """

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        self.notes: list[str] = []

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        """See `Progress`."""
        if what == NOTE and note not in self.notes:
            self.notes.append(note)
        self.progress(what, done, total, note)


class OverJobs:
    """A progress for the work inside a job that moves one bar over all jobs.

    Steps named in `shares` become fractions of their job, ``note`` is then the job and its step; other work keeps a bar
    of its own. The bar never goes back.

    Args:
        progress: gets the bar.
        what: the bar's name.
        total: jobs in all.
        shares: step -> its usual share of a job's time, in the order of the steps.
        done: jobs that were done before.
    """

    def __init__(self, progress: Progress, what: str, total: int, shares: Mapping[str, float], done: int = 0) -> None:
        self.progress, self.what, self.total, self.done = progress, what, total, done
        whole, before = sum(shares.values()), 0.0
        self._spans: dict[str, tuple[float, float]] = {}
        for step, share in shares.items():
            self._spans[step] = before / whole, share / whole
            before += share
        self._name, self._far = "", 0.0

    def over(self, jobs: Iterable[tuple[str, T]]) -> Iterator[T]:
        """Hand on jobs, given with their names, and show each as it is taken."""
        for self._name, job in jobs:
            self._far = 0.0
            self._show()
            yield job

    def side_by_side(self, parts: Mapping[str, float]) -> None:
        """Show jobs that are worked on at the same time, by name, and the part of each that is done."""
        self._name, self._far = ", ".join(parts), max(self._far, sum(parts.values()))
        self._show()

    def end(self, done: int, name: str) -> None:
        """A job ended; `done` are ended in all."""
        self.done, self._far = done, max(0.0, self._far - 1)
        self.progress(self.what, min(done + self._far, self.total), self.total, name)

    def __call__(self, what: str, done: float, total: int, note: str = "") -> None:
        """See `Progress`."""
        if what not in self._spans:
            self.progress(what, done, total, note)
            return
        start, share = self._spans[what]
        self._far = max(self._far, start + share * done / total)
        self._show(what)

    def _show(self, step: str = "") -> None:
        note = f"{self._name}: {step}" if step else self._name
        self.progress(self.what, min(self.done + self._far, self.total), self.total, note)
