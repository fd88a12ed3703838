"""Endings: exit codes, one line on stderr, tracebacks only on demand, pipes that close."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import typer

from pneumoscope import __version__
from pneumoscope.cli import app as app_module
from pneumoscope.cli import output
from pneumoscope.cli.app import ending, run
from pneumoscope.cli.options import Common
from pneumoscope.datasets.cache import ArrayCache, Entry
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


@pytest.fixture
def filled(tmp_path):
    cache = ArrayCache(tmp_path / "cache")
    for key in ("aa", "bb"):
        cache.get(key, lambda: Entry({"hu": np.zeros((4, 5, 6), np.float32)}))
    (tmp_path / "cache" / "stamps" / "1.json").write_text("{}")
    return tmp_path / "cache"


def test_it_is_off_and_empty_by_default_and_looking_makes_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.delenv("PNEUMOSCOPE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shown = cli("cache", "show", "--json").json
    assert (shown["used_by_runs"], shown["entries"]) == (False, 0)
    assert shown["folder"] == str(tmp_path / "pneumoscope")
    assert cli("cache", "clear", "--json").json["removed"] == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", [True, False])
def test_entries_are_shown_and_removed(cli, filled, monkeypatch, named):
    more = () if named else ("--folder", filled)
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(filled) if named else "off")
    shown = cli("cache", "show", "--json", *more).json
    assert (shown["used_by_runs"], shown["entries"], shown["folder"]) == (named, 2, str(filled))
    assert shown["last_use"]
    assert "entries: 2" in cli("cache", "show", *more).out
    assert cli("cache", "clear", *more).out == f"2 entries removed from {filled}\n"
    assert not list(filled.rglob("*.npy"))
    assert not list((filled / "stamps").iterdir())
    assert cli("cache", "show", "--json", *more).json["entries"] == 0


def test_files_that_are_no_cache_stay(cli, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(b"mine")
    assert cli("cache", "clear", "--folder", tmp_path).code == 0
    assert (tmp_path / "scan.nii.gz").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_table_is_aligned_and_empty_cells_stay_empty(capsys):
    output.say_table(("name", "licence"), [("a", None), ("longer", "CC BY 4.0")])
    assert capsys.readouterr().out == "NAME    LICENCE\na\nlonger  CC BY 4.0\n"


def test_table_without_rows_is_its_head(capsys):
    output.say_table(("name", "licence"), [])
    assert capsys.readouterr().out == "NAME  LICENCE\n"


def test_fields_nest_and_leave_out_what_is_empty(capsys):
    output.say_fields({"a_b": 1, "none": None, "in": {"x": [1, 2]}, "rows": [{"k": "ü"}], "zero": 0})
    assert capsys.readouterr().out == 'a b: 1\nin:\n  x: 1, 2\nrows:\n  - {"k": "ü"}\nzero: 0\n'


def test_json_is_ascii_and_has_no_nan(capsys):
    output.say_json({"dice": np.float32("nan"), "name": "Größe", "n": np.int64(3)})
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {"dice": None, "name": "Größe", "n": 3}


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_no_bar_without_a_terminal_or_when_quiet(monkeypatch, capsys, terminal, quiet):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with output.progress_for(Common(quiet=quiet)) as progress:
        progress("cases", 1, 2, "p1")
        assert capsys.readouterr().err == ""
        progress("note", 1, 1, "p1 is computed again")
    assert ("computed again" in capsys.readouterr().err) == (not quiet)


@pytest.mark.parametrize(("terminal", "lines"), [(False, 1), (True, 3)])
def test_a_long_error_breaks_between_words_on_a_terminal_only(monkeypatch, capsys, terminal, lines):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    text = "error: " + "a folder without scans; " * 4
    output.remark(text)
    shown = capsys.readouterr().err.splitlines()
    assert (len(shown), max(map(len, shown)) <= 40) == (lines, terminal)
    assert " ".join(" ".join(shown).split()) == text.strip()


def test_bar_on_a_terminal_goes_to_stderr_without_colours(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with output.progress_for(Common()) as progress:
        for what in ("lungs [1]", "infiltrate"):
            for done in range(3):
                progress(what, done, 2, note="loss 0.1")
    out, err = capsys.readouterr()
    assert out == ""
    assert "lungs [1]" in err
    assert "infiltrate" in err
    assert "\x1b[3" not in err  # no colour codes


def test_work_that_stopped_early_makes_room(monkeypatch, capsys):
    import rich.progress

    shown = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    update = rich.progress.Progress.update

    def note_tasks(bars, task, **fields):
        update(bars, task, **fields)
        shown.append([task.description for task in bars.tasks])

    monkeypatch.setattr(rich.progress.Progress, "update", note_tasks)
    with output.progress_for(Common()) as progress:
        for what in ("cases", "lungs", "cases", "infiltrate", "next"):
            progress(what, 1, 9)
    assert shown[-2:] == [["cases", "infiltrate"], ["infiltrate", "next"]]


def test_a_failure_inside_the_bar_is_passed_on(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    def work():
        with output.progress_for(Common()) as progress:
            progress("x", 0, 1)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        work()
