"""The `pneumoscope` command: its verbs, and how every ending becomes an exit code and one line on stderr."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from pneumoscope._version import __version__
from pneumoscope.cli import cases, data, machines, model, study
from pneumoscope.cli.options import Common, common_options, new_group
from pneumoscope.cli.output import mute, remark, say, say_json
from pneumoscope.errors import PneumoscopeError, printable, shortage

UsageError = typer.BadParameter.__mro__[1]
"""What typer raises for an unusable call; its own module has moved between versions."""


app = new_group(
    "Pneumonia in chest CT: lungs and infiltrates, severity, transfer studies between hospitals.\n\n"
    "Research software; not a medical device.",
    completion=True,
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"pneumoscope {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        say(context.get_help())


@app.command("version")
@common_options()
def version(common: Common) -> None:
    """Print the version; with --json those of the libraries."""
    if not common.json:
        say(f"pneumoscope {__version__}")
        return
    from importlib.metadata import version as version_of
    from platform import python_version

    libraries = {name: version_of(name) for name in ("torch", "numpy", "nibabel", "pydicom", "SimpleITK")}
    say_json({"pneumoscope": __version__, "python": python_version(), **libraries})


for verb_group in (cases, data, study, model, machines):
    verb_group.add_to(app)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit code; nothing is raised but what ``--debug`` prints."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if argv is None:
        _prepare_process(debug)
    try:
        with _notes(quiet=bool({"--quiet", "-q"} & set(arguments))), _termination() as terminated:
            code = typer.main.get_command(app).main(args=arguments, prog_name="pneumoscope", standalone_mode=False)
        if code == ending(KeyboardInterrupt())[0]:  # the parser turns the exception into its code
            raise Terminated if terminated else KeyboardInterrupt
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        mute()
        return 0
    except SystemExit as problem:  # how the parser ends completion, and --help when a reader closes the pipe
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            mute()
            return 0
        return problem.code if isinstance(problem.code, int) else 0
    except (Exception, KeyboardInterrupt) as problem:
        code, line = ending(problem)
        if debug and not isinstance(problem, UsageError):
            traceback.print_exception(problem)
        remark(line)
        return code


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it: it ends a command as Ctrl-C does."""


@contextmanager
def _termination() -> Iterator[list[int]]:
    """Turn SIGTERM into `Terminated`; gives a list that is not empty once it came."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield came
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Notes(logging.Handler):
    """What the library reports while it works, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        remark(f"note: {printable(record.getMessage())}")


@contextmanager
def _notes(*, quiet: bool) -> Iterator[None]:
    log, handler = logging.getLogger("pneumoscope"), _Notes(logging.ERROR if quiet else logging.WARNING)
    log.addHandler(handler)
    before, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before


def ending(problem: BaseException) -> tuple[int, str]:
    """Exit code and the one line for an exception that reached the top."""
    if isinstance(problem, PneumoscopeError):
        return problem.exit_code, f"error: {problem}"
    if isinstance(problem, UsageError):
        context = getattr(problem, "ctx", None)
        command = context.command_path if context else "pneumoscope"
        message = " ".join(problem.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
        message = message.replace(": Value error, ", ": ")  # as typer calls a choice that is none
        options = [name for one in context.command.params for name in one.opts] if context else []
        if message.startswith("No such option: --part") and "--on" in options:
            message = "--part is for verbs whose cases are independent, which this one's are not; use --on slurm"
        return 2, f"error: {printable(message)}{'' if message.endswith('?') else ';'} see '{command} --help'"
    if isinstance(problem, KeyboardInterrupt):
        code, what = (143, "terminated") if isinstance(problem, Terminated) else (130, "interrupted")
        return code, f"error: {what}; finished files are whole, the rest was not written"
    if isinstance(problem, typer.Abort):
        return 1, "error: aborted"
    if (short := shortage(problem)) is not None:
        return short.exit_code, f"error: {short}"
    if isinstance(problem, OSError) and problem.strerror:
        where = f"{printable(problem.filename)}: " if problem.filename else ""
        return (2 if isinstance(problem, FileNotFoundError) else 1), f"error: {where}{problem.strerror}"
    said = printable(" ".join(f"{type(problem).__name__}: {problem}".split()))
    return 1, f"error: internal {said}; rerun with --debug and report it"


def _prepare_process(debug: bool) -> None:
    """Settings of a process of our own and of its children, before any library is loaded.

    Characters that the terminal lacks are escaped and library warnings kept back. Threads of OpenMP that wait soon
    sleep instead of spinning: beside another busy process they would take the cores from the threads they wait for
    (decision 26). A policy that the user has set stays.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}  # GNU's OpenMP takes the second
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")
