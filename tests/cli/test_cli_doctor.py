"""`pneumoscope doctor`: what is there, what is missing."""

from importlib import metadata

import pytest

from pneumoscope.cli import doctor
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

    monkeypatch.setattr(doctor.metadata, "version", without_nibabel)
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
    monkeypatch.setattr(doctor, "LOW_MEMORY_GB", 1e9)
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    ran = cli("doctor")
    assert ran.code == 0
    assert ran.out.count("note: ") == 2


def test_a_torch_that_cannot_be_imported(cli, healthy, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    ran = cli("doctor", "--json")
    assert ran.code == 1
    assert any("torch cannot be imported" in problem for problem in ran.json["problems"])


def test_from_a_bare_source_folder_there_are_no_declared_packages(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", absent)
    assert doctor._requirements() == []
