"""The notebooks of the documentation run from beginning to end, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
SLOW = {"transfer-study", "own-data"}
"""Those that train."""

RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=600, record_timing=False).execute()
nbformat.write(notebook, sys.argv[2])
"""


def test_there_are_notebooks_and_the_slow_ones_are_among_them():
    names = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert names > SLOW


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in SLOW), id=p.stem) for p in sorted(FOLDER.glob("*.ipynb"))],
)
def test_a_notebook_runs(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    done = Path(os.environ.get("PNEUMOSCOPE_NOTEBOOKS", tmp_path)) / path.name  # set to keep what they show
    ran = subprocess.run([sys.executable, "-c", RUN, path, done], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    cells = nbformat.read(done, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    pages = ["".join(output["data"]["text/html"]) for output in outputs if "text/html" in output.get("data", {})]
    assert any("data:image/png" in page for page in pages)
    assert not [output for output in outputs if output.get("name") == "stderr"]
