"""Every option and call that a message of ours names exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from typer.main import get_command

import pneumoscope
import pneumoscope as ps
from pneumoscope.cli.app import app
from pneumoscope.errors import InputError, ReadError
from pneumoscope.geometry import Grid
from pneumoscope.io.read import read_lungs, read_mask_or_probability
from pneumoscope.io.write import write_mask, write_volume
from pneumoscope.recipes.registry import ALL_RECIPES, build_any
from pneumoscope.recipes.settings import describe
from pneumoscope.volume import Mask, Volume

SOURCE = Path(pneumoscope.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?![\w-])")
CALL = re.compile(r"\bpneumoscope(?:\.\w+)+\([^()]*\)")
SETTING = re.compile(r"--set ([a-z_.0-9]+)=")
WITHOUT_A_SWITCH = re.compile(r"allow (?:any|gaps)|give a threshold|any_modality|set draw\.shortage")


OF_OTHER_PROGRAMS = {"--nv", "--gres", "--test-only", "--me", "--name", "--noheader", "--format", "--image"}
"""What Apptainer, SLURM and MONAI are called with."""


@lru_cache
def texts() -> list[tuple[str, str]]:
    """Where and what: every string of the source but documentation."""
    out = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        alone = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
        documentation = {id(value) for value in alone if isinstance(value, ast.Constant)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                out.append((f"{path.relative_to(SOURCE)}:{node.lineno}", node.value))
    return out


def options_of(command: object) -> set[str]:
    own = {name for option in getattr(command, "params", ()) for name in (*option.opts, *option.secondary_opts)}
    return own.union(*(options_of(part) for part in getattr(command, "commands", {}).values()))


def test_every_option_that_a_message_names_exists() -> None:
    known = options_of(get_command(app)) | {"--help"} | OF_OTHER_PROGRAMS
    assert {"--threshold", "--synthetic", "--resume"} <= known
    strangers = {(where, name) for where, text in texts() for name in OPTION.findall(text) if name not in known}
    assert not strangers


def test_every_setting_that_a_message_names_is_one_of_a_recipe() -> None:
    keys = {row["key"] for name in ALL_RECIPES for row in describe(build_any(name))}
    named = {(where, key) for where, text in texts() for key in SETTING.findall(text)}
    assert named
    assert not {(where, key) for where, key in named if key not in keys and not key.startswith("systems.")}


def test_no_message_names_a_switch_that_nobody_can_set() -> None:
    assert not [(where, text) for where, text in texts() if WITHOUT_A_SWITCH.search(text) and " " in text]


def test_every_call_that_a_message_names_exists() -> None:
    named = {(where, call) for where, text in texts() for call in CALL.findall(text)}
    assert named
    for where, call in named:
        path, _, arguments = call.removesuffix(")").partition("(")
        module, name = path.rsplit(".", 1)
        function = getattr(importlib.import_module(module), name)
        keywords = {part.split("=")[0].strip() for part in arguments.split(",") if "=" in part}
        assert keywords <= set(inspect.signature(function).parameters), where


@pytest.fixture
def soft(tmp_path: Path) -> dict[str, Path]:
    """A scan of 4 x 5 x 6 voxels, sided lungs, a mask of probabilities, and the same interpolated to 0..255."""
    affine = np.array([[-0.5, 0, 0, 1], [0, 0.8, 0, 2], [0, 0, 1.2, 3], [0, 0, 0, 1.0]])
    grid = Grid((4, 5, 6), affine)
    rng = np.random.default_rng(0)
    hu = rng.normal(-700, 150, grid.shape).astype(np.float32)
    hu[0], hu[-1] = -1000, 40
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("scan", "lungs", "soft", "grey", "hard")}
    write_volume(Volume.from_native(hu, grid, case="scan", findings=(), source={}), paths["scan"])
    lungs = np.ones(grid.shape, np.uint8)
    lungs[2:] = 2
    write_mask(Mask.from_native(lungs, grid, {1: "right lung", 2: "left lung"}), paths["lungs"], grid)
    p = np.round(rng.random(grid.shape), 3).astype(np.float32)
    import nibabel

    nibabel.save(nibabel.Nifti1Image(p, grid.affine), paths["soft"])
    nibabel.save(nibabel.Nifti1Image(np.rint(p * 255).astype(np.uint8), grid.affine), paths["grey"])
    nibabel.save(nibabel.Nifti1Image((p > 0.3).astype(np.uint8), grid.affine), paths["hard"])
    return paths


@pytest.mark.parametrize(("name", "threshold"), [("soft", 0.3), ("grey", 0.3 * 255)])
def test_a_mask_of_probabilities_is_cut_where_the_message_says(
    soft: dict[str, Path], name: str, threshold: float
) -> None:
    if name == "soft":
        with pytest.raises(ReadError, match="--threshold"):
            ps.quantify(soft["scan"], soft["lungs"], soft[name])
    cut = ps.quantify(soft["scan"], soft["lungs"], soft[name], threshold=threshold)
    hard = ps.quantify(soft["scan"], soft["lungs"], soft["hard"])
    assert cut.as_dict() == hard.as_dict()
    kept = read_mask_or_probability(soft["lungs"], threshold, read_lungs)
    assert set(np.unique(kept.labels)) == {1, 2}, "lungs keep their sides"
    assert ps.evaluate(soft[name], soft["hard"], threshold=threshold).rows[0]["dice"] == 1.0


@pytest.mark.parametrize("threshold", [-0.1, 255.0, float("nan")])
def test_a_threshold_out_of_bounds_is_named(soft: dict[str, Path], threshold: float) -> None:
    with pytest.raises(InputError, match=f"got {threshold}"):
        ps.quantify(soft["scan"], soft["lungs"], soft["soft"], threshold=threshold)


def test_the_verbs_cut_as_well(cli, soft: dict[str, Path], tmp_path: Path) -> None:
    masks = ("--lungs", soft["lungs"], "--infiltrate", soft["soft"])
    cli("quantify", "-i", soft["scan"], *masks, "-o", tmp_path / "a", "--fast").refused("--threshold")
    ran = cli("quantify", "-i", soft["scan"], *masks, "-o", tmp_path / "b", "--fast", "--threshold", 0.3)
    assert ran.code == 0, ran
    ran = cli("evaluate", "-i", soft["soft"], "-r", soft["hard"], "-o", tmp_path / "c", "--threshold", 0.3, "--json")
    assert ran.json["labels"]["label 1"]["dice"]["mean"] == 1.0
    cli("evaluate", "-i", soft["soft"], "-r", soft["hard"], "-o", tmp_path / "d", "--threshold", 300).refused("got 300")
