"""The documents: links that lead somewhere, every verb described, the reference as the program is."""

import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from cli_reference import cli_reference, commands

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CALL = re.compile(r"^ *(?:[\w./]*/)?pneumoscope (?!#)(.+)$", re.MULTILINE)
SPAN = re.compile(r"`pneumoscope ([^`<]+)`")
INDENTED = re.compile(r"^ {4}.*$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_code_in_a_table_has_no_bar():
    """GitHub needs it escaped, the site shows the escape."""
    rows = [row for page in PAGES for row in page.read_text(encoding="utf-8").splitlines() if row.startswith("|")]
    assert len(rows) > 500
    assert not [row for row in rows if re.search(r"`[^`|]*\\\|[^`]*`", row)]


def test_the_index_names_every_page():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(index.read_text(encoding="utf-8"))}
    pages = {page.resolve() for page in (ROOT / "docs").rglob("*.md")} - {index.resolve()}
    assert sorted(p.relative_to(ROOT).as_posix() for p in pages - linked) == []


def test_the_reference_is_up_to_date():
    on_disk = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert on_disk == cli_reference(), "run `make docs`"


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_verb_and_option_has_help(name, command):
    assert f"\n## pneumoscope {name}\n" in cli_reference()
    assert command.help
    assert len(command.help.splitlines()[0]) <= 60, "the first line is shown in lists"
    assert all(parameter.help for parameter in command.params if parameter.name != "help")


def test_every_verb_is_one_call_that_the_reference_names():
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    rows = [
        re.findall(r"`([^`]+)`", cell)
        for line in text.splitlines()
        if line.startswith("| `")
        for cell in line.split("|")
    ]
    cells = [cell for cell in rows if cell]
    table = dict(zip([verb for [verb] in cells[::2]], cells[1::2], strict=True))
    assert sorted(table) == sorted(name for name, _ in commands())
    for call in {name for calls in table.values() for name in calls if "." in name}:
        assert pkgutil.resolve_name(f"pneumoscope.{call.removeprefix('ps.')}"), call


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.relative_to(ROOT).as_posix())  # the first: CHANGELOG
def test_commands_shown_in_documents_exist(page):
    known = dict(commands())
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = [*FENCE.findall(text), *INDENTED.findall(FENCE.sub("", text))]
    for call in [*(call for block in blocks for call in CALL.findall(block)), *SPAN.findall(FENCE.sub("", text))]:
        words = shlex.split(" ".join(call.split()), comments=True)
        verb = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in known), None)
        if words[0].startswith("-") or (len(words) == 1 and any(name.startswith(f"{words[0]} ") for name in known)):
            continue  # an option of the program, or a group of verbs
        assert verb, f"`pneumoscope {call}`: no such verb"
        options = {option for parameter in known[verb].params for option in parameter.opts} | {"-h", "--help"}
        unknown = [word for word in words if re.match("-[a-z-]", word) and word not in options]
        assert not unknown, f"`pneumoscope {call}`: no option {unknown}"


def test_no_path_of_a_developers_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(home|root|work|Users)/", page.read_text(encoding="utf-8")), page
