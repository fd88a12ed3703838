from __future__ import annotations

import subprocess
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pneumoscope.geometry import Grid
from pneumoscope.surfaces import still
from pneumoscope.surfaces.mesh import build_mesh
from pneumoscope.surfaces.still import SIZE, draw_still


@pytest.fixture
def meshes():
    """A right lung that reaches high, and a lesion low, in front and on the patient's left."""
    grid = Grid.from_spacing((40, 30, 40), (5, 5, 5), (-100.0, -75.0, -100.0))
    lung, spot = (np.zeros(grid.shape, bool) for _ in range(2))
    lung[25:35, 5:25, 5:35] = True
    spot[4:12, 22:28, 6:14] = True
    return {"right_lung": build_mesh(lung, grid), "infiltrate": build_mesh(spot, grid)}


def check_picture(png):
    """Front half: lung on the viewer's left, lesion low on the right. Side half: the lesion is in front, so left."""
    picture = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    assert picture.shape == (SIZE[1], SIZE[0], 3)
    half = SIZE[0] // 2
    orange = (picture[..., 0] > 120) & (picture[..., 2] < 90) & (picture[..., 0] > picture[..., 1] * 1.4)
    blue = (picture[..., 2] > 60) & (picture[..., 2] > picture[..., 0] * 1.3)
    for mask, side, left, low in (
        (orange[:, :half], "front", False, True),
        (orange[:, half:], "side", True, True),
        (blue[:, :half], "front", True, None),
    ):
        rows, columns = np.nonzero(mask)
        assert len(rows) > 500, side
        assert (columns.mean() < half / 2) == left, side
        assert low is None or (rows.mean() > SIZE[1] / 2) == low, side


def test_vtk_draws_without_a_screen(meshes, monkeypatch, vtk_stills):
    monkeypatch.delenv("DISPLAY", raising=False)
    drawn = draw_still(meshes)
    assert (drawn.by, drawn.reason) == ("vtk", "")
    check_picture(drawn.png)


def test_the_way_without_a_driver(meshes):
    drawn = draw_still(meshes)
    assert (drawn.by, drawn.reason) == ("software", "left out in tests")
    check_picture(drawn.png)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (lambda *a, **k: subprocess.CompletedProcess(a, -11), "exit status -11"),
        (lambda *a, **k: subprocess.CompletedProcess(a, 0), "exit status 0"),
        (lambda *a, **k: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", 5)), "within 5 s"),
        (lambda *a, **k: (_ for _ in ()).throw(OSError()), "no process"),
    ],
    ids=["killed", "no file", "hangs", "no process"],
)
def test_whatever_becomes_of_vtk_there_is_a_picture(meshes, monkeypatch, vtk_stills, ending, reason):
    monkeypatch.setattr(still.subprocess, "run", ending)
    drawn = draw_still(meshes, seconds=5)
    assert drawn.by == "software"
    assert reason in drawn.reason
    check_picture(drawn.png)


def test_nothing_to_draw_says_so():
    drawn = draw_still({})
    assert (drawn.png, drawn.by) == (None, "none")
    assert "no surface" in drawn.reason
