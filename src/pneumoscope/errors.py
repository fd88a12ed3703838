"""What pneumoscope raises, and what it notes without raising.

The tree::

    PneumoscopeError             anything we say to a user; `exit_code` decides how the CLI ends
    |-- InputError          (2)  the call or the input is unusable
    |   |-- ReadError            a file or series that must not be read as a chest CT (code `IN-...`)
    |   |-- InputTypeError       a Python value of a type that the call does not take; a TypeError too
    |   |-- GeometryError        grids that are invalid, or differ where they must agree
    |   |-- DatasetError         a folder that is not the dataset it is said to be
    |   `-- ModelError           a model folder that is damaged, of another kind, or unknown
    `-- RunError            (1)  something failed while running
        |-- NonFiniteLossError   the loss left the finite numbers; nothing was updated
        `-- CheckpointError      no checkpoint of the run can be used

Every message says what came, what was expected and what to do, in one line, and names the file.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal


class PneumoscopeError(Exception):
    """Base of every error shown to users without a traceback.

    Args:
        message: one line: what came, what was expected, what to do.
        code: stable code such as ``IN-DCM-006``, listed in docs/reference/input-codes.md.
        path: the file or folder concerned; put in front of the message. Of DICOM only its place, because hospitals
            export under names of patients.
        file: the file itself where `path` does not name it; not part of the message.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, code: str | None = None, path: str | Path | None = None, file: str | Path | None = None
    ) -> None:
        self.message = " ".join(str(message).split())
        self.code = code
        self.path = None if path is None else str(path)
        self.file = None if file is None else str(file)
        super().__init__(self.message)

    def __str__(self) -> str:
        parts = [f"[{self.code}]" if self.code else "", f"{printable(self.path)}:" if self.path else "", self.message]
        return " ".join(part for part in parts if part)

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), self.message, code=self.code, path=self.path, file=self.file), ()


def printable(text: str | Path) -> str:
    """Text from outside made safe for one line of a terminal: control characters become ``?``.

    The two spaces that do not break (before units in our own numbers) stay as they are.
    """
    return "".join(
        c if c.isprintable() or c in "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}" else "?" for c in str(text)
    )


class InputError(PneumoscopeError):
    """The call or the input is unusable."""

    exit_code = 2


class ReadError(InputError):
    """A file or series that must not be read as a chest CT."""


class InputTypeError(InputError, TypeError):
    """A value of a type that the call does not take."""


class GeometryError(InputError):
    """A grid that is invalid, or grids that differ where they must agree."""


class DatasetError(InputError):
    """A folder that is not the dataset it is said to be."""


class ModelError(InputError):
    """A model folder that is damaged, of another kind, or unknown."""


class RunError(PneumoscopeError):
    """Something failed while running."""


def no_such(what: str, name: object, known: Iterable[str]) -> str:
    """``there is no recipe 'x'; did you mean y? known are y, z``: the message for a name that is in no list."""
    from difflib import get_close_matches

    names = list(known)
    folded = {each.casefold(): each for each in names}
    near = get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]}? " if near else ""
    return f"there is no {what} {str(name)!r}; {hint}known are {', '.join(names) or 'none'}"


NO_ROOM = {
    errno.ENOSPC: "No space left on device, the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process or file system allows (ulimit -f)",
    errno.EROFS: "the file system is read-only",
}
_NO_MEMORY = re.compile(
    r"not enough memory|can.?t allocate memory|cannot allocate memory|failed to map segment|bad_alloc|out of memory",
    re.IGNORECASE,
)


_MACHINE = frozenset({errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, *NO_ROOM})


def is_of_machine(problem: BaseException) -> bool:
    """Whether an error of the system says nothing about the file: a disk, a network drive or a limit failed."""
    return isinstance(problem, OSError) and problem.errno in _MACHINE


def shortage(problem: BaseException, path: str | Path | None = None) -> RunError | None:
    """The error for a machine that ran out of disk or memory; None for everything else.

    Args:
        problem: as a library raised it; torch, the dynamic linker and numpy each say it in their own way.
        path: what was being written, where the problem does not name it.
    """
    if isinstance(problem, OSError) and problem.errno in NO_ROOM:
        reason = NO_ROOM[problem.errno]
        return RunError(
            f"could not be written: {reason}; free space or choose another place, and repeat the call",
            path=path or problem.filename or None,
        )
    out_of_memory = isinstance(problem, MemoryError) or (
        isinstance(problem, (OSError, ImportError, RuntimeError)) and _NO_MEMORY.search(str(problem))
    )
    if out_of_memory:
        return RunError(
            "out of memory or address space (ulimit -v); close other programs, work on less side by side, or use a "
            "machine with more"
        )
    return None


class NonFiniteLossError(RunError):
    """The loss is NaN or infinite; the optimiser was not moved."""


class CheckpointError(RunError):
    """No checkpoint of the run can be used."""


@dataclass(frozen=True)
class Finding:
    """Something odd in an input that was accepted or repaired, and is reported."""

    code: str  # stable code, as for errors
    message: str  # what was found and what was done about it
    # ``info`` (harmless), ``warning`` (a reader should know), ``error`` (a result is withheld)
    severity: Literal["info", "warning", "error"] = "warning"
    path: str | None = None  # file concerned, without personal data, or None

    def as_dict(self) -> dict[str, str | None]:
        """The finding as plain JSON values."""
        return asdict(self)
