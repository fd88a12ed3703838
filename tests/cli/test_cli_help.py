"""Help in groups with an example, completion, tables that fit, names that are nearly right."""

from __future__ import annotations

import os
import re
import resource
import shlex
import subprocess
import sys

import pytest
from typer.main import get_command

from cli_reference import commands
from pneumoscope.cli.app import app
from pneumoscope.cli.options import EXAMPLES, GROUPS, VERBS, grouped

NAMES = [name for name, _ in commands()]


def command_of(name):
    command = get_command(app)
    for part in name.split():
        command = command.commands[part]
    return command


@pytest.mark.parametrize("name", NAMES)
def test_help_is_grouped_and_ends_with_an_example(cli, name):
    ran = cli(*name.split(), "-h")
    assert ran.code == 0
    assert ran.err == ""
    assert all(option in ran.out for option in ("--help", "--json", "--quiet", "--debug"))
    assert set(re.findall(r"^(\w+):$", ran.out, re.MULTILINE)) <= {*GROUPS, "Example"}
    assert ran.out.splitlines()[-1] == f"  pneumoscope {EXAMPLES[name]}"
    body = ran.out.split("Example:")[0]
    assert max(map(len, body.splitlines())) <= 80
    assert not re.search(r"<[a-z]|\[\[|\{(?!case\})|list\[|[<>]=|\.\.\.\]\.\.\.", body), body


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_a_call_that_is_understood(name):
    words = shlex.split(EXAMPLES[name])
    assert words[: len(name.split())] == name.split()
    command_of(name).make_context(name, words[len(name.split()) :])  # raises for an unknown option or a missing one


def test_an_option_stands_in_one_group_in_every_verb():
    places: dict[str, set[str]] = {}
    known = {"help", "version", "install_completion", "show_completion"}
    for name in NAMES:
        command = command_of(name)
        known |= {parameter.name for parameter in command.params}
        with command.make_context(name, [], resilient_parsing=True) as ctx:
            for group, rows in grouped(command, ctx).items():
                for option in re.findall(r"--[a-z-]+", " ".join(words for words, _ in rows)):
                    places.setdefault(option, set()).add(group)
    assert places.pop("--from") == {"Models", "Input"}  # a model to `finetune`, a file to `data split`
    assert places["--model"] == {"Models"}
    assert not {name for names in GROUPS.values() for name in names} - known
    assert not {option: groups for option, groups in places.items() if len(groups) > 1}


def test_the_programs_own_help_names_every_verb_once(cli):
    listed = [name for names in VERBS.values() for name in names]
    assert sorted(listed) == sorted(get_command(app).commands)
    assert cli("-h").out.count("\n  segment ") == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_verb_takes_parts_or_says_what_it_takes(cli, name):
    words = [option for one in command_of(name).params for option in one.opts]
    ran = cli(*name.split(), "--part", "1/2")
    assert ran.code == 2
    assert ("use --on slurm" in ran.err) == ("--on" in words and "--part" not in words)
    if "--part" in words:
        assert "--on" in words
        assert "No such option" not in ran.err


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("argv", [["model", "list"], ["data", "list"], ["study", "list"]], ids=" ".join)
def test_tables_fit_the_terminal_and_lose_nothing(cli, monkeypatch, argv, columns):
    whole = cli(*argv).out
    monkeypatch.setenv("COLUMNS", str(columns))
    fitted = cli(*argv).out
    assert max(map(len, fitted.splitlines())) <= columns
    letters = [sorted(re.sub(r"\s", "", text)) for text in (whole, fitted)]
    assert letters[0] == letters[1]


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["model", "info", "Infiltrat"], "did you mean infiltrate?"),
        (["data", "info", "mosmet"], "did you mean mosmed?"),
        (["study", "show", "maganaris-2022"], "did you mean maganaris-2022"),
        (["segmnt"], "Did you mean 'segment'? see 'pneumoscope --help'"),
        (["study", "score", "out", "--data", "phantm:a=x", "--model", "a=infiltrate"], "did you mean phantom?"),
        (["data", "convert", "manifest", "x.csv", "-o", "out", "--to", "nnunt"], "'--to': 'nnunt' is not one of"),
    ],
)
def test_a_name_that_is_nearly_right(cli, argv, hint):
    cli(*argv).refused(hint)


def test_a_name_like_no_other_gets_no_hint(cli):
    ran = cli("model", "info", "qqqq")
    assert "did you mean" not in ran.err
    assert "infiltrate, lungs, xray" in ran.err


def test_version_as_a_verb(cli):
    assert cli("version").out == cli("--version").out
    assert {"pneumoscope", "python", "torch"} <= set(cli("version", "--json").json)


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", ".config/fish")])
def test_completion_is_installed_for_the_shell(tmp_path, shell, file):
    code = f"""
import shellingham, sys
shellingham.detect_shell = lambda: ({shell!r}, "/bin/{shell}")
from pneumoscope.cli import main
sys.exit(main(["--install-completion"]))
"""
    home = {**os.environ, "HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / file).exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("pneumoscope seg", ["segment"]),
        ("pneumoscope data au", ["audit"]),
        ("pneumoscope data info mos", ["mosmed"]),
        ("pneumoscope study show bress", ["bressem-2021", "bressem-2021-reduced", "bressem-2021-small"]),
        ("pneumoscope model info l", ["lungs"]),
        ("pneumoscope segment --uncert", ["--uncertainty"]),
    ],
)
def test_completion_knows_verbs_options_and_names(words, expected):
    asked = {"_PNEUMOSCOPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ran = subprocess.run([sys.executable, "-m", "pneumoscope"], env=os.environ | asked, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == expected


HEAVY = ("torch", "lightning_fabric", "monai", "matplotlib", "SimpleITK", "pandas", "skimage", "cv2", "scipy")
HELPS = [["--help"], [], ["--version"], *([*name.split(), "--help"] for name, _ in commands())]
LISTINGS = [["data", "list"], ["data", "list", "--json"], ["data", "info", "phantom"], ["study", "list"]]
LISTINGS += [["study", "show", "maganaris-2022b", "--json"], ["model", "list"], ["model", "list", "--json"]]
SCRIPT = """
import sys
from pneumoscope.cli import main
for argv in {calls!r}:
    code = main(argv)
    heavy = [name for name in {heavy!r} if name in sys.modules]
    if code or heavy:
        sys.exit(f"{{argv}}: code {{code}}, imported {{heavy}}")
"""


def test_help_and_listings_import_nothing_heavy():
    script = SCRIPT.format(calls=HELPS + LISTINGS, heavy=HEAVY)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("argv", [["--help"], ["data", "list"], ["study", "list"], ["model", "list"]], ids=" ".join)
def test_help_and_listings_answer_in_half_a_second(argv):
    def processor_seconds():  # not by the clock: the machine may be busy with something else
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "pneumoscope", *argv], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(processor_seconds() < 0.5 for _ in range(5))
