"""Tables, fields, JSON and bars."""

import json
import sys

import numpy as np
import pytest

from pneumoscope.cli import output
from pneumoscope.cli.options import Common


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
