"""Endings: exit codes, one line on stderr, tracebacks only on demand, pipes that close."""

import os
import signal
import subprocess
import sys

import pytest
import typer

from pneumoscope import __version__
from pneumoscope.cli import app as app_module
from pneumoscope.cli.app import ending, run
from pneumoscope.errors import InputError, ReadError, RunError


def failing_with(monkeypatch, problem):
    def fail():
        raise problem

    monkeypatch.setattr("pneumoscope.models.cards.shipped_models", fail)


def test_version(cli):
    assert cli("--version").out == f"pneumoscope {__version__}\n"


def test_bare_call_shows_the_help(cli):
    ran = cli()
    assert ran.code == 0
    assert "not a medical device" in ran.out
    assert ran.err == ""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["modell"], "modell"), (["model"], "Missing command"), (["model", "info"], "MODEL"),
        (["model", "list", "--nope"], "--nope"),
        (["data", "phantom", "-o", "x", "--site", "A", "--patients", "0"], "--patients"),
        (["data", "phantom", "-o", "x", "--site", "A", "--patients", "many"], "--patients"),
        (["demo", "--device", "cuda:x"], "cuda:x"), (["demo", "--precision", "fp8"], "fp8"),
        (["demo", "--seed", "-1"], "--seed"), (["segment", "-i", "x", "-o", "y", "--jobs", "0"], "--jobs"),
        (["study", "run", "maganaris-2022b", "-o", "x", "--data", "medseg"], "NAME=VALUE"),
        (["study", "run", "maganaris-2022b", "-o", "x", "--data", "a=b", "--data", "a=c"], "twice"),
        (["study", "run", "maganaris-2022b"], "--out"),
    ],
)  # fmt: skip
def test_unusable_calls_end_in_one_line_and_code_2(cli, argv, words):
    cli(*argv).refused(words, "--help")


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (InputError("is wrong"), 2, "is wrong"),
        (ReadError("cut off", code="IN-NII-001", path="a.nii.gz"), 2, "[IN-NII-001] a.nii.gz: cut off"),
        (RunError("broke"), 1, "broke"),
        (FileNotFoundError(2, "No such file or directory", "x\n.nii"), 2, "x?.nii: No such file"),
        (PermissionError(13, "Permission denied", "out"), 1, "out: Permission denied"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (MemoryError(), 1, "side by side"),
        (ZeroDivisionError("two\nlines"), 1, "internal ZeroDivisionError: two lines; rerun with --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 1, "aborted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_exception_becomes_one_line(cli, monkeypatch, problem, code, words):
    failing_with(monkeypatch, problem)
    ran = cli("model", "list")
    ran.refused(words, code=code)
    assert "Traceback" not in ran.err


def test_debug_adds_the_traceback(cli, monkeypatch):
    failing_with(monkeypatch, ZeroDivisionError("oops"))
    ran = cli("model", "list", "--debug")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("error: internal")


def test_control_characters_of_a_file_name_do_not_reach_the_terminal():
    _, line = ending(FileNotFoundError(2, "No such file", "\x1b[31mred"))
    assert "\x1b" not in line


def test_a_reader_that_leaves_does_not_fail_the_work(start):
    code = "import sys\nfrom pneumoscope.cli.app import run\nsys.exit(run(['study', 'show', 'maganaris-2022b']))\n"
    process = start([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


HELP = "import sys; from pneumoscope.cli.app import run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.parametrize(
    "argv", [["--help"], ["segment", "--help"], ["data", "list"], ["study", "list", "--json"], ["x"]]
)
def test_closed_pipes_are_no_failure_and_print_nothing(start, argv):
    """Both ends closed before anything is printed; an unusable call keeps its code."""
    process = start([sys.executable, "-c", HELP, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == (2 if argv == ["x"] else 0)


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), (["data", "list"], 0), (["x"], 2)])
def test_streams_that_the_caller_closed_are_no_failure(argv, code):
    shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-m", "pneumoscope", *argv]
    assert subprocess.run(shell, check=False).returncode == code


def test_module_and_unusable_call_in_a_process_of_its_own():
    ran = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "model", "info", "/nowhere"], capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1


def test_characters_that_the_terminal_lacks_are_escaped():
    ran = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "model", "info", "größe"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
    )
    assert ran.returncode == 2
    assert b"gr\\xf6\\xdfe" in ran.stderr


def test_library_warnings_are_kept_back_but_not_with_debug(monkeypatch):
    calls = []
    monkeypatch.setattr(app_module.warnings, "simplefilter", lambda action: calls.append(action))
    monkeypatch.setattr(app_module.sys, "warnoptions", [])
    monkeypatch.setattr(app_module.sys, "argv", ["pneumoscope", "--version"])
    assert run() == 0
    assert calls == ["ignore"]
    monkeypatch.setattr(app_module.sys, "argv", ["pneumoscope", "model", "list", "--debug"])
    assert run() == 0
    assert calls == ["ignore"]


def test_interrupted_by_the_user(tmp_path, start, until):
    call = [sys.executable, "-m", "pneumoscope", "data", "phantom", "-o", str(tmp_path / "out"), "--site", "A"]
    process = start(
        [*call, "--patients", "5000", "--size", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: list(tmp_path.glob("out/images/*.nii.gz")), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert err == "error: interrupted; finished files are whole, the rest was not written\n"
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "1"}])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(given):
    code = (
        "import os, sys; from pneumoscope.cli.app import _prepare_process; _prepare_process(False);"
        "assert 'torch' not in sys.modules;"
        "print(*(os.environ.get(name, '-') for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')))"
    )
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ([given.get(name, "-") for name in ours] if given else ["PASSIVE", "1000", "-"])
