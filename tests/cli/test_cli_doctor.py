"""`pneumoscope doctor`: what is there, what is missing."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from inference.external_models import nnunet_result
from pneumoscope.cli import machines
from pneumoscope.errors import ModelError
from pneumoscope.models import cards


@pytest.fixture
def healthy(monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "SHIPPED", tmp_path)


def test_a_healthy_machine(cli, healthy):
    ran = cli("doctor", "--json")
    assert ran.code == 0, ran
    found = ran.json
    assert found["versions"]["torch"]
    assert "cpu" in found["devices"]
    assert set(found["precisions"]) == {"fp32", "bf16"}
    assert found["memory"]["free_gb"] > 0
    assert found["memory"]["cores"] >= 1
    assert found["problems"] == []
    assert "nothing is missing" in cli("doctor").out


def test_a_missing_package_is_a_problem(cli, healthy, monkeypatch):
    version = metadata.version

    def without_nibabel(name):
        if name == "nibabel":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(machines.metadata, "version", without_nibabel)
    ran = cli("doctor")
    ran.refused("nibabel is missing", code=1)
    assert "problem: the package nibabel is missing" in ran.out


def test_a_damaged_model_is_a_problem(cli, healthy, monkeypatch):
    def broken(name):
        raise ModelError("holds no readable card.json", path=name)

    monkeypatch.setattr(cards, "shipped_models", lambda: ["lungs"])
    monkeypatch.setattr(cards, "find_model", broken)
    cli("doctor").refused("lungs", "card.json", code=1)


def test_low_memory_and_disk_are_notes_not_problems(cli, healthy, monkeypatch):
    monkeypatch.setattr(machines, "LOW_MEMORY_GB", 1e9)
    monkeypatch.setattr(machines, "LOW_DISK_GB", 1e9)
    ran = cli("doctor")
    assert ran.code == 0
    assert ran.out.count("note: ") == 2


def test_a_torch_that_cannot_be_imported(cli, healthy, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    ran = cli("doctor", "--json")
    assert ran.code == 1
    assert any("torch cannot be imported" in problem for problem in ran.json["problems"])


def test_optional_parts_are_those_of_the_extras():
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    declared = {extra: tuple(re.match(r"[\w-]+", line)[0] for line in lines) for extra, lines in extras.items()}
    assert declared == machines.OPTIONAL


def test_weights_of_other_programs_are_found_where_these_keep_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path))
    assert {v for k, v in machines.examine().optional.items() if ":" in k} == {"weights not here"}
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "unet_r231-d5d2fc3d.pth").write_bytes(b"")
    nnunet_result(tmp_path / "Dataset291_TotalSegmentator_part1_organs_1559subj" / "trainer", {})
    found = machines.examine().optional
    assert found["lungmask:R231"] == f"weights in {tmp_path / 'hub' / 'checkpoints'}"
    assert found["lungmask:LTRCLobes"] == "weights not here"
    assert found["totalsegmentator:total"].startswith(f"weights in {tmp_path}")


def test_from_a_bare_source_folder_there_are_no_declared_packages(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machines.metadata, "requires", absent)
    assert machines._requirements() == []
