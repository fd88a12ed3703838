"""`import pneumoscope as ps`: light to import, complete, each name what it says."""

import subprocess
import sys

import pytest

import pneumoscope as ps


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
