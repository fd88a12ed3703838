"""The house keeps its walls: no import runs in a circle, lazy imports included."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import pneumoscope

ROOT = Path(pneumoscope.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, anywhere in it but for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for part in block.body
        for node in ast.walk(part)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typed:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return found & modules


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of an import circle in order, the first again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a"}}) == []


def test_no_import_runs_in_a_circle() -> None:
    files = {module_name(path): path for path in ROOT.rglob("*.py")}
    graph = {name: imports_of(path, set(files)) - {name} for name, path in files.items()}
    assert sum(map(len, graph.values())) > 500  # the walk sees the house
    assert circle(graph) == []


@pytest.mark.parametrize("room", ["study", "plans", "recipes"])
def test_no_code_asks_what_kind_an_experiment_or_a_case_is(room: str) -> None:
    """What differs by kind is a method of a modality, or an attribute that all kinds have."""
    kinds = {"Experiment", "VolumeExperiment", "XrayExperiment", "OwnPlan", "VolumePlan", "Case", "SliceStack"}
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
                assert not asked & kinds, f"{path}:{node.lineno}"


def test_scripts_and_helpers_of_tests_import_names_that_exist() -> None:
    """Code outside the package that few tests run: a moved name would be noticed by whoever runs it next."""
    house = ROOT.parents[1]
    missing = []
    for path in (file for room in ("benchmarks", "scripts", "tests", "docs") for file in (house / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pneumoscope":
                try:
                    module = import_module(node.module)
                    missing += [
                        f"{path.relative_to(house)}: {node.module}.{alias.name}"
                        for alias in node.names
                        if not hasattr(module, alias.name) and not find_spec(f"{node.module}.{alias.name}")
                    ]
                except ModuleNotFoundError as problem:
                    missing.append(f"{path.relative_to(house)}: {problem}")
    assert not missing
