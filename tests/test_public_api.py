"""`import pneumoscope as ps`: light to import, complete, each name what it says."""

import re
import subprocess
import sys
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import nibabel as nib
import numpy as np
import pytest

import pneumoscope as ps
from pneumoscope.cases.options import AuditOptions
from pneumoscope.errors import InputError, InputTypeError
from pneumoscope.metrics.options import EvaluateOptions
from pneumoscope.models.options import ModelOptions
from pneumoscope.options import made_of
from pneumoscope.study import engine
from pneumoscope.study.options import StudyOptions

AFFINE = np.array([[-0.5, 0, 0.1, 10], [0, -0.8, 0, 20], [0.1, 0, 1.2, -30], [0, 0, 0, 1]])
SHAPE = (16, 18, 8)


def test_import_loads_nothing_heavy():
    code = (
        "import sys, pneumoscope as ps; print([m for m in ('numpy', 'torch', 'pandas', 'typer') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize("name", ps.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert name in dir(ps)
    value = getattr(ps, name)
    assert value if name == "__version__" else value.__doc__


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'read_scam'"):
        _ = ps.read_scam


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert version("pneumoscope") == ps.__version__


def save(path, array, dtype):
    nib.save(nib.Nifti1Image(array.astype(dtype), AFFINE), path)
    return path


@pytest.fixture
def files(tmp_path):
    """A scan with two lungs and infiltrate in one of them, as other programs store them."""
    hu, lungs, infiltrate = np.full(SHAPE, 40.0), np.zeros(SHAPE), np.zeros(SHAPE)
    hu[:2] = -1000
    lungs[3:7, 4:14, 2:6], lungs[9:13, 4:14, 2:6] = 1, 2
    infiltrate[3:5, 4:8, 3:5] = 1
    hu[lungs > 0], hu[infiltrate > 0] = -800, -500
    arrays = {"scan": (hu, np.int16), "lungs": (lungs, np.uint8), "infiltrate": (infiltrate, np.uint8)}
    return {name: save(tmp_path / f"{name}.nii.gz", *array) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("call", "kind", "named"),
    [
        (ps.segment, ModelOptions, {"model"}),
        (ps.evaluate, EvaluateOptions, set()),
        (ps.audit, AuditOptions, set()),
        (ps.run_study, StudyOptions, set()),
    ],
)
def test_editors_and_type_checkers_see_every_option_of_a_call(call, kind, named):
    """The keywords of a call are the fields of its options, with their types."""
    [unpacked] = re.findall(r"Unpack\[(\w+)\]", call.__annotations__["options"])
    keywords = get_type_hints(getattr(sys.modules[kind.__module__], unpacked))
    fields = get_type_hints(kind)
    assert keywords == {name: hint for name, hint in fields.items() if name not in named}
    assert named <= set(signature(call).parameters)


def test_read_scan(files):
    scan = ps.read_scan(files["scan"])
    assert isinstance(scan, ps.Volume)
    assert scan.case == "scan"
    assert scan.hu.min() == -1000


@pytest.mark.parametrize("by", ["path", "object"])
def test_quantify_takes_files_and_objects(files, by):
    from pneumoscope.io.read import read_mask

    scan, infiltrate = files["scan"], files["infiltrate"]
    if by == "object":
        scan, infiltrate = ps.read_scan(scan), read_mask(infiltrate)
    severity = ps.quantify(scan, files["lungs"], infiltrate)
    assert severity.right.share_percent == pytest.approx(100 * 16 / 160)
    assert severity.left.share_percent == 0.0


def test_evaluate(files):
    result = ps.evaluate(files["infiltrate"], files["infiltrate"])
    assert result.rows[0]["dice"] == 1.0


@pytest.mark.parametrize(
    ("call", "option", "value"),
    [
        (ps.evaluate, "spacing_mm", 3.5),
        (ps.evaluate, "threshold", "half"),
        (ps.evaluate, "surface_tolerance_mm", [1]),
        (partial(ps.audit, out="unused"), "repair", 1),
        (partial(ps.audit, out="unused"), "also", "a=b"),
        (partial(ps.audit, out="unused"), "fix", 3),
        (lambda scan, _, **options: ps.segment(scan, **options), "model", [1, "lungs"]),
        (lambda scan, _, **options: ps.segment(scan, **options), "lungs_model", None),
        (lambda scan, _, **options: ps.segment(scan, **options), "device", 0),
        (lambda recipe, _, **options: ps.run_study(recipe, out="unused", **options), "data", "a=b"),
        (lambda recipe, _, **options: ps.run_study(recipe, out="unused", **options), "progress", 1),
    ],
)
def test_an_option_of_another_type_is_named_with_what_it_may_be(call, option, value):
    says = rf"^{option} is {re.escape(repr(value))} of type {type(value).__name__}, expected \w.+"
    with pytest.raises(InputTypeError, match=says):
        call("a", "b", **{option: value})


def test_numbers_and_paths_of_other_libraries_are_taken_as_options():
    made = made_of(EvaluateOptions, {"spacing_mm": np.ones(3, np.float32), "threshold": np.float32(0.5)})
    assert made.threshold == 0.5
    assert made_of(AuditOptions, {"fix": "a", "also": ["b=c"]}).fix == Path("a")
    assert made_of(StudyOptions, {"seed": np.int64(1), "progress": print}).seed == 1


def test_segment_without_the_model_says_which_there_are(files):
    with pytest.raises(ps.PneumoscopeError, match="there is no model 'heart'"):
        ps.segment(files["scan"], model="heart")


def test_segment_with_a_threshold_and_no_lungs_to_cut_is_refused(files):
    with pytest.raises(InputError, match="give lungs too"):
        ps.segment(files["scan"], threshold=0.5)


def test_run_study_passes_on_the_recipe_and_its_settings(monkeypatch, tmp_path):
    calls = []

    def run(*args, **kwargs):
        calls.append((args, kwargs))
        return SimpleNamespace(require_accepted=lambda: None)

    monkeypatch.setattr(engine, "run_study", run)
    ps.run_study("maganaris-2022b", out=tmp_path, settings=["training.seed=9"], data={"1": "x"}, resume=True)
    [((recipe, out), options)] = calls
    assert (recipe, out, options["settings"]) == ("maganaris-2022b", tmp_path, ["training.seed=9"])
    assert options["resume"] is True
    assert {name: str(root) for name, root in options["data"].items()} == {"1": "x"}
